//! Backward passes: several into one step, without a batch, weighted, nested, of others.

use mpi4tch::{DataParallel, DataParallelOptions, Error, Op, Result, testing};
use tch::nn::{self, OptimizerConfig};
use tch::{Kind, Tensor, no_grad};

use crate::common::store::store_of;
use crate::common::tensors::{ones, tensor, zeros};
use crate::common::{Context, works};
use crate::models::{
    assert_close, batch, gradients_on_one_rank, perceptron, small_buckets, trained,
};

/// `accumulate` and `backward` without zeroing in between.
pub fn several_into_one_step(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let (w, losses) = perceptron(world, Kind::Double)?;
        let model = trained(world, &w, options)?;
        let mut expected: Option<Vec<Tensor>> = None;
        for pass in 0..5 {
            let rows = batch(world, 2, Kind::Double)?;
            let more = gradients_on_one_rank(world, &w, losses, &rows)?;
            expected = Some(match expected {
                None => more,
                Some(sum) => sum.iter().zip(&more).map(|(a, b)| a + b).collect(),
            });
            let loss = losses(&w, &rows).mean(None);
            if pass % 2 == 0 {
                model.accumulate(&loss)?
            } else {
                model.backward(&loss)?
            }
            if pass % 2 == 1 {
                assert_close(world, &w, expected.as_deref().unwrap_or_default(), 1e-12);
            }
        }
    }
    Ok(())
}

/// libtorch makes views of one cotangent the gradients of both parameters, so that what is added to one
/// is added to the other.
pub fn gradients_that_share_memory(context: &Context) -> Result<()> {
    let world = &context.world;
    let loss = |w: &[Tensor]| {
        let sum = w[0].view([-1]) + w[1].view([-1]);
        (sum * tensor(&[1.0, 10.0])).sum(Kind::Double)
    };
    type Pass = fn(&DataParallel, &Tensor, bool) -> Result<()>;
    let passes: [Pass; 4] = [
        |model, loss, _| {
            model.accumulate(loss)?;
            model.backward(None)
        },
        |model, loss, _| model.backward(loss),
        |model, loss, _| model.backward_weighted(loss, 2.0),
        |model, loss, first| model.backward_weighted(loss, if first { 1.0 } else { 0.0 }),
    ];
    for options in small_buckets() {
        for pass in passes {
            let w = [0.5, 1.5].map(|x| tensor(&[x, x]).set_requires_grad(true));
            let model = trained(world, &w, options.clone())?;
            model.accumulate(&loss(&w))?;
            pass(&model, &loss(&w), world.rank() == 0)?;
            let expected = tensor(&[2.0, 20.0]);
            assert_close(world, &w, &[expected.shallow_clone(), expected], 1e-12);
        }
        // Passes that are nested in one.
        let w = [0.5, 1.5].map(|x| tensor(&[x, x]).set_requires_grad(true));
        let model = trained(world, &w, options)?;
        let tape = world.tape();
        let mut sum = zeros(&[]);
        for _ in 0..3 {
            let held = w.each_ref().map(Tensor::shallow_clone);
            let one = ones(&[], Kind::Double).set_requires_grad(true);
            let part = tape.checkpoint(&[&one], move |one| Ok(vec![loss(&held) * &one[0]]))?;
            sum += &part[0];
        }
        model.backward_on(&tape, &sum)?;
        let expected = tensor(&[3.0, 30.0]);
        assert_close(world, &w, &[expected.shallow_clone(), expected], 1e-12);
    }
    Ok(())
}

/// A rank without a batch takes part with zeros.
pub fn without_a_batch(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let (w, losses) = perceptron(world, Kind::Double)?;
        let model = trained(world, &w, options)?;
        let rows = batch(world, 2, Kind::Double)?;
        let loss = losses(&w, &rows).mean(None);
        model.backward((world.rank() == 0).then_some(&loss))?;
        let copies: Vec<Tensor> = w.iter().map(crate::models::leaf_like).collect();
        let share = losses(&copies, &rows).mean(None) * f64::from(u8::from(world.rank() == 0));
        share.f_backward()?;
        let expected: Vec<Tensor> = copies
            .iter()
            .map(|copy| world.all_reduce(&copy.grad(), Op::Mean))
            .collect::<Result<_>>()?;
        assert_close(world, &w, &expected, 1e-12);
        model.backward(None)?;
        assert_close(world, &w, &expected, 1e-12);
    }
    Ok(())
}

/// By the number of rows, which differs, and may be none.
pub fn weighted(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let (w, losses) = perceptron(world, Kind::Double)?;
        let model = trained(world, &w, options)?;
        let count = i64::from(world.rank() + 1) % 3 + i64::from(world.size() == 2);
        let rows = batch(world, count, Kind::Double)?;
        let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
        let loss = (count != 0).then(|| losses(&w, &rows).mean(None));
        model.backward_weighted(loss.as_ref(), f64::from(i32::try_from(count).unwrap_or(0)))?;
        assert_close(world, &w, &expected, 1e-12);
    }
    Ok(())
}

/// `f_backward` fails, and the next step works.
pub fn that_are_not_its_own(context: &Context) -> Result<()> {
    let world = &context.world;
    let (w, losses) = perceptron(world, Kind::Double)?;
    let model = trained(world, &w, DataParallelOptions::default())?;
    let rows = batch(world, 2, Kind::Double)?;
    let error = losses(&w, &rows).mean(None).f_backward().expect_err("it is refused").to_string();
    let told = "DataParallel: parameter 4 is reached by a backward pass that is not its \
                DataParallel's: by `Tensor::backward`, an optimizer's `backward_step`, a tape, or \
                another DataParallel. Its gradient would not be averaged over the ranks. Go back by \
                `backward`, `backward_on` or `accumulate` of its DataParallel, or freeze it \
                meanwhile by `set_requires_grad(false)`";
    assert!(error.contains(told), "{error}");
    // A pass that only returns gradients adds to none.
    let gradient = Tensor::f_run_backward(&[losses(&w, &rows).mean(None)], &[&w[0]], false, false)?;
    assert!(gradient[0].defined());
    w.iter().for_each(|w| w.shallow_clone().zero_grad());
    let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
    model.backward(&losses(&w, &rows).mean(None))?;
    assert_close(world, &w, &expected, 1e-12);
    works(world)
}

/// A custom node whose pullback carries out a backward pass of its own, as a checkpoint does.
fn checkpointed(
    comm: &mpi4tch::Communicator,
    x: &Tensor,
    w: &Tensor,
    f: fn(&Tensor, &Tensor) -> Tensor,
) -> Result<Tensor> {
    let y = no_grad(|| f(x, w));
    let mut y = comm.custom("checkpoint", &[x], &[&y], &[x, w], move |_, saved, cotangents| {
        let x = saved[0].detach().set_requires_grad(true);
        let product = tch::with_grad(|| (f(&x, &saved[1]) * &cotangents[0]).sum(Kind::Double));
        // Adds to the gradient of w, and calls its hook.
        product.f_backward()?;
        Ok(vec![Some(x.grad())])
    })?;
    Ok(y.remove(0))
}

/// The same parameter in several checkpoints, and outside of them.
pub fn nested_in_its_own(context: &Context) -> Result<()> {
    let world = &context.world;
    let f = |x: &Tensor, w: &Tensor| x.matmul(w).tanh();
    for options in small_buckets() {
        let w = world.broadcast(&testing::random(world, &[3, 3], Kind::Double)?, 0)?;
        let w = [w.set_requires_grad(true), tensor(&[0.5]).set_requires_grad(true)];
        let model = trained(world, &w, options)?;
        for _ in 0..3 {
            let rows = batch(world, 2, Kind::Double)?;
            let losses = |w: &[Tensor], x: &Tensor| {
                let y = x.matmul(&w[0]).tanh().matmul(&w[0]).tanh().matmul(&w[0]).tanh();
                (y * &w[1]).square().sum_dim_intlist(1, false, None)
            };
            let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
            let y = checkpointed(world, &f(&rows, &w[0]), &w[0], f)?;
            let y = checkpointed(world, &y, &w[0], f)?;
            let loss = (y * &w[1]).square().sum_dim_intlist(1, false, None).mean(None);
            model.backward(&loss)?;
            assert_close(world, &w, &expected, 1e-12);
            w.iter().for_each(|w| w.shallow_clone().zero_grad());
        }
    }
    Ok(())
}

/// If passes add to a gradient more often than those before, all ranks get an error, once.
pub fn nested_after_others(context: &Context) -> Result<()> {
    let world = &context.world;
    let f = |x: &Tensor, w: &Tensor| x.matmul(w).tanh();
    let w = world.broadcast(&testing::random(world, &[3, 3], Kind::Double)?, 0)?;
    let w = [w.set_requires_grad(true)];
    let model = trained(world, &w, DataParallelOptions::default())?;
    for (checkpoints, right) in [(1, true), (2, false), (2, true), (1, true)] {
        let rows = batch(world, 2, Kind::Double)?;
        let mut y = f(&rows, &w[0]);
        for _ in 0..checkpoints {
            y = checkpointed(world, &y, &w[0], f)?;
        }
        let outcome = model.backward(&y.square().sum(Kind::Double));
        if right {
            outcome?;
        } else {
            let error = outcome.expect_err("the gradient changes too late").to_string();
            let told = "DataParallel::backward: the gradient of parameter 0 was added to again \
                        after its sum over the ranks had been begun, by a backward pass within this \
                        one that earlier passes did not have; the next pass allows for it";
            assert_eq!(error, told);
        }
        w.iter().for_each(|w| w.shallow_clone().zero_grad());
    }
    works(world)
}

/// All ranks get an error, and the next step works.
pub fn that_fail_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    for options in small_buckets() {
        let (w, losses) = perceptron(world, Kind::Double)?;
        let model = trained(world, &w, options)?;
        let rows = batch(world, 2, Kind::Double)?;
        let hidden = rows.linear(&w[0], Some(&w[1])).exp();
        let loss = hidden.sum(Kind::Double) + w[4].square();
        if world.rank() == last {
            // exp needs its result.
            let _ = no_grad(|| hidden.shallow_clone().zero_());
        }
        let error = model.backward(&loss).expect_err("it fails");
        let told = "DataParallel::backward: one of the variables needed for gradient computation has \
                    been modified by an inplace operation";
        if world.rank() == last {
            assert!(matches!(error, Error::Autograd { .. }), "{error}");
            assert!(error.to_string().starts_with(told), "{error}");
        } else {
            let error = error.to_string();
            let start = format!("the ranks disagree on a call:\n  refused: {told}");
            let end = format!(" on rank {last}");
            assert!(error.starts_with(&start) && error.ends_with(&end), "{error}");
        }
        w.iter().for_each(|w| w.shallow_clone().zero_grad());
        let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
        model.backward(&losses(&w, &rows).mean(None))?;
        assert_close(world, &w, &expected, 1e-12);
    }
    works(world)
}

/// The parameters are free: for passes of others, and for another DataParallel.
pub fn after_it_was_dropped(context: &Context) -> Result<()> {
    let world = &context.world;
    let w = ones(&[2], Kind::Float).set_requires_grad(true);
    let store = store_of([&w]);
    let mut optimizer = nn::Sgd::default().build(&store, 0.5).expect("it is made");
    for _ in 0..2 {
        let model = trained(world, &[w.shallow_clone()], DataParallelOptions::default())?;
        model.backward(&w.sum(Kind::Float))?;
        drop(model);
        optimizer.backward_step(&(&w * 2.0).sum(Kind::Float));
    }
    assert_eq!(w.detach(), tensor(&[-1_f32, -1.0]));
    Ok(())
}

/// Calls of the model itself, with parameters that some ranks do not use: no rank may wait for the
/// sum of a bucket while others wait for it in the model's calls.
pub fn that_communicate_without_a_tape(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let (w, _) = perceptron(world, Kind::Double)?;
        let model = trained(world, &w, options)?;
        for _ in 0..3 {
            let rows = batch(world, 2, Kind::Double)?;
            let x = world.all_reduce(&rows.linear(&w[0], Some(&w[1])), Op::Mean)?;
            let y = if world.rank() == 0 { x.linear(&w[2], Some(&w[3])) * &w[4] } else { x * 1.0 };
            model.backward(&y.square().sum(Kind::Double))?;
            for w in &w {
                let gradient = w.grad();
                let all = world.all_gather(&gradient.unsqueeze(0), 0)?;
                assert_eq!(all, all.slice(0, 0, 1, 1).expand_as(&all), "differs between ranks");
            }
            w.iter().for_each(|w| w.shallow_clone().zero_grad());
        }
    }
    Ok(())
}
