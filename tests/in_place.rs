//! The collectives in place follow torch's rules for changes in place.

mod common;

use std::process::ExitCode;

use common::tensors::{full, ones, variable};
use common::{Context, assert_freed, start, works};
use mpi4tch::{Communicator, Op, Result, testing};
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            same_as_out_of_place,
            derivatives,
            views_and_their_base,
            views_whose_cotangent_is_undefined_on_one_rank,
            any_layout,
            leaves_are_refused_on_all_ranks,
            expanded_tensors_are_refused_on_all_ranks,
            zeros_without_storage_are_refused_on_all_ranks,
            leaves_without_recording,
            the_version_counter_is_bumped,
            cotangents_are_not_changed,
            graphs_are_freed,
        ],
    )
}

type InPlace = fn(&Communicator, &mut Tensor) -> Result<()>;
type OutOfPlace = fn(&Communicator, &Tensor) -> Result<Tensor>;

const PAIRS: [(InPlace, OutOfPlace); 9] = [
    (|c, x| c.all_reduce_(x, Op::Sum), |c, x| c.all_reduce(x, Op::Sum)),
    (|c, x| c.all_reduce_(x, Op::Mean), |c, x| c.all_reduce(x, Op::Mean)),
    (|c, x| c.all_reduce_(x, Op::Max), |c, x| c.all_reduce(x, Op::Max)),
    (|c, x| c.all_reduce_(x, Op::Prod), |c, x| c.all_reduce(x, Op::Prod)),
    (|c, x| c.reduce_(x, Op::Sum, c.size() - 1), |c, x| c.reduce(x, Op::Sum, c.size() - 1)),
    (|c, x| c.reduce_(x, Op::Min, 0), |c, x| c.reduce(x, Op::Min, 0)),
    (|c, x| c.reduce_(x, Op::Mean, 0), |c, x| c.reduce(x, Op::Mean, 0)),
    (|c, x| c.broadcast_(x, 0), |c, x| c.broadcast(x, 0)),
    (|c, x| c.broadcast_(x, c.size() - 1), |c, x| c.broadcast(x, c.size() - 1)),
];

fn same_as_out_of_place(context: &Context) -> Result<()> {
    let world = &context.world;
    for kind in [Kind::Double, Kind::Half, Kind::Int, Kind::Bool] {
        for (i, (in_place, out_of_place)) in PAIRS.into_iter().enumerate() {
            let x = testing::random(world, &[2, 3], kind)?;
            let mut y = x.copy();
            match out_of_place(world, &x) {
                Ok(expected) => {
                    in_place(world, &mut y)?;
                    assert_eq!(y, expected, "pair {i}, {kind:?}");
                }
                Err(error) => {
                    let expected = error.to_string();
                    assert_eq!(in_place(world, &mut y).unwrap_err().to_string(), expected);
                    assert_eq!(y, x);
                }
            }
        }
    }
    Ok(())
}

fn derivatives(context: &Context) -> Result<()> {
    let world = &context.world;
    for (in_place, out_of_place) in PAIRS {
        let x = testing::random(world, &[4], Kind::Double)?;
        let f = |x: &Tensor| {
            let mut y = x.sin();
            in_place(world, &mut y)?;
            Ok(&y * &y)
        };
        testing::gradcheck(world, &[&x], |x| f(&x[0]))?;
        testing::gradgradcheck(world, &x, f)?;
        let variable = x.set_requires_grad(true);
        let gradient = |y: Tensor| testing::vjp(&[&y], &[&y.ones_like()], &[&variable], false);
        let expected = gradient({
            let y = out_of_place(world, &variable.sin())?;
            &y * &y
        })?;
        assert!(gradient(f(&variable)?)?[0].allclose(&expected[0], 1e-12, 1e-12, false));
    }
    Ok(())
}

fn views_and_their_base(context: &Context) -> Result<()> {
    let world = &context.world;
    for (in_place, out_of_place) in PAIRS {
        let x = variable(world, &[5, 2])?;
        let weights = testing::random(world, &[5, 2], Kind::Double)?;
        // Rows 1 to 3 of the base change; the others stay.
        let base = &x * 2.0;
        in_place(world, &mut base.narrow(0, 1, 3))?;
        let twice = &x * 2.0;
        let middle = out_of_place(world, &twice.narrow(0, 1, 3))?;
        let expected = Tensor::cat(&[twice.narrow(0, 0, 1), middle, twice.narrow(0, 4, 1)], 0);
        assert_eq!(base.detach(), expected.detach());
        let gradient = testing::vjp(&[&base], &[&weights], &[&x], false)?;
        let expected = testing::vjp(&[&expected], &[&weights], &[&x], false)?;
        assert!(gradient[0].allclose(&expected[0], 1e-12, 1e-12, false));
    }
    Ok(())
}

/// libtorch has no cotangent where nothing depends on a tensor differentiably. The rank
/// communicates all the same.
fn views_whose_cotangent_is_undefined_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    let views: [fn(&Tensor) -> Tensor; 3] =
        [|y| y.narrow(0, 1, 2), |y| y.narrow(1, 1, 2), |y| y.transpose(0, 1)];
    for (in_place, _) in PAIRS {
        for (view, rank) in views.into_iter().flat_map(|v| [(v, 0), (v, world.size() - 1)]) {
            let x = variable(world, &[3, 3])?;
            let weights = testing::random(world, &[3, 3], Kind::Double)?;
            let gradient = |undefined: bool| -> Result<Tensor> {
                // What the node of the product gets on each rank is defined, on any number of them.
                let y = &x * 1.0;
                let before = &y + 0.0;
                in_place(world, &mut view(&y))?;
                let loss = if world.rank() != rank {
                    &y * &weights
                } else if undefined {
                    // The sign is constant, and its derivative left out.
                    Tensor::linalg_slogdet(&y).0
                } else {
                    &y * 0.0
                };
                let loss = loss.sum(Kind::Double) + before.sum(Kind::Double);
                let one = loss.ones_like();
                Ok(testing::vjp(&[&loss], &[&one], &[&x], false)?.remove(0))
            };
            assert!(gradient(true)?.allclose(&gradient(false)?, 1e-12, 1e-12, false));
        }
    }
    Ok(())
}

fn any_layout(context: &Context) -> Result<()> {
    let world = &context.world;
    for (in_place, out_of_place) in PAIRS {
        let x = testing::random(world, &[3, 4], Kind::Double)?;
        for view in [|x: &Tensor| x.transpose(0, 1), |x: &Tensor| x.slice(1, 0, 4, 2)] {
            let base = x.copy();
            in_place(world, &mut view(&base))?;
            assert_eq!(view(&base), out_of_place(world, &view(&x))?);
        }
        let mut empty = x.narrow(0, 0, 0);
        in_place(world, &mut empty)?;
        let mut scalar = x.get(0).get(0).copy();
        let expected = out_of_place(world, &scalar)?;
        in_place(world, &mut scalar)?;
        assert_eq!(scalar, expected);
    }
    Ok(())
}

fn leaves_are_refused_on_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    for (in_place, _) in PAIRS {
        let mut leaf = ones(&[2], Kind::Double).set_requires_grad(true);
        let error = in_place(world, &mut leaf).unwrap_err().to_string();
        let why = "a leaf Variable that requires grad is being used in an in-place operation";
        assert!(error.contains(why), "{error}");
        // On one rank only: an error on all, and nothing has changed.
        let mut x = ones(&[2], Kind::Double);
        let mine = if world.rank() == last { &mut leaf } else { &mut x };
        let error = in_place(world, mine).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(x, ones(&[2], Kind::Double));
        world.barrier()?;
    }
    Ok(())
}

/// Several of whose elements lie in one place.
fn expanded_tensors_are_refused_on_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    for (in_place, _) in PAIRS {
        let value = f64::from(world.rank());
        let mut x = full(&[2, 3], Kind::Double, value);
        let mut expanded = full(&[1, 3], Kind::Double, value).expand([2, 3], false);
        let mine = if world.rank() == last { &mut expanded } else { &mut x };
        let error = in_place(world, mine).unwrap_err().to_string();
        let why =
            "more than one element of the written-to tensor refers to a single memory location";
        assert!(error.contains(why), "{error}");
        let told = format!(" on rank {last}");
        assert_eq!(world.rank() != last, error.contains(&told), "{error}");
        assert_eq!(x, x.full_like(value));
        assert_eq!(expanded, x.full_like(value));
        world.barrier()?;
    }
    Ok(())
}

/// torch keeps such zeros without storage, and lets nobody write them.
fn zeros_without_storage_are_refused_on_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    let text = "torch keeps these zeros without storage; clone the tensor to change it";
    for (i, (in_place, _)) in PAIRS.into_iter().enumerate() {
        for culprits in [0..world.size(), world.size() - 1..world.size(), 0..1] {
            let options = (Kind::Double, Device::Cpu);
            let mut x = if culprits.contains(&world.rank()) {
                Tensor::internal_efficientzerotensor([3], options)
            } else {
                Tensor::ones([3], options)
            };
            let error = in_place(world, &mut x).unwrap_err().to_string();
            assert!(error.contains(text), "pair {i}: {error}");
            works(world)?;
        }
    }
    Ok(())
}

fn leaves_without_recording(context: &Context) -> Result<()> {
    let world = &context.world;
    for (in_place, out_of_place) in PAIRS {
        let mut x = variable(world, &[3])?;
        let expected = tch::no_grad(|| out_of_place(world, &x))?;
        tch::no_grad(|| in_place(world, &mut x))?;
        assert!(x.is_leaf() && x.requires_grad());
        assert_eq!(x.detach(), expected);
    }
    Ok(())
}

fn the_version_counter_is_bumped(context: &Context) -> Result<()> {
    let world = &context.world;
    for ((in_place, _), records) in PAIRS.into_iter().flat_map(|p| [(p, true), (p, false)]) {
        let x = variable(world, &[3])?;
        let mut y = &x * 1.0;
        // The square keeps y for its derivative.
        let loss = (&y * &y).sum(Kind::Double);
        if records {
            in_place(world, &mut y)?;
        } else {
            tch::no_grad(|| in_place(world, &mut y))?;
        }
        let error = loss.f_backward().unwrap_err().to_string();
        assert!(error.contains("modified by an inplace operation"), "{error}");
    }
    Ok(())
}

fn cotangents_are_not_changed(context: &Context) -> Result<()> {
    let world = &context.world;
    for (in_place, _) in PAIRS {
        let x = variable(world, &[3])?;
        let mut y = &x * 1.0;
        in_place(world, &mut y)?;
        // The same cotangent goes to both branches of a sum.
        let other = variable(world, &[3])?;
        let cotangent = testing::random(world, &[3], Kind::Double)?;
        let before = cotangent.copy();
        let gradients = testing::vjp(&[&(&y + &other)], &[&cotangent], &[&x, &other], false)?;
        assert_eq!(cotangent, before);
        assert_eq!(gradients[1], before);
    }
    Ok(())
}

fn graphs_are_freed(context: &Context) -> Result<()> {
    let world = &context.world;
    let before = testing::live_pullbacks();
    for (in_place, _) in PAIRS {
        let x = variable(world, &[3])?;
        let mut y = &x * 1.0;
        in_place(world, &mut y)?;
        in_place(world, &mut y.narrow(0, 0, 2))?;
        assert!(testing::live_pullbacks() > before);
        drop(y);
        assert_freed(before, "the graph");
    }
    Ok(())
}
