//! One MPI call with everything that it reads and writes.
//!
//! A collective says which function it is and with what: a [`Plan`]. How that function is called,
//! blocking or not, is written once, in [`buffers`] and [`message`]; what happens where MPI's `int`
//! cannot hold a count, in [`wide`]. The tensors come as [`Input`](buffer::Input) and
//! [`Output`](buffer::Output), cut into [`blocks`] where each rank has a part.

pub(crate) mod blocks;
pub(crate) mod buffer;
mod buffers;
mod made;
mod message;
mod plan;
#[cfg(large_count)]
#[path = "wide_counts.rs"]
mod wide;
#[cfg(not(large_count))]
#[path = "wide_datatypes.rs"]
mod wide;

pub(crate) use buffers::mpi;
pub(crate) use made::Made;
pub(crate) use message::{Header, Message};
pub(crate) use plan::{Call, Completion, Finish, Launch, Plan, largest_count, set_largest_count};
