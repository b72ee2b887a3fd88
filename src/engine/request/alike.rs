//! Which messages are alike: MPI might match the counterpart of one with the other, so that their
//! order decides.

use std::sync::Arc;

use crate::base::rank::Rank;
use crate::base::tag::Tag;
#[cfg(test)]
use crate::engine::communicator::Caller;
use crate::engine::communicator::Lane;
use crate::engine::tape::{Record, Traffic};
use crate::environment::status::{Envelope, PROC_NULL, Source, TagMatch};

/// The key of a queue of messages: a property that they share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// The messages on a communicator, in one direction, that were started with this rank and this
    /// tag.
    Started { lane: Lane, sends: bool, rank: Part<Rank>, tag: Part<Tag> },
    /// The messages on the tape whose record is at this address. The entries keep the record alive.
    Tape(usize),
}

/// The rank or the tag of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part<T> {
    /// Messages that were started with this one.
    Is(T),
    /// Messages that were started with a wildcard.
    Wildcard,
    /// All messages.
    Each,
}

impl Key {
    /// The keys of all queues that a message is entered in when it is started.
    pub(super) fn of_started(
        lane: Lane,
        traffic: &Traffic,
        tape: Option<&Arc<Record>>,
    ) -> Vec<Self> {
        let mut keys = keys_of(lane, traffic, |envelope| {
            let (rank, tag) = started_with(envelope);
            (vec![rank, Part::Each], vec![tag, Part::Each])
        });
        keys.extend(tape.map(Self::of_tape));
        keys
    }

    /// The keys of the queues that hold the messages like this one. If it was started with a
    /// wildcard and has been received, the rank and tag received count.
    pub(super) fn of_those_like(lane: Lane, traffic: &Traffic) -> Vec<Self> {
        keys_of(lane, traffic, |envelope| {
            let known = envelope.known().map(|(rank, tag)| (Part::Is(rank), Part::Is(tag)));
            let (rank, tag) = known.unwrap_or_else(|| started_with(envelope));
            (rank.alike(), tag.alike())
        })
    }

    /// The key of the queue of the messages on a tape.
    pub(super) fn of_tape(tape: &Arc<Record>) -> Self {
        Self::Tape(Arc::as_ptr(tape).addr())
    }
}

impl<T> Part<T> {
    /// The entries of keys of those that may match it.
    fn alike(self) -> Vec<Self> {
        match self {
            Self::Is(_) => vec![self, Self::Wildcard],
            Self::Wildcard | Self::Each => vec![Self::Each],
        }
    }
}

/// The keys of all pairs of the ranks and tags that `parts` returns, for the message sent and for
/// the message received.
fn keys_of(
    lane: Lane,
    traffic: &Traffic,
    parts: impl Fn(&Envelope) -> (Vec<Part<Rank>>, Vec<Part<Tag>>),
) -> Vec<Key> {
    let Traffic::Messages { send, receive } = traffic else { return Vec::new() };
    let mut keys = Vec::new();
    for (sends, envelope) in [(true, send), (false, receive)] {
        // A message to or from PROC_NULL is like no other.
        let goes = |envelope: &&Envelope| envelope.source() != Source::Rank(PROC_NULL);
        let Some(envelope) = envelope.as_ref().filter(goes) else { continue };
        let (ranks, tags) = parts(envelope);
        for rank in ranks {
            keys.extend(tags.iter().map(|&tag| Key::Started { lane, sends, rank, tag }));
        }
    }
    keys
}

fn started_with(envelope: &Envelope) -> (Part<Rank>, Part<Tag>) {
    let rank = match envelope.source() {
        Source::Rank(rank) => Part::Is(rank),
        Source::Any => Part::Wildcard,
    };
    let tag = match envelope.tag() {
        TagMatch::Tag(tag) => Part::Is(tag),
        TagMatch::Any => Part::Wildcard,
    };
    (rank, tag)
}

#[cfg(test)]
mod tests {
    use super::super::queues::Queues;
    use super::*;
    use crate::communicator::Identity;
    use crate::environment::status::Status;

    const HERE: Lane = (Identity::of_test(0), Caller::Program);
    const RANKS: [Source; 4] =
        [Source::Rank(0), Source::Rank(1), Source::Rank(PROC_NULL), Source::Any];
    const TAGS: [TagMatch; 3] = [TagMatch::Tag(0), TagMatch::Tag(1), TagMatch::Any];

    fn envelopes() -> impl Iterator<Item = Envelope> {
        RANKS.into_iter().flat_map(|rank| TAGS.map(|tag| Envelope::new(rank, tag)))
    }

    fn received(envelope: &Envelope) -> Traffic {
        Traffic::Messages { send: None, receive: Some(envelope.clone()) }
    }

    fn sent(envelope: &Envelope) -> Traffic {
        Traffic::Messages { send: Some(envelope.clone()), receive: None }
    }

    /// Whether one message may match both envelopes.
    fn meet(a: &Envelope, b: &Envelope) -> bool {
        let ((rank, tag), (other_rank, other_tag)) = (a.to_mpi(), b.to_mpi());
        let meet = |a, b, any| a == b || a == any || b == any;
        rank != PROC_NULL
            && other_rank != PROC_NULL
            && meet(rank, other_rank, mpi_sys::MPI_ANY_SOURCE)
            && meet(tag, other_tag, mpi_sys::MPI_ANY_TAG)
    }

    #[test]
    fn those_that_one_message_may_be_are_found() {
        let mut queues = Queues::default();
        for (number, envelope) in (0..).zip(envelopes()) {
            queues.insert(number, Key::of_started(HERE, &received(&envelope), None), envelope);
        }
        let check = |asked: &Envelope| {
            let found = queues.before(u64::MAX, &Key::of_those_like(HERE, &received(asked)));
            let expected = envelopes().filter(|other| meet(asked, other));
            let ends = |envelope: &Envelope| (envelope.source(), envelope.tag());
            let found: Vec<_> = found.iter().map(ends).collect();
            assert_eq!(found, expected.map(|other| ends(&other)).collect::<Vec<_>>(), "{asked:?}");
            // A message sent is like no message received.
            assert!(queues.before(u64::MAX, &Key::of_those_like(HERE, &sent(asked))).is_empty());
        };
        envelopes().for_each(|asked| check(&asked));
        // After a receive with wildcards, the rank and tag received count.
        for (source, tag) in [(0, 0), (1, 0), (1, 1)] {
            let asked = Envelope::new(Source::Any, TagMatch::Any);
            asked.resolve(Status { source, tag, bytes: 8 });
            check(&asked);
        }
    }

    #[test]
    fn messages_both_ways_are_like_both() {
        let [to, from] = [0, 1].map(|rank| Envelope::new(Source::Rank(rank), TagMatch::Tag(0)));
        let both = Traffic::Messages { send: Some(to.clone()), receive: Some(from.clone()) };
        let mut queues = Queues::default();
        for (number, traffic) in (0..).zip([sent(&to), received(&from), both.clone(), sent(&from)])
        {
            queues.insert(number, Key::of_started(HERE, &traffic, None), number);
        }
        assert_eq!(queues.before(u64::MAX, &Key::of_those_like(HERE, &both)), [0, 1, 2]);
        assert_eq!(queues.before(u64::MAX, &Key::of_those_like(HERE, &sent(&from))), [3]);
    }
}
