//! The programs that the pages of the guide show, on every number of ranks. Each asserts its results.

mod common;

use std::process::ExitCode;

use common::{Context, start};
use mpi4tch::Result;

#[path = "../src/guide/cluster/program.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod cluster;

fn main() -> ExitCode {
    harness::run(start, harness::tests![the_first_program_of_a_cluster,])
}

fn the_first_program_of_a_cluster(_: &Context) -> Result<()> {
    cluster::program(&mpi4tch::initialize()?)
}
