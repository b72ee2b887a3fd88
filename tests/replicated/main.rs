//! Tensors that are one variable on all ranks.

#[path = "../common/mod.rs"]
mod common;
mod disagreement;
mod maps;
mod programs;
mod promises;
mod tensors;

use std::process::ExitCode;

use common::start_with_collective_checks;
use mpi4tch::{Communicator, Result, Tape, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    let tests = [
        maps::tests(),
        programs::tests(),
        promises::tests(),
        disagreement::tests(),
        tensors::tests(),
    ];
    harness::run(start_with_collective_checks, tests.into_iter().flatten().collect())
}

/// Random, and the same on all ranks.
fn common_random(comm: &Communicator, shape: &[i64], kind: Kind) -> Result<Tensor> {
    comm.broadcast(&testing::random(comm, shape, kind)?.detach(), 0)
}

fn leaf(x: &Tensor) -> Tensor {
    x.detach().set_requires_grad(true)
}

/// The gradients of `inputs` for the cotangent of `y`, by a pass of the tape if there is one.
fn gradients(
    tape: Option<&Tape>,
    (y, cotangent): (&Tensor, &Tensor),
    inputs: &[&Tensor],
    create_graph: bool,
) -> Result<Vec<Tensor>> {
    match tape {
        Some(tape) => {
            let options = mpi4tch::PassOptions { create_graph, ..Default::default() };
            tape.vjp(&[(y, cotangent)], inputs, options)
        }
        None => testing::vjp(&[y], &[cotangent], inputs, create_graph),
    }
}

/// Equal up to rounding.
fn assert_close(actual: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!((actual.size(), actual.kind()), (expected.size(), expected.kind()), "{what}");
    let tolerance = match actual.kind() {
        Kind::Double | Kind::ComplexDouble => 1e-11,
        Kind::Float | Kind::ComplexFloat => 1e-4,
        _ => 5e-2,
    };
    let close = actual.detach().allclose(&expected.detach(), tolerance, tolerance, false);
    assert!(close, "{what}: {actual:?} {actual} instead of {expected}");
}

/// The tensor has the same elements on all ranks.
fn assert_same(comm: &Communicator, x: &Tensor, what: &str) -> Result<()> {
    let x = x.detach();
    assert!(comm.broadcast(&x, 0)?.equal(&x), "{what} differs between the ranks");
    Ok(())
}
