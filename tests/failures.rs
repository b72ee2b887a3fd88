//! A rank that fails while others wait for it: the job says why, or is ended at once.

#[path = "common/job.rs"]
mod job;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use mpi4tch::mpi_sys::{self, Vendor};
use mpi4tch::{Communicator, Op, Result, Universe};
use tch::{Kind, Tensor};

/// Carried out by the ranks of a job.
#[test]
fn rank() {
    for (name, program) in PROGRAMS {
        if job::is_rank_of(name) && mpi4tch::run(program) != ExitCode::SUCCESS {
            std::process::exit(9);
        }
    }
    let run = if job::is_rank_of("returns") {
        all_but_rank_1
    } else if job::is_rank_of("aborts") {
        all_but_rank_1_which_aborts
    } else if job::is_rank_of("duplicates") {
        duplicates_without_end
    } else if job::is_rank_of("goes back in vain") {
        all_but_rank_1_go_back
    } else {
        return;
    };
    let universe = mpi4tch::initialize().expect("MPI starts");
    let outcome = run(&universe.world());
    // As a `main` does that returns its error.
    drop(universe);
    outcome.expect("rank 1 fails");
}

/// A program for [`mpi4tch::run`].
type Program = fn(&Universe) -> std::result::Result<(), Box<dyn std::error::Error>>;

const PROGRAMS: [(&str, Program); 4] = [
    ("run", |universe| Ok(universe.world().barrier()?)),
    ("run that fails", |universe| Ok(all_but_rank_1(&universe.world())?)),
    ("run that panics", |universe| {
        assert_ne!(universe.world().rank(), 1, "on purpose");
        Ok(universe.world().barrier()?)
    }),
    ("run that leaves a message", |universe| {
        let world = universe.world();
        let _ = world.send(&Tensor::from_slice(&[1.0]), 0, 5)?;
        Ok(world.barrier()?)
    }),
];

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

/// What rank 1 goes back through was gone through before.
fn all_but_rank_1_go_back(world: &Communicator) -> Result<()> {
    let tape = world.tape();
    let x = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    let loss = tape.all_reduce(&x, Op::Sum)?.sum(Kind::Double);
    tape.backward(&loss)?;
    tape.backward((world.rank() == 1).then_some(&loss))?;
    world.all_reduce(&x.detach(), Op::Sum).map(drop)
}

#[test]
fn an_error_of_a_backward_pass_is_told_too() {
    let outcome = job::run("goes back in vain", 2, &[("MPI4TCH_TIMEOUT", "4")]);
    assert!(!outcome.status.success(), "{outcome:?}");
    let told = "Its last error was: all_reduce: called at tests/failures.rs:";
    assert!(outcome.printed.contains(told), "{outcome:?}");
    assert!(outcome.printed.contains("before the tape's last backward pass"), "{outcome:?}");
}

#[test]
fn an_error_is_told_where_others_wait_for_it() {
    let outcome = job::run("returns", 3, &[("MPI4TCH_TIMEOUT", "4")]);
    assert!(!outcome.status.success(), "{outcome:?}");
    let told = "mpi4tch: rank 1 is at the end of its universe and waits for ranks that are not. If it \
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
    assert!(!outcome.printed.contains("is at the end of its universe"), "{outcome:?}");
    assert!(start.elapsed() < Duration::from_secs(30), "{outcome:?}");
}

/// MPICH has contexts for some 2000 communicators. Its class for that is "other".
#[test]
fn an_error_of_mpi_tells_what_the_library_says() {
    if mpi_sys::loaded_vendor() != Vendor::Mpich {
        return;
    }
    let outcome = job::run("duplicates", 2, &[]);
    // With the standard's ABI, MPICH 5.0.2 has the texts of its own numbers of classes, in plain C too.
    let class = if cfg!(feature = "abi") { "internal MPI error!" } else { "other MPI error" };
    let told = format!("MPI_Comm_dup failed: {class} (MPI_ERR_OTHER): too many communicators (0/");
    assert_eq!(outcome.printed.matches(&told).count(), 2, "{outcome:?}");
}

#[test]
fn a_program_that_runs_to_its_end() {
    let outcome = job::run("run", 3, &[]);
    assert!(outcome.status.success(), "{outcome:?}");
}

/// At once: the others would wait for ever.
#[test]
fn a_program_that_fails_on_one_rank() {
    let told = [
        ("run that fails", "mpi4tch: rank 1 of 3: recv: source 99 is out of range for 3 ranks"),
        ("run that panics", "mpi4tch: rank 1 of 3 panicked"),
    ];
    job::for_each(told, |(program, text)| {
        let start = Instant::now();
        let outcome = job::run(program, 3, &[]);
        assert!(!outcome.status.success(), "{outcome:?}");
        assert!(outcome.printed.contains(text), "{outcome:?}");
        assert!(start.elapsed() < Duration::from_secs(40), "{outcome:?}");
    });
}

/// A message that nobody receives may be a part that a gradient lacks.
#[test]
fn a_program_that_leaves_a_message() {
    let outcome = job::run("run that leaves a message", 2, &[]);
    assert!(!outcome.status.success(), "{outcome:?}");
    let text = "mpi4tch: rank 0 of 2: finalize: rank 0 has never received a message of the forward \
                pass, of rank ";
    assert!(outcome.printed.contains(text), "{outcome:?}");
}
