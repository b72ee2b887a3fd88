//! `all_reduce`, against the serial computation on all ranks' data.

mod common;

use std::process::ExitCode;

use common::device::{self, placed};
use common::kinds::{DIFFERENTIABLE, KINDS, is_defined};
use common::tensors::{full, ones, sparse, tensor, variable, zeros};
use common::{Context, assert_freed, serial, start};
use mpi4tch::{Communicator, Op, Result, testing};
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            every_op_on_every_kind,
            every_shape_and_layout,
            lazy_conjugates_and_negatives,
            sums_are_their_own_adjoints,
            second_derivatives_by_differences,
            ties_share_the_cotangent,
            products_with_zeros,
            nan_propagates,
            small_integers_wrap,
            products_overflow_no_earlier_than_their_derivatives,
            means_of_half,
            zeros_without_storage,
            sparse_cotangents,
            large_messages,
            the_result_shares_no_storage,
            a_loss_on_every_rank_counts_once_per_rank,
            one_result_used_twice,
            repeated_backward,
            graphs_are_freed,
            nothing_is_recorded_without_need,
            saved_tensors_are_guarded,
            a_saved_tensor_changed_on_one_rank_fails_on_all,
            refused_tensors,
            duplicates,
        ],
    )
}

/// Value, first and second derivative against the serial computation.
fn assert_serial(world: &Communicator, x: &Tensor, op: Op) -> Result<()> {
    testing::assert_serial(world, x, |x| world.all_reduce(x, op), |xs| serial::all_reduce(xs, op))
}

fn every_op_on_every_kind(context: &Context) -> Result<()> {
    let world = &context.world;
    for kind in KINDS {
        for op in Op::ALL {
            let x = testing::random(world, &[2, 3], kind)?;
            if is_defined(op, kind) {
                assert_serial(world, &x, op)?;
            } else {
                let error = world.all_reduce(&x, op).unwrap_err().to_string();
                assert_eq!(
                    error,
                    format!("all_reduce: Op::{op:?} is not defined for kind {kind:?}")
                );
            }
        }
    }
    Ok(())
}

fn every_shape_and_layout(context: &Context) -> Result<()> {
    let world = &context.world;
    let cube = testing::random(world, &[4, 3, 5], Kind::Double)?;
    let layouts = [
        cube.shallow_clone(),
        cube.transpose(0, 2),
        cube.slice(0, 1, 4, 2),
        cube.select(1, 2),
        cube.narrow(2, 0, 1).expand([4, 3, 6], false),
        cube.flip([0]),
        cube.get(3).get(2).get(4),
        cube.narrow(1, 0, 0),
        zeros(&[0]),
    ];
    for x in layouts {
        for op in DIFFERENTIABLE {
            assert_serial(world, &x, op)?;
        }
    }
    Ok(())
}

fn lazy_conjugates_and_negatives(context: &Context) -> Result<()> {
    let world = &context.world;
    let z = testing::random(world, &[3], Kind::ComplexDouble)?;
    assert!(z.conj().is_conj());
    assert_serial(world, &z.conj(), Op::Sum)?;
    assert_serial(world, &z.conj(), Op::Prod)?;
    let negative = z.conj().imag();
    assert!(negative.is_neg());
    assert_serial(world, &negative, Op::Max)?;
    // One element is contiguous, and yet not what lies in memory.
    let one = z.narrow(0, 0, 1).conj().imag();
    assert!(one.is_neg() && one.is_contiguous());
    assert_serial(world, &one, Op::Sum)
}

fn sums_are_their_own_adjoints(context: &Context) -> Result<()> {
    let world = &context.world;
    for kind in &KINDS[5..11] {
        for shape in [&[][..], &[0], &[7], &[2, 3]] {
            let x = testing::random(world, shape, *kind)?;
            testing::assert_adjoint(world, &x, |x| world.all_reduce(x, Op::Sum))?;
            testing::assert_adjoint(world, &x, |x| world.all_reduce(x, Op::Mean))?;
        }
    }
    Ok(())
}

fn second_derivatives_by_differences(context: &Context) -> Result<()> {
    let world = &context.world;
    for op in DIFFERENTIABLE {
        for kind in [Kind::Double, Kind::ComplexDouble] {
            if is_defined(op, kind) {
                let x = testing::random(world, &[2, 2], kind)?;
                testing::gradcheck(world, &[&x], |x| world.all_reduce(&x[0], op))?;
                testing::gradgradcheck(world, &x, |x| world.all_reduce(x, op))?;
            }
        }
    }
    Ok(())
}

fn ties_share_the_cotangent(context: &Context) -> Result<()> {
    let world = &context.world;
    let rank = f64::from(world.rank());
    // All ranks tie; the last two; and each other one.
    let last_two = (rank + 2.0).min(f64::from(world.size()));
    let x = tensor(&[1.0, last_two, rank % 2.0]);
    for op in [Op::Max, Op::Min] {
        assert_serial(world, &x, op)?;
        for kind in [Kind::Half, Kind::BFloat16, Kind::Float] {
            assert_serial(world, &x.to_kind(kind), op)?;
        }
    }
    let x = x.set_requires_grad(true);
    world.all_reduce(&x, Op::Max)?.sum(Kind::Double).backward();
    let share = f64::try_from(x.grad().get(0))?;
    assert_eq!(share, 1.0, "of p cotangents of 1, p ties get 1 each");
    Ok(())
}

fn products_with_zeros(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, size) = (world.rank(), world.size());
    let value = f64::from(rank) + 2.0;
    let zero_on = |is_zero: bool| if is_zero { 0.0 } else { value };
    // No zero; one, on the first rank, on the last rank; two; all.
    let x = tensor(&[
        value,
        zero_on(rank == 0),
        zero_on(rank == size - 1),
        zero_on(rank == 0 || rank == size - 1),
        0.0,
    ]);
    for kind in [Kind::Double, Kind::Float, Kind::Half, Kind::BFloat16, Kind::ComplexDouble] {
        assert_serial(world, &x.to_kind(kind), Op::Prod)?;
    }
    testing::gradgradcheck(world, &x, |x| world.all_reduce(x, Op::Prod))?;
    // Without create_graph the gradient is found in another way; the two agree.
    let gradient = |create_graph| -> Result<Tensor> {
        let x = x.detach().set_requires_grad(true);
        let y = world.all_reduce(&x, Op::Prod)?.sum(Kind::Double);
        Ok(Tensor::f_run_backward(&[y], &[x], create_graph, create_graph)?.remove(0).detach())
    };
    let (lean, recorded) = (gradient(false)?, gradient(true)?);
    assert!(lean.allclose(&recorded, 1e-12, 0.0, false), "{lean} and {recorded}");
    Ok(())
}

fn nan_propagates(context: &Context) -> Result<()> {
    let world = &context.world;
    let rank = f64::from(world.rank());
    for owner in 0..world.size() {
        let nan = if world.rank() == owner { f64::NAN } else { rank };
        for kind in [Kind::Half, Kind::BFloat16, Kind::Float, Kind::Double] {
            let x = tensor(&[nan, rank, -rank]).to_kind(kind).set_requires_grad(true);
            for op in [Op::Max, Op::Min] {
                let y = world.all_reduce(&x, op)?;
                assert_eq!(Vec::<bool>::try_from(y.isnan())?, [true, false, false], "{op:?}");
                // The cotangent goes to the rank that has the NaN, as in torch.
                let gradient = Tensor::run_backward(&[y.sum(kind)], &[&x], false, false).remove(0);
                let expected = if world.rank() == owner { f64::from(world.size()) } else { 0.0 };
                assert_eq!(gradient.double_value(&[0]), expected, "{op:?} {kind:?}");
            }
        }
    }
    Ok(())
}

fn small_integers_wrap(context: &Context) -> Result<()> {
    let world = &context.world;
    for (kind, value) in [
        (Kind::Uint8, 200),
        (Kind::Int8, 100),
        (Kind::Int16, 30_000),
        (Kind::Int, 2_000_000_000),
        (Kind::Int64, i64::MAX),
    ] {
        // Long enough for vector instructions, and for what they leave over.
        let x = full(&[101], Kind::Int64, value).to_kind(kind);
        assert_serial(world, &x, Op::Sum)?;
        assert_serial(world, &x, Op::Prod)?;
    }
    Ok(())
}

fn products_overflow_no_earlier_than_their_derivatives(context: &Context) -> Result<()> {
    let world = &context.world;
    let first = world.rank() == 0;
    for value in [1e200, 1e-200, f64::INFINITY, f64::NAN] {
        // The first two ranks share the value, the others have ones.
        let own = if world.rank() < 2 { value } else { 1.0 };
        let x = tensor(&[own]).set_requires_grad(true);
        let y = world.all_reduce(&x, Op::Prod)?;
        let gradient = testing::vjp(&[&y], &[&y.ones_like()], &[&x], false)?.remove(0);
        if first {
            let others = if world.size() > 1 { value } else { 1.0 };
            let expected = tensor(&[others * f64::from(world.size())]);
            assert!(gradient.allclose(&expected, 1e-12, 0.0, true), "{value}: {gradient}");
        }
    }
    Ok(())
}

fn means_of_half(context: &Context) -> Result<()> {
    // The sum of the first overflows, a sixth of the second is none.
    for value in [60_000.0, 6e-8] {
        let x = tensor(&[value]).to_kind(Kind::Half);
        assert_eq!(context.world.all_reduce(&x, Op::Mean)?, x);
    }
    Ok(())
}

fn zeros_without_storage(context: &Context) -> Result<()> {
    let world = &context.world;
    if device::left_out_on_the_stand_in("its zeros have storage") {
        return Ok(());
    }
    let nothing = placed(Tensor::internal_efficientzerotensor([3], (Kind::Double, Device::Cpu)));
    assert_eq!(world.all_reduce(&nothing, Op::Sum)?, zeros(&[3]));
    let x = ones(&[3], Kind::Double).set_requires_grad(true);
    let y = world.all_reduce(&x, Op::Sum)?;
    let gradient = testing::vjp(&[&y], &[&nothing], &[&x], false)?.remove(0);
    assert_eq!(gradient, zeros(&[3]));
    Ok(())
}

fn sparse_cotangents(context: &Context) -> Result<()> {
    if device::left_out_on_the_stand_in("it has no sparse tensors") {
        return Ok(());
    }
    let world = &context.world;
    let weight = ones(&[4, 2], Kind::Double).set_requires_grad(true);
    let table = world.all_reduce(&weight, Op::Mean)?;
    let rows = tensor(&[1_i64, 3]);
    Tensor::embedding(&table, &rows, -1, false, true).sum(Kind::Double).f_backward()?;
    let expected = tensor(&[0.0, 1.0, 0.0, 1.0]).view([4, 1]).expand([4, 2], false);
    assert!(weight.grad().allclose(&expected, 1e-12, 1e-12, false));
    Ok(())
}

fn large_messages(context: &Context) -> Result<()> {
    let world = &context.world;
    for kind in [Kind::Double, Kind::BFloat16] {
        let x = testing::random(world, &[200_003], kind)?;
        testing::assert_adjoint(world, &x, |x| world.all_reduce(x, Op::Sum))?;
        assert_serial(world, &x, Op::Max)?;
    }
    Ok(())
}

fn the_result_shares_no_storage(context: &Context) -> Result<()> {
    let x = tensor(&[1.0, 2.0]);
    for op in DIFFERENTIABLE {
        let mut y = context.world.all_reduce(&x, op)?;
        let _ = y.fill_(-7.0);
        assert_eq!(x, tensor(&[1.0, 2.0]));
    }
    Ok(())
}

fn a_loss_on_every_rank_counts_once_per_rank(context: &Context) -> Result<()> {
    let x = tensor(&[3.0]).set_requires_grad(true);
    context.world.all_reduce(&x, Op::Sum)?.sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad().double_value(&[0]), f64::from(context.world.size()));
    Ok(())
}

fn one_result_used_twice(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[3], Kind::Double)?;
    testing::gradcheck(world, &[&x], |x| {
        let y = world.all_reduce(&x[0], Op::Sum)?;
        let z = world.all_reduce(&(&x[0] * &y), Op::Prod)?;
        Ok(y.sin() * z + y)
    })
}

fn repeated_backward(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = variable(world, &[3])?;
    for op in DIFFERENTIABLE {
        let y = world.all_reduce(&x, op)?.sum(Kind::Double);
        let once = || Tensor::run_backward(&[&y], &[&x], true, false).remove(0);
        assert_eq!(once(), once(), "{op:?}");
    }
    Ok(())
}

fn graphs_are_freed(context: &Context) -> Result<()> {
    let world = &context.world;
    let before = testing::live_pullbacks();
    for op in DIFFERENTIABLE {
        let x = variable(world, &[3])?;
        let y = world.all_reduce(&x, op)?;
        let z = world.all_reduce(&y, op)?;
        assert_eq!(testing::live_pullbacks(), before + 2);
        drop(y);
        assert_eq!(testing::live_pullbacks(), before + 2, "z still needs both");
        drop(z);
        assert_freed(before, &format!("{op:?}"));
    }
    Ok(())
}

fn nothing_is_recorded_without_need(context: &Context) -> Result<()> {
    let world = &context.world;
    let before = testing::live_pullbacks();
    let x = testing::random(world, &[3], Kind::Double)?;
    let plain = world.all_reduce(&x, Op::Sum)?;
    let x = x.set_requires_grad(true);
    let unrecorded = tch::no_grad(|| world.all_reduce(&x, Op::Sum))?;
    assert!(!plain.requires_grad() && !unrecorded.requires_grad());
    assert_freed(before, "the graph");
    assert!(tch::no_grad(|| world.all_reduce(&x, Op::LogicalAnd)).is_err(), "of the kind");
    Ok(())
}

fn saved_tensors_are_guarded(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = variable(world, &[3])?;
    let mut y = world.all_reduce(&x, Op::Max)?;
    let loss = y.sum(Kind::Double);
    let _ = tch::no_grad(|| y.fill_(0.0));
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");

    let loss = world.all_reduce(&x, Op::Max)?.sum(Kind::Double);
    loss.backward();
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(error.contains("backward through the graph a second time"), "{error}");
    world.barrier()
}

fn a_saved_tensor_changed_on_one_rank_fails_on_all(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = variable(world, &[3])?;
    let last = world.size() - 1;
    let mut y = world.all_reduce(&x, Op::Max)?;
    let loss = y.sum(Kind::Double);
    if world.rank() == last {
        let _ = tch::no_grad(|| y.fill_(0.0));
    }
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");
    if world.rank() != last {
        assert!(error.contains(&format!("on rank {last}")), "{error}");
    }
    world.barrier()
}

fn refused_tensors(context: &Context) -> Result<()> {
    let world = &context.world;
    let text = |x: &Tensor, op| world.all_reduce(x, op).unwrap_err().to_string();
    let dense = ones(&[2, 2], Kind::Float);

    let undefined = "all_reduce: the tensor is undefined, like a gradient that was never computed";
    assert_eq!(text(&Tensor::new(), Op::Sum), undefined);
    assert_eq!(text(&dense.grad(), Op::Mean), undefined);
    assert_eq!(
        text(&sparse(), Op::Sum),
        "all_reduce: the tensor has no strided storage; a dense tensor is needed"
    );
    assert_eq!(
        text(&dense.to_kind(Kind::Float8e5m2), Op::Sum),
        "all_reduce: kind Float8e5m2 has no MPI datatype"
    );
    // No kind that carries gradients has a logical or bitwise op.
    let x = dense.set_requires_grad(true);
    assert_eq!(
        text(&x, Op::LogicalAnd),
        "all_reduce: Op::LogicalAnd has no adjoint; detach the input first"
    );
    // The communicator works afterwards.
    let _ = world.all_reduce(&x, Op::Sum)?;
    Ok(())
}

fn duplicates(context: &Context) -> Result<()> {
    let first = context.world.duplicate()?;
    let second = first.duplicate()?;
    drop(first);
    let x = testing::random(&second, &[3], Kind::Double)?;
    testing::assert_adjoint(&second, &x, |x| second.all_reduce(x, Op::Sum))?;
    // A graph keeps its communicator.
    let x = x.set_requires_grad(true);
    let y = second.all_reduce(&x, Op::Sum)?;
    drop(second);
    y.sum(Kind::Double).f_backward()?;
    Ok(())
}
