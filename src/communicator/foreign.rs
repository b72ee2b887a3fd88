//! Communicators that another library made.

use std::mem::MaybeUninit;

use mpi_sys::MPI_Comm;

use crate::base::error::{Error, Result};
use crate::environment::error_code::check;

/// Checks that `comm` is a communicator, and not an intercommunicator.
///
/// `comm` may be made from any integer that the program took for a Fortran handle. MPI passes the
/// error of an invalid handle to the error handlers of its own communicators, which abort by
/// default; so these return errors meanwhile.
pub(super) fn check_intra(call: &'static str, comm: MPI_Comm) -> Result<()> {
    let refuse = |message: &str| Err(Error::Argument { call, message: message.to_owned() });
    // Open MPI converts an integer that is no handle to a null pointer.
    // SAFETY: a handle is a raw pointer or an integer, for which zero bits are a valid value.
    let zeros: MPI_Comm = unsafe { MaybeUninit::zeroed().assume_init() };
    if comm == mpi_sys::MPI_COMM_NULL || comm == zeros {
        return refuse("the communicator is MPI_COMM_NULL");
    }
    let own = [mpi_sys::MPI_COMM_WORLD, mpi_sys::MPI_COMM_SELF];
    let mut before = [mpi_sys::MPI_ERRHANDLER_NULL; 2];
    for (comm, before) in own.into_iter().zip(&mut before) {
        // SAFETY: MPI's own communicators; `before` outlives the call.
        check("MPI_Comm_get_errhandler", unsafe {
            mpi_sys::MPI_Comm_get_errhandler(comm, before)
        })?;
        // SAFETY: as above; the error handler is predefined.
        check("MPI_Comm_set_errhandler", unsafe {
            mpi_sys::MPI_Comm_set_errhandler(comm, mpi_sys::MPI_ERRORS_RETURN)
        })?;
    }
    let mut inter = 0;
    // SAFETY: `inter` outlives the call, which checks the handle.
    let tested =
        check("MPI_Comm_test_inter", unsafe { mpi_sys::MPI_Comm_test_inter(comm, &mut inter) });
    for (comm, mut before) in own.into_iter().zip(before) {
        // SAFETY: MPI's own communicators, and the error handlers that they had before.
        unsafe { mpi_sys::MPI_Comm_set_errhandler(comm, before) };
        // SAFETY: frees the reference that MPI_Comm_get_errhandler returned, after its last use.
        unsafe { mpi_sys::MPI_Errhandler_free(&mut before) };
    }
    tested?;
    if inter != 0 {
        return refuse("an intercommunicator has two groups; a communicator of one is needed");
    }
    Ok(())
}
