//! Every collective, against the serial computation on all ranks' data, on every kind of
//! communicator.

#[path = "../common/mod.rs"]
mod common;
mod large_blocks;
mod large_extents;
mod table;

use std::process::ExitCode;

use common::kinds::{KINDS, is_defined, is_floating};
use common::tensors::tensor;
use common::{Context, communicators, start};
use mpi4tch::{Communicator, Op, Result, testing};
use table::{Arguments, OPERATIONS, Operation, STARTED, Takes};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    let mut tests =
        harness::tests![extrema_and_their_owners, scans_of_what_is_equal_to_the_identity];
    for operation in OPERATIONS.iter().chain(&STARTED) {
        tests.push(harness::Test::new(operation.name, |context: &Context| {
            let all = communicators(&context.world);
            // On the world as many calls as it takes; elsewhere enough to see another group.
            all.iter().try_for_each(|(name, comm)| sweep(operation, comm, *name == "world"))?;
            sweep(operation, &context.world.tape(), false)
        }));
    }
    tests.extend(large_blocks::tests());
    tests.extend(large_extents::tests());
    harness::run(start, tests)
}

/// Every kind with every op that is defined for it; the roots, axes and layouts take turns.
fn sweep(operation: &Operation, comm: &Communicator, every_kind: bool) -> Result<()> {
    let mut turn = 0;
    for kind in KINDS {
        for op in Op::ALL {
            let runs = match operation.ops {
                Some(ops) => ops(op) && is_defined(op, kind),
                None => op == Op::Sum,
            };
            let wanted = every_kind || kind == Kind::Double;
            // Of the kind that shows most, every root, or every axis.
            let most = if operation.has_root { comm.size().max(6) } else { 6 };
            let turns = if every_kind && kind == Kind::Double { most } else { 1 };
            for _ in 0..if runs && wanted { turns } else { 0 } {
                turn += 1;
                check(operation, comm, kind, &arguments(comm, op, turn))?;
            }
        }
    }
    Ok(())
}

fn arguments(comm: &Communicator, op: Op, turn: i32) -> Arguments {
    let axis = i64::from(turn % 6 - 3);
    let scatter_axis = i64::from(turn / 6 % 3);
    // Unequal blocks, empty ones among them; the same ones from the other end; or equal ones.
    let mut counts: Vec<i64> = (0..comm.size()).map(|r| i64::from((r + turn) % 3)).collect();
    let mut scatter_counts: Vec<i64> = counts.iter().rev().copied().collect();
    // Of two axes, either may be the one that is cut evenly.
    let same_axis = axis.rem_euclid(3) == scatter_axis;
    if matches!(turn % 5, 0 | 1) && !(same_axis && turn % 5 == 1) {
        counts.fill(2);
    }
    if matches!(turn % 5, 0 | 2) && !(same_axis && turn % 5 == 2) {
        scatter_counts.fill(2);
    }
    Arguments {
        shape: vec![2, 3, 2],
        axis,
        scatter_axis,
        counts,
        scatter_counts,
        root: turn % comm.size(),
        op,
    }
}

fn check(operation: &Operation, comm: &Communicator, kind: Kind, a: &Arguments) -> Result<()> {
    let rank = comm.rank().unsigned_abs() as usize;
    let mut shape = a.input_shape(operation.takes, rank);
    shape.reverse();
    // A transposed tensor; now and then one of small integers, with ties and zeros.
    let mut x = testing::random(comm, &shape, kind)?;
    if is_floating(kind) && a.axis % 2 == 0 {
        x = testing::random(comm, &shape, Kind::Int)?.to_kind(kind);
    }
    let order: Vec<i64> = (0..i64::try_from(shape.len()).unwrap_or(0)).rev().collect();
    let x = x.permute(order);
    let linear = operation.ops.is_none() || matches!(a.op, Op::Sum | Op::Mean);
    if linear && is_floating(kind) {
        testing::assert_adjoint(comm, &x, |x| (operation.run)(comm, x, a))?;
    }
    // The derivatives of a product cancel: 16 bits are too few to compare two ways to them.
    let value_only = a.op == Op::Prod && matches!(kind, Kind::Half | Kind::BFloat16);
    let seen = |x: &Tensor| if value_only { x.detach() } else { x.shallow_clone() };
    testing::assert_serial(
        comm,
        &x,
        |x| (operation.run)(comm, &seen(x), a),
        |xs| (operation.serial)(&xs.iter().map(seen).collect::<Vec<_>>(), a),
    )?;
    if operation.takes == Takes::Same && kind == Kind::Double {
        let scalar = Arguments { shape: vec![], ..a.clone() };
        let x = testing::random(comm, &[], kind)?;
        testing::assert_serial(
            comm,
            &x,
            |x| (operation.run)(comm, x, &scalar),
            |xs| (operation.serial)(xs, &scalar),
        )?;
    }
    Ok(())
}

fn extrema_and_their_owners(context: &Context) -> Result<()> {
    for (_, comm) in communicators(&context.world) {
        for kind in KINDS.into_iter().filter(|kind| is_defined(Op::Max, *kind)) {
            let x = testing::random(&comm, &[5], kind)?;
            let expected = |xs: &[Tensor], largest: bool| {
                let all = Tensor::stack(xs, 0).to_kind(Kind::Double);
                // The lowest rank of those that tie.
                let owners = if largest { all.argmax(0, false) } else { all.argmin(0, false) };
                xs.iter().map(|_| owners.to_kind(Kind::Double)).collect::<Vec<_>>()
            };
            // Without grad: the owners have none.
            let owners = |x: &Tensor, largest: bool| {
                let x = x.detach();
                let owners = if largest { comm.max_loc(&x)? } else { comm.min_loc(&x)? }.1;
                assert_eq!(owners.kind(), Kind::Int64);
                Ok(owners.to_kind(Kind::Double))
            };
            for largest in [true, false] {
                testing::assert_serial(
                    &comm,
                    &x,
                    |x| owners(x, largest),
                    |xs| expected(xs, largest),
                )?;
            }
        }
        let x = testing::random(&comm, &[4], Kind::Double)?;
        testing::gradgradcheck(&comm, &x, |x| Ok(comm.max_loc(x)?.0))?;
        testing::gradgradcheck(&comm, &x, |x| Ok(comm.min_loc(x)?.0))?;
    }
    Ok(())
}

/// The extremum of the first ranks, where what is infinite ties as well and a NaN wins.
///
/// The cotangent is shared by those of them that have it; ranks that come later get none.
fn scans_of_what_is_equal_to_the_identity(context: &Context) -> Result<()> {
    let first = |xs: &[Tensor], largest: bool| {
        let all = Tensor::stack(xs, 0);
        let detached = all.detach();
        let y = if largest { detached.amax(0, false) } else { detached.amin(0, false) };
        let nan = detached.isnan().logical_and(&y.isnan());
        let has_it = detached.eq_tensor(&y).logical_or(&nan);
        let ties = has_it.sum_dim_intlist(0, false, Kind::Double);
        let sum = all.where_self(&has_it, &all.zeros_like());
        sum.sum_dim_intlist(0, false, Kind::Double) / ties
    };
    let infinity = f64::INFINITY;
    for (_, comm) in communicators(&context.world) {
        let rank = f64::from(comm.rank());
        let on = |is: bool, value: f64| if is { value } else { rank - 1.0 };
        let last = comm.rank() == comm.size() - 1;
        let x = tensor(&[
            infinity,
            -infinity,
            on(comm.rank() == 0, infinity),
            on(comm.rank() == 0, -infinity),
            on(last, infinity),
            on(last, -infinity),
            if rank % 2.0 == 0.0 { infinity } else { -infinity },
            on(comm.rank() == 0, f64::NAN),
            on(last, f64::NAN),
            f64::NAN,
            if rank % 2.0 == 0.0 { f64::NAN } else { infinity },
            1.0,
        ]);
        for (op, largest) in [(Op::Max, true), (Op::Min, false)] {
            testing::assert_serial(
                &comm,
                &x,
                |x| comm.scan(x, op),
                |xs| (1..=xs.len()).map(|ranks| first(&xs[..ranks], largest)).collect(),
            )?;
            let identity = if largest { -infinity } else { infinity };
            testing::assert_serial(
                &comm,
                &x,
                |x| comm.exscan(x, op),
                |xs| {
                    let nothing = xs[0].detach().full_like(identity);
                    let rest = (1..xs.len()).map(|ranks| first(&xs[..ranks], largest));
                    std::iter::once(nothing).chain(rest).collect()
                },
            )?;
        }
    }
    // Two ranks share what both have, and the second gets what it alone sees too.
    if context.world.size() == 2 {
        let x = tensor(&[-infinity]).set_requires_grad(true);
        context.world.scan(&x, Op::Max)?.sum(Kind::Double).f_backward()?;
        let expected = if context.world.rank() == 0 { 1.5 } else { 0.5 };
        assert_eq!(x.grad(), tensor(&[expected]));
    }
    Ok(())
}
