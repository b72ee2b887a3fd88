//! The operations: one file per collective, and one for messages.
//!
//! Each file has the method of [`Communicator`](crate::Communicator) with its documentation, and
//! the [`Operator`](crate::engine::operator::Operator) behind it, which plans the MPI call and
//! knows its adjoint.
//!
//! By convention the objective is the sum of all ranks' losses, and every rank's copy of a tensor
//! is a variable of its own.

mod all_gather;
mod all_reduce;
mod all_to_all;
mod all_to_all_v;
mod barrier;
mod broadcast;
mod custom;
mod extremum_location;
mod gather;
mod reduce;
mod reduce_scatter;
mod scan;
mod scatter;

mod cartesian;
mod communicators;
mod distribution;
mod graph;
mod grid;
mod group;
mod halo;
mod neighbor_all_gather;
mod neighbor_all_to_all;
mod neighbors;
mod point_to_point;
#[cfg(feature = "rsmpi")]
pub mod rsmpi;

mod counts;
mod nonlinear;
pub(crate) mod replication;

pub(crate) use all_reduce::sum_in_place;
pub use cartesian::Cartesian;
pub use counts::Counts;
pub use graph::Graph;
pub use group::Group;
pub use halo::Halo;
