//! Which MPI calls an operation makes, forward and backward.

mod collectives;
#[path = "../common/mod.rs"]
mod common;
mod data_parallel;
mod in_place;
mod profiling;
mod replicated;
mod started;
mod tensor_parallel;

use std::process::ExitCode;

use common::{Context, start_without_checks};
use mpi4tch::{Op, Result, testing};
use profiling::{Call, calls, names};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    let tests = [
        collectives::tests(),
        data_parallel::tests(),
        in_place::tests(),
        replicated::tests(),
        started::tests(),
        tensor_parallel::tests(),
    ];
    harness::run(start, tests.into_iter().flatten().collect())
}

/// Checks make calls of their own, as does the first derivative of a scan.
fn start() -> (Context, i32, i32) {
    let (context, rank, size) = start_without_checks();
    let x = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    context.world.scan(&x, Op::Sum).expect("scan works").backward();
    (context, rank, size)
}

type Operation<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

fn matrix(context: &Context, rows: i64, columns: i64) -> Result<Tensor> {
    testing::random(&context.world, &[rows, columns], Kind::Double)
}

/// What follows an agreement: ⌈log₂ p⌉ small messages each way, on the control context.
fn after_agreement(context: &Context, mut made: Vec<Call>) -> Vec<Call> {
    let mut distance = 1;
    while distance < context.world.size() {
        for name in ["MPI_Irecv", "MPI_Isend"] {
            let message = made.remove(0);
            assert_eq!((message.name, message.volume), (name, 56));
        }
        distance *= 2;
    }
    made
}

/// A linear operation makes the call `forward` on data, after an agreement and one small call on the
/// control context if it `exchanges` sizes; its backward pass makes `backward` alone, and the second derivative
/// `forward` again.
fn assert_calls(
    context: &Context,
    x: &Tensor,
    f: Operation,
    exchanges: bool,
    [forward, backward]: [&str; 2],
) -> Result<()> {
    let x = x.detach().set_requires_grad(true);
    let (y, mut made) = calls(|| f(&x))?;
    if exchanges {
        made = after_agreement(context, made);
        let sizes = made.remove(0);
        assert_eq!(sizes.name, "MPI_Allgather");
        assert_ne!(sizes.context, made[0].context, "a context for control");
        let per_rank = sizes.volume / i64::from(context.world.size());
        assert!(per_rank <= 128, "a small message, not {per_rank} bytes");
    }
    assert_eq!(names(&made), [forward], "forward");
    assert_derivatives(context, (&x, &y), &made, &[backward])
}

/// The backward pass of `y`, which `forward` made of `x`, makes the calls `backward`: the first of
/// the same volume as forward's, in a context of its own. The second derivative makes `forward`
/// again.
fn assert_derivatives(
    context: &Context,
    (x, y): (&Tensor, &Tensor),
    forward: &[Call],
    backward: &[&str],
) -> Result<()> {
    let name = forward[0].name;
    let cotangent = testing::random(&context.world, &y.size(), Kind::Double)?;
    let cotangent = cotangent.set_requires_grad(true);
    let (gradient, made) = calls(|| Ok(testing::vjp(&[y], &[&cotangent], &[x], true)?.remove(0)))?;
    assert_eq!(names(&made), backward, "backward of {name}");
    assert_eq!(made[0].volume, forward[0].volume, "bytes of {} and {name}", backward[0]);
    assert_ne!(made[0].context, forward[0].context, "a context for the backward pass");

    let direction = gradient.ones_like();
    let (_, made) = calls(|| testing::vjp(&[&gradient], &[&direction], &[&cotangent], false))?;
    assert_eq!(names(&made), names(forward), "second derivative of {name}");
    Ok(())
}
