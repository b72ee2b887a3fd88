//! What the test files share.

#![allow(dead_code, reason = "each test file uses some of it")]

pub mod device;
pub mod kinds;
pub mod limits;
pub mod memory;
pub mod passes;
pub mod ring;
pub mod serial;
pub mod store;
pub mod tensors;

use std::time::Duration;

use mpi4tch::{Communicator, Error, Op, Result, Universe, testing};
use tensors::tensor;

/// What a test works with.
pub struct Context {
    pub world: Communicator,
    /// Finalizes MPI when the job ends.
    _universe: Universe,
}

/// Starts MPI, in a release build with the checks of a debug build too, and chooses the device; the
/// harness wants to know the rank and the number of ranks.
pub fn start() -> (Context, i32, i32) {
    if std::env::var_os("MPI4TCH_CHECK").is_none() {
        // SAFETY: the harness calls this before it makes any thread.
        unsafe { std::env::set_var("MPI4TCH_CHECK", "collective") };
    }
    let universe = mpi4tch::initialize().expect("MPI starts");
    testing::assume_no_foreign_calls().expect("MPI has started");
    let world = universe.world();
    let (rank, size) = (world.rank(), world.size());
    device::choose(rank);
    (Context { world, _universe: universe }, rank, size)
}

/// Starts MPI with tensors on the stand-in, whatever the environment says.
pub fn start_on_stand_in() -> (Context, i32, i32) {
    // SAFETY: the harness calls this before it makes any thread.
    unsafe { std::env::set_var("MPI4TCH_TEST_DEVICE", "stand-in") };
    start()
}

/// Starts MPI with the checks of a debug build.
pub fn start_with_collective_checks() -> (Context, i32, i32) {
    start_with_checks("collective")
}

/// Starts MPI with the checks of a release build.
pub fn start_with_local_checks() -> (Context, i32, i32) {
    start_with_checks("local")
}

/// Starts MPI without checks, which make calls of their own.
pub fn start_without_checks() -> (Context, i32, i32) {
    start_with_checks("none")
}

fn start_with_checks(level: &str) -> (Context, i32, i32) {
    // SAFETY: the harness calls this before it makes any thread.
    unsafe { std::env::set_var("MPI4TCH_CHECK", level) };
    start()
}

/// The kinds of communicators, by name: what holds on one must hold on each.
pub fn communicators(world: &Communicator) -> Vec<(&'static str, Communicator)> {
    let universe = mpi4tch::initialize().expect("MPI is there");
    // Odd and even ranks, from the last to the first.
    let split = world.split(Some(world.rank() % 2), -world.rank()).expect("split works");
    let grid = world.cartesian(&[0, 0], &[true, false], true).expect("cartesian works");
    vec![
        ("world", world.clone()),
        ("grid", Communicator::clone(&grid.expect("all ranks are in it"))),
        ("split", split.expect("each rank has a color")),
        ("self", universe.self_comm().expect("self is there")),
    ]
}

/// An error of ranks that disagree, without the lines on which they made the call.
pub fn without_lines(error: &Error) -> String {
    let text = error.to_string();
    let (differences, lines) = text.split_once("\n  at: ").expect("it names the ranks' lines");
    assert!(lines.contains(".rs:") && lines.contains(" on "), "{text}");
    differences.to_owned()
}

/// As many pullbacks are in graphs as before. On a device, waits a moment for it: libtorch's thread of
/// the device drops the last node after the backward pass has returned.
#[track_caller]
pub fn assert_freed(before: usize, what: &str) {
    for _ in 0..if device::is_host() { 0 } else { 100 } {
        if testing::live_pullbacks() == before {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(testing::live_pullbacks(), before, "{what}");
}

/// All ranks are here, and the communicator works: calls are made and started, with and without an
/// exchange of sizes, and messages go around.
pub fn works(comm: &Communicator) -> Result<()> {
    let (right, left) = ring::neighbours(comm);
    let number = |n: i32| tensor(&[n]);
    let (one, own) = (number(1), number(comm.rank()));
    assert_eq!(comm.all_reduce(&one, Op::Sum)?, number(comm.size()));
    assert_eq!(comm.iall_reduce(&one, Op::Sum)?.wait()?, number(comm.size()));
    assert_eq!(comm.ibroadcast(&own, 0)?.wait()?, number(0));
    let ranks: Vec<_> = (0..comm.size()).collect();
    assert_eq!(comm.all_gather(&own, 0)?, tensor(&ranks));
    assert_eq!(comm.sendrecv(&own, right, &own, left, 76)?, number(left));
    let receive = comm.irecv(&own, left, 77)?;
    let _ = comm.isend(&own, right, 77)?.wait()?;
    assert_eq!(receive.wait()?, number(left));
    comm.barrier()
}
