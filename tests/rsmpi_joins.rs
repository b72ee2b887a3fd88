//! A program in which mpi4tch initializes MPI, and rsmpi joins.

#[path = "common/rsmpi.rs"]
mod rsmpi;

use std::process::ExitCode;

use rsmpi::Both;

fn main() -> ExitCode {
    let start = || {
        let ours = mpi4tch::initialize().expect("MPI starts");
        assert!(mpi::initialize().is_none(), "there is one already");
        Both { ours: Some(ours), theirs: None }.started()
    };
    harness::run(start, rsmpi::tests())
}
