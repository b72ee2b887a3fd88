//! Calls whose counts or displacements an `int` cannot hold, with the functions of MPI 3.
//!
//! Data that only moves goes by one `MPI_Alltoallw`, in which a datatype made for the purpose
//! describes each part with its place in the buffer, so that its count is 1. A reduction to all
//! ranks in parts becomes one reduction to each, in pieces.

use std::ffi::c_int;

use mpi_sys::{MPI_Aint, MPI_Datatype, MPI_Op};

use super::{Buffers, LARGEST_REDUCED, pieces};
use crate::blocks::Parts;
use crate::communicator::{Rank, index};
use crate::error::{Result, check};

/// # Safety
/// As for `Buffers::call`.
pub(super) unsafe fn all_gather(buffers: &Buffers, parts: &Parts) -> Result<()> {
    let same = Parts {
        counts: vec![buffers.count; parts.counts.len()],
        displacements: vec![0; parts.counts.len()],
    };
    // SAFETY: passed on to the caller; all ranks get the same part.
    unsafe { all_to_all(buffers, &same, parts) }
}

/// # Safety
/// As for `Buffers::call`.
pub(super) unsafe fn gather(buffers: &Buffers, parts: &Parts, root: Rank) -> Result<()> {
    let send = only(root, buffers.count, parts.counts.len());
    // A buffer that is not the root's receives nothing.
    let receive = if buffers.rank == root { parts } else { &only(root, 0, parts.counts.len()) };
    // SAFETY: passed on to the caller.
    unsafe { all_to_all(buffers, &send, receive) }
}

/// # Safety
/// As for `Buffers::call`.
pub(super) unsafe fn scatter(buffers: &Buffers, parts: &Parts, root: Rank) -> Result<()> {
    let send = if buffers.rank == root { parts } else { &only(root, 0, parts.counts.len()) };
    let receive = only(root, parts.counts[index(buffers.rank)], parts.counts.len());
    // SAFETY: passed on to the caller.
    unsafe { all_to_all(buffers, send, &receive) }
}

/// One part of `count` elements, for `rank`.
fn only(rank: Rank, count: i64, size: usize) -> Parts {
    let mut counts = vec![0; size];
    counts[index(rank)] = count;
    Parts { counts, displacements: vec![0; size] }
}

/// # Safety
/// As for `Buffers::call`.
pub(super) unsafe fn all_to_all(buffers: &Buffers, send: &Parts, receive: &Parts) -> Result<()> {
    // SAFETY: passed on to the caller.
    unsafe { copy_own(buffers, send, receive) };
    let (send, receive) = (Datatypes::of(buffers, send)?, Datatypes::of(buffers, receive)?);
    // The datatypes say where the parts are.
    let displacements = vec![0; send.counts.len()];
    // SAFETY: passed on to the caller; each list has an entry per rank, and the datatypes live to
    // the end of the call.
    let code = unsafe {
        mpi_sys::MPI_Alltoallw(
            buffers.send,
            send.counts.as_ptr(),
            displacements.as_ptr(),
            send.datatypes.as_ptr(),
            buffers.receive,
            receive.counts.as_ptr(),
            displacements.as_ptr(),
            receive.datatypes.as_ptr(),
            buffers.context,
        )
    };
    check("MPI_Alltoallw", code)
}

/// Copies what the rank sends to itself: with 2³¹ bytes of that, Open MPI 4.1.4 never returns.
///
/// # Safety
/// As for `Buffers::call`.
unsafe fn copy_own(buffers: &Buffers, send: &Parts, receive: &Parts) {
    let own = index(buffers.rank);
    let bytes = |elements: i64| usize::try_from(elements).unwrap_or(0) * buffers.size;
    let from = buffers.send.cast::<u8>().wrapping_add(bytes(send.displacements[own]));
    let to = buffers.receive.cast::<u8>().wrapping_add(bytes(receive.displacements[own]));
    // SAFETY: both parts lie in their buffers, which do not overlap, and have this length.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes(receive.counts[own])) };
}

/// # Safety
/// As for `Buffers::call`.
pub(super) unsafe fn reduce_scatter(buffers: &Buffers, parts: &Parts, op: MPI_Op) -> Result<()> {
    for (root, (&count, &displacement)) in (0..).zip(parts.counts.iter().zip(&parts.displacements))
    {
        let part = buffers
            .send
            .wrapping_byte_add(usize::try_from(displacement).unwrap_or(0) * buffers.size);
        for (start, length) in pieces(count, buffers.largest.min(LARGEST_REDUCED)) {
            let offset = start * buffers.size;
            // SAFETY: passed on to the caller; the piece lies within the part.
            let code = unsafe {
                mpi_sys::MPI_Reduce(
                    part.wrapping_byte_add(offset),
                    buffers.receive.wrapping_byte_add(offset),
                    length,
                    buffers.datatype,
                    op,
                    root,
                    buffers.context,
                )
            };
            check("MPI_Reduce", code)?;
        }
    }
    Ok(())
}

/// A datatype for each part of another rank's, freed with the list.
struct Datatypes {
    counts: Vec<c_int>,
    datatypes: Vec<MPI_Datatype>,
}

impl Datatypes {
    fn of(buffers: &Buffers, parts: &Parts) -> Result<Self> {
        let mut list = Self { counts: Vec::new(), datatypes: Vec::new() };
        for (rank, (&count, &displacement)) in
            (0..).zip(parts.counts.iter().zip(&parts.displacements))
        {
            if count == 0 || rank == buffers.rank {
                list.counts.push(0);
                list.datatypes.push(mpi_sys::MPI_BYTE);
            } else {
                let datatype = part(buffers, displacement, count)?;
                list.counts.push(1);
                list.datatypes.push(datatype);
            }
        }
        Ok(list)
    }
}

impl Drop for Datatypes {
    fn drop(&mut self) {
        for (count, datatype) in self.counts.iter().zip(&mut self.datatypes) {
            if *count == 1 {
                // SAFETY: a datatype made by `part`, freed once.
                unsafe { mpi_sys::MPI_Type_free(datatype) };
            }
        }
    }
}

/// `count` elements from the element `displacement` on: as many blocks of the largest count as fit,
/// and what is left.
fn part(buffers: &Buffers, displacement: i64, count: i64) -> Result<MPI_Datatype> {
    let block = i64::from(buffers.largest);
    let (blocks, rest) = (count / block, count % block);
    let whole = create("MPI_Type_vector", |datatype| {
        // SAFETY: the element's datatype is valid; `datatype` is written before the return.
        unsafe {
            mpi_sys::MPI_Type_vector(
                as_int(blocks),
                buffers.largest,
                buffers.largest,
                buffers.datatype,
                datatype,
            )
        }
    })?;
    let remainder = create("MPI_Type_contiguous", |datatype| {
        // SAFETY: as above.
        unsafe { mpi_sys::MPI_Type_contiguous(as_int(rest), buffers.datatype, datatype) }
    })?;
    let address = |element: i64| {
        let element = MPI_Aint::try_from(element).unwrap_or(MPI_Aint::MAX);
        element.saturating_mul(buffers.size.cast_signed())
    };
    let addresses = [address(displacement), address(displacement + blocks * block)];
    let types = [whole.0, remainder.0];
    let both = create("MPI_Type_create_struct", |datatype| {
        // SAFETY: each list has two entries, of datatypes that were just made.
        unsafe {
            mpi_sys::MPI_Type_create_struct(
                2,
                [1, 1].as_ptr(),
                addresses.as_ptr(),
                types.as_ptr(),
                datatype,
            )
        }
    })?;
    let mut datatype = both.0;
    // SAFETY: a datatype that was just made.
    check("MPI_Type_commit", unsafe { mpi_sys::MPI_Type_commit(&mut datatype) })?;
    std::mem::forget(both);
    Ok(datatype)
}

/// A datatype that is freed when dropped.
struct Temporary(MPI_Datatype);

fn create(name: &'static str, make: impl FnOnce(&mut MPI_Datatype) -> c_int) -> Result<Temporary> {
    let mut datatype = mpi_sys::MPI_DATATYPE_NULL;
    check(name, make(&mut datatype))?;
    Ok(Temporary(datatype))
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // SAFETY: a datatype that `create` made, freed once.
        unsafe { mpi_sys::MPI_Type_free(&mut self.0) };
    }
}

/// The number of blocks of 2³¹, or what is left beside them.
fn as_int(count: i64) -> c_int {
    c_int::try_from(count).unwrap_or(c_int::MAX)
}
