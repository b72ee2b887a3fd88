//! The programs that the pages of the guide show, on every number of ranks. Each asserts its results.

mod common;

use std::process::ExitCode;

use common::{Context, start};
use mpi4tch::Result;

#[path = "../src/guide/cluster/program.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod cluster;
#[path = "../src/guide/devices/program.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod devices;
#[path = "../src/guide/from_mpi4torch/program.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod from_mpi4torch;
#[path = "../src/guide/from_torch_distributed/program.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod from_torch_distributed;

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            the_first_program_of_a_cluster,
            the_program_that_chooses_its_device,
            the_program_for_users_of_mpi4torch,
            the_program_for_users_of_torch_distributed,
        ],
    )
}

fn the_first_program_of_a_cluster(_: &Context) -> Result<()> {
    cluster::program(&mpi4tch::initialize()?)
}

fn the_program_that_chooses_its_device(_: &Context) -> Result<()> {
    devices::program(&mpi4tch::initialize()?)
}

fn the_program_for_users_of_mpi4torch(_: &Context) -> Result<()> {
    from_mpi4torch::program(&mpi4tch::initialize()?)
}

fn the_program_for_users_of_torch_distributed(_: &Context) -> Result<()> {
    from_torch_distributed::program(&mpi4tch::initialize()?)
}
