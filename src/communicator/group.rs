//! Translates the ranks of one communicator to those of another.

use mpi_sys::MPI_Comm;

use super::Handle;
use crate::base::error::Result;
use crate::base::rank::{Rank, index};
use crate::environment::error_code::check;

impl Handle {
    /// For each rank of this communicator the rank that the same process has in `other`; `None` if
    /// it is not in `other`. Local.
    ///
    /// Wraps `MPI_Group_translate_ranks`.
    pub(crate) fn ranks_in(&self, call: &'static str, other: &Self) -> Result<Vec<Option<Rank>>> {
        self.translate(call, other.forward())
    }

    /// For each rank of this communicator the rank that the same process has in `MPI_COMM_WORLD`;
    /// `None` if it is not there, as a process that was started later. Local.
    pub(crate) fn ranks_in_world(&self, call: &'static str) -> Result<Vec<Option<Rank>>> {
        self.translate(call, mpi_sys::MPI_COMM_WORLD)
    }

    fn translate(&self, call: &'static str, other: MPI_Comm) -> Result<Vec<Option<Rank>>> {
        let _permission = self.environment().enter(call)?;
        let (mut own, mut others) = (mpi_sys::MPI_GROUP_NULL, mpi_sys::MPI_GROUP_NULL);
        for (comm, group) in [(self.forward(), &mut own), (other, &mut others)] {
            // SAFETY: `enter` gave permission to call MPI; `group` outlives the call.
            check("MPI_Comm_group", unsafe { mpi_sys::MPI_Comm_group(comm, group) })?;
        }
        let ranks: Vec<Rank> = (0..self.size()).collect();
        let mut translated = vec![mpi_sys::MPI_UNDEFINED; index(self.size())];
        // SAFETY: two groups, and lists with an entry for each rank of the first.
        let outcome = check("MPI_Group_translate_ranks", unsafe {
            mpi_sys::MPI_Group_translate_ranks(
                own,
                self.size(),
                ranks.as_ptr(),
                others,
                translated.as_mut_ptr(),
            )
        });
        for mut group in [own, others] {
            // SAFETY: a group that was made above, and that nobody else has.
            unsafe { mpi_sys::MPI_Group_free(&mut group) };
        }
        outcome?;
        let is_there = |rank: Rank| (rank != mpi_sys::MPI_UNDEFINED).then_some(rank);
        Ok(translated.into_iter().map(is_there).collect())
    }
}

/// Makes a communicator of some of the ranks of `parent`, in this order; returns MPI's error code.
///
/// Wraps `MPI_Comm_create`. Collective over `parent`.
///
/// # Safety
/// MPI can be called; `parent` is a communicator that has these ranks, and `made` is valid.
pub(crate) unsafe fn create(parent: MPI_Comm, ranks: &[Rank], made: *mut MPI_Comm) -> i32 {
    let count = i32::try_from(ranks.len()).unwrap_or(i32::MAX);
    let (mut all, mut some) = (mpi_sys::MPI_GROUP_NULL, mpi_sys::MPI_GROUP_NULL);
    // SAFETY: passed on to the caller; the groups outlive the calls.
    let mut code = unsafe { mpi_sys::MPI_Comm_group(parent, &mut all) };
    if code == mpi_sys::MPI_SUCCESS {
        // SAFETY: as above; the list has `count` ranks of the group.
        code = unsafe { mpi_sys::MPI_Group_incl(all, count, ranks.as_ptr(), &mut some) };
    }
    if code == mpi_sys::MPI_SUCCESS {
        // SAFETY: as above.
        code = unsafe { mpi_sys::MPI_Comm_create(parent, some, made) };
    }
    for mut group in [all, some] {
        if group != mpi_sys::MPI_GROUP_NULL && group != mpi_sys::MPI_GROUP_EMPTY {
            // SAFETY: a group that was made above, and that nobody else has.
            unsafe { mpi_sys::MPI_Group_free(&mut group) };
        }
    }
    code
}
