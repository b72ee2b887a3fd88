#![doc = include_str!("../README.md")]

use std::fmt;

mod bindings {
    #![allow(
        clippy::all,
        clippy::cast_possible_truncation,
        clippy::undocumented_unsafe_blocks,
        dead_code,
        missing_docs,
        non_camel_case_types,
        non_snake_case,
        non_upper_case_globals,
        unsafe_op_in_unsafe_fn
    )]
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;

/// Lets handles and the types made of them go to other threads.
macro_rules! thread_safe {
    ($($handle:ty),* $(,)?) => {$(
        // SAFETY: a handle is a name, an integer or an address that only the
        // MPI library looks behind. Whether two threads may call MPI at a time
        // is a matter of the calls, which are unsafe, and of the thread level.
        unsafe impl Send for $handle {}
        // SAFETY: as above.
        unsafe impl Sync for $handle {}
    )*};
}

thread_safe!(
    MPI_Comm,
    MPI_Datatype,
    MPI_Errhandler,
    MPI_File,
    MPI_Group,
    MPI_Info,
    MPI_Message,
    MPI_Op,
    MPI_Request,
    MPI_Win,
);

#[cfg(mpi_sessions)]
thread_safe!(MPI_Session);

/// Who made an MPI. Programs compiled for one vendor's cannot run with
/// another's: the types and constants differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Vendor {
    /// Open MPI.
    OpenMpi,
    /// MPICH.
    Mpich,
    /// Any other; many of them derive from MPICH.
    Other,
}

impl Vendor {
    /// The vendor that `MPI_Get_library_version` names, in the text it returns.
    pub fn of_library(version: &str) -> Vendor {
        if version.starts_with("Open MPI") {
            Vendor::OpenMpi
        } else if version.starts_with("MPICH") {
            Vendor::Mpich
        } else {
            Vendor::Other
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Vendor::OpenMpi => "Open MPI",
            Vendor::Mpich => "MPICH",
            Vendor::Other => "another MPI",
        })
    }
}

/// The vendor of the MPI that this crate was compiled for.
pub const VENDOR: Vendor = if cfg!(open_mpi) {
    Vendor::OpenMpi
} else if cfg!(mpich) {
    Vendor::Mpich
} else {
    Vendor::Other
};

/// The version of the library that this crate was compiled for: `4.1.4`.
pub const LIBRARY_VERSION: &str = env!("MPI4TCH_MPI_VERSION");

/// The version of the MPI standard that the library claims: `(3, 1)`.
pub const STANDARD: (i32, i32) = (MPI_VERSION, MPI_SUBVERSION);

/// The `mpiexec` that starts programs of this MPI: a path, or just `mpiexec`
/// where the build found none that belongs to it.
pub const MPIEXEC: &str = env!("MPI4TCH_MPI_MPIEXEC");

/// Whether the library that calls itself `version`, in the text that
/// `MPI_Get_library_version` returns, is of the vendor that this crate was
/// compiled for.
///
/// ```
/// assert!(!mpi_sys::is_compiled_for("Borland MPI 1.0") || mpi_sys::VENDOR == mpi_sys::Vendor::Other);
/// ```
pub fn is_compiled_for(version: &str) -> bool {
    Vendor::of_library(version) == VENDOR
}
