//! [bound.md]: mod@bound
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

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub mod errhandler;

#[cfg(doc)]
#[doc = include_str!("../bound.md")]
pub mod bound {}

/// Lets handles, and types that contain them, be sent to other threads and shared
/// with them.
macro_rules! thread_safe {
    ($($handle:ty),* $(,)?) => {$(
        // SAFETY: a handle is an integer, or an address that only the MPI
        // library dereferences. Whether several threads may call MPI at a time
        // depends on the thread level, and is up to the callers of MPI's
        // functions, which are unsafe.
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

/// The vendor whose ABI an MPI library has. Programs compiled for one vendor
/// cannot run with another: the types and constants differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Vendor {
    /// Open MPI.
    OpenMpi,
    /// MPICH and its derivatives: Cray's, Intel's, MVAPICH.
    Mpich,
    /// Any other, or unknown.
    Other,
}

impl Vendor {
    /// The vendor that `MPI_Get_library_version` names, in the text it returns.
    pub fn of_library(version: &str) -> Vendor {
        const MPICHES: [&str; 3] = ["MPICH", "MVAPICH", "Intel(R) MPI"];
        if version.contains("Open MPI") {
            Vendor::OpenMpi
        } else if MPICHES.iter().any(|name| version.contains(name)) {
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
/// if the build found none that belongs to it.
pub const MPIEXEC: &str = env!("MPI4TCH_MPI_MPIEXEC");

/// Whether a library may be the one that this crate was compiled for, that is,
/// whether it is not known to be of another vendor. `version` is the text that
/// its `MPI_Get_library_version` returns.
///
/// ```
/// use mpi_sys::{VENDOR, Vendor, is_compiled_for};
///
/// assert_eq!(is_compiled_for("Open MPI v5.0.3, package: …"), VENDOR != Vendor::Mpich);
/// assert_eq!(is_compiled_for("MPICH Version: 4.2.0 …"), VENDOR != Vendor::OpenMpi);
/// ```
pub fn is_compiled_for(version: &str) -> bool {
    let loaded = Vendor::of_library(version);
    loaded == VENDOR || loaded == Vendor::Other || VENDOR == Vendor::Other
}
