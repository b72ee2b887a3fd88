//! Parameters of all kinds that carry gradients.

use mpi4tch::{DataParallel, DataParallelOptions, Result, testing};
use tch::nn::{self, Module};
use tch::{Kind, Tensor};

use crate::common::Context;
use crate::common::store::empty_store;
use crate::common::tensors::tensor;
use crate::models::{
    assert_close, batch, gradients_on_one_rank, perceptron, small_buckets, trained,
};

pub fn half_and_bfloat16(context: &Context) -> Result<()> {
    let world = &context.world;
    for (kind, tolerance) in [(Kind::Half, 1e-2), (Kind::BFloat16, 6e-2)] {
        for options in small_buckets() {
            let (w, losses) = perceptron(world, kind)?;
            let model = trained(world, &w, options)?;
            let rows = batch(world, 4, kind)?;
            let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
            model.backward(&losses(&w, &rows).mean(None))?;
            assert_close(world, &w, &expected, tolerance);
        }
    }
    Ok(())
}

/// The weight of a rank is not a number of these kinds on 3, 5 or 7 ranks.
pub fn a_loss_of_16_bits(context: &Context) -> Result<()> {
    let world = &context.world;
    for kind in [Kind::Half, Kind::BFloat16] {
        for options in small_buckets() {
            let w = [tensor(&[1_f32, 2.0]).set_requires_grad(true)];
            let model = trained(world, &w, options)?;
            let loss = |w: &Tensor| w.sum(Kind::Float).to_kind(kind);
            model.accumulate(&loss(&w[0]))?;
            model.backward(&loss(&w[0]))?;
            assert_close(world, &w, &[tensor(&[2_f32, 2.0])], 1e-6);
            w[0].shallow_clone().zero_grad();
            model.backward_weighted(&loss(&w[0]), 1e-9 + f64::from(world.rank()))?;
            assert_close(world, &w, &[tensor(&[1_f32, 1.0])], 1e-6);
        }
    }
    Ok(())
}

pub fn reduced_in_another_kind(context: &Context) -> Result<()> {
    let world = &context.world;
    for (kind, tolerance) in [(Kind::BFloat16, 3e-2), (Kind::Half, 5e-3), (Kind::Double, 1e-5)] {
        for options in small_buckets() {
            let (w, losses) = perceptron(world, Kind::Float)?;
            let options = DataParallelOptions { reduce_in: Some(kind), ..options };
            let model = trained(world, &w, options)?;
            for _ in 0..2 {
                let rows = batch(world, 4, Kind::Float)?;
                let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
                model.backward(&losses(&w, &rows).mean(None))?;
                assert_close(world, &w, &expected, tolerance);
                let rounded = w[0].grad().to_kind(kind).to_kind(Kind::Float);
                assert_eq!(w[0].grad(), rounded, "it was reduced in {kind:?}");
                w.iter().for_each(|w| w.shallow_clone().zero_grad());
            }
        }
    }
    Ok(())
}

pub fn of_mixed_and_complex_parameters(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        for reduce_in in [None, Some(Kind::Float)] {
            let options = DataParallelOptions { reduce_in, ..options.clone() };
            let leaf = |shape: &[i64], kind| -> Result<Tensor> {
                let x = world.broadcast(&testing::random(world, shape, kind)?, 0)?;
                Ok(x.set_requires_grad(true))
            };
            let w = [
                leaf(&[3], Kind::Float)?,
                leaf(&[3], Kind::ComplexDouble)?,
                leaf(&[3], Kind::Double)?,
                leaf(&[], Kind::ComplexFloat)?,
            ];
            let losses = |w: &[Tensor], x: &Tensor| {
                let y = x * &w[0] * &w[1] + x * &w[2] * &w[3];
                y.abs().square().sum_dim_intlist(1, false, None)
            };
            let model = trained(world, &w, options)?;
            let rows = batch(world, 3, Kind::Double)?;
            let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
            model.backward(&losses(&w, &rows).mean(None))?;
            assert_close(world, &w, &expected, 1e-5);
        }
    }
    Ok(())
}

/// By `VarStore::double` and `half`, with gradients of the kind before.
pub fn that_change(context: &Context) -> Result<()> {
    let world = &context.world;
    let Some(mut store) = empty_store() else { return Ok(()) };
    let layer = nn::linear(store.root(), 3, 2, Default::default());
    let model = DataParallel::new(world, &store)?;
    let losses = |w: &[Tensor], x: &Tensor| {
        x.linear(&w[1], Some(&w[0])).square().sum_dim_intlist(1, false, None)
    };
    for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::Double, 1e-12), (Kind::Float, 1e-5)] {
        if kind == Kind::Double {
            store.double()
        } else {
            store.float()
        }
        let w = store.trainable_variables();
        let rows = batch(world, 3, kind)?;
        let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
        for w in &w {
            let mut gradient = w.grad();
            if gradient.defined() {
                let _ = gradient.zero_();
            }
        }
        let y = layer.forward(&rows).square().sum_dim_intlist(1, false, None);
        model.backward(&y.mean(None))?;
        assert_close(world, &w, &expected, tolerance);
    }
    Ok(())
}
