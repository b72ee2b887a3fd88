//! Calls whose counts or displacements an `int` cannot hold, by the functions of MPI 4 with wide
//! counts.

use mpi_sys::{MPI_Aint, MPI_Count, MPI_Op};

use super::Buffers;
use crate::blocks::Parts;
use crate::communicator::{Rank, index};
use crate::error::{Result, check};

/// Parts as these functions take them.
struct Wide {
    counts: Vec<MPI_Count>,
    displacements: Vec<MPI_Aint>,
}

impl Wide {
    fn of(parts: &Parts) -> Self {
        let address = |&start: &i64| MPI_Aint::try_from(start).unwrap_or(MPI_Aint::MAX);
        Self {
            counts: parts.counts.clone(),
            displacements: parts.displacements.iter().map(address).collect(),
        }
    }
}

/// By `MPI_Alltoallv_c`, in which each rank sends all others the same: with parts beyond 2³¹ bytes,
/// `MPI_Allgatherv_c` of MPICH 4.0.2 does not come back (on 2 ranks, after 150 s), while the others
/// of these functions do.
///
/// # Safety
/// As for `Buffers::call`.
pub(super) unsafe fn all_gather(buffers: &Buffers, parts: &Parts) -> Result<()> {
    let size = parts.counts.len();
    let same = Parts { counts: vec![buffers.count; size], displacements: vec![0; size] };
    // SAFETY: passed on to the caller; all ranks get the same part.
    unsafe { all_to_all(buffers, &same, parts) }
}

/// # Safety
/// As for `Buffers::call`.
pub(super) unsafe fn gather(buffers: &Buffers, parts: &Parts, root: Rank) -> Result<()> {
    let wide = Wide::of(parts);
    // SAFETY: passed on to the caller; the two lists have an entry per rank.
    let code = unsafe {
        mpi_sys::MPI_Gatherv_c(
            buffers.send,
            buffers.count,
            buffers.datatype,
            buffers.receive,
            wide.counts.as_ptr(),
            wide.displacements.as_ptr(),
            buffers.datatype,
            root,
            buffers.context,
        )
    };
    check("MPI_Gatherv_c", code)
}

/// # Safety
/// As for `Buffers::call`.
pub(super) unsafe fn scatter(buffers: &Buffers, parts: &Parts, root: Rank) -> Result<()> {
    let wide = Wide::of(parts);
    // SAFETY: passed on to the caller; the two lists have an entry per rank.
    let code = unsafe {
        mpi_sys::MPI_Scatterv_c(
            buffers.send,
            wide.counts.as_ptr(),
            wide.displacements.as_ptr(),
            buffers.datatype,
            buffers.receive,
            parts.counts[index(buffers.rank)],
            buffers.datatype,
            root,
            buffers.context,
        )
    };
    check("MPI_Scatterv_c", code)
}

/// # Safety
/// As for `Buffers::call`.
pub(super) unsafe fn all_to_all(buffers: &Buffers, send: &Parts, receive: &Parts) -> Result<()> {
    let (send, receive) = (Wide::of(send), Wide::of(receive));
    // SAFETY: passed on to the caller; each list has an entry per rank.
    let code = unsafe {
        mpi_sys::MPI_Alltoallv_c(
            buffers.send,
            send.counts.as_ptr(),
            send.displacements.as_ptr(),
            buffers.datatype,
            buffers.receive,
            receive.counts.as_ptr(),
            receive.displacements.as_ptr(),
            buffers.datatype,
            buffers.context,
        )
    };
    check("MPI_Alltoallv_c", code)
}

/// # Safety
/// As for `Buffers::call`.
pub(super) unsafe fn reduce_scatter(buffers: &Buffers, parts: &Parts, op: MPI_Op) -> Result<()> {
    let wide = Wide::of(parts);
    // SAFETY: passed on to the caller; the list has an entry per rank.
    let code = unsafe {
        mpi_sys::MPI_Reduce_scatter_c(
            buffers.send,
            buffers.receive,
            wide.counts.as_ptr(),
            buffers.datatype,
            op,
            buffers.context,
        )
    };
    check("MPI_Reduce_scatter_c", code)
}
