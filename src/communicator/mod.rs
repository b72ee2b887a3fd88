//! Communicators as MPI knows them: which contexts (MPI's communicators) belong to one of this
//! crate, how they are made, and when they are freed.

mod checkpoints;
mod foreign;
mod group;
mod handle;
mod identity;
mod lineage;
pub(crate) mod topology;

pub(crate) use checkpoints::make_context;
pub(crate) use group::create;
pub(crate) use handle::{Further, Handle};
pub(crate) use identity::Identity;
