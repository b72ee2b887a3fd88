//! MPI's functions by the shape of their arguments, each shape called in one place.
//!
//! A collective says which function it is and with what; how the function is called, and how a
//! count that MPI's `int` cannot hold is cut into pieces, is written here once per shape.

use std::ffi::{c_int, c_void};

use mpi_sys::{MPI_Comm, MPI_Datatype, MPI_Op};
use tch::Tensor;

use crate::buffer::{Input, Output};
use crate::communicator::Communicator;
use crate::error::{Result, check};

/// An MPI call with everything that it reads and writes.
pub(crate) struct Plan<'x> {
    pub(crate) input: Input<'x>,
    pub(crate) output: Output,
    pub(crate) call: Call,
    /// What the result is to be divided by: MPI has no mean.
    pub(crate) divisor: Option<i64>,
}

/// An MPI function and its arguments besides the buffers.
pub(crate) enum Call {
    /// Combines `count` elements one by one: each element could be a call of its own.
    Reduction { function: Reduction, op: MPI_Op },
}

/// `MPI_Allreduce` and its like.
#[derive(Clone, Copy)]
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

impl Plan<'_> {
    /// Carries the call out and waits for its end.
    #[inline]
    pub(crate) fn run(self, name: &'static str, comm: &Communicator) -> Result<Tensor> {
        let environment = comm.environment();
        let _guard = environment.enter(name)?;
        let datatype = self.input.datatype();
        let mpi_datatype = datatype.mpi(environment.handles());
        let size = datatype.kind.elt_size_in_bytes();
        match self.call {
            Call::Reduction { function, op } => {
                for (start, count) in pieces(self.input.count(), PIECE) {
                    let offset = start * size;
                    // SAFETY: input and output are contiguous, hold the same number of elements of
                    // this datatype, of which the piece lies within, and do not overlap, as the
                    // output is new. Both live to the end of the call. The handles are valid, as
                    // `enter` gave leave.
                    let code = unsafe {
                        (function.run)(
                            self.input.data().byte_add(offset),
                            self.output.data().byte_add(offset),
                            count,
                            mpi_datatype,
                            op,
                            comm.context(),
                        )
                    };
                    check(function.name, code)?;
                }
            }
        }
        let mut result = self.output.into_tensor();
        if let Some(divisor) = self.divisor {
            let _ = result.f_div_scalar_(divisor)?;
        }
        Ok(result)
    }
}

/// The most elements of one call.
const PIECE: c_int = c_int::MAX;

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
