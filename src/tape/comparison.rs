//! What the ranks compare of their tapes before a backward pass, and what is said if it differs.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::agreement;
use crate::communicator::Rank;
use crate::site::Site;
use crate::status::{Envelope, PROC_NULL, Tag};

/// Which ranks take part in a call, for what ranks compare of their tapes.
#[derive(Clone, Debug)]
pub(crate) enum Traffic {
    /// All.
    Collective,
    /// All, in this order: the wait for the tape's call of all ranks of this number.
    Wait(usize),
    /// This one only.
    Local,
    /// This one and those that its messages go to and come from.
    Messages { send: Option<Envelope>, receive: Option<Envelope> },
}

impl Traffic {
    pub(crate) fn is_collective(&self) -> bool {
        matches!(self, Self::Collective)
    }
}

/// A call on a tape.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) site: Site,
    pub(super) traffic: Traffic,
}

/// What ranks compare: of the calls of all ranks, a number that is the same for the same calls; of
/// messages, one that the sends of all ranks add to and the receives take from.
pub(super) fn fingerprint(rank: Rank, calls: &[Entry]) -> [i64; 2] {
    let mut collective = DefaultHasher::new();
    let mut balance = 0_i64;
    for Entry { site, traffic } in calls {
        match traffic {
            Traffic::Collective => site.call.hash(&mut collective),
            Traffic::Wait(number) => number.hash(&mut collective),
            Traffic::Local => (),
            Traffic::Messages { send, receive } => {
                for Message { sends, from, to, tag } in messages(rank, send, receive) {
                    let part = hash(&(from, to, tag));
                    balance = balance.wrapping_add(if sends { part } else { part.wrapping_neg() });
                }
            }
        }
    }
    [collective.finish().cast_signed(), balance]
}

fn hash(value: &impl Hash) -> i64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish().cast_signed()
}

/// A message from or to this rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    sends: bool,
    from: Rank,
    to: Rank,
    tag: Tag,
}

impl Message {
    /// Whether the one is the other's counterpart.
    fn meets(&self, other: &Self) -> bool {
        *self == Self { sends: !other.sends, ..other.clone() }
    }
}

/// What a call sends and receives.
fn messages(
    rank: Rank,
    send: &Option<Envelope>,
    receive: &Option<Envelope>,
) -> impl Iterator<Item = Message> {
    // What was never waited for is from nobody.
    let end = |envelope: &Envelope| envelope.known().unwrap_or((mpi_sys::MPI_ANY_SOURCE, -1));
    let send =
        send.as_ref().map(end).map(|(to, tag)| (to, Message { sends: true, from: rank, to, tag }));
    // One that was not what it was to be received into has gone nowhere.
    let receive = receive
        .as_ref()
        .filter(|envelope| !envelope.is_refused())
        .map(end)
        .map(|(from, tag)| (from, Message { sends: false, from, to: rank, tag }));
    [send, receive]
        .into_iter()
        .flatten()
        .filter(|(peer, _)| *peer != PROC_NULL)
        .map(|(_, message)| message)
}

/// A call as the ranks tell each other of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Collective { what: String, at: String },
    Message { message: Message, at: String },
}

fn lines(rank: Rank, calls: &[Entry]) -> impl Iterator<Item = Line> {
    calls.iter().flat_map(move |Entry { site, traffic }| {
        let collective = |what: String| {
            let at = format!("{what} at {}", site.at);
            vec![Line::Collective { what, at }]
        };
        match traffic {
            Traffic::Collective => collective(site.call.to_owned()),
            Traffic::Wait(number) => collective(format!("wait for call {number}")),
            Traffic::Local => Vec::new(),
            Traffic::Messages { send, receive } => messages(rank, send, receive)
                .map(|message| Line::Message { message, at: site.to_string() })
                .collect(),
        }
    })
}

pub(super) fn encode(rank: Rank, calls: &[Entry]) -> String {
    let lines = lines(rank, calls).map(|line| match line {
        Line::Collective { what, at } => format!("{what}\t{at}"),
        Line::Message { message: Message { sends, from, to, tag }, at } => {
            format!("{}\t{from}\t{to}\t{tag}\t{at}", if sends { ">" } else { "<" })
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

pub(super) fn decode(text: &[u8]) -> Vec<Line> {
    let text = String::from_utf8_lossy(text);
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            [what, at] => Some(Line::Collective { what: what.to_owned(), at: at.to_owned() }),
            [direction, from, to, tag, at] => Some(Line::Message {
                message: Message {
                    sends: direction == ">",
                    from: from.parse().ok()?,
                    to: to.parse().ok()?,
                    tag: tag.parse().ok()?,
                },
                at: at.to_owned(),
            }),
            _ => None,
        }
    };
    text.lines().filter_map(line).collect()
}

/// How many messages without a counterpart an error names.
const MOST_NAMED: usize = 4;

/// The first call of all ranks that differs, and messages without a counterpart.
pub(super) fn differences(all: &[Vec<Line>]) -> String {
    let collectives: Vec<Vec<(&str, &str)>> = all
        .iter()
        .map(|lines| {
            let collectives = lines.iter().filter_map(|line| match line {
                Line::Collective { what, at } => Some((what.as_str(), at.as_str())),
                Line::Message { .. } => None,
            });
            collectives.collect()
        })
        .collect();
    let most = collectives.iter().map(Vec::len).max().unwrap_or(0);
    let what = |rank: &Vec<(&str, &str)>, i: usize| rank.get(i).map(|(what, _)| (*what).to_owned());
    let differs =
        |&i: &usize| collectives.iter().any(|rank| what(rank, i) != what(&collectives[0], i));
    let mut text = String::new();
    if let Some(i) = (0..most).find(differs) {
        let name = format!("call {} of all ranks", i + 1);
        let values: Vec<_> = collectives
            .iter()
            .map(|rank| {
                let at = rank.get(i).map_or("nothing", |(_, at)| at);
                vec![(name.clone(), at.to_owned())]
            })
            .collect();
        text += &agreement::differences(&values);
    }
    let mut left: Vec<(&Message, &str)> = Vec::new();
    for line in all.iter().flatten() {
        let Line::Message { message, at } = line else { continue };
        match left.iter().position(|(other, _)| other.meets(message)) {
            Some(place) => {
                left.remove(place);
            }
            None => left.push((message, at)),
        }
    }
    for (Message { sends, from, to, tag }, at) in left.iter().take(MOST_NAMED) {
        text += &match (*sends, *from) {
            (true, _) => format!(
                "\n  {at} on rank {from}, to rank {to} with tag {tag}: not received on the tape"
            ),
            (false, mpi_sys::MPI_ANY_SOURCE) => {
                format!("\n  {at} on rank {to}, from any rank: never waited for")
            }
            (false, _) => format!(
                "\n  {at} on rank {to}, from rank {from} with tag {tag}: not sent on the tape"
            ),
        };
    }
    if left.len() > MOST_NAMED {
        text += &format!("\n  and {} more messages", left.len() - MOST_NAMED);
    }
    text
}
