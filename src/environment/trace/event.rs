//! What is recorded, and its lines in the [trace event format] of Chrome.
//!
//! [trace event format]: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::Kind;

use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::base::tag::Tag;

/// A time span on a rank's clock, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interval {
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

/// A communicator: two numbers that its ranks agree on, and the call that made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) identity: [i64; 2],
    pub(crate) made: Site,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([leader, number], Site { call, at, .. }) = (self.identity, self.made);
        write!(f, "{leader}.{number}, made by {call} at {at}")
    }
}

/// What is known of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Details {
    pub(crate) site: Site,
    pub(crate) pass: &'static str,
    pub(crate) group: Group,
    /// Whether the call was only started.
    pub(crate) is_started: bool,
    /// The number of the call whose adjoint this is, or 0.
    pub(crate) adjoint_of: u64,
    /// The bytes and the kind of the larger of the tensors that it reads and writes.
    pub(crate) tensor: Option<(i64, Kind)>,
    /// The rank that a message goes to, the one that a message comes from, and the tag.
    pub(crate) to: Option<Rank>,
    pub(crate) from: Option<Rank>,
    pub(crate) tag: Option<Tag>,
    pub(crate) root: Option<Rank>,
    /// Its number on the tape.
    pub(crate) place: Option<usize>,
    /// How long it has waited for other ranks.
    pub(crate) waited: Duration,
}

/// The messages of one pass on a communicator from one rank to another with one tag: those that arrive
/// in the order in which they are sent. Both ends give it the same name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) identity: [i64; 2],
    pub(crate) pass: &'static str,
    /// Whether it is a message of an exchange, such as that of a halo.
    pub(crate) is_exchange: bool,
    pub(crate) from: Rank,
    pub(crate) to: Rank,
    pub(crate) tag: Tag,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity: [leader, number], pass, from, to, tag, .. } = self;
        let sort = if self.is_exchange { " exchange" } else { "" };
        write!(f, "{leader}.{number} {pass}{sort} {from}>{to} tag {tag}")
    }
}

/// What happened on a thread of this rank.
#[derive(Debug)]
pub(crate) enum Event {
    /// A call, from its beginning to its end or, if it is started, to its start's end.
    Call { at: Interval, thread: u32, details: Box<Details> },
    /// The wait for a started call, at `site`.
    WaitFor { at: Interval, thread: u32, site: Site, details: Box<Details> },
    /// A started call, from its start to the end of the wait for it.
    UnderWay { at: Interval, thread: u32, details: Box<Details> },
    /// A wait for other ranks, inside a recorded call (`is_part`) or outside of one.
    Wait { at: Interval, thread: u32, site: Site, is_part: bool },
    /// One end of a message, within a call of this thread. `number` is that of the call that sends or
    /// receives it.
    Message { at: u64, thread: u32, sends: bool, stream: Stream, number: u64 },
}

/// The categories of lines that are not calls. That of a call is its pass.
pub(super) const WAIT: &str = "wait";
pub(super) const UNDER_WAY: &str = "under way";
pub(super) const MESSAGE: &str = "message";
pub(super) const ADJOINT: &str = "adjoint";

/// A line of the file: an event of the trace event format.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) cat: String,
    pub(super) ph: char,
    /// Microseconds.
    pub(super) ts: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dur: Option<f64>,
    pub(super) pid: Rank,
    pub(super) tid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    /// `e` for an arrow that ends in the slice around it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bp: Option<char>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) args: Map<String, Value>,
}

impl Line {
    /// A slice of a thread's line.
    fn slice(
        (name, cat): (String, &str),
        (rank, thread): (Rank, u32),
        at: Interval,
        args: Map<String, Value>,
    ) -> Self {
        let dur = Some(microseconds(at.end.saturating_sub(at.begin)));
        let line = Self::new((name, cat), 'X', (rank, thread), microseconds(at.begin));
        Self { dur, args, ..line }
    }

    pub(super) fn new(
        (name, cat): (String, &str),
        ph: char,
        (pid, tid): (Rank, u32),
        ts: f64,
    ) -> Self {
        let (dur, id, bp, args) = (None, None, None, Map::new());
        Self { name, cat: cat.to_owned(), ph, ts, dur, pid, tid, id, bp, args }
    }

    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("its keys are strings"))
    }

    /// The number among its arguments, or 0.
    pub(super) fn number(&self, name: &str) -> u64 {
        self.args.get(name).and_then(Value::as_u64).unwrap_or(0)
    }
}

impl Event {
    pub(super) fn lines(&self, rank: Rank) -> Vec<Line> {
        match self {
            Self::Call { at, thread, details } => {
                let name = (details.name(), details.pass);
                vec![Line::slice(name, (rank, *thread), *at, details.args())]
            }
            Self::WaitFor { at, thread, site, details } => {
                // In the backward pass it is reported at the site of the start.
                let name = if site.call == details.site.call { "wait" } else { site.call };
                let mut args = details.args();
                // These are the start's.
                let number = args.remove("number");
                args.remove("adjoint_of");
                args.remove("tape");
                args.insert("of".to_owned(), number.unwrap_or_default());
                args.insert("call".to_owned(), details.name().into());
                args.insert("line".to_owned(), site.at.to_string().into());
                vec![Line::slice((name.to_owned(), details.pass), (rank, *thread), *at, args)]
            }
            Self::UnderWay { at, thread, details } => {
                let ends = [('b', at.begin), ('e', at.end)];
                let line = |(ph, ts): (char, u64)| {
                    let name = (details.name(), UNDER_WAY);
                    let line = Line::new(name, ph, (rank, *thread), microseconds(ts));
                    Line { id: Some(format!("{rank}.{}", details.site.number)), ..line }
                };
                ends.map(line).into()
            }
            Self::Wait { at, thread, site, is_part } => {
                let mut args = Map::new();
                let name = if *is_part { "waiting" } else { site.call };
                if !is_part {
                    if site.number != 0 {
                        args.insert("number".to_owned(), site.number.into());
                    }
                    args.insert("line".to_owned(), site.at.to_string().into());
                }
                vec![Line::slice((name.to_owned(), WAIT), (rank, *thread), *at, args)]
            }
            Self::Message { at, thread, sends, stream, number } => {
                let ph = if *sends { 's' } else { 'f' };
                let name = (MESSAGE.to_owned(), MESSAGE);
                let mut line = Line::new(name, ph, (rank, *thread), microseconds(*at));
                line.id = Some(stream.to_string());
                line.bp = (!sends).then_some('e');
                line.args.insert("number".to_owned(), (*number).into());
                vec![line]
            }
        }
    }
}

impl Details {
    /// The method's name: that of a started call has an `i` before it.
    fn name(&self) -> String {
        let call = self.site.call;
        match call.rsplit_once("::") {
            _ if !self.is_started => call.to_owned(),
            Some((path, method)) => format!("{path}::i{method}"),
            None => format!("i{call}"),
        }
    }

    pub(crate) fn waited_us(&self) -> f64 {
        self.waited.as_secs_f64() * 1e6
    }

    fn args(&self) -> Map<String, Value> {
        let number = |number: u64| (number != 0).then(|| Value::from(number));
        let (bytes, kind) = self.tensor.unzip();
        let all = [
            ("number", number(self.site.number)),
            ("adjoint_of", number(self.adjoint_of)),
            ("line", Some(self.site.at.to_string().into())),
            ("communicator", Some(self.group.to_string().into())),
            ("bytes", bytes.map(Value::from)),
            ("kind", kind.map(|kind| format!("{kind:?}").into())),
            ("to", self.to.map(Value::from)),
            ("from", self.from.map(Value::from)),
            ("tag", self.tag.map(Value::from)),
            ("root", self.root.map(Value::from)),
            ("tape", self.place.map(Value::from)),
            ("waited_us", Some(self.waited_us().into())),
        ];
        let some = all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        some.collect()
    }
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}
