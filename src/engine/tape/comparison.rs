//! What the ranks tell each other of their tapes if the fingerprints differ, and the text of the
//! error.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use serde::{Deserialize, Serialize};

use super::calls::{
    Calls, CommunicatorCalls, Entry, Places, RecordedMessage, Traffic, messages, place_text,
};
use crate::base::error::Result;
use crate::base::rank::{Rank, index};
use crate::communicator::Identity;
use crate::engine::agreement;
use crate::engine::communicator::Communicator;

/// A rank's calls on one communicator, as it tells them to the others.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    communicator: Identity,
    /// The call that made the communicator, and its line.
    made: String,
    /// The communicator's ranks, as ranks of the tape's communicator.
    members: Vec<Rank>,
    collectives: Vec<Collective>,
    messages: Vec<Message>,
}

/// A message, with its place in checkpoints, which both ends have in common, and its line.
#[derive(Debug, Serialize, Deserialize)]
struct Message {
    message: RecordedMessage,
    place: String,
    site: String,
}

/// A collective call.
#[derive(Debug, Serialize, Deserialize)]
struct Collective {
    /// A number that the call has on all ranks that agreed on it.
    seal: u64,
    name: String,
    line: String,
}

/// This rank's calls, by communicator, on a tape that was made from `tape`.
pub(super) fn told(calls: &Calls, tape: &Communicator) -> Result<Vec<Told>> {
    let told = |of: &CommunicatorCalls| Told::of(of, Places::new(calls.runs()), tape);
    calls.by_communicator().iter().map(told).collect()
}

impl Told {
    fn of(calls: &CommunicatorCalls, mut places: Places, tape: &Communicator) -> Result<Self> {
        let comm = &calls.comm;
        let members = comm.handle().ranks_in("Tape::backward", tape.handle())?;
        let mut told = Self {
            communicator: comm.identity(),
            made: comm.handle().made().to_string(),
            members: members.into_iter().map(|rank| rank.unwrap_or(-1)).collect(),
            collectives: Vec::new(),
            messages: Vec::new(),
        };
        for Entry { site, traffic, run } in &calls.entries {
            let mut collective = |seal, name: String| {
                let name = name + &place_text(&places.of_collective(*run));
                told.collectives.push(Collective { seal, name, line: site.place() });
            };
            match traffic {
                Traffic::Collective => collective(site.seal, site.call.to_owned()),
                Traffic::Wait(number) => {
                    collective(u64::MAX, format!("wait for call {number}"));
                }
                Traffic::Local | Traffic::Checkpoint => (),
                Traffic::Messages { send, receive } => {
                    let messages = messages(comm.rank(), send, receive);
                    for message in messages {
                        let place = places.of_message(*run, &message).map(|(path, number)| {
                            format!("{}, message {number} of its tag", place_text(&path))
                        });
                        let place = place.unwrap_or_default();
                        told.messages.push(Message { message, place, site: site.to_string() });
                    }
                }
            }
        }
        Ok(told)
    }
}

/// How many messages without a counterpart an error names.
const MOST_NAMED: usize = 4;

/// The text of the error: for each communicator, the first collective call that differs, and
/// messages without a counterpart. `all` has the calls of every rank of the tape's communicator
/// `tape`.
pub(super) fn differences(all: &[Vec<Told>], tape: Identity) -> String {
    let mut communicators: Vec<Identity> = Vec::new();
    for told in all.iter().flatten() {
        if !communicators.contains(&told.communicator) {
            communicators.push(told.communicator);
        }
    }
    let mut text = String::new();
    for communicator in communicators {
        let of_it = |rank: &Vec<Told>| rank.iter().position(|t| t.communicator == communicator);
        let told: Vec<Option<&Told>> = all.iter().map(|rank| Some(&rank[of_it(rank)?])).collect();
        let Some(first) = told.iter().flatten().next() else { continue };
        let of_member = |rank: &Rank| told.get(index(*rank)).copied().flatten();
        let by_member: Vec<Option<&Told>> = first.members.iter().map(of_member).collect();
        let lines = differing_call(&by_member, &first.members) + &lost_messages(&by_member, first);
        if lines.is_empty() {
            continue;
        }
        if communicator == tape {
            text += &lines;
        } else {
            let ranks: Vec<String> = first.members.iter().map(ToString::to_string).collect();
            text += &format!(
                "\n  on the communicator of ranks {}, made by {}:{}",
                ranks.join(", "),
                first.made,
                lines.replace('\n', "\n  ")
            );
        }
    }
    text
}

/// The first collective call that differs, if any does.
fn differing_call(told: &[Option<&Told>], members: &[Rank]) -> String {
    let collectives: Vec<&[Collective]> =
        told.iter().map(|told| told.map_or(&[][..], |told| &told.collectives)).collect();
    let most = collectives.iter().map(|calls| calls.len()).max().unwrap_or(0);
    let differs = |&i: &usize| {
        let mut calls = collectives.iter().map(|calls| calls.get(i).map(|c| (c.seal, &c.name)));
        let first = calls.next();
        calls.any(|other| Some(other) != first)
    };
    let Some(i) = (0..most).find(differs) else { return String::new() };
    let name = format!("call {} of all ranks", i + 1);
    let call = |calls: &&[Collective]| {
        calls.get(i).map_or("nothing".to_owned(), |call| format!("{} at {}", call.name, call.line))
    };
    let values: Vec<_> =
        collectives.iter().map(|calls| vec![(name.clone(), call(calls))]).collect();
    let text = agreement::differences(&values, members);
    if !text.is_empty() {
        return text;
    }
    // The calls have one name and one line, but the ranks never agreed on them: they were started
    // with different arguments, they make no MPI call and have different arguments, or they were
    // recorded on different tapes.
    format!("\n  {name}: {}, which the ranks have not agreed on", call(&collectives[0]))
}

/// The messages that lack a counterpart; the first few are named, the rest counted.
fn lost_messages(told: &[Option<&Told>], Told { members, .. }: &Told) -> String {
    let messages = told.iter().flatten().flat_map(|told| &told.messages).map(|message| {
        let RecordedMessage { sends, from, to, tag } = message.message;
        ((from, to, tag, &message.place), sends, message)
    });
    let left = without_counterpart(messages);
    let name = |rank: Rank| members.get(index(rank)).copied().unwrap_or(rank);
    let mut text = String::new();
    for Message { message, place, site } in left.iter().take(MOST_NAMED) {
        let (RecordedMessage { sends, from, to, tag }, at) = (message, format!("{site}{place}"));
        let receiver = name(*to);
        text += &match (*sends, *from) {
            (true, from) => format!(
                "\n  {at} on rank {}, to rank {receiver} with tag {tag}: not received on the tape",
                name(from)
            ),
            (false, mpi_sys::MPI_ANY_SOURCE) => {
                format!("\n  {at} on rank {receiver}, from any rank: never waited for")
            }
            (false, from) => format!(
                "\n  {at} on rank {receiver}, from rank {} with tag {tag}: not sent on the tape",
                name(from)
            ),
        };
    }
    if left.len() > MOST_NAMED {
        text += &format!("\n  and {} more messages", left.len() - MOST_NAMED);
    }
    text
}

/// The items without a counterpart. A counterpart is an item of the other side with the same key.
/// Each item is paired with the earliest such item that has not been paired yet, if there is one.
fn without_counterpart<K: Eq + Hash, T>(items: impl IntoIterator<Item = (K, bool, T)>) -> Vec<T> {
    let mut left: Vec<Option<T>> = Vec::new();
    // For each key, the side of the items that are not paired yet, and their places.
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
    use std::hash::Hasher;

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
