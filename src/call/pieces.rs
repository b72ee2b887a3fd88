//! Large calls in pieces, so that MPI is at work on one while a device copies others.
//!
//! A piece has a share of each block that a rank sends or receives, at its place in the buffer. If a call
//! treats each element by itself, all elements are one block. So the pieces of all ranks fit together if they
//! are equally many, which the ranks have agreed on with the call, by its [`Way`], wherever their tensors
//! are. A rank whose tensor is in host memory makes the same calls.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::Tensor;

use super::blocks::Parts;
use super::buffer::Input;
use super::buffers::most_reduced;
use super::{Call, Plan};
use crate::autograd::{self, Event, Recording};
use crate::base::error::Result;
use crate::base::rank::{Rank, index};
use crate::base::site::Site;
use crate::base::way::Way;
use crate::communicator::Handle;
use crate::environment::datatype::Datatype;

/// The bytes of a piece; only tests lower them.
static PIECE: AtomicUsize = AtomicUsize::new(4 << 20);

/// With blocks for more ranks than these a piece is larger, so that messages and copies do not become too short.
const RANKS: usize = 64;

/// The most pieces of a call; those of more memory than a host has are larger.
const MOST: usize = 1 << 16;

/// Lowers [`PIECE`], so that tests can cover the pieces of large tensors with small ones.
pub(crate) fn set_staging_piece(bytes: usize) {
    PIECE.store(bytes, Ordering::Relaxed);
}

/// The elements of a call's larger side, what is sent or what is received, as far as this rank knows.
#[derive(Clone, Copy)]
pub(crate) enum Bulk {
    /// So many, each of which is treated by itself.
    Elements(i64),
    /// So many, in the blocks of all ranks.
    Blocks(i64),
}

impl Bulk {
    /// Into how many pieces a call of so many ranks is cut.
    fn pieces(self, datatype: Datatype, ranks: Rank) -> u32 {
        let bytes = PIECE.load(Ordering::Relaxed);
        let (count, bytes) = match self {
            Self::Elements(count) => (count, bytes),
            Self::Blocks(count) => (count, bytes.max(bytes / RANKS * index(ranks))),
        };
        let length = (bytes / datatype.kind.elt_size_in_bytes()).max(1);
        let pieces = usize::try_from(count).unwrap_or(0).div_ceil(length);
        u32::try_from(pieces.clamp(1, MOST)).unwrap_or(1)
    }
}

impl Input<'_> {
    /// The way in which this rank asks for a blocking call with this tensor to be made.
    #[inline]
    pub(crate) fn way(&self, comm: &Handle, bulk: impl FnOnce() -> Bulk) -> Way {
        if self.device().is_cpu() { Way::Waits } else { self.way_on_device(comm, bulk()) }
    }

    fn way_on_device(&self, comm: &Handle, bulk: Bulk) -> Way {
        // Most calls with blocks are then direct: there is no copy to overlap with.
        if matches!(bulk, Bulk::Blocks(_)) && comm.environment().reaches(self.device().kind()) {
            return Way::Waits;
        }
        match bulk.pieces(self.datatype(), comm.size()) {
            1 => Way::Waits,
            pieces => Way::Pieces(pieces),
        }
    }
}

/// The share that the piece `index` of so many has of each block.
#[derive(Clone, Copy)]
struct Share {
    index: i64,
    of: i64,
}

impl Share {
    /// That of a block of `count` elements.
    fn range(self, count: i64) -> Range<i64> {
        // Rounded down. There are too few shares for a product of two of their numbers to overflow.
        let cut = |index| count / self.of * index + count % self.of * index / self.of;
        cut(self.index)..cut(self.index + 1)
    }

    fn parts(self, parts: &Parts) -> Parts {
        let ranges = parts.counts.iter().map(|&count| self.range(count));
        let starts = ranges.clone().zip(&parts.displacements).map(|(range, at)| at + range.start);
        Parts {
            displacements: starts.collect(),
            counts: ranges.map(|range| range.end - range.start).collect(),
        }
    }
}

/// What a rank sends or receives.
enum Side<'p> {
    /// One block, of so many elements.
    Block(i64),
    /// A block for each rank.
    Parts(&'p Parts),
}

impl Side<'_> {
    /// The ranges of the elements in a piece.
    fn ranges(&self, share: Share) -> Vec<Range<i64>> {
        match self {
            Self::Block(count) => vec![share.range(*count)],
            Self::Parts(parts) => {
                let Parts { counts, displacements } = share.parts(parts);
                displacements.iter().zip(&counts).map(|(&at, count)| at..at + count).collect()
            }
        }
    }

    /// Where the buffer of a piece begins: places of parts are counted from the first element.
    fn start(&self, share: Share) -> usize {
        match self {
            Self::Block(count) => usize::try_from(share.range(*count).start).unwrap_or(0),
            Self::Parts(_) => 0,
        }
    }
}

/// A piece of a call: a share of each block, which lies where the block does.
pub(super) struct StagedPiece {
    pub(super) call: Call,
    /// Where its buffers begin in those of the whole, in elements: what is sent, and what is received.
    pub(super) starts: [usize; 2],
    /// The number of elements that are sent, if they are one block.
    pub(super) count: i64,
    sent: Vec<Range<i64>>,
    received: Vec<Range<i64>>,
    /// Passes when what is sent has been staged.
    pub(super) staged: Option<Event>,
}

impl StagedPiece {
    /// Queues the copy of what it sends to host memory.
    pub(super) fn stage(&mut self, site: Site, input: &Input, room: &Tensor) -> Result<()> {
        copy(site, &self.sent, input.sent(), room)?;
        self.staged = Some(Event::record(site.call, input.device())?);
        Ok(())
    }

    /// Queues the copy of what MPI has written to its place on the device.
    pub(super) fn bring(&self, site: Site, written: &Tensor, home: &Tensor) -> Result<()> {
        copy(site, &self.received, written, home)
    }
}

/// Queues copies of these elements from a contiguous tensor to the same places of another.
fn copy(site: Site, ranges: &[Range<i64>], from: &Tensor, to: &Tensor) -> Result<()> {
    let flat = |x: &Tensor| -> Result<Tensor> {
        let _recording = Recording::off();
        Ok(x.f_detach()?.f_view([-1])?)
    };
    let (from, to) = (flat(from)?, flat(to)?);
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        let part = |x: &Tensor| x.f_narrow(0, range.start, range.end - range.start);
        autograd::queue_copy(site.call, &part(&from)?, &part(&to)?)?;
    }
    Ok(())
}

impl Call {
    /// What is sent and what is received; `None` if the call cannot be made in pieces. `count` is the number of
    /// elements of the input.
    fn sides(&self, count: i64, rank: Rank) -> Option<[Side<'_>; 2]> {
        let block_of = |parts: &Parts| Side::Block(parts.counts[index(rank)]);
        match self {
            Self::AllReduce { .. }
            | Self::Reduce { .. }
            | Self::Scan { .. }
            | Self::Exscan { .. }
            | Self::Broadcast { .. } => Some([Side::Block(count), Side::Block(count)]),
            Self::AllGather { parts } | Self::Gather { parts, .. } => {
                Some([Side::Block(count), Side::Parts(parts)])
            }
            Self::Scatter { parts, .. } => Some([Side::Parts(parts), block_of(parts)]),
            // MPI's function takes blocks only one after another.
            Self::ReduceScatter { parts, summing: Some(_), .. }
                if parts.end() <= most_reduced() =>
            {
                Some([Side::Parts(parts), block_of(parts)])
            }
            Self::AllToAll { send, receive, .. } => Some([Side::Parts(send), Side::Parts(receive)]),
            _ => None,
        }
    }

    /// The call of a piece.
    fn share(&self, share: Share) -> Self {
        match self {
            Self::AllGather { parts } => Self::AllGather { parts: share.parts(parts) },
            Self::Gather { parts, root } => Self::Gather { parts: share.parts(parts), root: *root },
            Self::Scatter { parts, root } => {
                Self::Scatter { parts: share.parts(parts), root: *root }
            }
            Self::ReduceScatter { parts, op, summing } => {
                Self::ReduceScatter { parts: share.parts(parts), op: *op, summing: *summing }
            }
            Self::AllToAll { send, receive, largest, .. } => {
                let (send, receive) = (share.parts(send), share.parts(receive));
                Self::AllToAll { send, receive, largest: *largest, common: false }
            }
            other => other.clone(),
        }
    }
}

impl Plan<'_> {
    /// The pieces of a call that is made in this way; `None` if it is made at once.
    pub(super) fn cut(&self, way: Way, comm: &Handle) -> Option<Vec<StagedPiece>> {
        let Way::Pieces(asked) = way else { return None };
        let sides = self.call.sides(self.input.count(), comm.rank())?;
        // Ranks may have asked for more than they would have, had they known all blocks.
        let known = match &sides {
            [Side::Block(count), Side::Block(_)] => Some(Bulk::Elements(*count)),
            [Side::Block(_), Side::Parts(parts)] | [Side::Parts(parts), Side::Block(_)] => {
                Some(Bulk::Blocks(parts.end()))
            }
            [Side::Parts(_), Side::Parts(_)] => None,
        };
        let enough = known.map(|bulk| bulk.pieces(self.input.datatype(), comm.size()));
        let of = i64::from(enough.unwrap_or(asked).min(asked));
        if of == 1 {
            return None;
        }
        let piece = |index| {
            let share = Share { index, of };
            let [sent, received] = sides.each_ref().map(|side| side.ranges(share));
            StagedPiece {
                call: self.call.share(share),
                starts: sides.each_ref().map(|side| side.start(share)),
                count: sent.iter().map(|range| range.end - range.start).sum(),
                sent,
                received,
                staged: None,
            }
        };
        Some((0..of).map(piece).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_every_block_once() {
        for of in 1..9 {
            for count in (0..40).chain([i64::MAX, i64::MAX - 1]) {
                let mut end = 0;
                for index in 0..of {
                    let range = Share { index, of }.range(count);
                    assert_eq!(range.start, end);
                    end = range.end;
                    let length = range.end - range.start;
                    assert!(length == count / of || length == count / of + 1, "{length}");
                }
                assert_eq!(end, count);
            }
        }
    }

    #[test]
    fn pieces_grow_with_the_ranks_that_have_blocks() {
        let double = Datatype::of(7).unwrap();
        let mib = (1 << 20) / 8;
        for (bulk, ranks, pieces) in [
            (Bulk::Elements(0), 2, 1),
            (Bulk::Elements(4 * mib), 2, 1),
            (Bulk::Elements(4 * mib + 1), 1000, 2),
            (Bulk::Blocks(40 * mib), 64, 10),
            (Bulk::Blocks(40 * mib), 128, 5),
            (Bulk::Blocks(40 * mib), 1000, 1),
            (Bulk::Elements(i64::MAX), 2, 1 << 16),
        ] {
            assert_eq!(bulk.pieces(double, ranks), pieces);
        }
    }

    #[test]
    fn shares_of_parts_are_at_their_places() {
        let parts = Parts::new(vec![5, 0, 3]);
        let shares = [0, 1].map(|index| Share { index, of: 2 }.parts(&parts));
        assert_eq!(shares.each_ref().map(|share| &share.counts[..]), [[2, 0, 1], [3, 0, 2]]);
        assert_eq!(shares.each_ref().map(|share| &share.displacements[..]), [[0, 5, 5], [2, 5, 6]]);
        assert_eq!(shares.map(|share| share.common_count()), [None, None]);
    }
}
