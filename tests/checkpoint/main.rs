//! Checkpoints: the gradients are those of the same program without them, whatever the function does;
//! a loop keeps no more states than it may; and what would lose a gradient is an error.

#[path = "../common/mod.rs"]
mod common;
mod gradients;
mod messages;
mod random_numbers;
mod refusals;
mod steps;

use std::process::ExitCode;

use common::{Context, start};
use mpi4tch::{Communicator, Result, Tape, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    let tests = [
        gradients::tests(),
        messages::tests(),
        random_numbers::tests(),
        steps::tests(),
        refusals::tests(),
    ];
    harness::run(start, tests.into_iter().flatten().collect())
}

/// A function of tensors that communicates.
type Function = fn(&Communicator, &[Tensor]) -> Result<Vec<Tensor>>;

/// The gradients of a program that calls `f` once, as itself or in a checkpoint.
fn gradients_of(
    tape: &Tape,
    inputs: &[Tensor],
    loss: impl Fn(&Communicator, &[Tensor]) -> Result<Option<Tensor>>,
    f: Function,
    in_checkpoint: bool,
) -> Result<Vec<Tensor>> {
    let leaves: Vec<Tensor> = inputs.iter().map(leaf).collect();
    let outputs = if in_checkpoint {
        let comm = Communicator::clone(tape);
        tape.checkpoint(&leaves.iter().collect::<Vec<_>>(), move |x| f(&comm, x))?
    } else {
        f(tape, &leaves)?
    };
    let loss = loss(tape, &outputs)?;
    tape.backward(loss.as_ref())?;
    Ok(leaves.iter().map(gradient).collect())
}

/// A copy that requires grad as the original does.
fn leaf(x: &Tensor) -> Tensor {
    x.detach().copy().set_requires_grad(x.requires_grad())
}

/// The gradient, or zeros.
fn gradient(x: &Tensor) -> Tensor {
    let gradient = x.grad();
    if gradient.defined() { gradient } else { x.zeros_like() }
}

fn assert_close(a: &[Tensor], b: &[Tensor]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!(a.allclose(b, 1e-12, 1e-12, false), "{a:?} {b:?}");
    }
}

/// Random numbers, which differ from rank to rank, that require grad.
fn variable(comm: &Communicator, count: i64) -> Result<Tensor> {
    Ok(testing::random(comm, &[count], Kind::Double)?.set_requires_grad(true))
}

/// The text of the error that all ranks get.
fn error_of<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.to_string(),
    }
}

/// All ranks can go on.
fn works(context: &Context) -> Result<()> {
    common::works(&context.world)
}
