//! [`ThreadLevel`]: which threads may call MPI.

use std::ffi::c_int;

/// Which threads may call MPI.
///
/// # Examples
/// ```
/// use mpi4tch::ThreadLevel;
///
/// let universe = mpi4tch::initialize_with(ThreadLevel::Multiple)?;
/// // MPI may provide a lower level than the one asked for.
/// if universe.library().thread_level() == ThreadLevel::Multiple {
///     let other = universe.world().duplicate()?;
///     std::thread::spawn(move || other.barrier()).join().expect("no panic")?;
/// }
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ThreadLevel {
    /// The program has one thread.
    #[doc(alias = "MPI_THREAD_SINGLE")]
    Single,
    /// Only the main thread calls MPI; a call from another is an
    /// [`Error::Thread`](crate::Error::Thread).
    #[doc(alias = "MPI_THREAD_FUNNELED")]
    Funneled,
    /// Any thread calls MPI, one at a time. While a call of this crate waits, other threads can
    /// call MPI, except during calls that make communicators, which only one thread at a time may
    /// make, and during blocking calls without [checks](crate#checks-across-ranks).
    #[doc(alias = "MPI_THREAD_SERIALIZED")]
    Serialized,
    /// Any thread calls MPI at any time.
    #[doc(alias = "MPI_THREAD_MULTIPLE")]
    Multiple,
}

impl ThreadLevel {
    pub(crate) fn to_mpi(self) -> c_int {
        match self {
            Self::Single => mpi_sys::MPI_THREAD_SINGLE,
            Self::Funneled => mpi_sys::MPI_THREAD_FUNNELED,
            Self::Serialized => mpi_sys::MPI_THREAD_SERIALIZED,
            Self::Multiple => mpi_sys::MPI_THREAD_MULTIPLE,
        }
    }

    pub(crate) fn from_mpi(level: c_int) -> Self {
        match level {
            l if l == mpi_sys::MPI_THREAD_MULTIPLE => Self::Multiple,
            l if l == mpi_sys::MPI_THREAD_SERIALIZED => Self::Serialized,
            l if l == mpi_sys::MPI_THREAD_FUNNELED => Self::Funneled,
            _ => Self::Single,
        }
    }
}
