//! Translates the ranks of one communicator to those of another.

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
        let _permission = self.environment().enter(call)?;
        let (mut own, mut others) = (mpi_sys::MPI_GROUP_NULL, mpi_sys::MPI_GROUP_NULL);
        for (comm, group) in [(self, &mut own), (other, &mut others)] {
            // SAFETY: `enter` gave permission to call MPI; `group` outlives the call.
            check("MPI_Comm_group", unsafe { mpi_sys::MPI_Comm_group(comm.forward(), group) })?;
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
