//! What a rank recorded on a tape, by communicator, and the number that the ranks compare of it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::base::tag::Tag;
use crate::communicator::Identity;
use crate::engine::communicator::Communicator;
use crate::environment::status::{Envelope, PROC_NULL};

/// Which ranks take part in a call, for what ranks compare of their tapes.
#[derive(Clone, Debug)]
pub(crate) enum Traffic {
    /// All of the communicator.
    Collective,
    /// All, in this order: the wait for the call of all ranks of this number, of those that the tape
    /// has of the communicator.
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

/// The calls of a tape.
#[derive(Debug, Default)]
pub(super) struct Calls {
    by_communicator: Vec<CommunicatorCalls>,
    /// Where those of a communicator are in the list.
    places: HashMap<Identity, usize>,
    /// Where the last call was put: the next one is likely to be of the same communicator.
    last: usize,
}

/// The calls of a tape that were made on one communicator, in their order.
#[derive(Debug)]
pub(super) struct CommunicatorCalls {
    /// On no tape: it is kept by one.
    pub(super) comm: Communicator,
    pub(super) entries: Vec<Entry>,
    /// How many of them are of all ranks.
    collectives: usize,
}

impl Calls {
    /// Adds a call. Returns how many calls of all ranks the communicator then has.
    pub(super) fn push(&mut self, comm: &Communicator, entry: Entry) -> usize {
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

    /// A number whose sum over all ranks of the tape, with wrapping, is zero if on each communicator
    /// all its ranks recorded the same calls in the same order, and a receive for each send.
    ///
    /// If they did not, it is zero by chance only, about once in 2⁶⁴ times. The numbers can be
    /// compared from rank to rank, as all run one program: its hash function has fixed keys.
    pub(super) fn fingerprint(&self) -> i64 {
        let parts = self.by_communicator.iter().map(CommunicatorCalls::fingerprint);
        parts.fold(0, i64::wrapping_add)
    }

    pub(super) fn by_communicator(&self) -> &[CommunicatorCalls] {
        &self.by_communicator
    }
}

impl CommunicatorCalls {
    /// The part of [`Calls::fingerprint`].
    ///
    /// Of the calls of all ranks each rank gives a hash, and the first as many times its negative as
    /// there are others: equal ones cancel, and no proper part of them does. A rank that recorded
    /// none gives nothing, as it may not know that there are any. Of messages, the senders add a
    /// hash, and the receivers take it away.
    fn fingerprint(&self) -> i64 {
        let (comm, identity) = (&self.comm, self.comm.identity());
        let mut hasher = DefaultHasher::new();
        let (mut is_empty, mut balance) = (true, 0_i64);
        for Entry { site, traffic } in &self.entries {
            match traffic {
                Traffic::Collective => (site.call, site.seal).hash(&mut hasher),
                Traffic::Wait(number) => number.hash(&mut hasher),
                Traffic::Local => continue,
                Traffic::Messages { send, receive } => {
                    for RecordedMessage { sends, from, to, tag } in
                        messages(comm.rank(), send, receive)
                    {
                        let part = hash(&(identity, from, to, tag));
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

fn hash(value: &impl Hash) -> i64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish().cast_signed()
}

/// A message from or to this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordedMessage {
    pub(super) sends: bool,
    pub(super) from: Rank,
    pub(super) to: Rank,
    pub(super) tag: Tag,
}

/// What a call of `rank` sends and receives.
pub(super) fn messages(
    rank: Rank,
    send: &Option<Envelope>,
    receive: &Option<Envelope>,
) -> impl Iterator<Item = RecordedMessage> {
    // What was never waited for is from nobody.
    let end = |envelope: &Envelope| envelope.known().unwrap_or((mpi_sys::MPI_ANY_SOURCE, -1));
    let send = send
        .as_ref()
        .map(end)
        .map(|(to, tag)| (to, RecordedMessage { sends: true, from: rank, to, tag }));
    // One that was not what it was to be received into has gone nowhere.
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
