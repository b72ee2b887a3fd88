//! Conversions from and to the communicators of rsmpi, the [crate `mpi`](https://docs.rs/mpi), with
//! the feature `rsmpi`.
//!
//! | from | to | by |
//! | --- | --- | --- |
//! | `&SimpleCommunicator` of rsmpi | [`Communicator`] | [`Communicator::try_from`](#ours-from-theirs) |
//! | `&CartesianCommunicator` of rsmpi | [`Communicator`] | [`Communicator::try_from`](#ours-from-theirs) |
//! | [`&Communicator`](Communicator) | `SimpleCommunicator` of rsmpi | [`SimpleCommunicator::try_from`](#theirs-from-ours) |
//!
//! Each makes a duplicate by `MPI_Comm_dup`, with contexts of its own, and is collective: every rank must
//! call it. Make one duplicate and keep it, instead of making one whenever it is needed. A [`Cartesian`]
//! and a [`Graph`] dereference to their communicator, and a grid of rsmpi's becomes a communicator
//! without coordinates.
//!
//! rsmpi's methods of communicators are those of its trait `Communicator`, whose name is that of this
//! crate's type. So import the trait without its name: `use mpi::traits::Communicator as _`.
//!
//! # Ours from theirs
//!
//! ```
//! use mpi::topology::SimpleCommunicator;
//! use mpi::traits::Communicator as _;
//! use mpi4tch::{Communicator, Op};
//! use tch::Tensor;
//!
//! let universe = mpi4tch::initialize()?;
//! let theirs = SimpleCommunicator::world();
//! let ours = Communicator::try_from(&theirs)?;
//! assert_eq!((ours.rank(), ours.size()), (theirs.rank(), theirs.size()));
//! let sum = ours.all_reduce(&Tensor::from_slice(&[1]), Op::Sum)?;
//! assert_eq!(sum, Tensor::from_slice(&[theirs.size()]));
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! The errors are those of [`Communicator::from_raw`].
//!
//! # Theirs from ours
//!
//! The duplicate is rsmpi's, which frees it when it is dropped. That is collective too: drop it on every
//! rank before MPI is finalized. MPI's errors on it abort the job, as rsmpi does not check MPI's return
//! codes.
//!
//! ```
//! use mpi::topology::SimpleCommunicator;
//! use mpi::traits::{Communicator as _, CommunicatorCollectives};
//!
//! let universe = mpi4tch::initialize()?;
//! let ours = universe.world();
//! let theirs = SimpleCommunicator::try_from(&ours)?;
//! assert_eq!((theirs.rank(), theirs.size()), (ours.rank(), ours.size()));
//! theirs.barrier();
//! drop(theirs);
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! The conversion returns [`Error::Mismatch`] if other ranks make another call, [`Error::Mpi`] if MPI
//! fails, and [`Error::Finalized`] after the universe's end.
//!
//! # One MPI, two crates
//!
//! A program may use both crates. One of them initializes MPI, and the other uses it as it is. The
//! crate that initialized MPI finalizes it when its universe is dropped, so drop that universe
//! last.
//!
//! - rsmpi first:
//!   [`mpi::initialize_with_threading`](https://docs.rs/mpi/latest/mpi/fn.initialize_with_threading.html)
//!   with `Threading::Serialized`, then [`initialize`](crate::initialize). After plain
//!   `mpi::initialize`, this crate's calls must come from the main thread.
//! - this crate first: [`initialize`](crate::initialize). `mpi::initialize` then returns `None`,
//!   but `SimpleCommunicator::world()` and the conversions work without rsmpi's universe.
//!
//! A program may wait in rsmpi's calls, in which those of this crate do not go on. So with the feature,
//! every started receive is handed to MPI at once: with Open MPI, that takes up to three times as long
//! for large messages.
//!
//! # Building both
//!
//! Both crates must be built for the same MPI. `MPI4TCH_MPI` chooses the MPI of this crate.
//! `MPICC`, or else the `mpicc` on the `PATH`, chooses that of rsmpi. If several MPIs are
//! installed, set both, as in `MPI4TCH_MPI=mpich MPICC=mpicc.mpich`. rsmpi's build does not notice
//! when `MPICC` changes: then run `cargo clean -p mpi -p mpi-sys`. If its build cannot find
//! `stddef.h`, clang's headers are missing; gcc's can be used with
//! `BINDGEN_EXTRA_CLANG_ARGS=-I$(gcc -print-file-name=include)`.
//!
//! [`Cartesian`]: crate::Cartesian
//! [`Graph`]: crate::Graph

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
///
/// # Examples
/// ```
/// use mpi::topology::SimpleCommunicator;
/// use mpi::traits::Communicator as _;
/// use mpi4tch::Communicator;
///
/// let universe = mpi4tch::initialize()?;
/// let theirs = SimpleCommunicator::world();
/// let ours = Communicator::try_from(&theirs)?;
/// assert_eq!((ours.rank(), ours.size()), (theirs.rank(), theirs.size()));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
impl TryFrom<&SimpleCommunicator> for Communicator {
    type Error = Error;

    fn try_from(comm: &SimpleCommunicator) -> Result<Self> {
        take_in(comm)
    }
}

/// A duplicate, with contexts of its own: see [`Communicator::from_raw`]. Collective. It has no
/// coordinates.
///
/// # Examples
/// ```
/// use mpi::topology::SimpleCommunicator;
/// use mpi::traits::Communicator as _;
/// use mpi4tch::Communicator;
///
/// let universe = mpi4tch::initialize()?;
/// let world = SimpleCommunicator::world();
/// let line = world.create_cartesian_communicator(&[world.size()], &[false], false);
/// let line = line.expect("all ranks are in the grid");
/// let ours = Communicator::try_from(&line)?;
/// assert_eq!((ours.rank(), ours.size()), (line.rank(), line.size()));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
impl TryFrom<&CartesianCommunicator> for Communicator {
    type Error = Error;

    fn try_from(comm: &CartesianCommunicator) -> Result<Self> {
        take_in(comm)
    }
}

/// A duplicate that rsmpi owns. Collective. Dropping it frees it, which is collective too: drop it
/// on every rank before MPI is finalized. Errors on it abort the job, as rsmpi does not check MPI's
/// return codes.
///
/// # Examples
/// ```
/// use mpi::topology::SimpleCommunicator;
/// use mpi::traits::Communicator as _;
///
/// let universe = mpi4tch::initialize()?;
/// let ours = universe.world();
/// let theirs = SimpleCommunicator::try_from(&ours)?;
/// assert_eq!((theirs.rank(), theirs.size()), (ours.rank(), ours.size()));
/// drop(theirs); // on every rank, before the universe
/// # Ok::<(), mpi4tch::Error>(())
/// ```
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
