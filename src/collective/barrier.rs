//! `MPI_Barrier`.

use crate::communicator::Communicator;
use crate::error::{Result, check};

impl Communicator {
    /// Waits until every rank has called it.
    ///
    /// Wraps `MPI_Barrier`. Collective: every rank must call it. It has no part in the backward
    /// pass.
    ///
    /// # Errors
    /// [`Error::Mpi`](crate::Error::Mpi) if MPI fails;
    /// [`Error::Finalized`](crate::Error::Finalized) after the universe's end.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// universe.world().barrier()?;
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Barrier")]
    pub fn barrier(&self) -> Result<()> {
        let _guard = self.environment().enter("barrier")?;
        // SAFETY: the context is a valid communicator, as `enter` gave leave.
        check("MPI_Barrier", unsafe { mpi_sys::MPI_Barrier(self.context()) })
    }
}
