//! Whether MPI takes pointers to the memory of devices.

use std::ffi::c_int;

/// Devices of one manufacturer's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Devices {
    /// Those of NVIDIA's CUDA.
    Cuda = 0,
    /// Those of AMD's ROCm, or HIP.
    Rocm = 1,
    /// Those of Intel's Level Zero.
    LevelZero = 2,
}

unsafe extern "C" {
    fn mpi4tch_takes_pointers_to(devices: c_int) -> c_int;
}

/// Whether MPI takes pointers to the memory of such devices, as buffers to send and to receive. `false`
/// where the library does not tell.
///
/// Calls `MPIX_GPU_query_support` (MPICH and its derivatives), or `MPIX_Query_cuda_support` and
/// `MPIX_Query_rocm_support` (Open MPI, if `mpi-ext.h` has them). With the feature `abi` none of them is
/// known.
///
/// # Safety
/// MPI is initialized, not finalized, and may be called on this thread.
///
/// # Examples
/// ```no_run
/// use mpi_sys::devices::{Devices, takes_pointers_to};
///
/// // SAFETY: the program has initialized MPI on this thread.
/// if unsafe { takes_pointers_to(Devices::Cuda) } {
///     println!("buffers may be in the memory of a GPU");
/// }
/// ```
#[must_use]
pub unsafe fn takes_pointers_to(devices: Devices) -> bool {
    // SAFETY: passed on to the caller; the function takes any number.
    unsafe { mpi4tch_takes_pointers_to(devices as c_int) == 1 }
}
