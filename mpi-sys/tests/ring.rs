//! Messages around a ring of ranks.

mod world;

use std::process::ExitCode;

use mpi_sys::*;
use world::World;

fn main() -> ExitCode {
    harness::run(world::start, harness::tests![ring, large])
}

/// Every rank learns the number of its left neighbour.
fn ring(world: &World) {
    let received = pass_on(world, &[world.rank]);
    assert_eq!(received, [(world.rank + world.size - 1) % world.size]);
}

/// A message that MPI sends only when the receiver is ready, as it is large.
fn large(world: &World) {
    let sent: Vec<i32> = (0..1 << 20).map(|i| i * (world.rank + 1)).collect();
    let left = (world.rank + world.size - 1) % world.size;
    let received = pass_on(world, &sent);
    assert!((0..).zip(&received).all(|(i, &value)| value == i * (left + 1)));
}

/// Sends to the right, receives from the left.
fn pass_on(world: &World, sent: &[i32]) -> Vec<i32> {
    const TAG: i32 = 7;
    let right = (world.rank + 1) % world.size;
    let left = (world.rank + world.size - 1) % world.size;
    let count = i32::try_from(sent.len()).unwrap();
    let mut received = vec![-1; sent.len()];
    let mut request = MPI_REQUEST_NULL;
    // SAFETY: `sent` has `count` integers, and lives until the wait below.
    let code = unsafe {
        MPI_Isend(sent.as_ptr().cast(), count, MPI_INT, right, TAG, MPI_COMM_WORLD, &mut request)
    };
    assert_eq!(code, MPI_SUCCESS);
    assert_ne!(request, MPI_REQUEST_NULL);
    let mut status = MPI_Status::default();
    // SAFETY: `received` has room for `count` integers.
    let code = unsafe {
        let buffer = received.as_mut_ptr().cast();
        MPI_Recv(buffer, count, MPI_INT, MPI_ANY_SOURCE, TAG, MPI_COMM_WORLD, &mut status)
    };
    assert_eq!(code, MPI_SUCCESS);
    assert_eq!((status.MPI_SOURCE, status.MPI_TAG), (left, TAG));
    // SAFETY: `request` was started above; the status is not asked for.
    let code = unsafe { MPI_Wait(&mut request, MPI_STATUS_IGNORE) };
    assert_eq!(code, MPI_SUCCESS);
    assert_eq!(request, MPI_REQUEST_NULL);
    received
}
