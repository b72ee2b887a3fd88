//! Communicators with a topology: how MPI makes grids and graphs.

use mpi_sys::MPI_Comm;

use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::communicator::Handle;
use crate::environment::error_code::check;

impl Handle {
    /// Replaces zeros in `dims` by extents that MPI chooses, so that a grid of all ranks results.
    /// The product of the other extents divides the number of ranks. Local.
    ///
    /// Wraps `MPI_Dims_create`.
    pub(crate) fn choose_dims(&self, call: &'static str, dims: &mut [i32]) -> Result<()> {
        let _permission = self.environment().enter(call)?;
        let count = i32::try_from(dims.len()).unwrap_or(i32::MAX);
        // SAFETY: `enter` gave permission to call MPI; the list has `count` entries.
        check("MPI_Dims_create", unsafe {
            mpi_sys::MPI_Dims_create(self.size(), count, dims.as_mut_ptr())
        })
    }
}

/// Makes a grid of the ranks of `parent`; returns MPI's error code.
///
/// Wraps `MPI_Cart_create`. Collective over `parent`.
///
/// # Safety
/// MPI can be called; `parent` is a communicator, and `made` is valid. The lists are equally long.
pub(crate) unsafe fn create_grid(
    parent: MPI_Comm,
    dims: &[i32],
    periodic: &[bool],
    reorder: bool,
    made: *mut MPI_Comm,
) -> i32 {
    let periods: Vec<i32> = periodic.iter().copied().map(i32::from).collect();
    let count = i32::try_from(dims.len()).unwrap_or(i32::MAX);
    // SAFETY: passed on to the caller; the lists outlive the call.
    unsafe {
        mpi_sys::MPI_Cart_create(
            parent,
            count,
            dims.as_ptr(),
            periods.as_ptr(),
            i32::from(reorder),
            made,
        )
    }
}

/// Makes the part of a grid that has this rank's coordinates along the axes that are not kept;
/// returns MPI's error code. `rank` is this rank in the grid.
///
/// Wraps `MPI_Cart_sub`. Collective over `parent`. If no axis is kept, every rank is a part of its
/// own (MPI 4.1, 8.5.6), which MPICH 4.0.2 makes on rank 0 only; so it is split off.
///
/// # Safety
/// MPI can be called; `parent` is a grid of as many axes as `keep` has entries, and `made` is valid.
pub(crate) unsafe fn create_part(
    parent: MPI_Comm,
    rank: Rank,
    keep: &[bool],
    made: *mut MPI_Comm,
) -> i32 {
    if !keep.contains(&true) {
        // SAFETY: passed on to the caller.
        return unsafe { mpi_sys::MPI_Comm_split(parent, rank, 0, made) };
    }
    let keep: Vec<i32> = keep.iter().copied().map(i32::from).collect();
    // SAFETY: passed on to the caller; the list outlives the call.
    unsafe { mpi_sys::MPI_Cart_sub(parent, keep.as_ptr(), made) }
}

/// Makes a communicator in which this rank hears `sources` and sends to `destinations`; returns MPI's
/// error code.
///
/// Wraps `MPI_Dist_graph_create_adjacent`. Collective over `parent`.
///
/// # Safety
/// MPI can be called; `parent` is a communicator that has these ranks, and `made` is valid.
pub(crate) unsafe fn create_graph(
    parent: MPI_Comm,
    sources: &[Rank],
    destinations: &[Rank],
    made: *mut MPI_Comm,
) -> i32 {
    let count = |list: &[Rank]| i32::try_from(list.len()).unwrap_or(i32::MAX);
    // SAFETY: passed on to the caller; the lists outlive the call.
    unsafe {
        mpi_sys::MPI_Dist_graph_create_adjacent(
            parent,
            count(sources),
            sources.as_ptr(),
            mpi_sys::MPI_UNWEIGHTED,
            count(destinations),
            destinations.as_ptr(),
            mpi_sys::MPI_UNWEIGHTED,
            mpi_sys::MPI_INFO_NULL,
            0,
            made,
        )
    }
}

/// The rank's place in a grid that was just made is its number in row-major order (MPI 4.1,
/// 8.5.1).
pub(crate) fn place(rank: Rank, dims: &[i32]) -> Vec<i32> {
    let mut rest = rank;
    let mut place: Vec<i32> = dims
        .iter()
        .rev()
        .map(|extent| {
            let coordinate = rest % extent;
            rest /= extent;
            coordinate
        })
        .collect();
    place.reverse();
    place
}
