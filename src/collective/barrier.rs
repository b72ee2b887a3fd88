//! `MPI_Barrier`.

use crate::agreement::{Terms, agree};
use crate::communicator::Communicator;
use crate::error::{Result, check};

impl Communicator {
    /// Waits until every rank has called it.
    ///
    /// Wraps `MPI_Barrier`. Collective: every rank must call it. It has no part in the backward
    /// pass.
    ///
    /// # Errors
    /// What is [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// universe.world().barrier()?;
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Barrier")]
    pub fn barrier(&self) -> Result<()> {
        agree("barrier", self, None, Ok(Terms::default()), false)?;
        let _guard = self.environment().enter("barrier")?;
        // SAFETY: the context is a valid communicator, as `enter` gave leave.
        check("MPI_Barrier", unsafe { mpi_sys::MPI_Barrier(self.context()) })
    }
}
