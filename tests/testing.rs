//! The tests of derivatives must themselves fail on a wrong derivative.
//!
//! A derivative is made wrong by composition: `value + (g - g.detach())` has the value of the
//! first and the derivative of `g`.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use common::tensors::tensor;
use common::{Context, serial, start, without_lines};
use mpi4tch::{Communicator, Error, Op, PROC_NULL, Rank, Result, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            a_right_adjoint_passes,
            a_wrong_root_fails,
            a_dropped_rank_fails,
            a_wrong_scale_fails,
            a_wrong_value_fails_the_oracle,
            a_wrong_second_derivative_fails,
            random_data_differs_by_rank,
            an_error_on_one_rank_is_an_error_on_all,
            what_is_on_a_tape_goes_back_by_it,
            a_wrong_derivative_on_a_tape_fails,
            a_tape_on_some_ranks_only_is_an_error_on_all,
        ],
    )
}

/// The value of `value`, the derivative of `derivative`.
fn with_derivative(value: &Tensor, derivative: &Tensor) -> Tensor {
    value.detach() + (derivative - derivative.detach())
}

/// Broadcast from `root`, composed of a mask and a sum.
fn broadcast(world: &Communicator, x: &Tensor, root: Rank) -> Result<Tensor> {
    world.all_reduce(&(x * f64::from(i32::from(world.rank() == root))), Op::Sum)
}

/// Whether `test` panics; the ranks agree, as they all panic or none does.
fn fails(world: &Communicator, test: impl FnOnce() -> Result<()>) -> Result<bool> {
    let outcome = catch_unwind(AssertUnwindSafe(test));
    let failed = tensor(&[i64::from(outcome.is_err())]);
    let (least, most) = (world.all_reduce(&failed, Op::Min)?, world.all_reduce(&failed, Op::Max)?);
    assert_eq!(least, most, "the ranks come to the same verdict");
    outcome.map_or(Ok(true), |passed| passed.map(|()| false))
}

fn a_right_adjoint_passes(context: &Context) -> Result<()> {
    let world = &context.world;
    for root in 0..world.size() {
        let x = testing::random(world, &[4], Kind::Double)?;
        testing::assert_adjoint(world, &x, |x| broadcast(world, x, root))?;
    }
    Ok(())
}

fn a_wrong_root_fails(context: &Context) -> Result<()> {
    let world = &context.world;
    for root in 1..world.size() {
        let x = testing::random(world, &[4], Kind::Double)?;
        let wrong = |x: &Tensor| {
            Ok(with_derivative(&broadcast(world, x, root)?, &broadcast(world, x, root - 1)?))
        };
        assert!(fails(world, || testing::assert_adjoint(world, &x, wrong))?, "root {root}");
    }
    Ok(())
}

fn a_dropped_rank_fails(context: &Context) -> Result<()> {
    let world = &context.world;
    for dropped in 0..world.size() {
        let kept = f64::from(i32::from(world.rank() != dropped));
        for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16] {
            let x = testing::random(world, &[4], kind)?;
            // The cotangent of one rank is lost on its way.
            let wrong = |x: &Tensor| {
                let y = world.all_reduce(x, Op::Sum)?;
                Ok(with_derivative(&y, &(&y * kept)))
            };
            // One number of 8 bits may be right by chance; the oracle sees each element.
            if matches!(kind, Kind::Double | Kind::Float) {
                let adjoint = || testing::assert_adjoint(world, &x, wrong);
                assert!(fails(world, adjoint)?, "rank {dropped} dropped");
            }
            let oracle = || testing::assert_serial(world, &x, wrong, sum_of);
            assert!(fails(world, oracle)?, "rank {dropped} dropped");
        }
    }
    Ok(())
}

fn a_wrong_scale_fails(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[4], Kind::Double)?;
    let wrong = |x: &Tensor| {
        let y = world.all_reduce(x, Op::Sum)?;
        Ok(with_derivative(&y, &(&y * (1.0 + 1e-9))))
    };
    assert!(fails(world, || testing::assert_adjoint(world, &x, wrong))?);
    assert!(fails(world, || testing::assert_serial(world, &x, wrong, sum_of))?);
    let wrong = |x: &[Tensor]| {
        let y = world.all_reduce(&x[0], Op::Sum)?;
        Ok(with_derivative(&y, &(&y * 1.01)))
    };
    assert!(fails(world, || testing::gradcheck(world, &[&x], wrong))?);
    Ok(())
}

fn a_wrong_value_fails_the_oracle(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[4], Kind::Int)?;
    // Only the last rank is wrong; all fail.
    let wrong = |x: &Tensor| {
        let y = world.all_reduce(x, Op::Sum)?;
        Ok(if world.rank() == world.size() - 1 { y + 1 } else { y })
    };
    assert!(fails(world, || testing::assert_serial(world, &x, wrong, sum_of))?);
    let wrong = |x: &Tensor| Ok(world.all_reduce(x, Op::Sum)?.to_kind(Kind::Int64));
    assert!(fails(world, || testing::assert_serial(world, &x, wrong, sum_of))?, "kind");
    Ok(())
}

fn a_wrong_second_derivative_fails(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[4], Kind::Double)?;
    // x³ whose first derivative is right at x, 3x², but is itself taken for a constant times x.
    let wrong = |x: &Tensor| {
        let slope = (x * x * 3.0).detach();
        let y = world.all_reduce(&(x * x * x), Op::Sum)?;
        Ok(with_derivative(&y, &world.all_reduce(&(x * slope), Op::Sum)?))
    };
    testing::gradcheck(world, &[&x], |x| wrong(&x[0]))?;
    assert!(fails(world, || testing::gradgradcheck(world, &x, wrong))?);
    let cubes = |xs: &[Tensor]| sum_of(&xs.iter().map(|x| x * x * x).collect::<Vec<_>>());
    assert!(fails(world, || testing::assert_serial(world, &x, wrong, cubes))?);
    Ok(())
}

fn random_data_differs_by_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[4], Kind::Double)?;
    let (least, most) = (world.all_reduce(&x, Op::Min)?, world.all_reduce(&x, Op::Max)?);
    let all_differ = least.not_equal_tensor(&most).all().int64_value(&[]) == 1;
    assert_eq!(all_differ, world.size() > 1);
    Ok(())
}

fn an_error_on_one_rank_is_an_error_on_all(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[4], Kind::Double)?;
    let last = world.size() - 1;
    let failing = |x: &Tensor| {
        if world.rank() == last {
            return world.all_reduce(&Tensor::new(), Op::Sum);
        }
        world.all_reduce(x, Op::Sum)
    };
    let error = testing::assert_adjoint(world, &x, failing).unwrap_err();
    let own = "all_reduce: the tensor is undefined, like a gradient that was never computed";
    if world.rank() == last {
        assert_eq!(error.to_string(), own);
    } else {
        assert_eq!(
            without_lines(&error),
            format!("the ranks disagree on a call:\n  refused: {own} on rank {last}")
        );
    }
    Ok(())
}

fn sum_of(xs: &[Tensor]) -> Vec<Tensor> {
    serial::all_reduce(xs, Op::Sum)
}

/// x between the ends of its neighbours, or its own ends where there are none: what is received
/// there is not used, so that only a tape goes back through it.
fn halo(comm: &Communicator, x: &Tensor) -> Result<Tensor> {
    let n = x.size()[0];
    let (first, last) = (x.narrow(0, 0, 1), x.narrow(0, n - 1, 1));
    let left = if comm.rank() > 0 { comm.rank() - 1 } else { PROC_NULL };
    let right = if comm.rank() + 1 < comm.size() { comm.rank() + 1 } else { PROC_NULL };
    let before = comm.sendrecv(&last, right, &first, left, 0)?;
    let after = comm.sendrecv(&first, left, &last, right, 1)?;
    let before = if left == PROC_NULL { first } else { before };
    let after = if right == PROC_NULL { last } else { after };
    Ok(Tensor::cat(&[&before, x, &after], 0))
}

fn halo_of_all(xs: &[Tensor]) -> Vec<Tensor> {
    let end = |x: &Tensor, i: i64| x.narrow(0, if i < 0 { x.size()[0] - 1 } else { 0 }, 1);
    (0..xs.len())
        .map(|r| {
            let before = end(&xs[r.saturating_sub(1)], if r == 0 { 0 } else { -1 });
            let after = end(&xs[(r + 1).min(xs.len() - 1)], if r + 1 == xs.len() { -1 } else { 0 });
            Tensor::cat(&[&before, &xs[r], &after], 0)
        })
        .collect()
}

/// By the communicator that the test is given, or by one that only the function knows.
fn what_is_on_a_tape_goes_back_by_it(context: &Context) -> Result<()> {
    let world = &context.world;
    for given in [true, false] {
        let tape = world.tape();
        let comm = if given { &*tape } else { world };
        for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::ComplexDouble] {
            let x = testing::random(world, &[4], kind)?;
            testing::assert_adjoint(comm, &x, |x| halo(&tape, x))?;
            testing::assert_serial(comm, &x, |x| halo(&tape, x), halo_of_all)?;
        }
        for kind in [Kind::Double, Kind::ComplexDouble] {
            let x = testing::random(world, &[4], kind)?;
            testing::gradcheck(comm, &[&x], |x| halo(&tape, &x[0].sin()))?;
            testing::gradgradcheck(comm, &x, |x| halo(&tape, &x.sin()))?;
        }
        // Nothing is left on the tape, so that it can go on without the tests' calls.
        let before = testing::live_pullbacks();
        tape.backward(None)?;
        assert_eq!(testing::live_pullbacks(), before);
    }
    Ok(())
}

fn a_wrong_derivative_on_a_tape_fails(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let x = testing::random(world, &[4], Kind::Double)?;
    let wrong = |x: &Tensor| {
        let y = halo(&tape, x)?;
        Ok(with_derivative(&y, &(&y * (1.0 + 1e-3))))
    };
    assert!(fails(world, || testing::assert_adjoint(&tape, &x, wrong))?);
    assert!(fails(world, || testing::assert_serial(&tape, &x, wrong, halo_of_all))?);
    assert!(fails(world, || testing::gradcheck(&tape, &[&x], |x| wrong(&x[0])))?);
    Ok(())
}

fn a_tape_on_some_ranks_only_is_an_error_on_all(context: &Context) -> Result<()> {
    let world = &context.world;
    let this = mpi4tch::initialize()?.self_comm()?;
    let (tape, other) = (this.tape(), this.tape());
    let x = testing::random(world, &[4], Kind::Double)?;
    let last = world.rank() == world.size() - 1;
    let some = |x: &Tensor| {
        if last { this.all_reduce(x, Op::Sum) } else { tape.all_reduce(x, Op::Sum) }
    };
    if world.size() > 1 {
        let error = testing::assert_adjoint(world, &x, some).unwrap_err().to_string();
        let text = "testing: what is tested goes by a tape on some of the ranks only; give the test \
                    the tape as its communicator";
        assert_eq!(error, text);
    }
    let several = |x: &Tensor| other.all_reduce(&tape.all_reduce(x, Op::Sum)?, Op::Sum);
    let error = testing::assert_adjoint(world, &x, several).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
    assert_eq!(error.to_string(), "testing: what is tested goes by 2 tapes; one is needed");
    Ok(())
}
