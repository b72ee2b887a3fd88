//! What the test files share.

use mpi4tch::{Communicator, Universe};

/// What a test works with.
pub struct Context {
    pub world: Communicator,
    /// Finalizes MPI when the job ends.
    _universe: Universe,
}

/// Starts MPI; the harness wants to know the rank and the number of ranks.
pub fn start() -> (Context, i32, i32) {
    let universe = mpi4tch::initialize().expect("MPI starts");
    let world = universe.world();
    let (rank, size) = (world.rank(), world.size());
    (Context { world, _universe: universe }, rank, size)
}

/// The kinds of communicators, by name: what holds on one must hold on each.
#[allow(dead_code, reason = "used by some of the files that include this one")]
pub fn communicators(world: &Communicator) -> Vec<(&'static str, Communicator)> {
    let universe = mpi4tch::initialize().expect("MPI is there");
    // Odd and even ranks, from the last to the first.
    let split = world.split(Some(world.rank() % 2), -world.rank()).expect("split works");
    vec![
        ("world", world.clone()),
        ("duplicate", world.duplicate().expect("duplicate works")),
        ("split", split.expect("each rank has a color")),
        ("self", universe.self_comm().expect("self is there")),
    ]
}
