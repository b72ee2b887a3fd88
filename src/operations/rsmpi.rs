//! Conversions from and to the communicators of rsmpi, the [`mpi`] crate, with the feature `rsmpi`.
//!
//! A program may use both crates. One of them initializes MPI, and the other uses it as it is. The
//! crate that initialized MPI finalizes it when its universe is dropped, so drop that universe
//! last.
//!
//! - rsmpi first: [`mpi::initialize_with_threading`] with `Threading::Serialized`, then
//!   [`initialize`](crate::initialize). After plain `mpi::initialize`, this crate's calls must come
//!   from the main thread.
//! - this crate first: [`initialize`](crate::initialize). `mpi::initialize` then returns `None`,
//!   but `SimpleCommunicator::world()` and the conversions below work without rsmpi's universe.
//!
//! A program may wait in rsmpi's calls, in which those of this crate do not go on. So with the feature,
//! every started receive is handed to MPI at once: with Open MPI, that takes up to three times as long
//! for large messages.
//!
//! Both crates must be built for the same MPI. `MPI4TCH_MPI` chooses the MPI of this crate.
//! `MPICC`, or else the `mpicc` on the `PATH`, chooses that of rsmpi. If several MPIs are
//! installed, set both, as in `MPI4TCH_MPI=mpich MPICC=mpicc.mpich`. rsmpi's build does not notice
//! when `MPICC` changes: then run `cargo clean -p mpi -p mpi-sys`. If its build cannot find
//! `stddef.h`, clang's headers are missing; gcc's can be used with
//! `BINDGEN_EXTRA_CLANG_ARGS=-I$(gcc -print-file-name=include)`.

use mpi::raw::{AsRaw, FromRaw};
use mpi::topology::{CartesianCommunicator, SimpleCommunicator};

use crate::base::error::{Error, Result};
use crate::engine::agreement::agree_on;
use crate::engine::communicator::Communicator;
use crate::environment::error_code::check;

type Theirs = mpi::ffi::MPI_Comm;
type Ours = mpi_sys::MPI_Comm;

// MPI_Comm is an integer in MPICH and a pointer in Open MPI.
const _: () = assert!(
    size_of::<Theirs>() == size_of::<Ours>() && align_of::<Theirs>() == align_of::<Ours>(),
    "rsmpi was built for another MPI: set MPICC, and run `cargo clean -p mpi -p mpi-sys`"
);

/// A duplicate, with contexts of its own: see [`Communicator::from_raw`]. Collective.
impl TryFrom<&SimpleCommunicator> for Communicator {
    type Error = Error;

    fn try_from(comm: &SimpleCommunicator) -> Result<Self> {
        take_in(comm)
    }
}

/// A duplicate, with contexts of its own: see [`Communicator::from_raw`]. Collective.
impl TryFrom<&CartesianCommunicator> for Communicator {
    type Error = Error;

    fn try_from(comm: &CartesianCommunicator) -> Result<Self> {
        take_in(comm)
    }
}

/// A duplicate that rsmpi owns. Collective. Dropping it frees it, which is collective too: drop it
/// on every rank before MPI is finalized. Errors on it abort the job, as rsmpi does not check MPI's
/// return codes.
impl TryFrom<&Communicator> for SimpleCommunicator {
    type Error = Error;

    #[track_caller]
    fn try_from(comm: &Communicator) -> Result<Self> {
        let site = comm.site("SimpleCommunicator::try_from");
        comm.environment().share(site.call);
        let turn = agree_on(site, comm)?;
        let made = comm.environment().call(site, || duplicate(comm));
        if made.is_ok() {
            turn.made();
        }
        made
    }
}

/// Needs permission to call MPI.
fn duplicate(comm: &Communicator) -> Result<SimpleCommunicator> {
    let mut duplicate = mpi_sys::MPI_COMM_NULL;
    // SAFETY: the communicator is alive, as `enter` gave permission; `duplicate` outlives the call.
    check("MPI_Comm_dup", unsafe { mpi_sys::MPI_Comm_dup(comm.context(), &mut duplicate) })?;
    // SAFETY: a communicator that was just made, and one of MPI's own error handlers.
    check("MPI_Comm_set_errhandler", unsafe {
        mpi_sys::MPI_Comm_set_errhandler(duplicate, mpi_sys::MPI_ERRORS_ARE_FATAL)
    })?;
    // SAFETY: both are the MPI_Comm of one MPI, and have the same size, as asserted above.
    let theirs = unsafe { std::mem::transmute::<Ours, Theirs>(duplicate) };
    // SAFETY: an intracommunicator that was just made, is none of MPI's own, and has no other
    // owner.
    Ok(unsafe { SimpleCommunicator::from_raw(theirs) })
}

fn take_in(comm: &impl AsRaw<Raw = Theirs>) -> Result<Communicator> {
    // SAFETY: both are the MPI_Comm of one MPI, and have the same size, as asserted above.
    let ours = unsafe { std::mem::transmute::<Theirs, Ours>(comm.as_raw()) };
    // SAFETY: rsmpi's communicator is alive while it is borrowed.
    unsafe { Communicator::from_raw(ours) }
}
