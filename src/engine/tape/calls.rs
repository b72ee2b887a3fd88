//! The calls that a rank recorded on a tape, by communicator, and their fingerprint, which the
//! ranks compare.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::base::tag::Tag;
use crate::communicator::Identity;
use crate::engine::communicator::Communicator;
use crate::environment::status::{Envelope, PROC_NULL};

/// Which ranks take part in a call, and so how the ranks compare it.
#[derive(Clone, Debug)]
pub(crate) enum Traffic {
    /// All ranks of the communicator: a collective call.
    Collective,
    /// All ranks of the communicator: the wait for a started collective call. The number is that
    /// call's among the collective calls on the communicator that the tape has, from 1.
    Wait(usize),
    /// This rank only.
    Local,
    /// This rank only: the calls of the checkpoint are recorded themselves.
    Checkpoint,
    /// This rank, and those that it sends a message to and receives one from.
    Messages { send: Option<Envelope>, receive: Option<Envelope> },
}

impl Traffic {
    pub(crate) fn is_collective(&self) -> bool {
        matches!(self, Self::Collective)
    }

    /// The same, without memory of its own where possible. The allocator puts small pieces of memory
    /// that stay, as the calls of a checkpoint do, into the large pieces that its tensors leave, which
    /// then cannot be used again.
    fn finished(self) -> Self {
        match self {
            Self::Messages { send, receive } => Self::Messages {
                send: send.map(|envelope| envelope.finished(true)),
                receive: receive.map(|envelope| envelope.finished(false)),
            },
            other => other,
        }
    }
}

/// A call on a tape.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) site: Site,
    pub(super) traffic: Traffic,
    /// The run of a checkpoint that made the call: an index of [`Calls::runs`], or 0 for none.
    pub(super) run: usize,
}

/// What runs for the first time: a checkpoint, or a step of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Label {
    Function,
    Steps { steps: usize, slots: usize },
    Step(usize),
}

/// The calls of a tape.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// The first runs of checkpoints, each with the one around it, or 0, and counted from 1.
    runs: Vec<(usize, Label)>,
    /// The run that is going on, or 0.
    run: usize,
    by_communicator: Vec<CommunicatorCalls>,
    /// The index of each communicator in the list.
    places: HashMap<Identity, usize>,
    /// The index of the last call's communicator: the next call is likely to be on the same one.
    last: usize,
}

/// The calls of a tape that were made on one communicator, in their order.
#[derive(Debug)]
pub(super) struct CommunicatorCalls {
    /// The communicator, on no tape: a reference to the tape would be a cycle.
    pub(super) comm: Communicator,
    pub(super) entries: Vec<Entry>,
    /// How many of the entries are collective.
    collectives: usize,
}

impl Calls {
    /// Begins the run of a checkpoint. Returns the place to go on from after it.
    pub(super) fn enter(&mut self, label: Label) -> usize {
        self.runs.push((self.run, label));
        std::mem::replace(&mut self.run, self.runs.len())
    }

    /// Goes on from another place than the run that is going on. Returns the place of that run.
    pub(super) fn leave(&mut self, place: usize) -> usize {
        std::mem::replace(&mut self.run, place)
    }

    /// The first runs of checkpoints.
    pub(super) fn runs(&self) -> &[(usize, Label)] {
        &self.runs
    }

    /// Adds a call. Returns the number of collective calls that the communicator then has.
    pub(super) fn push(&mut self, comm: &Communicator, site: Site, traffic: Traffic) -> usize {
        let traffic = if self.run == 0 { traffic } else { traffic.finished() };
        let entry = Entry { site, traffic, run: self.run };
        let identity = comm.identity();
        let is_last = |last: &CommunicatorCalls| last.comm.identity() == identity;
        if !self.by_communicator.get(self.last).is_some_and(is_last) {
            self.last = *self.places.entry(identity).or_insert_with(|| {
                let comm = comm.plain();
                let (entries, collectives) = (Vec::new(), 0);
                self.by_communicator.push(CommunicatorCalls { comm, entries, collectives });
                self.by_communicator.len() - 1
            });
        }
        let calls = &mut self.by_communicator[self.last];
        calls.collectives += usize::from(entry.traffic.is_collective());
        calls.entries.push(entry);
        calls.collectives
    }

    /// How many calls there are.
    pub(super) fn count(&self) -> usize {
        self.by_communicator.iter().map(|calls| calls.entries.len()).sum()
    }

    /// A number whose sum over all ranks of the tape, with wrapping, is zero if on each
    /// communicator all its ranks recorded the same collective calls in the same order, and a
    /// receive for each send.
    ///
    /// If they did not, the sum is zero only by chance, about once in 2⁶⁴ times. Fingerprints can
    /// be compared across ranks because all ranks run the same executable, and
    /// [`DefaultHasher::new`] uses fixed keys: equal values have equal hashes on every rank.
    pub(super) fn fingerprint(&self) -> i64 {
        let parts = self.by_communicator.iter().map(|calls| calls.fingerprint(&self.runs));
        parts.fold(0, i64::wrapping_add)
    }

    /// Notes on the communicators that a backward pass has failed, where it may have left messages on
    /// their way: the next pass would receive them.
    pub(super) fn note_failed_pass(&self) {
        let may_leave =
            |entry: &Entry| !matches!(entry.traffic, Traffic::Collective | Traffic::Checkpoint);
        for calls in self.by_communicator.iter().filter(|c| c.entries.iter().any(may_leave)) {
            calls.comm.turns().note_failed_pass();
        }
    }

    /// Refuses to go back through communicators on which an earlier pass has failed on this rank.
    pub(super) fn check_usable(&self, call: &'static str) -> Result<()> {
        let failed =
            self.by_communicator.iter().find(|calls| calls.comm.turns().have_failed_pass());
        failed.map_or(Ok(()), |calls| {
            let message = format!(
                "an earlier backward pass has failed on this rank, and messages of it may be on \
                 their way on the communicator made by {}; go on with a new communicator",
                calls.comm.handle().made()
            );
            Err(Error::Argument { call, message })
        })
    }

    pub(super) fn by_communicator(&self) -> &[CommunicatorCalls] {
        &self.by_communicator
    }
}

impl CommunicatorCalls {
    /// This communicator's part of [`Calls::fingerprint`].
    ///
    /// Each rank contributes a hash of its collective calls, with the weight 1, but −(m−1) on rank
    /// 0 of the m ranks. Equal hashes of all ranks cancel, and those of only some ranks do not. A
    /// rank that recorded no collective call contributes nothing. For each message the sender adds
    /// a hash, and the receiver subtracts it.
    fn fingerprint(&self, runs: &[(usize, Label)]) -> i64 {
        let mut places = Places::new(runs);
        let (comm, identity) = (&self.comm, self.comm.identity());
        let mut hasher = DefaultHasher::new();
        let (mut is_empty, mut balance) = (true, 0_i64);
        for Entry { site, traffic, run } in &self.entries {
            match traffic {
                Traffic::Collective => {
                    (site.call, site.seal, places.of_collective(*run)).hash(&mut hasher);
                }
                Traffic::Wait(number) => (number, places.of_collective(*run)).hash(&mut hasher),
                Traffic::Local | Traffic::Checkpoint => continue,
                Traffic::Messages { send, receive } => {
                    for message in messages(comm.rank(), send, receive) {
                        let RecordedMessage { sends, from, to, tag } = message;
                        let place = places.of_message(*run, &message);
                        let part = hash(&(identity, from, to, tag, place));
                        let part = if sends { part } else { part.wrapping_neg() };
                        balance = balance.wrapping_add(part);
                    }
                    continue;
                }
            }
            is_empty = false;
        }
        if is_empty {
            return balance;
        }
        let weight = if comm.rank() == 0 { 1 - i64::from(comm.size()) } else { 1 };
        let calls = hash(&(identity, hasher.finish()));
        balance.wrapping_add(calls.wrapping_mul(weight))
    }
}

/// The places of a communicator's calls in checkpoints. They are counted by communicator and, for
/// messages, by the other rank too, so that both ends of a message have the same place.
pub(super) struct Places<'r> {
    runs: &'r [(usize, Label)],
    /// The numbers of the checkpoints, and how many there were so far within each: by the other rank
    /// of the messages.
    numbers: HashMap<(Option<Rank>, usize), u64>,
    counts: HashMap<(Option<Rank>, usize), u64>,
    /// How many messages there were of this direction, to this rank, with this tag.
    messages: HashMap<(bool, Rank, Tag), u64>,
}

impl<'r> Places<'r> {
    pub(super) fn new(runs: &'r [(usize, Label)]) -> Self {
        let (numbers, counts, messages) = Default::default();
        Self { runs, numbers, counts, messages }
    }

    /// The place of a collective call; empty outside of checkpoints.
    pub(super) fn of_collective(&mut self, run: usize) -> Vec<(u64, Label)> {
        self.path(None, run)
    }

    /// The place of a message in checkpoints, and its number among those like it; empty outside.
    pub(super) fn of_message(
        &mut self,
        run: usize,
        message: &RecordedMessage,
    ) -> Option<(Vec<(u64, Label)>, u64)> {
        if self.runs.is_empty() {
            return None;
        }
        let RecordedMessage { sends, from, to, tag } = *message;
        let peer = if sends { to } else { from };
        let number = self.messages.entry((sends, peer, tag)).or_default();
        *number += 1;
        let number = *number;
        (run != 0).then(|| (self.path(Some(peer), run), number))
    }

    /// The checkpoints around a call, from the outermost to the innermost, with their numbers.
    fn path(&mut self, peer: Option<Rank>, run: usize) -> Vec<(u64, Label)> {
        if run == 0 {
            return Vec::new();
        }
        let (around, label) = self.runs[run - 1];
        let mut path = self.path(peer, around);
        let number = *self.numbers.entry((peer, run)).or_insert_with(|| {
            let count = self.counts.entry((peer, around)).or_default();
            *count += 1;
            *count
        });
        path.push((number, label));
        path
    }
}

/// Where a call is by its place in checkpoints, for the text of errors.
pub(super) fn place_text(path: &[(u64, Label)]) -> String {
    let mut text = String::new();
    let mut has_steps = false;
    for (number, label) in path {
        match label {
            Label::Function => text += &format!(" in checkpoint {number}"),
            Label::Steps { steps, slots } => {
                text += &format!(" in checkpoint {number} of {steps} steps with {slots} slots");
            }
            Label::Step(i) if has_steps => text += &format!(", step {i}"),
            Label::Step(_) => (),
        }
        has_steps = matches!(label, Label::Steps { .. });
    }
    text
}

fn hash(value: &impl Hash) -> i64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish().cast_signed()
}

/// A message that this rank sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordedMessage {
    pub(super) sends: bool,
    pub(super) from: Rank,
    pub(super) to: Rank,
    pub(super) tag: Tag,
}

/// The messages that a call of `rank` sends and receives.
pub(super) fn messages(
    rank: Rank,
    send: &Option<Envelope>,
    receive: &Option<Envelope>,
) -> impl Iterator<Item = RecordedMessage> {
    // The sender of a receive from any rank is unknown if it was never waited for.
    let end = |envelope: &Envelope| envelope.known().unwrap_or((mpi_sys::MPI_ANY_SOURCE, -1));
    let send = send
        .as_ref()
        .map(end)
        .map(|(to, tag)| (to, RecordedMessage { sends: true, from: rank, to, tag }));
    // A message that was refused, as it did not fit the tensor to receive, is not recorded.
    let receive = receive
        .as_ref()
        .filter(|envelope| !envelope.is_refused())
        .map(end)
        .map(|(from, tag)| (from, RecordedMessage { sends: false, from, to: rank, tag }));
    [send, receive]
        .into_iter()
        .flatten()
        .filter(|(peer, _)| *peer != PROC_NULL)
        .map(|(_, message)| message)
}
