//! The tensors themselves: what they share, what may be changed, and what is freed.

use std::sync::{Arc, Mutex};

use mpi4tch::{Communicator, Error, Op, Replicated, Result, Test, testing};
use tch::{Kind, Tensor, no_grad};

use crate::common::tensors::{tensor, values, variable, zeros};
use crate::common::{Context, assert_freed, works};
use crate::{assert_close, gradients, leaf};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        a_leaf_stays_the_leaf,
        without_grad,
        changes_in_place,
        changes_in_flight,
        gradients_share_no_memory,
        requests,
        the_graph_is_freed,
        a_retained_gradient_holds_no_graph,
    ]
}

fn a_leaf_stays_the_leaf(context: &Context) -> Result<()> {
    let world = &context.world;
    let mut x = leaf(&zeros(&[2]));
    let w = Replicated::assume(world, &x)?;
    assert!(w.tensor().is_leaf() && w.tensor().data_ptr() == x.data_ptr());
    // An optimizer changes it in place, and the next pass sees that.
    for step in 1..4 {
        Replicated::mean(world, &(w.vary()? * f64::from(step)).sum(Kind::Double))?.backward()?;
        let expected = tensor(&[f64::from(step); 2]);
        assert_close(&x.grad(), &expected, "gradient");
        let gradient = x.grad();
        let _ = no_grad(|| x.f_sub_(&gradient))?;
        x.zero_grad();
    }
    assert_close(w.tensor(), &tensor(&[-6.0; 2]), "after the steps");
    Ok(())
}

fn without_grad(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    for comm in [world, &*tape] {
        let x = leaf(&zeros(&[4]));
        let before = testing::live_pullbacks();
        no_grad(|| -> Result<()> {
            let w = Replicated::assume(comm, &x)?;
            for y in [w.vary()?, w.shard(0)?, w.ivary()?.wait()?] {
                assert!(!y.requires_grad() && y.is_leaf());
            }
            let sum = Replicated::sum(comm, &x)?;
            let came = Replicated::broadcast(comm, &x, 0)?;
            assert!(!sum.tensor().requires_grad() && !came.tensor().requires_grad());
            let error = sum.map(|x| x.sum(Kind::Double))?.backward().expect_err("nothing to do");
            let text = "Replicated::backward: the loss does not require grad; one that depends on a variable is needed";
            assert_eq!(error.to_string(), text);
            Ok(())
        })?;
        assert_freed(before, "the graph");
        // A detached one has no part in the backward pass.
        let w = Replicated::assume(world, &x.detach())?;
        assert!(!w.vary()?.requires_grad() && !w.shard(0)?.requires_grad());
    }
    tape.backward(None)
}

/// The result of vary and the tensor have one memory.
fn changes_in_place(context: &Context) -> Result<()> {
    let world = &context.world;
    // The result, which torch refuses.
    let x = leaf(&tensor(&[1.0, 2.0, 3.0]));
    let w = Replicated::assume(world, &x)?;
    for result in [w.vary()?, w.ivary()?.wait()?, w.shard(0)?] {
        let mut result = result;
        let error = result.f_mul_(&x.detach()).expect_err("it is a view").to_string();
        assert!(error.contains("is a view of a view which was created in no_grad mode"), "{error}");
    }
    // The tensor, while the result is still to be used.
    let y = w.vary()?;
    let loss = y.square().sum(Kind::Double);
    let mut changed = x.shallow_clone();
    let _ = no_grad(|| changed.f_add_scalar_(1.0))?;
    let loss = Replicated::sum(world, &loss)?;
    let error = loss.backward().expect_err("y was saved").to_string();
    assert!(error.contains("has been modified inplace"), "{error}");
    // Without a gradient both change.
    let w = Replicated::assume(world, &zeros(&[2]))?;
    let _ = w.vary()?.f_add_scalar_(1.0)?;
    assert_eq!(values(w.tensor()), [1.0, 1.0]);
    works(world)
}

fn changes_in_flight(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = leaf(&tensor(&[1.0]));
    let w = Replicated::assume(world, &x)?;
    let requests = [w.ivary()?, w.ishard(0)?];
    let mut changed = x.shallow_clone();
    let _ = no_grad(|| changed.f_add_scalar_(1.0))?;
    for request in requests {
        let error = request.wait().expect_err("the tensor was changed");
        assert!(matches!(error, Error::InFlight { .. }), "{error}");
    }
    works(world)
}

/// The gradient of a leaf is added to in later passes. It must not be the memory of a cotangent that
/// somebody else has.
fn gradients_share_no_memory(context: &Context) -> Result<()> {
    let world = &context.world;
    let ways: [fn(&Communicator, &Tensor) -> Result<Replicated>; 6] = [
        |comm, x| Replicated::sum(comm, x),
        |comm, x| Replicated::concat(comm, x, 0),
        |comm, x| Replicated::broadcast(comm, x, 0),
        |comm, x| Replicated::isum(comm, x)?.wait(),
        |comm, x| Replicated::iconcat(comm, x, 0)?.wait(),
        |comm, x| Replicated::ibroadcast(comm, x, 0)?.wait(),
    ];
    for (i, way) in ways.iter().enumerate() {
        let x = variable(world, &[3])?;
        let y = way(world, &x)?;
        let kept = Arc::new(Mutex::new(Tensor::new()));
        let keeper = Arc::clone(&kept);
        let z = no_grad(|| y.tensor() * 1.0);
        let z = world.custom("keeps", &[y.tensor()], &[&z], &[], move |_, _, cotangents| {
            let gradient = &cotangents[0] * 1.0;
            *keeper.lock().expect("no panic") = gradient.shallow_clone();
            Ok(vec![Some(gradient)])
        })?;
        z[0].sum(Kind::Double).f_backward()?;
        let _ = x.grad().f_fill_(7.0)?;
        let kept = kept.lock().expect("no panic");
        assert_eq!(values(&kept), vec![1.0; kept.numel()], "{i}");
    }
    works(world)
}

fn requests(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = f64::from(world.size());
    let x = variable(world, &[2])?;
    let mut request = Replicated::isum(world, &x)?;
    let sum = loop {
        match request.test()? {
            Test::Done(sum) => break sum,
            Test::Pending(again) => request = again,
        }
    };
    assert_close(sum.tensor(), &world.all_reduce(&x.detach(), Op::Sum)?, "sum");
    // One that is dropped is undone on all ranks.
    let tape = world.tape();
    let w = Replicated::assume(&tape, &leaf(&tensor(&[1.0])))?;
    drop(w.ivary()?);
    drop(Replicated::isum(&tape, &x)?);
    drop(Replicated::ibroadcast(&tape, &x, 0)?);
    let loss = Replicated::mean(&tape, &w.vary()?.sum(Kind::Double))?;
    loss.backward()?;
    assert_close(&w.grad(), &tensor(&[1.0]), "what was dropped adds nothing");
    // Several at a time, waited for in the same order.
    let requests = [Replicated::isum(world, &x)?, Replicated::imean(world, &x)?];
    let [sum, mean] = requests.map(|request| request.wait());
    let (sum, mean) = (sum?, mean?);
    assert!((mean.tensor() * size).allclose(sum.tensor(), 1e-12, 1e-12, false));
    Ok(())
}

fn the_graph_is_freed(context: &Context) -> Result<()> {
    let world = &context.world;
    let before = testing::live_pullbacks();
    let w = Replicated::assume(world, &leaf(&zeros(&[3])))?;
    let own = w.ivary()?.wait()?;
    let came = Replicated::broadcast(world, &own, 0)?;
    let loss = Replicated::sum(world, &came.shard(0)?.sum(Kind::Double))?;
    loss.backward()?;
    assert!(testing::live_pullbacks() > before);
    drop((own, came, loss));
    assert_freed(before, "the graph");
    Ok(())
}

/// A gradient that is retained has no graph of its own: it would hold what holds the tensor.
fn a_retained_gradient_holds_no_graph(context: &Context) -> Result<()> {
    let world = &context.world;
    let before = testing::live_pullbacks();
    let tape = world.tape();
    for (comm, tape) in [(world, None), (&*tape, Some(&tape))] {
        let x = leaf(&tensor(&[2.0]));
        let w = Replicated::broadcast(comm, &x, 0)?;
        let fourth = w.map(|w| w.pow_tensor_scalar(3))?.vary()? * w.vary()?;
        let loss = Replicated::mean(comm, &fourth.sum(Kind::Double))?;
        let one = loss.tensor().ones_like();
        let gradient = gradients(tape, (loss.tensor(), &one), &[&x], true)?.remove(0);
        assert_close(&w.grad(), &tensor(&[32.0]), "retained");
        assert!(!w.grad().requires_grad());
        let expected = tensor(&[if world.rank() == 0 { 32.0 } else { 0.0 }]);
        assert_close(&gradient, &expected, "on the root");
    }
    drop(tape);
    assert_freed(before, "the graph");
    Ok(())
}
