//! Parameters that take no part: on some ranks, on all, for a while.

use mpi4tch::{DataParallel, Op, Result};
use tch::nn::{self, Module};
use tch::{Kind, Tensor, no_grad};

use crate::common::Context;
use crate::common::store::empty_store;
use crate::models::{
    assert_close, batch, gradients_on_one_rank, leaf_like, perceptron, small_buckets, trained,
    with_optimizer,
};

/// Each rank uses some of the parameters, in an order of its own.
pub fn on_some_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    let uses = |rank: i32, i: usize| (i32::try_from(i).unwrap_or(0) + rank) % 3 != 0;
    for options in small_buckets() {
        let (w, mut optimizer) = with_optimizer(&perceptron(world, Kind::Double)?.0);
        let loss = |w: &[Tensor], rank: i32| {
            let scale = f64::from(rank + 1);
            let mut used: Vec<&Tensor> =
                w.iter().enumerate().filter(|(i, _)| uses(rank, *i)).map(|(_, w)| w).collect();
            if rank % 2 == 1 {
                used.reverse();
            }
            used.iter().map(|w| w.square().sum(Kind::Double) * scale).sum::<Tensor>()
        };
        let model = trained(world, &w, options)?;
        let copies: Vec<Tensor> = w.iter().map(leaf_like).collect();
        let losses: Vec<Tensor> = (0..world.size()).map(|rank| loss(&copies, rank)).collect();
        Tensor::stack(&losses, 0).mean(Kind::Double).f_backward()?;
        let expected: Vec<Tensor> = copies.iter().map(Tensor::grad).collect();
        let mut another_call = None;
        for step in 0..5 {
            if step == 2 {
                // From here on the sums are started.
                another_call = Some(world.all_reduce(&w[0], Op::Sum)?);
            }
            model.backward(&loss(&w, world.rank()))?;
            assert_close(world, &w, &expected, 1e-12);
            optimizer.zero_grad();
        }
        drop(another_call);
    }
    Ok(())
}

/// Their gradients stay as they are: undefined, so that an optimizer skips the parameter.
pub fn on_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let (w, _) = perceptron(world, Kind::Double)?;
        let model = trained(world, &w, options)?;
        model.backward(&w[1].square().sum(Kind::Double))?;
        assert_close(world, &w[1..2], &[w[1].detach() * 2.0], 1e-12);
        for i in [0, 2, 3, 4] {
            assert!(!w[i].grad().defined());
        }
        model.backward(&w[3].square().sum(Kind::Double))?;
        // What was there before stays.
        assert_close(world, &w[1..2], &[w[1].detach() * 2.0], 1e-12);
        assert!(!w[0].grad().defined() && w[3].grad().defined());
    }
    Ok(())
}

pub fn frozen_and_thawed(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let (w, losses) = perceptron(world, Kind::Double)?;
        let _ = w[2].set_requires_grad(false);
        let model = trained(world, &w, options)?;
        for frozen in [&[2][..], &[0, 1], &[], &[4]] {
            for (i, w) in w.iter().enumerate() {
                let _ = w.set_requires_grad(!frozen.contains(&i));
                w.shallow_clone().zero_grad();
            }
            let before: Vec<Tensor> = w
                .iter()
                .map(|w| w.grad())
                .map(|g| if g.defined() { g.copy() } else { g })
                .collect();
            let rows = batch(world, 2, Kind::Double)?;
            let mut expected = gradients_on_one_rank(world, &w, losses, &rows)?;
            for &i in frozen {
                expected[i] = before[i].shallow_clone();
            }
            model.backward(&losses(&w, &rows).mean(None))?;
            assert_close(world, &w, &expected, 1e-12);
        }
    }
    Ok(())
}

/// `VarStore::load` between two steps, which changes the kinds to those in the file.
pub fn loaded(context: &Context) -> Result<()> {
    let world = &context.world;
    let Some(mut store) = empty_store() else { return Ok(()) };
    let layer = nn::linear(store.root(), 3, 2, Default::default());
    let model = DataParallel::new(world, &store)?;
    let file = std::env::temp_dir().join(format!("mpi4tch-{}.safetensors", std::process::id()));
    store.double();
    store.save(&file).expect("it is saved");
    store.float();
    let losses = |w: &[Tensor], x: &Tensor| {
        x.linear(&w[1], Some(&w[0])).square().sum_dim_intlist(1, false, None)
    };
    for kind in [Kind::Float, Kind::Double] {
        let rows = batch(world, 3, kind)?;
        let w = store.trainable_variables();
        assert_eq!(w[0].kind(), kind);
        let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
        model
            .backward(&layer.forward(&rows).square().sum_dim_intlist(1, false, None).mean(None))?;
        assert_close(world, &w, &expected, 1e-5);
        for w in &w {
            w.shallow_clone().zero_grad();
            let _ = no_grad(|| w.shallow_clone().fill_(7.0));
        }
        store.load(&file).expect("it is loaded");
    }
    let _ = std::fs::remove_file(file);
    Ok(())
}
