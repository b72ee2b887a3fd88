//! Modules that communicate: they train, on the world and on tapes, and make every call that they
//! have.

use mpi4tch::torchscript::Handle;
use mpi4tch::{Communicator, Op, testing};
use tch::nn::{self, OptimizerConfig};
use tch::{Device, IValue, Kind, Tensor, TrainableCModule};

use crate::common::Context;
use crate::common::tensors::variable;
use crate::profiling::{calls, names};
use crate::{Outcome, Script, into_tensor, tensor};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        a_module_trains_as_the_same_in_rust,
        equal_calls_are_all_made,
        a_started_call_has_its_nodes,
        a_tape_makes_the_calls_that_no_loss_depends_on,
        nothing_is_recorded_without_need,
        calls_on_another_thread,
    ]
}

/// The losses of training steps.
fn train(
    store: &nn::VarStore,
    loss: &dyn Fn() -> Outcome<Tensor>,
    backward: &dyn Fn(&Tensor) -> Outcome<()>,
) -> Outcome<Vec<f64>> {
    let mut optimizer = nn::Sgd::default().build(store, 0.1)?;
    let step = |_| {
        let loss = loss()?;
        optimizer.zero_grad();
        backward(&loss)?;
        optimizer.step();
        Ok(loss.double_value(&[]))
    };
    (0..8).map(step).collect()
}

/// Trains the scripted module.
fn train_script(
    [x, y]: [&Tensor; 2],
    handle: Option<&Handle>,
    backward: &dyn Fn(&Tensor) -> Outcome<()>,
) -> Outcome<Vec<f64>> {
    let store = nn::VarStore::new(Device::Cpu);
    let module = TrainableCModule::load("tests/torchscript/regression.pt", store.root())?;
    let loss = || {
        let mut arguments = vec![tensor(x), tensor(y)];
        arguments.extend(handle.map(IValue::from));
        into_tensor(module.forward_is(&arguments)?)
    };
    train(&store, &loss, backward)
}

/// Trains the same model, written in Rust.
fn train_rust(
    comm: &Communicator,
    [x, y]: [&Tensor; 2],
    backward: &dyn Fn(&Tensor) -> Outcome<()>,
) -> Outcome<Vec<f64>> {
    let mut store = nn::VarStore::new(Device::Cpu);
    let (weight, bias) = (store.root().zeros("weight", &[2]), store.root().zeros("bias", &[1]));
    store.double();
    let loss = || {
        let (weight, bias) = (comm.broadcast(&weight, 0)?, comm.broadcast(&bias, 0)?);
        let error = (x.matmul(&weight) + bias - y).square().mean(Kind::Double);
        Ok(comm.all_reduce(&error, Op::Mean)? / f64::from(comm.size()))
    };
    train(&store, &loss, backward)
}

/// By `backward`, and on a tape; on the world and on a part of it.
fn a_module_trains_as_the_same_in_rust(context: &Context) -> Outcome<()> {
    let world = &context.world;
    let x = testing::random(world, &[5, 2], Kind::Double)?;
    let y = x.matmul(&Tensor::from_slice(&[2.0, -1.0])) + 0.5;
    let data = [&x, &y];
    let plainly = |loss: &Tensor| Ok(loss.f_backward()?);

    let needed = train_rust(world, data, &plainly)?;
    assert!(needed[7] < 0.5 * needed[0], "{needed:?}");
    assert_eq!(train_script(data, None, &plainly)?, needed);

    let tape = world.tape();
    let handle = tape.script_handle()?;
    let losses = train_script(data, Some(&handle), &|loss| Ok(tape.backward(loss)?))?;
    assert_eq!(losses, needed);

    let half = world.split(Some(world.rank() % 2), 0)?.expect("each rank has a color");
    let needed = train_rust(&half, data, &plainly)?;
    let handle = half.script_handle()?;
    assert_eq!(train_script(data, Some(&handle), &plainly)?, needed);
    Ok(())
}

/// TorchScript optimizes a module after it has run a few times.
fn equal_calls_are_all_made(context: &Context) -> Outcome<()> {
    let script = Script::on(None)?;
    let x = testing::random(&context.world, &[3], Kind::Double)?;
    for requires_grad in [false, true] {
        for run in 0..5 {
            let x = x.detach().set_requires_grad(requires_grad);
            let (y, made) = calls(|| Ok(script.call_with("repeated", vec![tensor(&x)])))?;
            let sums = names(&made).into_iter().filter(|name| name.ends_with("llreduce")).count();
            assert_eq!(sums, 3, "run {run}: {made:?}");
            let needed = context.world.all_reduce(&x, Op::Sum)? * 3.0;
            assert!(into_tensor(y?)?.allclose(&needed, 1e-12, 0.0, false));
        }
    }
    Ok(())
}

fn a_started_call_has_its_nodes(context: &Context) -> Outcome<()> {
    let world = &context.world;
    let script = Script::on(None)?;
    let x = variable(world, &[3])?;
    for _ in 0..4 {
        let y = into_tensor(script.call("overlapped", vec![tensor(&x)])?)?;
        let other = x.detach().set_requires_grad(true);
        let request = world.iall_reduce(&other, Op::Sum)?;
        let squares = other.square();
        let needed = request.wait()? * squares;
        assert_eq!(y, needed);
        let one = y.ones_like();
        let gradients = testing::vjp(&[&y], &[&one], &[&x], false)?;
        assert_eq!(gradients, testing::vjp(&[&needed], &[&one], &[&other], false)?);
    }
    Ok(())
}

/// Rank 0 has no loss.
fn a_tape_makes_the_calls_that_no_loss_depends_on(context: &Context) -> Outcome<()> {
    let world = &context.world;
    let tape = world.tape();
    let handle = tape.script_handle()?;
    let script = Script::on(Some(&handle))?;
    let x = variable(world, &[2])?;
    for _ in 0..3 {
        let y = into_tensor(script.call("all_reduce", vec![tensor(&x), crate::text("sum")])?)?;
        let loss = (world.rank() > 0).then(|| y.sum(Kind::Double));
        let gradient = tape.grad(loss.as_ref(), &[&x])?.remove(0);
        assert_eq!(gradient, x.full_like(f64::from(world.size() - 1)));
    }
    // The handle does not keep the tape.
    drop(tape);
    let y = into_tensor(script.call("all_reduce", vec![tensor(&x), crate::text("sum")])?)?;
    y.sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), x.full_like(f64::from(world.size())));
    Ok(())
}

fn nothing_is_recorded_without_need(context: &Context) -> Outcome<()> {
    let script = Script::on(None)?;
    let x = variable(&context.world, &[2])?;
    let sum =
        |x: &Tensor| into_tensor(script.call("all_reduce", vec![tensor(x), crate::text("sum")])?);
    let before = testing::live_pullbacks();
    let plain = sum(&x.detach())?;
    let unrecorded = tch::no_grad(|| sum(&x))?;
    assert!(!plain.requires_grad() && !unrecorded.requires_grad());
    assert_eq!(testing::live_pullbacks(), before);
    let y = sum(&x)?;
    assert!(y.requires_grad());
    // One node for one call.
    assert_eq!(testing::live_pullbacks(), before + 1);
    drop(y);
    assert_eq!(testing::live_pullbacks(), before);
    Ok(())
}

fn calls_on_another_thread(context: &Context) -> Outcome<()> {
    let script = Script::on(None)?;
    let (module, rank) = (script.module, context.world.rank());
    let there = std::thread::spawn(move || {
        let x = IValue::Tensor(Tensor::from_slice(&[rank]));
        match module.method_is("all_gather", &[x, IValue::Int(0)]) {
            Ok(IValue::Tensor(y)) => Ok(y),
            other => Err(format!("{other:?} is no tensor")),
        }
    });
    let y = there.join().expect("it does not panic")?;
    assert_eq!(y, Tensor::from_slice(&(0..context.world.size()).collect::<Vec<_>>()));
    Ok(())
}
