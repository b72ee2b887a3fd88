//! MPI's functions by the shape of their arguments, each shape called in one place.
//!
//! A collective says which function it is and with what; how the function is called, and what
//! happens where MPI's `int` cannot hold a count, is written here and in [`wide`], once.

#[cfg(large_count)]
#[path = "call/wide_counts.rs"]
mod wide;
#[cfg(not(large_count))]
#[path = "call/wide_datatypes.rs"]
mod wide;

use std::borrow::Cow;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI32, Ordering};

use mpi_sys::{MPI_Comm, MPI_Datatype, MPI_Op};
use tch::{Scalar, Tensor};

use crate::blocks::{Blocks, Parts};
use crate::buffer::{Input, Output};
use crate::communicator::{Communicator, Rank, index};
use crate::error::{Result, check};

/// An MPI call with everything that it reads and writes.
pub(crate) struct Plan<'x> {
    pub(crate) input: Input<'x>,
    /// The result's.
    pub(crate) shape: Cow<'x, [i64]>,
    pub(crate) call: Call,
    pub(crate) context: MPI_Comm,
    pub(crate) finish: Finish,
}

/// An MPI function and its arguments besides the buffers.
#[derive(Debug)]
pub(crate) enum Call {
    /// `MPI_Allreduce` and its like: combines elements one by one.
    Reduction { function: Reduction, op: MPI_Op },
    /// `MPI_Reduce`.
    Reduce { op: MPI_Op, root: Rank },
    /// `MPI_Bcast` of the output.
    Broadcast { root: Rank },
    /// `MPI_Allgather(v)`.
    AllGather { parts: Parts },
    /// `MPI_Gather(v)`.
    Gather { parts: Parts, root: Rank },
    /// `MPI_Scatter(v)`.
    Scatter { parts: Parts, root: Rank },
    /// `MPI_Alltoall(v)`; `largest` is one past the last element of any rank's buffers.
    /// Where `common`, all parts on all ranks have the same count.
    AllToAll { send: Parts, receive: Parts, largest: i64, common: bool },
    /// `MPI_Reduce_scatter(_block)`.
    ReduceScatter { parts: Parts, op: MPI_Op },
}

/// `MPI_Allreduce`, `MPI_Scan`, `MPI_Exscan`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduction {
    pub(crate) name: &'static str,
    pub(crate) run: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        c_int,
        MPI_Datatype,
        MPI_Op,
        MPI_Comm,
    ) -> c_int,
}

/// What is left to do with what MPI wrote.
pub(crate) enum Finish {
    Nothing,
    /// The blocks have arrived one after another.
    Unpack(Blocks),
    /// MPI has written nothing of use; the result is this everywhere.
    Fill(Scalar),
}

impl Finish {
    /// For a result of `shape` whose blocks arrive one after another.
    pub(crate) fn unpacked(blocks: Blocks, shape: &[i64]) -> Self {
        if blocks.are_consecutive(shape) { Self::Nothing } else { Self::Unpack(blocks) }
    }
}

/// The largest count and displacement that an `int` is trusted with; lower in tests only.
static LARGEST: AtomicI32 = AtomicI32::new(c_int::MAX);

/// The most elements of one reduction. Beyond it Open MPI's arithmetic overflows: of 2³¹ − 1 bytes
/// at 2 ranks, `MPI_Allreduce` and `MPI_Scan` of 4.1.4 never return; of 2³⁰ they do.
const LARGEST_REDUCED: c_int = 1 << 30;

/// Lowers [`LARGEST`], so that a test sees with small tensors what large ones meet.
pub(crate) fn set_largest_count(count: c_int) {
    LARGEST.store(count, Ordering::Relaxed);
}

impl Plan<'_> {
    /// Carries the call out and waits for its end.
    #[inline]
    pub(crate) fn run(self, name: &'static str, comm: &Communicator) -> Result<Tensor> {
        let datatype = self.input.datatype();
        let output = Output::new(name, &self.shape, datatype)?;
        if matches!(self.call, Call::Broadcast { root } if root == comm.rank()) {
            // MPI sends from the buffer that it receives into elsewhere.
            output.copy_from(&self.input)?;
        }
        // SAFETY: the output is new, so it does not overlap the input, and has the plan's shape.
        unsafe { self.call(name, comm, self.input.data(), output.data()) }?;
        let mut result = output.into_tensor();
        match self.finish {
            Finish::Nothing => Ok(result),
            Finish::Unpack(blocks) => {
                blocks.unpack(name, &result.f_view([-1])?, &self.shape, datatype)
            }
            Finish::Fill(value) => {
                let _ = result.f_fill_(value)?;
                Ok(result)
            }
        }
    }

    /// Carries the call out so that `x`, the tensor that was planned for, becomes the result.
    pub(crate) fn run_in_place(
        self,
        name: &'static str,
        comm: &Communicator,
        x: &mut Tensor,
        data: *mut c_void,
    ) -> Result<()> {
        if self.input.data() != data.cast_const() {
            // What is sent is a copy of x: it does not lie as MPI would write it.
            let result = self.run(name, comm)?;
            return Ok(tch::no_grad(|| x.f_copy_(&result))?);
        }
        let in_place = (mpi_sys::MPI_IN_PLACE.cast_const(), data);
        let (send, receive) = match self.call {
            // Who receives nothing names what it sends.
            Call::Reduce { root, .. } if root != comm.rank() => {
                (self.input.data(), std::ptr::null_mut())
            }
            _ => in_place,
        };
        // SAFETY: the operators that may be used in place have a result of their input's shape, and
        // allow MPI_IN_PLACE on each rank that writes one.
        unsafe { self.call(name, comm, send, receive) }?;
        if let Finish::Fill(value) = self.finish {
            let _ = tch::no_grad(|| x.f_fill_(value))?;
        }
        Ok(())
    }

    /// # Safety
    /// `receive` has room for what the call writes, and does not overlap `send`.
    #[inline]
    unsafe fn call(
        &self,
        name: &'static str,
        comm: &Communicator,
        send: *const c_void,
        receive: *mut c_void,
    ) -> Result<()> {
        let environment = comm.environment();
        let _guard = environment.enter(name)?;
        let datatype = self.input.datatype();
        let buffers = Buffers {
            send,
            receive,
            count: self.input.count(),
            datatype: datatype.mpi(environment.handles()),
            size: datatype.kind.elt_size_in_bytes(),
            context: self.context,
            rank: comm.rank(),
            largest: LARGEST.load(Ordering::Relaxed),
        };
        // SAFETY: the input is contiguous and holds as many elements of this datatype as the plan
        // says, the output as the caller ensures; both live to the end of the call. The handles are
        // valid, as `enter` gave leave.
        unsafe { buffers.call(&self.call) }
    }
}

/// What every call gets.
struct Buffers {
    send: *const c_void,
    receive: *mut c_void,
    /// Elements to send, where no parts say it.
    count: i64,
    datatype: MPI_Datatype,
    /// Bytes of an element.
    size: usize,
    context: MPI_Comm,
    rank: Rank,
    largest: c_int,
}

impl Buffers {
    /// # Safety
    /// The buffers hold what `call` reads and writes, and do not overlap; the handles are valid.
    #[inline]
    unsafe fn call(&self, call: &Call) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe {
            match call {
                Call::Reduction { function, op } => self.in_pieces(function.name, |piece| {
                    (function.run)(
                        piece.send,
                        piece.receive,
                        piece.count,
                        self.datatype,
                        *op,
                        self.context,
                    )
                }),
                Call::Reduce { op, root } => self.in_pieces("MPI_Reduce", |piece| {
                    mpi_sys::MPI_Reduce(
                        piece.send,
                        piece.receive,
                        piece.count,
                        self.datatype,
                        *op,
                        *root,
                        self.context,
                    )
                }),
                Call::Broadcast { root } => self.in_pieces("MPI_Bcast", |piece| {
                    mpi_sys::MPI_Bcast(
                        piece.receive,
                        piece.count,
                        self.datatype,
                        *root,
                        self.context,
                    )
                }),
                Call::AllGather { parts } => self.all_gather(parts),
                Call::Gather { parts, root } => self.gather(parts, *root),
                Call::Scatter { parts, root } => self.scatter(parts, *root),
                Call::AllToAll { send, receive, largest, common } => {
                    self.all_to_all(send, receive, *largest, *common)
                }
                Call::ReduceScatter { parts, op } => self.reduce_scatter(parts, *op),
            }
        }
    }

    /// Calls `f` for pieces of the elements that an `int` can count: for functions that treat each
    /// element by itself.
    fn in_pieces(&self, name: &'static str, f: impl Fn(Piece) -> c_int) -> Result<()> {
        for (start, count) in pieces(self.count, self.largest.min(LARGEST_REDUCED)) {
            let offset = start * self.size;
            let in_place = self.send == mpi_sys::MPI_IN_PLACE.cast_const();
            let send = if in_place { self.send } else { self.send.wrapping_byte_add(offset) };
            let receive = self.receive.wrapping_byte_add(offset);
            check(name, f(Piece { send, receive, count }))?;
        }
        Ok(())
    }

    /// # Safety
    /// As for [`call`](Self::call).
    unsafe fn all_gather(&self, parts: &Parts) -> Result<()> {
        let Some(ints) = Ints::of(parts, self.largest) else {
            // SAFETY: passed on to the caller.
            return unsafe { wide::all_gather(self, parts) };
        };
        let count = as_int(self.count);
        if let Some(common) = parts.common_count() {
            // SAFETY: passed on to the caller.
            let code = unsafe {
                mpi_sys::MPI_Allgather(
                    self.send,
                    count,
                    self.datatype,
                    self.receive,
                    as_int(common),
                    self.datatype,
                    self.context,
                )
            };
            return check("MPI_Allgather", code);
        }
        // SAFETY: passed on to the caller; the two lists have an entry per rank.
        let code = unsafe {
            mpi_sys::MPI_Allgatherv(
                self.send,
                count,
                self.datatype,
                self.receive,
                ints.counts.as_ptr(),
                ints.displacements.as_ptr(),
                self.datatype,
                self.context,
            )
        };
        check("MPI_Allgatherv", code)
    }

    /// # Safety
    /// As for [`call`](Self::call).
    unsafe fn gather(&self, parts: &Parts, root: Rank) -> Result<()> {
        let Some(ints) = Ints::of(parts, self.largest) else {
            // SAFETY: passed on to the caller.
            return unsafe { wide::gather(self, parts, root) };
        };
        let count = as_int(self.count);
        if let Some(common) = parts.common_count() {
            // SAFETY: passed on to the caller.
            let code = unsafe {
                mpi_sys::MPI_Gather(
                    self.send,
                    count,
                    self.datatype,
                    self.receive,
                    as_int(common),
                    self.datatype,
                    root,
                    self.context,
                )
            };
            return check("MPI_Gather", code);
        }
        // SAFETY: passed on to the caller; the two lists have an entry per rank.
        let code = unsafe {
            mpi_sys::MPI_Gatherv(
                self.send,
                count,
                self.datatype,
                self.receive,
                ints.counts.as_ptr(),
                ints.displacements.as_ptr(),
                self.datatype,
                root,
                self.context,
            )
        };
        check("MPI_Gatherv", code)
    }

    /// # Safety
    /// As for [`call`](Self::call).
    unsafe fn scatter(&self, parts: &Parts, root: Rank) -> Result<()> {
        let Some(ints) = Ints::of(parts, self.largest) else {
            // SAFETY: passed on to the caller.
            return unsafe { wide::scatter(self, parts, root) };
        };
        let count = ints.counts[index(self.rank)];
        if let Some(common) = parts.common_count() {
            // SAFETY: passed on to the caller.
            let code = unsafe {
                mpi_sys::MPI_Scatter(
                    self.send,
                    as_int(common),
                    self.datatype,
                    self.receive,
                    count,
                    self.datatype,
                    root,
                    self.context,
                )
            };
            return check("MPI_Scatter", code);
        }
        // SAFETY: passed on to the caller; the two lists have an entry per rank.
        let code = unsafe {
            mpi_sys::MPI_Scatterv(
                self.send,
                ints.counts.as_ptr(),
                ints.displacements.as_ptr(),
                self.datatype,
                self.receive,
                count,
                self.datatype,
                root,
                self.context,
            )
        };
        check("MPI_Scatterv", code)
    }

    /// # Safety
    /// As for [`call`](Self::call).
    unsafe fn all_to_all(
        &self,
        send: &Parts,
        receive: &Parts,
        largest: i64,
        common: bool,
    ) -> Result<()> {
        // All ranks must call the same function, whatever their own parts.
        let fits = largest <= i64::from(self.largest);
        let ints = (Ints::of(send, c_int::MAX), Ints::of(receive, c_int::MAX));
        let (true, (Some(sent), Some(received))) = (fits, ints) else {
            // SAFETY: passed on to the caller.
            return unsafe { wide::all_to_all(self, send, receive) };
        };
        if common {
            let (sent, received) = (sent.counts[0], received.counts[0]);
            // SAFETY: passed on to the caller.
            let code = unsafe {
                mpi_sys::MPI_Alltoall(
                    self.send,
                    sent,
                    self.datatype,
                    self.receive,
                    received,
                    self.datatype,
                    self.context,
                )
            };
            return check("MPI_Alltoall", code);
        }
        // SAFETY: passed on to the caller; each list has an entry per rank.
        let code = unsafe {
            mpi_sys::MPI_Alltoallv(
                self.send,
                sent.counts.as_ptr(),
                sent.displacements.as_ptr(),
                self.datatype,
                self.receive,
                received.counts.as_ptr(),
                received.displacements.as_ptr(),
                self.datatype,
                self.context,
            )
        };
        check("MPI_Alltoallv", code)
    }

    /// # Safety
    /// As for [`call`](Self::call).
    unsafe fn reduce_scatter(&self, parts: &Parts, op: MPI_Op) -> Result<()> {
        let Some(ints) = Ints::of(parts, self.largest.min(LARGEST_REDUCED)) else {
            // SAFETY: passed on to the caller.
            return unsafe { wide::reduce_scatter(self, parts, op) };
        };
        if let Some(common) = parts.common_count() {
            // SAFETY: passed on to the caller.
            let code = unsafe {
                mpi_sys::MPI_Reduce_scatter_block(
                    self.send,
                    self.receive,
                    as_int(common),
                    self.datatype,
                    op,
                    self.context,
                )
            };
            return check("MPI_Reduce_scatter_block", code);
        }
        // SAFETY: passed on to the caller; the list has an entry per rank.
        let code = unsafe {
            mpi_sys::MPI_Reduce_scatter(
                self.send,
                self.receive,
                ints.counts.as_ptr(),
                self.datatype,
                op,
                self.context,
            )
        };
        check("MPI_Reduce_scatter", code)
    }
}

/// Some of the elements.
struct Piece {
    send: *const c_void,
    receive: *mut c_void,
    count: c_int,
}

/// Parts as MPI takes them.
struct Ints {
    counts: Vec<c_int>,
    displacements: Vec<c_int>,
}

impl Ints {
    /// `None` if the parts reach beyond `largest`, which all ranks that see the same parts see
    /// alike.
    fn of(parts: &Parts, largest: c_int) -> Option<Self> {
        (parts.end() <= i64::from(largest)).then(|| Self {
            counts: parts.counts.iter().map(|&count| as_int(count)).collect(),
            displacements: parts.displacements.iter().map(|&start| as_int(start)).collect(),
        })
    }
}

/// A count that is known to fit.
fn as_int(count: i64) -> c_int {
    c_int::try_from(count).unwrap_or_else(|_| unreachable!("{count} was checked to fit an int"))
}

/// Cuts `count` elements into (start, length), at least one of them: a call on no elements is a
/// call all the same.
#[inline]
fn pieces(count: i64, most: c_int) -> impl Iterator<Item = (usize, c_int)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start > 0 && start >= count {
            return None;
        }
        let length = c_int::try_from(count - start).unwrap_or(most).min(most);
        let piece = (usize::try_from(start).ok()?, length);
        // Ends also after an empty piece.
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
