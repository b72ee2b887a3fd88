//! More ranks than cores under MPICH.
//!
//! MPICH waits by polling and, built on UCX, never gives up the processor: on a machine with fewer
//! cores than ranks each message waits for a time slice of the ranks that poll in vain. Open MPI
//! has `mpi_yield_when_idle` for that. For MPICH the test program itself defines the function that
//! is polled, in front of UCX's own, and yields where there was nothing to do.

use std::ffi::{c_uint, c_void};
use std::sync::OnceLock;

type Progress = unsafe extern "C" fn(*mut c_void) -> c_uint;

/// UCX's function of the same name, followed by a yield if it made no progress.
///
/// # Safety
/// As for UCX's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ucp_worker_progress(worker: *mut c_void) -> c_uint {
    static NEXT: OnceLock<Progress> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        // SAFETY: the name is a C string.
        let symbol = unsafe { libc::dlsym(libc::RTLD_NEXT, c"ucp_worker_progress".as_ptr()) };
        assert!(!symbol.is_null(), "only UCX's users call this, and UCX has it");
        // SAFETY: UCX declares it with this signature.
        unsafe { std::mem::transmute::<*mut c_void, Progress>(symbol) }
    });
    // SAFETY: passed on to the caller.
    let made = unsafe { next(worker) };
    if made == 0 {
        // SAFETY: `sched_yield` has no preconditions.
        unsafe { libc::sched_yield() };
    }
    made
}
