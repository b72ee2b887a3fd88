//! The examples that assert their own results, on every number of ranks.

mod common;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use common::{Context, start};

#[path = "../examples/implicit_solve.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod implicit_solve;
#[path = "../examples/isend_recv_wait.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod isend_recv_wait;
#[path = "../examples/pipeline.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod pipeline;

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            the_implicit_solve_has_its_derivatives,
            the_ring_gives_every_rank_the_gradient_2,
            the_pipeline_has_the_losses_of_one_rank,
            the_pipeline_refuses_what_it_cannot_do,
        ],
    )
}

fn the_implicit_solve_has_its_derivatives(context: &Context) -> mpi4tch::Result<()> {
    implicit_solve::run(&context.world)
}

fn the_ring_gives_every_rank_the_gradient_2(context: &Context) -> mpi4tch::Result<()> {
    isend_recv_wait::run(&context.world)
}

fn the_pipeline_has_the_losses_of_one_rank(_: &Context) -> Result<(), Box<dyn Error>> {
    // One part, parts of different sizes, and more than the last batch has rows.
    for (epochs, micro_batches) in [(2, 1), (2, 3), (1, 8)] {
        let arguments = pipeline::Arguments { epochs, micro_batches };
        pipeline::run(&mpi4tch::initialize()?, &arguments)?;
    }
    Ok(())
}

fn the_pipeline_refuses_what_it_cannot_do(_: &Context) {
    let cases = [
        (["--epochs", "0"], "invalid value '0' for '--epochs <N>': 0 is not in 1.."),
        (["--micro-batches", "257"], "257 is not in 1..=256"),
        (["--micro-batches", "many"], "invalid digit found in string"),
    ];
    for (arguments, text) in cases {
        let usage = pipeline::Arguments::try_parse_from(["pipeline"].iter().chain(&arguments));
        let usage = usage.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(usage.contains(text), "{usage}");
    }
}
