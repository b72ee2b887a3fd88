//! Calls the MPI function of a [`Call`]: a collective function here, those of messages in
//! [`message`](super::message) and [`exchange`](super::exchange), and the sum of blocks in
//! [`reduce_scatter`](super::reduce_scatter).

use std::ffi::{c_int, c_void};

use mpi_sys::{MPI_Comm, MPI_Datatype, MPI_Op};

use super::plan::largest_count;
use super::{Call, Made, wide};
use crate::base::error::Result;
use crate::base::rank::{Rank, index};
use crate::call::blocks::Parts;
use crate::call::reduce_scatter::Summing;
use crate::environment::datatype::Datatype;

/// The arguments that all calls have in common.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    pub(super) send: *const c_void,
    pub(super) receive: *mut c_void,
    /// The number of elements of the input: all that are sent, if the call does not cut it into
    /// parts.
    pub(super) count: i64,
    pub(super) datatype: MPI_Datatype,
    pub(super) elements: Datatype,
    /// The bytes of an element.
    pub(super) size: usize,
    pub(super) context: MPI_Comm,
    pub(super) rank: Rank,
    /// The largest count and displacement to pass as an `int`.
    pub(super) largest: c_int,
}

// SAFETY: whoever makes one keeps the memory behind the pointers while it is used, on any thread.
unsafe impl Send for Buffers {}

/// The most elements of one reduction. With more, Open MPI's arithmetic overflows: on 2 ranks,
/// `MPI_Allreduce` and `MPI_Scan` of Open MPI 4.1.4 never return from 2³¹ − 1 bytes, but do from
/// 2³⁰.
pub(super) const LARGEST_REDUCED: c_int = 1 << 30;

/// The most elements whose places are passed to a reduction as an `int`.
pub(super) fn most_reduced() -> i64 {
    largest_count().min(LARGEST_REDUCED.into())
}

/// Calls the first function, which is blocking, or the second, which is nonblocking and whose
/// request `$made` keeps, as the way of `$made` says.
macro_rules! mpi {
    ($made:expr, $waits:ident | $starts:ident($($argument:expr),* $(,)?)) => {
        match $made.way() {
            $crate::base::way::Way::Waits | $crate::base::way::Way::Pieces(_) => {
                // SAFETY: the caller of the function that this is in vouches for the arguments.
                let code = unsafe { mpi_sys::$waits($($argument),*) };
                $crate::environment::error_code::check(stringify!($waits), code)
            }
            $crate::base::way::Way::Polls => {
                let mut request = mpi_sys::MPI_REQUEST_NULL;
                // SAFETY: as above, until the started call has ended; `request` outlives this one.
                let code = unsafe { mpi_sys::$starts($($argument,)* &mut request) };
                $crate::environment::error_code::check(stringify!($starts), code)
                    .map(|()| $made.started(request))
            }
        }
    };
}
pub(crate) use mpi;

impl Buffers {
    /// Makes the call, or starts it.
    ///
    /// # Safety
    /// The buffers are as large as `call` needs, and do not overlap; the handles are valid. All
    /// this remains so until a started call has ended.
    #[inline]
    pub(super) unsafe fn call(&self, call: &Call, made: &mut Made) -> Result<()> {
        let Self { datatype, context, .. } = *self;
        match call {
            Call::Nothing => Ok(()),
            Call::AllReduce { op } => self.in_pieces(|Piece { send, receive, count }| {
                mpi!(
                    made,
                    MPI_Allreduce | MPI_Iallreduce(send, receive, count, datatype, *op, context,)
                )
            }),
            Call::Scan { op } => self.in_pieces(|Piece { send, receive, count }| {
                mpi!(made, MPI_Scan | MPI_Iscan(send, receive, count, datatype, *op, context))
            }),
            Call::Exscan { op } => self.in_pieces(|Piece { send, receive, count }| {
                mpi!(made, MPI_Exscan | MPI_Iexscan(send, receive, count, datatype, *op, context))
            }),
            Call::Reduce { op, root } => self.in_pieces(|Piece { send, receive, count }| {
                mpi!(
                    made,
                    MPI_Reduce | MPI_Ireduce(send, receive, count, datatype, *op, *root, context,)
                )
            }),
            Call::Broadcast { root } => self.in_pieces(|Piece { receive, count, .. }| {
                mpi!(made, MPI_Bcast | MPI_Ibcast(receive, count, datatype, *root, context))
            }),
            Call::AllGather { parts } => self.all_gather(made, parts),
            Call::Gather { parts, root } => self.gather(made, parts, *root),
            Call::Scatter { parts, root } => self.scatter(made, parts, *root),
            Call::AllToAll { send, receive, largest, common } => {
                self.all_to_all(made, send, receive, *largest, *common)
            }
            Call::ReduceScatter { parts, op, summing } => {
                self.reduce_scatter(made, parts, *op, *summing)
            }
            Call::Barrier => mpi!(made, MPI_Barrier | MPI_Ibarrier(context)),
            Call::Send(message) => self.send(made, message),
            Call::Receive(message) => self.receive(made, message),
            Call::SendReceive { send, receive } => self.send_receive(made, send, receive),
            Call::Exchange(exchange) => self.exchange(made, exchange),
        }
    }

    /// The buffers, of which what is sent and what is received begin so many elements later.
    pub(super) fn starting_at(&self, starts: [usize; 2], count: i64) -> Self {
        let [sent, received] = starts.map(|start| start * self.size);
        let in_place = self.send == mpi_sys::MPI_IN_PLACE.cast_const();
        let send = if in_place { self.send } else { self.send.wrapping_byte_add(sent) };
        let receive = self.receive.wrapping_byte_add(received);
        Self { send, receive, count, ..*self }
    }

    /// Calls `f` for consecutive pieces of the elements, whose counts fit an `int`. For functions
    /// that treat each element independently of the others.
    #[inline]
    fn in_pieces(&self, mut f: impl FnMut(Piece) -> Result<()>) -> Result<()> {
        for (start, count) in pieces(self.count, self.largest.min(LARGEST_REDUCED)) {
            let Self { send, receive, .. } = self.starting_at([start; 2], count.into());
            f(Piece { send, receive, count })?;
        }
        Ok(())
    }

    fn all_gather(&self, made: &mut Made, parts: &Parts) -> Result<()> {
        let Self { send, receive, datatype, context, .. } = *self;
        let Some(ints) = Ints::of(made, parts, self.largest) else {
            return wide::all_gather(self, made, parts);
        };
        let count = as_int(self.count);
        match ints.common {
            Some(common) => mpi!(
                made,
                MPI_Allgather
                    | MPI_Iallgather(send, count, datatype, receive, common, datatype, context,)
            ),
            None => mpi!(
                made,
                MPI_Allgatherv
                    | MPI_Iallgatherv(
                        send,
                        count,
                        datatype,
                        receive,
                        ints.counts,
                        ints.displacements,
                        datatype,
                        context,
                    )
            ),
        }
    }

    fn gather(&self, made: &mut Made, parts: &Parts, root: Rank) -> Result<()> {
        let Self { send, receive, datatype, context, .. } = *self;
        let Some(ints) = Ints::of(made, parts, self.largest) else {
            return wide::gather(self, made, parts, root);
        };
        let count = as_int(self.count);
        match ints.common {
            Some(common) => mpi!(
                made,
                MPI_Gather
                    | MPI_Igather(send, count, datatype, receive, common, datatype, root, context,)
            ),
            None => mpi!(
                made,
                MPI_Gatherv
                    | MPI_Igatherv(
                        send,
                        count,
                        datatype,
                        receive,
                        ints.counts,
                        ints.displacements,
                        datatype,
                        root,
                        context,
                    )
            ),
        }
    }

    fn scatter(&self, made: &mut Made, parts: &Parts, root: Rank) -> Result<()> {
        let Self { send, receive, datatype, context, .. } = *self;
        let Some(ints) = Ints::of(made, parts, self.largest) else {
            return wide::scatter(self, made, parts, root);
        };
        let count = as_int(parts.counts[index(self.rank)]);
        match ints.common {
            Some(common) => mpi!(
                made,
                MPI_Scatter
                    | MPI_Iscatter(send, common, datatype, receive, count, datatype, root, context,)
            ),
            None => mpi!(
                made,
                MPI_Scatterv
                    | MPI_Iscatterv(
                        send,
                        ints.counts,
                        ints.displacements,
                        datatype,
                        receive,
                        count,
                        datatype,
                        root,
                        context,
                    )
            ),
        }
    }

    fn all_to_all(
        &self,
        made: &mut Made,
        sent: &Parts,
        received: &Parts,
        largest: i64,
        common: bool,
    ) -> Result<()> {
        let Self { send, receive, datatype, context, .. } = *self;
        // All ranks must call the same function, whatever their own parts: `largest` is of all
        // ranks.
        let fits = largest <= i64::from(self.largest);
        let ints = (Ints::of(made, sent, self.largest), Ints::of(made, received, self.largest));
        let (true, (Some(from), Some(to))) = (fits, ints) else {
            return wide::all_to_all(self, made, sent, received);
        };
        if common {
            let (sent, received) = (as_int(sent.counts[0]), as_int(received.counts[0]));
            return mpi!(
                made,
                MPI_Alltoall
                    | MPI_Ialltoall(send, sent, datatype, receive, received, datatype, context,)
            );
        }
        mpi!(
            made,
            MPI_Alltoallv
                | MPI_Ialltoallv(
                    send,
                    from.counts,
                    from.displacements,
                    datatype,
                    receive,
                    to.counts,
                    to.displacements,
                    datatype,
                    context,
                )
        )
    }

    fn reduce_scatter(
        &self,
        made: &mut Made,
        parts: &Parts,
        op: MPI_Op,
        summing: Option<Summing>,
    ) -> Result<()> {
        let Self { send, receive, datatype, context, .. } = *self;
        let Some(ints) = Ints::of(made, parts, self.largest.min(LARGEST_REDUCED)) else {
            return wide::reduce_scatter(self, made, parts, op);
        };
        if let Some(summing) = summing {
            return self.sum_scatter(made, parts, summing);
        }
        match ints.common {
            Some(common) => mpi!(
                made,
                MPI_Reduce_scatter_block
                    | MPI_Ireduce_scatter_block(send, receive, common, datatype, op, context,)
            ),
            None => mpi!(
                made,
                MPI_Reduce_scatter
                    | MPI_Ireduce_scatter(send, receive, ints.counts, datatype, op, context,)
            ),
        }
    }
}

/// A piece of the buffers.
struct Piece {
    send: *const c_void,
    receive: *mut c_void,
    count: c_int,
}

/// Parts as MPI's functions with `int` counts take them.
struct Ints {
    /// The count of each part, if it is the same for all.
    common: Option<c_int>,
    counts: *const c_int,
    displacements: *const c_int,
}

impl Ints {
    /// `None` if the parts reach beyond `largest`. Ranks with the same parts get the same answer.
    fn of(made: &mut Made, parts: &Parts, largest: c_int) -> Option<Self> {
        (parts.end() <= i64::from(largest)).then(|| Self {
            common: parts.common_count().map(as_int),
            counts: made.keep(parts.counts.iter().map(|&count| as_int(count)).collect()),
            displacements: made
                .keep(parts.displacements.iter().map(|&start| as_int(start)).collect()),
        })
    }
}

/// A count that is known to fit.
pub(super) fn as_int(count: i64) -> c_int {
    c_int::try_from(count).unwrap_or_else(|_| unreachable!("{count} was checked to fit an int"))
}

/// Cuts `count` elements into pieces (start, length). There is at least one, since a call is made
/// for no elements, too.
#[inline]
pub(super) fn pieces(count: i64, most: c_int) -> impl Iterator<Item = (usize, c_int)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start > 0 && start >= count {
            return None;
        }
        let length = c_int::try_from(count - start).unwrap_or(most).min(most);
        let piece = (usize::try_from(start).ok()?, length);
        // At least 1, so that nothing follows an empty piece.
        start += i64::from(length).max(1);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_count_once() {
        assert_eq!(pieces(0, 4).collect::<Vec<_>>(), [(0, 0)]);
        for count in 1..40 {
            for most in 1..7 {
                let mut end = 0;
                for (start, length) in pieces(count, most) {
                    assert_eq!(start, end);
                    assert!((1..=most).contains(&length));
                    end += length.unsigned_abs() as usize;
                }
                assert_eq!(i64::try_from(end), Ok(count));
            }
        }
        let large = 2 * i64::from(c_int::MAX) + 3;
        let lengths: Vec<_> = pieces(large, c_int::MAX).map(|(_, length)| length).collect();
        assert_eq!(lengths, [c_int::MAX, c_int::MAX, 3]);
    }
}
