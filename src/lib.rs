//! Differentiable MPI for [`tch`].

mod autograd;
mod buffer;
mod call;
mod collective;
mod communicator;
mod datatype;
mod environment;
mod error;
mod operator;
mod reduction;
pub mod testing;

pub use mpi_sys;
pub use tch;

pub use communicator::{Communicator, Rank};
pub use environment::{Library, ThreadLevel, Universe, initialize, initialize_with};
pub use error::{Error, Result};
pub use reduction::Op;
