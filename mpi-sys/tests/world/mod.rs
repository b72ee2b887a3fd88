//! The context of these tests: MPI, from `MPI_Init_thread` to `MPI_Finalize`.

use std::ptr;

use mpi_sys::*;

/// Finalizes MPI when it is dropped.
#[allow(dead_code, reason = "some tests ask for neither rank nor size")]
pub struct World {
    /// This rank.
    pub rank: i32,
    /// The number of ranks.
    pub size: i32,
}

/// Initialises MPI.
pub fn start() -> (World, i32, i32) {
    let mut provided = 0;
    // SAFETY: MPI was not initialised before; both null pointers are allowed.
    let code = unsafe {
        MPI_Init_thread(ptr::null_mut(), ptr::null_mut(), MPI_THREAD_FUNNELED, &mut provided)
    };
    assert_eq!(code, MPI_SUCCESS);
    assert!(provided >= MPI_THREAD_FUNNELED);
    let (mut rank, mut size) = (-1, -1);
    // SAFETY: MPI is initialised, and `rank` is a place for the result.
    let code = unsafe { MPI_Comm_rank(MPI_COMM_WORLD, &mut rank) };
    assert_eq!(code, MPI_SUCCESS);
    // SAFETY: MPI is initialised, and `size` is a place for the result.
    let code = unsafe { MPI_Comm_size(MPI_COMM_WORLD, &mut size) };
    assert_eq!(code, MPI_SUCCESS);
    (World { rank, size }, rank, size)
}

impl Drop for World {
    fn drop(&mut self) {
        // SAFETY: MPI is initialised, and nothing is under way.
        unsafe { MPI_Finalize() };
    }
}
