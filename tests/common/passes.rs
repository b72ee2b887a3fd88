//! The options of a tape's backward pass.

use mpi4tch::PassOptions;

pub const KEEP_GRAPH: PassOptions = PassOptions { keep_graph: true, create_graph: false };
pub const CREATE_GRAPH: PassOptions = PassOptions { keep_graph: false, create_graph: true };
