//! What the ranks compare of their tapes before a backward pass, and what is said if it differs.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::base::tag::Tag;
use crate::engine::agreement;
use crate::environment::status::{Envelope, PROC_NULL};

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
            Traffic::Collective => (site.call, site.seal).hash(&mut collective),
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
        let at = |what: &str| format!("{what} at {}", site.at);
        match traffic {
            Traffic::Collective => {
                let what = format!("{} {:x}", site.call, site.seal);
                vec![Line::Collective { what, at: at(site.call) }]
            }
            Traffic::Wait(number) => {
                let what = format!("wait for call {number}");
                vec![Line::Collective { at: at(&what), what }]
            }
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
    let differs = |&i: &usize| {
        let mut what = collectives.iter().map(|rank| rank.get(i).map(|(what, _)| what));
        let first = what.next();
        what.any(|other| Some(other) != first)
    };
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
        if text.is_empty() {
            // Started by all on the same line, but with other arguments, or for another tape.
            let at = collectives[0].get(i).map_or("nothing", |(_, at)| at);
            text += &format!("\n  {name}: {at}, which the ranks have not agreed on");
        }
    }
    let messages = all.iter().flatten().filter_map(|line| match line {
        Line::Message { message, at } => {
            let Message { sends, from, to, tag } = message;
            Some(((from, to, tag), *sends, (message, at)))
        }
        Line::Collective { .. } => None,
    });
    let left = without_counterpart(messages);
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

/// The items that have no counterpart, which is an item of the other side with the same key. Each is
/// the counterpart of one at most, of those that have come in vain the first.
fn without_counterpart<K: Eq + Hash, T>(items: impl IntoIterator<Item = (K, bool, T)>) -> Vec<T> {
    let mut left: Vec<Option<T>> = Vec::new();
    // For each key the side of those that are left, and their places.
    let mut open: HashMap<K, (bool, VecDeque<usize>)> = HashMap::new();
    for (key, side, item) in items {
        let (open_side, places) = open.entry(key).or_insert((side, VecDeque::new()));
        match (*open_side != side).then(|| places.pop_front()).flatten() {
            Some(place) => left[place] = None,
            None => {
                *open_side = side;
                places.push_back(left.len());
                left.push(Some(item));
            }
        }
    }
    left.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn messages_without_a_counterpart_are_those_that_are_too_many() {
        let items = [
            ("a", true, 0),
            ("b", false, 1),
            ("a", true, 2),
            ("a", false, 3),
            ("c", false, 4),
            ("b", true, 5),
            ("b", true, 6),
            ("a", true, 7),
        ];
        assert_eq!(without_counterpart(items), [2, 4, 6, 7]);
    }

    thread_local! {
        /// How many keys were compared.
        static STEPS: Cell<usize> = const { Cell::new(0) };
    }

    #[derive(Eq)]
    struct Key(usize);

    impl PartialEq for Key {
        fn eq(&self, other: &Self) -> bool {
            STEPS.set(STEPS.get() + 1);
            self.0 == other.0
        }
    }

    impl Hash for Key {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    #[test]
    fn each_message_is_compared_with_one_at_most() {
        const COUNT: usize = 2000;
        for keys in [1, 10, COUNT] {
            STEPS.set(0);
            let side = |sends: bool| (0..COUNT).map(move |i| (Key(i % keys), sends, i));
            assert_eq!(without_counterpart(side(true).chain(side(false))), [0; 0]);
            let steps = STEPS.get();
            assert!(steps <= 4 * COUNT, "{steps} steps for {COUNT} messages of {keys} keys");
        }
    }
}
