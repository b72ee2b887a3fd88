//! A program in which rsmpi initializes MPI, and mpi4tch joins.

#[path = "common/rsmpi.rs"]
mod rsmpi;

use std::process::ExitCode;

use mpi::environment::{Threading, initialize_with_threading};
use rsmpi::Both;

fn main() -> ExitCode {
    let start = || {
        let (theirs, _) = initialize_with_threading(Threading::Serialized).expect("the first");
        let ours = mpi4tch::initialize().expect("joins");
        Both { ours: Some(ours), theirs: Some(theirs) }.started()
    };
    harness::run(start, rsmpi::tests())
}
