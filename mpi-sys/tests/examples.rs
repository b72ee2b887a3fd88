//! The examples, which assert their own results, on every number of ranks.

mod world;

use std::process::ExitCode;

use mpi_sys::*;
use world::World;

#[path = "../examples/file.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod file;
#[path = "../examples/one_sided.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod one_sided;
#[path = "../examples/ring.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod ring;

fn main() -> ExitCode {
    let tests = harness::tests![
        a_number_goes_around_the_ring,
        rank_0_has_what_the_others_put,
        every_rank_reads_what_it_wrote
    ];
    harness::run(world::start, tests)
}

fn a_number_goes_around_the_ring(_: &World) {
    ring::run();
}

fn rank_0_has_what_the_others_put(_: &World) {
    one_sided::run();
}

fn every_rank_reads_what_it_wrote(_: &World) {
    let mut number = std::process::id();
    // SAFETY: `number` is one 32-bit number on every rank.
    let code = unsafe { MPI_Bcast((&raw mut number).cast(), 1, MPI_UINT32_T, 0, MPI_COMM_WORLD) };
    assert_eq!(code, MPI_SUCCESS);
    let path = std::env::temp_dir().join(format!("mpi-sys-file-{number}"));
    file::run(&path);
    // SAFETY: all ranks make the barrier.
    assert_eq!(unsafe { MPI_Barrier(MPI_COMM_WORLD) }, MPI_SUCCESS);
    assert!(!path.exists(), "{} was not deleted", path.display());
}
