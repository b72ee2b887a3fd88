//! A job of ranks that wait for their turns.

use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::protocol::{Answer, Case, Channel, Direction, Order, SOCKET, Works};

/// How long a job may take to start, to answer, and to end.
const START: Duration = Duration::from_secs(120);
const ANSWER: Duration = Duration::from_secs(120);
const END: Duration = Duration::from_secs(20);

pub struct Job {
    pub name: String,
    /// What the MPI library says of its version.
    pub library: String,
    ranks: Vec<Channel>,
    launcher: Child,
    socket: PathBuf,
}

impl Job {
    /// Starts a launcher, whose ranks connect to the socket that a variable names.
    pub fn start(name: &str, mut command: Command, ranks: usize) -> Result<Self, Box<dyn Error>> {
        let socket = format!("mpi4tch-bench-{}-{name}.socket", std::process::id());
        let socket = std::env::temp_dir().join(socket);
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        let launcher = command.env(SOCKET, &socket).stdin(Stdio::null()).spawn();
        let launcher = launcher.map_err(|error| {
            format!("cannot start {}: {error}", command.get_program().display())
        })?;
        let (name, library) = (name.to_owned(), String::new());
        let mut job = Self { name, library, ranks: Vec::new(), launcher, socket };
        let deadline = Instant::now() + START;
        while job.ranks.len() < ranks {
            match listener.accept() {
                Ok((stream, _)) => job.ranks.push(connected(stream)?),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                Err(_) => {
                    if let Some(status) = job.launcher.try_wait()? {
                        return Err(job.failed(format!("ended at its start: {status}")));
                    }
                    if Instant::now() > deadline {
                        return Err(job.failed("does not start"));
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
        for answer in job.answers()? {
            match answer {
                Answer::Ready(library) => job.library = library,
                other => return Err(job.failed(format!("answers {other:?}"))),
            }
        }
        Ok(job)
    }

    /// What the job can time for the case.
    pub fn prepare(&mut self, case: &Case) -> Result<Works, Box<dyn Error>> {
        self.ask(&Order::Prepare(case.clone()))?;
        match self.answers()?.swap_remove(0) {
            Answer::Prepared(works) => Ok(works),
            other => Err(self.failed(format!("answers {other:?}"))),
        }
    }

    /// The microseconds that a call took on the slowest rank.
    pub fn turn(
        &mut self,
        direction: Direction,
        work: usize,
        calls: u32,
        warms: bool,
    ) -> Result<f64, Box<dyn Error>> {
        self.ask(&Order::Turn { direction, work, calls, warms })?;
        let mut slowest: f64 = 0.0;
        for answer in self.answers()? {
            match answer {
                Answer::Time(time) => slowest = slowest.max(time),
                other => return Err(self.failed(format!("answers {other:?}"))),
            }
        }
        Ok(slowest)
    }

    fn ask(&mut self, order: &Order) -> Result<(), Box<dyn Error>> {
        self.ranks.iter_mut().try_for_each(|rank| rank.send(order))
    }

    /// An answer from each rank.
    fn answers(&mut self) -> Result<Vec<Answer>, Box<dyn Error>> {
        let mut answers = Vec::with_capacity(self.ranks.len());
        for rank in 0..self.ranks.len() {
            match self.ranks[rank].receive() {
                Ok(Some(Answer::Error(error))) => return Err(self.failed(error)),
                Ok(Some(answer)) => answers.push(answer),
                Ok(None) => return Err(self.failed("has ended")),
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(answers)
    }

    fn failed(&self, reason: impl Display) -> Box<dyn Error> {
        format!("the job of {}: {reason}", self.name).into()
    }
}

fn connected(stream: UnixStream) -> Result<Channel, Box<dyn Error>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ANSWER))?;
    Ok(Channel::new(stream))
}

impl Drop for Job {
    /// Closes the connections, by which the ranks know that they are done.
    fn drop(&mut self) {
        self.ranks.clear();
        let deadline = Instant::now() + END;
        while let Ok(None) = self.launcher.try_wait() {
            if Instant::now() > deadline {
                let _ = self.launcher.kill();
                let _ = self.launcher.wait();
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = fs::remove_file(&self.socket);
    }
}
