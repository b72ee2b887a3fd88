//! Groups of ranks, as MPI knows them: their contexts, how these are made, and when they are freed.

mod foreign;
mod group;
mod handle;
mod identity;
mod lineage;

pub(crate) use handle::{Further, Handle};
pub(crate) use identity::Identity;
