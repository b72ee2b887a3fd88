//! Passes a number around the ring of ranks; each rank adds its own.
//!
//! ```sh
//! cargo build --example ring && mpiexec -n 4 target/debug/examples/ring
//! ```

use std::ptr;

use mpi_sys::*;

fn main() {
    // SAFETY: null stands for the arguments of the program.
    assert_eq!(unsafe { MPI_Init(ptr::null_mut(), ptr::null_mut()) }, MPI_SUCCESS);
    run();
    // SAFETY: no communication is under way.
    assert_eq!(unsafe { MPI_Finalize() }, MPI_SUCCESS);
}

/// The ring, on the ranks of `MPI_COMM_WORLD`.
pub fn run() {
    let (mut rank, mut size) = (-1, -1);
    // An error in these calls ends the program: that is what `MPI_COMM_WORLD` does with errors
    // unless it is told otherwise.
    // SAFETY: `rank` is a place for the result.
    unsafe { MPI_Comm_rank(MPI_COMM_WORLD, &mut rank) };
    // SAFETY: `size` is a place for the result.
    unsafe { MPI_Comm_size(MPI_COMM_WORLD, &mut size) };
    const TAG: i32 = 0;
    let (left, right) = ((rank + size - 1) % size, (rank + 1) % size);

    let mut sum = rank;
    let mut passing = rank;
    for _ in 1..size {
        let sent = passing;
        let (send, receive) = ((&raw const sent).cast(), (&raw mut passing).cast());
        // SAFETY: `send` and `receive` are the addresses of one integer each.
        #[rustfmt::skip]
        unsafe {
            MPI_Sendrecv(
                send, 1, MPI_INT, right, TAG,
                receive, 1, MPI_INT, left, TAG,
                MPI_COMM_WORLD, MPI_STATUS_IGNORE,
            )
        };
        sum += passing;
    }
    assert_eq!(sum, size * (size - 1) / 2);
    println!("rank {rank} of {size}: the sum of all ranks is {sum}");
}
