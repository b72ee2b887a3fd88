//! The ranks of a communicator as a ring.

use mpi4tch::{Communicator, Rank};

/// The rank that is `distance` away.
pub fn away(comm: &Communicator, distance: i32) -> Rank {
    (comm.rank() + distance).rem_euclid(comm.size())
}

/// The next rank and the one before: right and left.
pub fn neighbours(comm: &Communicator) -> (Rank, Rank) {
    (away(comm, 1), away(comm, -1))
}
