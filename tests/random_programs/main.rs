//! Programs of operations drawn at random, run by all ranks: values and derivatives are those of the
//! same program run by libtorch alone on all ranks' tensors.
//!
//! A program makes communicators from those that it has, before the tape and on it, and each call is
//! on one of them. All programs run on a tape; those in which each rank's loss depends on all its calls
//! run without one too.
//!
//! The programs are the same each time. `MPI4TCH_TEST_PROGRAMS` is how many are run, one for each
//! seed from `MPI4TCH_TEST_SEED` on. What fails is made shorter before it is shown.

mod call;
#[path = "../common/mod.rs"]
mod common;
mod communicators;
mod draw;
mod local;
mod oracle;
mod outcome;
mod program;
mod random;
mod run;
mod steps;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use common::{Context, start};
use mpi4tch::{Communicator, Op, Result};
use oracle::run_serially;
use outcome::Outcome;
use program::Program;
use run::run;
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(start, harness::tests![programs])
}

/// Of the largest that is expected.
const TOLERANCE: f64 = 1e-9;

fn programs(context: &Context) -> Result<()> {
    let world = &context.world;
    // Whether a program failed is agreed on apart from what it sends.
    let control = world.duplicate()?;
    let first = setting("MPI4TCH_TEST_SEED", 1);
    // Many ranks on few cores take long to meet.
    let count = setting("MPI4TCH_TEST_PROGRAMS", if world.size() <= 3 { 50 } else { 20 });
    for seed in first..first + count {
        let program = draw::program(seed, world.size().unsigned_abs() as usize);
        if let Some(complaint) = complaint(world, &control, &program, seed)? {
            let (shorter, complaint) = shortened(world, &control, program, complaint, seed)?;
            panic!(
                "{complaint}\nof the program, shortened,\n{shorter}To run it alone: \
                 MPI4TCH_TEST_RANKS={} MPI4TCH_TEST_SEED={seed} MPI4TCH_TEST_PROGRAMS=1 \
                 cargo test --test random_programs",
                world.size()
            );
        }
    }
    Ok(())
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What is wrong with a program on this rank, if anything is on any.
fn complaint(
    world: &Communicator,
    control: &Communicator,
    program: &Program,
    seed: u64,
) -> Result<Option<String>> {
    // Shown if it hangs.
    eprintln!("seed {seed}:\n{program}");
    let checked = catch_unwind(AssertUnwindSafe(|| check(world, program, seed)));
    let own = match checked {
        Ok(Ok(())) => None,
        Ok(Err(text)) => Some(text),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(text.unwrap_or_else(|| "it panics".to_owned()))
        }
    };
    if let Some(text) = &own {
        // Others may wait for this rank for ever.
        eprintln!("seed {seed}: {text}");
    }
    let failed = control.all_reduce(&Tensor::from_slice(&[own.is_some()]), Op::LogicalOr)?;
    let failed = bool::try_from(failed).expect("one element");
    Ok(failed.then(|| own.unwrap_or_else(|| "another rank fails".to_owned())))
}

/// Leaves out steps one by one as long as something is wrong.
fn shortened(
    world: &Communicator,
    control: &Communicator,
    mut program: Program,
    mut text: String,
    seed: u64,
) -> Result<(Program, String)> {
    let mut step = program.steps.len();
    while step > 0 {
        step -= 1;
        let Some(shorter) = program.without(step) else { continue };
        if let Some(complaint) = complaint(world, control, &shorter, seed)? {
            (program, text) = (shorter, complaint);
            step = step.min(program.steps.len());
        }
    }
    Ok((program, text))
}

fn check(world: &Communicator, program: &Program, seed: u64) -> std::result::Result<(), String> {
    let expected = run_serially(program, seed);
    let rank = world.rank().unsigned_abs() as usize;
    let ways = [(true, "on a tape"), (false, "without a tape")];
    for (uses_tape, name) in ways.into_iter().take(if program.needs_no_tape { 2 } else { 1 }) {
        let got = run(world, program, seed, uses_tape).map_err(|error| error.to_string());
        let compared = got.and_then(|got| compare_all(&got, &expected, rank));
        compared.map_err(|complaint| format!("{name}: {complaint}"))?;
    }
    Ok(())
}

/// Compares what came of a program on this rank with what was expected on all of them.
fn compare_all(
    got: &Outcome,
    expected: &[Outcome],
    rank: usize,
) -> std::result::Result<(), String> {
    let own = &expected[rank];
    for (name, got) in &got.values {
        let expected = own.values.iter().find(|(other, _)| other == name);
        let (_, expected) = expected.ok_or_else(|| format!("{name} is not expected"))?;
        compare(name, got, expected, largest([expected]).max(1.0))?;
    }
    // Gradients are compared with the largest one of all ranks, which rounding goes by.
    let all = expected.iter().flat_map(|outcome| &outcome.gradients);
    let scale = largest(all.map(|(_, gradient)| gradient)).max(1e-3);
    for ((name, got), (_, expected)) in got.gradients.iter().zip(&own.gradients) {
        compare(&format!("gradient of {name}"), got, expected, scale)?;
    }
    let all = expected.iter().flat_map(|outcome| &outcome.second);
    let scale = largest(all.map(|(_, gradient)| gradient)).max(1e-3);
    for ((name, got), (_, expected)) in got.second.iter().zip(&own.second) {
        compare(&format!("second derivative of {name}"), got, expected, scale)?;
    }
    Ok(())
}

/// The largest of the elements that are finite.
fn largest<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> f64 {
    let one = |x: &Tensor| {
        if x.numel() == 0 {
            return 0.0;
        }
        let finite = x.nan_to_num(0.0, 0.0, 0.0).abs().max();
        f64::try_from(finite).expect("one element")
    };
    tensors.into_iter().map(one).fold(0.0, f64::max)
}

fn compare(
    name: &str,
    got: &Tensor,
    expected: &Tensor,
    scale: f64,
) -> std::result::Result<(), String> {
    let alike = got.kind() == Kind::Double && got.size() == expected.size();
    if alike && got.allclose(expected, 0.0, TOLERANCE * scale, false) {
        return Ok(());
    }
    let show = |x: &Tensor| {
        let elements = Vec::<f64>::try_from(x.flatten(0, -1).contiguous()).unwrap_or_default();
        format!("{elements:?} of shape {:?}", x.size())
    };
    Err(format!("{name} is {}; expected is {}", show(got), show(expected)))
}
