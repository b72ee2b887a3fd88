//! Conversions from and to the communicators of rsmpi, the [`mpi`] crate, with the feature `rsmpi`.
//!
//! A program may use both crates, on one MPI that either has initialized: the other finds it as it
//! is, and whoever initialized it finalizes it. Let it live longest.
//!
//! - rsmpi first: [`mpi::initialize_with_threading`] with `Threading::Serialized`, then
//!   [`initialize`](crate::initialize). After plain `mpi::initialize`, this crate's calls must come
//!   from the main thread.
//! - this crate first: [`initialize`](crate::initialize); `mpi::initialize` then returns `None`,
//!   but `SimpleCommunicator::world()` and the conversions below work without rsmpi's universe.
//!
//! Both crates must be built for the same MPI. This one is chosen by `MPI4TCH_MPI`, rsmpi by
//! `MPICC`, or the `mpicc` on the `PATH`: where several MPIs are installed, set both, as in
//! `MPI4TCH_MPI=mpich MPICC=mpicc.mpich`. rsmpi's build does not notice when `MPICC` changes; run
//! `cargo clean -p mpi -p mpi-sys` then. If its build cannot find `stddef.h`, clang's headers are
//! missing, and gcc's do: `BINDGEN_EXTRA_CLANG_ARGS=-I$(gcc -print-file-name=include)`.

use mpi::raw::{AsRaw, FromRaw};
use mpi::topology::{CartesianCommunicator, SimpleCommunicator};

use crate::base::error::{Error, Result};
use crate::engine::agreement::agree_on;
use crate::engine::communicator::Communicator;
use crate::environment::error_code::check;

type Theirs = mpi::ffi::MPI_Comm;
type Ours = mpi_sys::MPI_Comm;

/// Both are made from the `MPI_Comm` of an `mpi.h`: an integer in MPICH, a pointer in Open MPI.
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

/// A duplicate that rsmpi owns. Collective, and so is its drop, which frees it: drop it on every
/// rank, while MPI is there. Errors on it abort, as rsmpi leaves it to MPI to notice them.
impl TryFrom<&Communicator> for SimpleCommunicator {
    type Error = Error;

    #[track_caller]
    fn try_from(comm: &Communicator) -> Result<Self> {
        let site = comm.site("SimpleCommunicator::try_from");
        let turn = agree_on(site, comm)?;
        let made = comm.environment().call(site, || duplicate(comm));
        if made.is_ok() {
            turn.made();
        }
        made
    }
}

/// With permission to call MPI.
fn duplicate(comm: &Communicator) -> Result<SimpleCommunicator> {
    let mut duplicate = mpi_sys::MPI_COMM_NULL;
    // SAFETY: the communicator is alive, as `enter` gave permission; `duplicate` outlives the call.
    check("MPI_Comm_dup", unsafe { mpi_sys::MPI_Comm_dup(comm.context(), &mut duplicate) })?;
    // SAFETY: a communicator that was just made, and one of MPI's own error handlers.
    check("MPI_Comm_set_errhandler", unsafe {
        mpi_sys::MPI_Comm_set_errhandler(duplicate, mpi_sys::MPI_ERRORS_ARE_FATAL)
    })?;
    // SAFETY: two names of one type, of the same size, as asserted above.
    let theirs = unsafe { std::mem::transmute::<Ours, Theirs>(duplicate) };
    // SAFETY: a live communicator of one group, none of MPI's own, and nobody else's.
    Ok(unsafe { SimpleCommunicator::from_raw(theirs) })
}

fn take_in(comm: &impl AsRaw<Raw = Theirs>) -> Result<Communicator> {
    // SAFETY: two names of one type, of the same size, as asserted above.
    let ours = unsafe { std::mem::transmute::<Theirs, Ours>(comm.as_raw()) };
    // SAFETY: rsmpi's communicator is alive while it is borrowed.
    unsafe { Communicator::from_raw(ours) }
}
