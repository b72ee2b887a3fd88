//! A rank that fails while others wait for it: the job says why, or is ended at once.

#[path = "common/job.rs"]
mod job;

use std::time::{Duration, Instant};

use mpi4tch::mpi_sys::{self, Vendor};
use mpi4tch::{Communicator, Op, Result};
use tch::Tensor;

/// Carried out by the ranks of a job.
#[test]
fn rank() {
    let run = if job::is_rank_of("returns") {
        all_but_rank_1
    } else if job::is_rank_of("aborts") {
        all_but_rank_1_which_aborts
    } else if job::is_rank_of("duplicates") {
        duplicates_without_end
    } else {
        return;
    };
    let universe = mpi4tch::initialize().expect("MPI starts");
    let outcome = run(&universe.world());
    // As a `main` does that returns its error.
    drop(universe);
    outcome.expect("rank 1 fails");
}

/// Rank 1 returns its error before it comes to the call that the others wait in.
fn all_but_rank_1(world: &Communicator) -> Result<()> {
    let x = Tensor::from_slice(&[1.0]);
    if world.rank() == 1 {
        let _ = world.recv(&x, 99, 0)?;
    }
    world.all_reduce(&x, Op::Sum).map(drop)
}

fn all_but_rank_1_which_aborts(world: &Communicator) -> Result<()> {
    if all_but_rank_1(world).is_err() {
        world.abort(3);
    }
    Ok(())
}

fn duplicates_without_end(world: &Communicator) -> Result<()> {
    let mut kept = Vec::new();
    loop {
        kept.push(world.duplicate()?);
    }
}

#[test]
fn an_error_is_told_where_others_wait_for_it() {
    let outcome = job::run("returns", 3, &[("MPI4TCH_TIMEOUT", "4")]);
    assert!(!outcome.status.success(), "{outcome:?}");
    let told = "mpi4tch: rank 1 has dropped its universe and waits for ranks that have not. If it \
                returned an error, they may be waiting for it in a call. Its last error was: recv: \
                source 99 is out of range for 3 ranks";
    assert!(outcome.printed.lines().any(|line| line.ends_with(told)), "{outcome:?}");
    assert!(outcome.printed.contains(" s in all_reduce at tests/failures.rs:"), "{outcome:?}");
}

#[test]
fn a_job_is_ended_at_once() {
    let start = Instant::now();
    let outcome = job::run("aborts", 3, &[]);
    assert!(!outcome.status.success(), "{outcome:?}");
    assert!(!outcome.printed.contains("has dropped its universe"), "{outcome:?}");
    assert!(start.elapsed() < Duration::from_secs(30), "{outcome:?}");
}

/// MPICH has contexts for some 2000 communicators. Its class for that is "other".
#[test]
fn an_error_of_mpi_tells_what_the_library_says() {
    if mpi_sys::VENDOR != Vendor::Mpich {
        return;
    }
    let outcome = job::run("duplicates", 2, &[]);
    let told = "MPI_Comm_dup failed: other MPI error (MPI_ERR_OTHER): too many communicators (0/";
    assert_eq!(outcome.printed.matches(told).count(), 2, "{outcome:?}");
}
