//! Counts calls by MPI's profiling interface: this program defines `MPI_Allreduce` itself, and calls
//! the library's by its other name.

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

use mpi4tch::Result;
use mpi4tch::mpi_sys::{self, MPI_Comm, MPI_Datatype, MPI_Op};

/// The sizes of what was reduced, in bytes.
static REDUCED: Mutex<Vec<i64>> = Mutex::new(Vec::new());

/// MPI's function of this name, counted.
///
/// # Safety
/// As for MPI's.
#[allow(non_snake_case)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn MPI_Allreduce(
    send: *const c_void,
    receive: *mut c_void,
    count: c_int,
    datatype: MPI_Datatype,
    op: MPI_Op,
    comm: MPI_Comm,
) -> c_int {
    let mut size = 0;
    // SAFETY: the caller gives a valid datatype.
    unsafe { mpi_sys::PMPI_Type_size(datatype, &mut size) };
    let bytes = i64::from(count) * i64::from(size);
    REDUCED.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    // SAFETY: passed on to the caller.
    unsafe { mpi_sys::PMPI_Allreduce(send, receive, count, datatype, op, comm) }
}

/// The result of `f`, and how many all-reduces of so many bytes it made.
pub fn all_reduces<T>(bytes: i64, f: impl FnOnce() -> Result<T>) -> Result<(T, usize)> {
    let take = || std::mem::take(&mut *REDUCED.lock().unwrap_or_else(PoisonError::into_inner));
    take();
    let result = f()?;
    Ok((result, take().into_iter().filter(|reduced| *reduced == bytes).count()))
}
