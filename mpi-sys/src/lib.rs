//! [bound.md]: mod@bound
#![doc = include_str!("../README.md")]

use std::fmt;
use std::sync::OnceLock;

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

pub mod devices;
#[cfg(all(unix, any(target_arch = "x86_64", target_arch = "aarch64")))]
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
    /// Any library that has the ABI of the MPI standard, which the feature `abi` binds.
    StandardAbi,
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
            Vendor::StandardAbi => "an MPI with the standard's ABI",
            Vendor::Other => "another MPI",
        })
    }
}

/// The vendor of the MPI that this crate was compiled for.
pub const VENDOR: Vendor = if cfg!(mpi_abi) {
    Vendor::StandardAbi
} else if cfg!(open_mpi) {
    Vendor::OpenMpi
} else if cfg!(mpich) {
    Vendor::Mpich
} else {
    Vendor::Other
};

/// The version of the library that this crate was compiled for: `4.1.4`. With
/// the feature `abi` that of the ABI: `1.0`.
pub const LIBRARY_VERSION: &str = env!("MPI4TCH_MPI_VERSION");

/// The version of the MPI standard that the library claims: `(3, 1)`. With the
/// feature `abi` that of `mpi_abi.h`.
pub const STANDARD: (i32, i32) = (MPI_VERSION, MPI_SUBVERSION);

/// The `mpiexec` that starts programs of this MPI: a path, or just `mpiexec`
/// if the build found none that belongs to it.
pub const MPIEXEC: &str = env!("MPI4TCH_MPI_MPIEXEC");

/// The vendor of the library that the program is running with: [`VENDOR`], or,
/// with the feature `abi`, whose library has been loaded.
pub fn loaded_vendor() -> Vendor {
    static LOADED: OnceLock<Vendor> = OnceLock::new();
    match VENDOR {
        Vendor::StandardAbi => *LOADED.get_or_init(|| Vendor::of_library(&library_version())),
        vendor => vendor,
    }
}

/// The text that `MPI_Get_library_version` returns, which may be called at any
/// time; empty if the function fails.
pub fn library_version() -> String {
    let mut text = vec![0_u8; MPI_MAX_LIBRARY_VERSION_STRING as usize];
    let mut length = 0;
    // SAFETY: `text` has the bytes that MPI may write.
    let code = unsafe { MPI_Get_library_version(text.as_mut_ptr().cast(), &mut length) };
    text.truncate(if code == MPI_SUCCESS { usize::try_from(length).unwrap_or(0) } else { 0 });
    String::from_utf8_lossy(&text).into_owned()
}

/// Whether a library may be the one that this crate was compiled for, that is,
/// whether it is not known to be of another vendor. `version` is the text that
/// its `MPI_Get_library_version` returns. With the feature `abi` every vendor's
/// may be; see [`abi_versions`].
///
/// ```
/// use mpi_sys::{VENDOR, Vendor, is_compiled_for};
///
/// assert_eq!(is_compiled_for("Open MPI v5.0.3, package: …"), VENDOR != Vendor::Mpich);
/// assert_eq!(is_compiled_for("MPICH Version: 4.2.0 …"), VENDOR != Vendor::OpenMpi);
/// ```
pub fn is_compiled_for(version: &str) -> bool {
    let loaded = Vendor::of_library(version);
    let any = matches!(VENDOR, Vendor::Other | Vendor::StandardAbi);
    any || loaded == VENDOR || loaded == Vendor::Other
}

/// With the feature `abi`: whether the loaded library has the constants of MPI 5.0; else
/// true. To be called once MPI is initialized.
///
/// Intel MPI 2021.19 states version 1.0 of the ABI, but has the constants of a draft:
/// `MPI_ERRORS_RETURN` and `MPI_ERRORS_ABORT` are exchanged there, and `MPI_SEEK_SET` is
/// another number (<https://github.com/pmodels/mpich/pull/7633>).
pub fn has_standard_constants() -> bool {
    #[cfg(mpi_abi)]
    {
        // The standard has errors of files return, unless told otherwise.
        let mut handler = MPI_ERRHANDLER_NULL;
        // SAFETY: `MPI_FILE_NULL` stands for the handler of files that are opened later, and
        // `handler` is a place for the result.
        let code = unsafe { MPI_File_get_errhandler(MPI_FILE_NULL, &mut handler) };
        code == MPI_SUCCESS && handler == MPI_ERRORS_RETURN
    }
    #[cfg(not(mpi_abi))]
    true
}

/// With the feature `abi`: the versions of the standard's ABI that the program
/// was compiled for and that the loaded library has, as in `(1, 0)`. The program
/// runs if the first numbers are equal. `None` without the feature, and if the
/// library does not say.
pub fn abi_versions() -> Option<[(i32, i32); 2]> {
    #[cfg(mpi_abi)]
    {
        let mut loaded = (0, 0);
        // SAFETY: both are places for the result; MPI 5.0 allows the call at any time.
        let code = unsafe { MPI_Abi_get_version(&mut loaded.0, &mut loaded.1) };
        (code == MPI_SUCCESS).then_some([(MPI_ABI_VERSION, MPI_ABI_SUBVERSION), loaded])
    }
    #[cfg(not(mpi_abi))]
    None
}
