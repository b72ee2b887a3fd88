//! `MPI_Allreduce` with predefined operations and datatypes.

mod world;

use std::process::ExitCode;
use std::ptr;

use mpi_sys::*;
use world::World;

fn main() -> ExitCode {
    harness::run(world::start, harness::tests![sum, max, in_place, complex, invalid])
}

fn sum(world: &World) {
    let sent = [f64::from(world.rank), 1.0];
    let expected = f64::from(world.size * (world.size - 1) / 2);
    assert_eq!(all_reduce(&sent, MPI_DOUBLE, MPI_SUM), [expected, f64::from(world.size)]);
}

fn max(world: &World) {
    let sent = [i64::from(world.rank), -i64::from(world.rank)];
    assert_eq!(all_reduce(&sent, MPI_INT64_T, MPI_MAX), [i64::from(world.size - 1), 0]);
}

/// A complex number is a pair of its real and its imaginary part.
fn complex(world: &World) {
    // The product is i to the power of the number of ranks.
    let product = all_reduce(&[[0.0_f32, 1.0]], MPI_C_FLOAT_COMPLEX, MPI_PROD);
    let expected = match world.size % 4 {
        0 => [1.0, 0.0],
        1 => [0.0, 1.0],
        2 => [-1.0, 0.0],
        _ => [0.0, -1.0],
    };
    assert_eq!(product, [expected]);
}

fn in_place(world: &World) {
    let mut value = world.rank + 1;
    // SAFETY: `value` is one integer, read and written in place.
    let code = unsafe {
        let buffer = (&raw mut value).cast();
        MPI_Allreduce(MPI_IN_PLACE, buffer, 1, MPI_INT, MPI_PROD, MPI_COMM_WORLD)
    };
    assert_eq!(code, MPI_SUCCESS);
    assert_eq!(value, (1..=world.size).product());
}

/// An error is returned as a code, whose class is one of the bound constants.
fn invalid(_: &World) {
    // SAFETY: the handles are predefined.
    let code = unsafe { MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN) };
    assert_eq!(code, MPI_SUCCESS);
    // SAFETY: no element is read or written, and the root is checked.
    let code = unsafe { MPI_Bcast(ptr::null_mut(), 0, MPI_INT, 1000, MPI_COMM_WORLD) };
    let mut class = MPI_SUCCESS;
    // SAFETY: `class` is a place for the result.
    assert_eq!(unsafe { MPI_Error_class(code, &mut class) }, MPI_SUCCESS);
    assert_eq!(class, MPI_ERR_ROOT);
}

fn all_reduce<T: Copy>(sent: &[T], datatype: MPI_Datatype, op: MPI_Op) -> Vec<T> {
    let count = i32::try_from(sent.len()).unwrap();
    let mut received = sent.to_vec();
    // SAFETY: both buffers have `count` elements, and `datatype` is that of T.
    let code = unsafe {
        let buffer = received.as_mut_ptr().cast();
        MPI_Allreduce(sent.as_ptr().cast(), buffer, count, datatype, op, MPI_COMM_WORLD)
    };
    assert_eq!(code, MPI_SUCCESS);
    received
}
