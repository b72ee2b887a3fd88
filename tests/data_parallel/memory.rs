//! Gradients share no memory with what others still read, or keep, and many steps take no more
//! memory than one.

use mpi4tch::{DataParallelOptions, Op, Result, testing};
use tch::nn::{self, OptimizerConfig};
use tch::{Kind, Tensor};

use crate::common::Context;
use crate::common::device;
use crate::common::memory::assert_flat;
use crate::common::store::store_of;
use crate::common::tensors::{ones, tensor};
use crate::models::{Losses, assert_close, gradients_on_one_rank, small_buckets, trained};

/// Parameters behind views, whose gradients libtorch makes of the cotangents of other nodes.
pub fn of_cotangents_that_others_read(context: &Context) -> Result<()> {
    let world = &context.world;
    let programs: [Losses; 4] = [
        // The cotangent of the sum goes to both branches.
        |w, x| (w[0].tanh() + w[1].view([-1, 1]).view([4, 4])).square().sum(Kind::Double) * x,
        |w, x| (w[0].matmul(&w[2]) + w[1].view([16]).view([4, 4])).square().sum(Kind::Double) * x,
        |w, x| (w[0].view([-1]) + w[1].view([-1])).square().sum(Kind::Double) * x,
        |w, x| (w[2].unsqueeze(0).exp() + w[0].unsqueeze(0)).square().sum(Kind::Double) * x,
    ];
    for options in small_buckets() {
        for losses in programs {
            // On several orders of the parameters in the buckets.
            for first in 0..3 {
                let leaf = |_| -> Result<Tensor> {
                    let x = world.broadcast(&testing::random(world, &[4, 4], Kind::Double)?, 0)?;
                    Ok(x.set_requires_grad(true))
                };
                let w: Vec<Tensor> = (0..3).map(leaf).collect::<Result<_>>()?;
                let order: Vec<Tensor> =
                    (0..3).map(|i| w[(first + i) % 3].shallow_clone()).collect();
                let model = trained(world, &order, options.clone())?;
                let x = testing::random(world, &[1], Kind::Double)?;
                let expected = gradients_on_one_rank(world, &w, losses, &x)?;
                for _ in 0..2 {
                    model.backward(&losses(&w, &x).mean(None))?;
                    assert_close(world, &w, &expected, 1e-12);
                    for w in &w {
                        w.shallow_clone().zero_grad();
                    }
                }
            }
        }
    }
    Ok(())
}

/// What the program keeps of a step, the next one does not change.
pub fn of_steps_before(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let w = [2, 3].map(|count| ones(&[count], Kind::Float).set_requires_grad(true));
        let store = store_of(&w);
        let model = trained(world, &w, options)?;
        let mut optimizer = nn::Sgd::default().build(&store, 0.1).expect("it is made");
        let mut kept = Vec::new();
        let mut places = Vec::new();
        for step in 1..7 {
            optimizer.zero_grad();
            let loss = w.iter().map(|w| w.sum(Kind::Float)).sum::<Tensor>() * f64::from(step);
            model.backward(&loss)?;
            places.push(w[0].grad().data_ptr().addr());
            // From the third step on.
            let gradient = match step {
                3 => w[0].grad(),
                4 => w[1].grad().view([3, 1]),
                5 => w[0].grad().detach(),
                _ => continue,
            };
            kept.push((gradient.copy(), gradient));
        }
        for (before, now) in kept {
            assert_eq!(before, now);
        }
        if w[0].grad().data_ptr().addr() + 8 == w[1].grad().data_ptr().addr() {
            assert_eq!(places[0], places[1], "without need the buffer stays");
        }
    }
    Ok(())
}

/// Gradients of parameters that are not contiguous keep the parameters' layout.
pub fn of_any_layout(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let turned = world.broadcast(&testing::random(world, &[3, 4], Kind::Double)?, 0)?;
        let turned = turned.tr().set_requires_grad(true);
        assert!(!turned.is_contiguous() && turned.is_leaf());
        let model = trained(world, &[turned.shallow_clone()], options)?;
        let losses: Losses = |w, x| w[0].exp().sum(Kind::Double) * x;
        let x = testing::random(world, &[1], Kind::Double)?;
        let w = [turned];
        let whole = world.all_gather(&x, 0)?.mean(Kind::Double);
        let expected = [w[0].detach().exp() * whole];
        for _ in 0..3 {
            model.backward(&losses(&w, &x).sum(Kind::Double))?;
            assert_close(world, &w, &expected, 1e-12);
            assert_eq!(w[0].grad().stride(), w[0].stride());
            w[0].shallow_clone().zero_grad();
        }
    }
    Ok(())
}

/// Gradients that require grad, or hold a graph, are weighed and summed as others.
pub fn of_a_graph(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let w = [tensor(&[3.0]).set_requires_grad(true)];
        w[0].sum(Kind::Double).f_backward()?;
        let _ = w[0].grad().set_requires_grad(true);
        let model = trained(world, &w, options)?;
        model.backward(None)?;
        assert_close(world, &w, &[tensor(&[1.0])], 1e-12);
        model.backward(&w[0].square().sum(Kind::Double))?;
        assert_close(world, &w, &[tensor(&[7.0])], 1e-12);
    }
    Ok(())
}

/// One of 1 MiB: a bucket of its own by default.
pub fn of_large_parameters(context: &Context) -> Result<()> {
    let world = &context.world;
    let leaf = |shape: &[i64]| -> Result<Tensor> {
        let x = world.broadcast(&testing::random(world, shape, Kind::Float)?, 0)?;
        Ok((x * 0.1).set_requires_grad(true))
    };
    let w = [leaf(&[512, 512])?, leaf(&[512])?, leaf(&[512, 512])?];
    let model = trained(world, &w, DataParallelOptions::default())?;
    let losses: Losses =
        |w, x| {
            let hidden = x.linear(&w[0], Some(&w[1])).tanh();
            (hidden.matmul(&w[2]) + w[2].view([-1]).view([512, 512]).narrow(0, 0, 1))
                .square()
                .mean_dim(&[1_i64][..], false, None)
        };
    for _ in 0..3 {
        let rows = testing::random(world, &[4, 512], Kind::Float)?;
        let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
        model.backward(&losses(&w, &rows).mean(None))?;
        assert_close(world, &w, &expected, 1e-4);
        w.iter().for_each(|w| w.shallow_clone().zero_grad());
    }
    Ok(())
}

/// With blocking sums, and with started ones, which are used if another result may communicate.
pub fn of_many_steps(context: &Context) -> Result<()> {
    if device::left_out_on_devices("the memory of a device is not this process's heap") {
        return Ok(());
    }
    let world = &context.world;
    let w = [2, 300].map(|count| ones(&[count], Kind::Float).set_requires_grad(true));
    let store = store_of(&w);
    let variable = Tensor::from(1.0).set_requires_grad(true);
    for options in [DataParallelOptions::default(), small_buckets()[0].clone()] {
        let model = trained(world, &w, options)?;
        let mut optimizer = nn::Sgd::default().build(&store, 0.1).expect("it is made");
        for starts in [false, true] {
            assert_flat("DataParallel", 0, || {
                let _result = starts.then(|| world.all_reduce(&variable, Op::Sum)).transpose()?;
                optimizer.zero_grad();
                model.backward(&w.iter().map(|w| w.square().sum(Kind::Float)).sum::<Tensor>())?;
                optimizer.step();
                Ok(())
            })?;
        }
    }
    Ok(())
}
