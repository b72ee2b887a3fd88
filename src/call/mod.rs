//! One MPI call with everything that it reads and writes.
//!
//! An operation describes the call that it needs by a [`Plan`]: the function, its arguments and its
//! tensors, which are an [`Input`](buffer::Input) and an [`Output`](buffer::Output), cut into
//! [`blocks`] where each rank has a part. Tensors on devices go by way of [`staging`], large ones in
//! [`pieces`]. The functions are called, blocking or not, in [`buffers`], [`message`] and [`exchange`],
//! and in [`wide`] if a count does not fit MPI's `int`.

pub(crate) mod blocks;
pub(crate) mod buffer;
mod buffers;
mod exchange;
mod finish;
mod launch;
mod made;
mod message;
mod parcels;
mod pieces;
mod plan;
mod reduce_scatter;
mod region;
mod staging;
#[cfg(large_count)]
#[path = "wide_counts.rs"]
mod wide;
#[cfg(not(large_count))]
#[path = "wide_datatypes.rs"]
mod wide;

pub(crate) use buffers::mpi;
pub(crate) use exchange::{Edge, Exchange, Source, Stage};
pub(crate) use finish::Finish;
pub(crate) use launch::{Completion, Launch};
pub(crate) use made::Made;
pub(crate) use message::{Header, Message};
pub(crate) use pieces::{Bulk, set_staging_piece};
pub(crate) use plan::{Call, Plan, largest_count, set_largest_count};
pub(crate) use reduce_scatter::Summing;
pub(crate) use region::Region;
