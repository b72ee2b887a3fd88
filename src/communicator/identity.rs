//! [`Identity`]: a name of a communicator that all its ranks know.

use std::sync::atomic::{AtomicI64, Ordering};

use mpi_sys::MPI_Comm;
use serde::{Deserialize, Serialize};

use crate::base::error::Result;
use crate::environment::error_code::check;

/// A name that the ranks of a communicator agree on when it is made, and that no other communicator
/// of the program has: each group of a split has one of its own. As the ranks have the same name,
/// they can compare hashes that it is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The rank of the communicator's rank 0 in `MPI_COMM_WORLD`.
    leader: i64,
    /// How many communicators that process had taken part in making before.
    number: i64,
}

impl Identity {
    /// Agrees on the identity of a communicator that was just made: its rank 0 broadcasts it in
    /// `context`. Collective, with permission to call MPI.
    pub(super) fn agree(context: MPI_Comm) -> Result<Self> {
        static MADE: AtomicI64 = AtomicI64::new(0);
        let mut rank = 0;
        // SAFETY: MPI is initialized; `rank` outlives the call.
        check("MPI_Comm_rank", unsafe {
            mpi_sys::MPI_Comm_rank(mpi_sys::MPI_COMM_WORLD, &mut rank)
        })?;
        let mut words = [i64::from(rank), MADE.fetch_add(1, Ordering::Relaxed)];
        // SAFETY: two words on every rank of a communicator that only this call uses.
        check("MPI_Bcast", unsafe {
            mpi_sys::MPI_Bcast(words.as_mut_ptr().cast(), 2, mpi_sys::MPI_INT64_T, 0, context)
        })?;
        let [leader, number] = words;
        Ok(Self { leader, number })
    }

    /// The name as two numbers.
    pub(crate) fn numbers(self) -> [i64; 2] {
        [self.leader, self.number]
    }

    #[cfg(test)]
    pub(crate) const fn of_test(number: i64) -> Self {
        Self { leader: 0, number }
    }
}
