//! Which MPI calls an operation makes, forward and backward.

mod collectives;
#[path = "../common/mod.rs"]
mod common;
mod in_place;
mod profiling;
mod started;

use std::process::ExitCode;

use common::{Context, start_with_local_checks};
use mpi4tch::{Result, testing};
use profiling::{Call, calls, names};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    let tests = [collectives::tests(), in_place::tests(), started::tests()];
    // The other checks make calls of their own.
    harness::run(start_with_local_checks, tests.into_iter().flatten().collect())
}

type Operation<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

fn matrix(context: &Context, rows: i64, columns: i64) -> Result<Tensor> {
    testing::random(&context.world, &[rows, columns], Kind::Double)
}

/// A linear operation makes the call `forward` on data, after one small call on the control context
/// if it `exchanges` sizes; its backward pass makes `backward` alone, and the second derivative
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
