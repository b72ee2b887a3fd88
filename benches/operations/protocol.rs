//! What the driver of the benchmark and the ranks of its jobs say to each other: lines of JSON.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The variable that tells a rank the path of its job's socket.
pub const SOCKET: &str = "MPI4TCH_BENCH_SOCKET";

/// How an operation is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    Blocking,
    /// Started, and waited for.
    Started,
    /// Blocking, with the counts of all ranks given, so that no sizes travel.
    Counts,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Blocking => "blocking",
            Self::Started => "started",
            Self::Counts => "counts",
        })
    }
}

/// The passes that are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Forward,
    /// Of a graph that is kept, from a given cotangent.
    Backward,
    /// Forward and backward, from a given cotangent.
    Both,
}

impl Direction {
    pub const ALL: [Self; 3] = [Self::Forward, Self::Backward, Self::Both];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Both => "forward and backward",
        })
    }
}

/// An operation on buffers of a size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    pub operation: String,
    pub way: Way,
    /// Of the largest buffer of the call on one rank.
    pub bytes: usize,
}

impl Case {
    pub fn is(&self, operation: &str, way: Way, bytes: usize) -> bool {
        self.operation == operation && self.way == way && self.bytes == bytes
    }
}

/// The names of the works that a job can time for a case. That of this crate is [`OURS`]; the others of
/// its job are raw MPI's, named by their calls.
pub type Works = BTreeMap<Direction, Vec<String>>;

/// The name of this crate's work.
pub const OURS: &str = "mpi4tch";

/// From the driver to each rank.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Prepare(Case),
    /// Time `calls` calls of the work of this number; if it `warms` up, after one that is not timed.
    Turn {
        direction: Direction,
        work: usize,
        calls: u32,
        warms: bool,
    },
}

/// From a rank to the driver.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The rank has started, with this MPI library.
    Ready(String),
    Prepared(Works),
    /// The microseconds that a call took on this rank.
    Time(f64),
    Error(String),
}

/// One end of a connection. Whoever waits for a line sleeps, and takes no time of others.
pub struct Channel(BufReader<UnixStream>);

impl Channel {
    pub fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    pub fn send(&mut self, message: &impl Serialize) -> Result<(), Box<dyn Error>> {
        let line = serde_json::to_string(message)? + "\n";
        Ok(self.0.get_mut().write_all(line.as_bytes())?)
    }

    /// The next message; none once the other end is closed.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Box<dyn Error>> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_str(&line)?)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
