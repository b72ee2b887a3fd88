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
