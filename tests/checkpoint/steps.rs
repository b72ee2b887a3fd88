//! A loop runs as few steps as it can with the states it may keep.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use harness::Test;
use mpi4tch::{Communicator, Error, Op, Replicated, Result, testing};
use tch::{Kind, Tensor};

use super::{Context, assert_close, error_of, leaf, variable};
use crate::common::device;
use crate::common::ring::neighbours;
use crate::common::tensors::{ones, tensor, zeros};

pub fn tests() -> Vec<Test<Context>> {
    harness::tests![
        gradients_of_a_loop,
        as_many_steps_as_are_needed,
        no_more_states_than_slots,
        shapes_and_kinds_that_change,
        no_steps_and_no_slots,
        second_derivatives_of_a_loop,
        states_that_are_changed_later,
        loops_without_end,
        calls_whose_root_decides_on_recording,
    ]
}

fn step(comm: &Communicator, i: usize, x: &Tensor) -> Result<Tensor> {
    let (right, left) = neighbours(comm);
    let y = comm.sendrecv(&(x * (1.0 + i as f64)).sin(), right, x, left, 1)?;
    comm.all_reduce(&(y * x), Op::Mean)
}

fn gradients_of_a_loop(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 3)?;
    for steps in [1, 2, 3, 7, 12] {
        let plain = leaf(&x);
        let y = (0..steps).try_fold(plain.shallow_clone(), |y, i| step(&tape, i, &y))?;
        tape.backward(&y.sin().sum(Kind::Double))?;
        for slots in [1, 2, 3, 4, 12, 20] {
            let kept = leaf(&x);
            let comm = Communicator::clone(&tape);
            let z = tape.checkpoint_steps(&[&kept], steps, slots, move |i, x| {
                Ok(vec![step(&comm, i, &x[0])?])
            })?;
            assert_close(&[z[0].detach()], &[y.detach()]);
            tape.backward(&z[0].sin().sum(Kind::Double))?;
            assert_close(&[kept.grad()], &[plain.grad()]);
        }
    }
    Ok(())
}

/// (steps, slots, how often a step runs in both passes). That no order needs fewer is tested with
/// `revolve.rs`.
const RUNS: [(usize, usize, usize); 10] = [
    (1, 1, 2),
    (2, 1, 5),
    (2, 2, 4),
    (3, 2, 7),
    (10, 1, 65),
    (10, 2, 34),
    (10, 3, 28),
    (10, 10, 20),
    (100, 5, 420),
    (100, 200, 200),
];

fn as_many_steps_as_are_needed(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 1)?;
    for (steps, slots, expected) in RUNS {
        let runs = Arc::new(AtomicUsize::new(0));
        let (comm, counted) = (Communicator::clone(&tape), Arc::clone(&runs));
        let y = tape.checkpoint_steps(&[&x], steps, slots, move |_, x| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(vec![comm.all_reduce(&x[0], Op::Mean)?])
        })?;
        assert_eq!(runs.load(Ordering::Relaxed), steps);
        tape.backward(&y[0].sum(Kind::Double))?;
        assert_eq!(runs.load(Ordering::Relaxed), expected, "{steps} steps, {slots} slots");
    }
    Ok(())
}

/// The memory of this process, in MiB: what `name` of its status says.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with(name)).expect("it has the line");
    let number = line.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
    number.expect("a number of KiB") / 1024.0
}

/// Each state is of 32 MiB, which is given back to the system when it is freed. A step has few tensors
/// of its own beside them.
fn no_more_states_than_slots(context: &Context) -> Result<()> {
    if device::left_out_on_devices("the memory of a device is not this process's heap") {
        return Ok(());
    }
    const STATE: f64 = 32.0;
    let tape = context.world.tape();
    if tape.size() > 2 {
        return Ok(());
    }
    for slots in [2, 6] {
        let x = ones(&[4 << 20], Kind::Double).set_requires_grad(true);
        let most = Arc::new(Mutex::new(0.0_f64));
        let (comm, noted) = (Communicator::clone(&tape), Arc::clone(&most));
        let before = memory("VmRSS");
        let y = tape.checkpoint_steps(&[&x], 20, slots, move |_, x| {
            let _ = comm.barrier();
            let now = memory("VmRSS") - before;
            let mut most = noted.lock().expect("nobody panicked");
            *most = now.max(*most);
            Ok(vec![&x[0] * 0.5])
        })?;
        tape.backward(&y[0].sum(Kind::Double))?;
        // The initial state was there before. Besides those that are kept there are the state that a
        // step starts from, the output, and two cotangents.
        let states = *most.lock().expect("nobody panicked") / STATE;
        let slots = slots as f64;
        assert!(states <= slots - 1.0 + 4.5, "{states} states with {slots} slots");
        assert!(states >= slots - 1.0, "{states} states with {slots} slots");
    }
    Ok(())
}

fn shapes_and_kinds_that_change(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let f = |comm: &Communicator, x: &[Tensor]| -> Result<Vec<Tensor>> {
        let longer =
            Tensor::cat(&[&x[0], &comm.all_reduce(&x[0], Op::Mean)?.sum(Kind::Double).view(1)], 0);
        let count = comm.all_reduce(&(&x[1] + 1), Op::Max)?;
        Ok(vec![longer.sin() * &count, count])
    };
    let x = variable(&tape, 2)?;
    let n = tensor(&[1_i64]);
    let (plain, kept) = (leaf(&x), leaf(&x));
    let mut y = vec![plain.shallow_clone(), n.shallow_clone()];
    for _ in 0..6 {
        y = f(&tape, &y)?;
    }
    tape.backward(&y[0].sum(Kind::Double))?;
    let comm = Communicator::clone(&tape);
    let z = tape.checkpoint_steps(&[&kept, &n], 6, 2, move |_, x| f(&comm, x))?;
    assert_eq!(z[1], y[1]);
    tape.backward(&z[0].sum(Kind::Double))?;
    assert_close(&[kept.grad()], &[plain.grad()]);
    Ok(())
}

fn no_steps_and_no_slots(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    let y = tape.checkpoint_steps(&[&x], 0, 1, |_, _| panic!("there is no step"))?;
    tape.backward(&y[0].sum(Kind::Double))?;
    assert_close(&[x.grad()], &[x.ones_like()]);
    let error = error_of(tape.checkpoint_steps(&[&x], 3, 0, |_, _| panic!("it is refused")));
    let expected = "Tape::checkpoint_steps: 0 slots were given; at least one is needed, for the \
                    initial state";
    assert_eq!(error, expected);
    Ok(())
}

fn second_derivatives_of_a_loop(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = testing::random(&tape, &[2], Kind::Double)? * 0.3;
    let f = |x: &Tensor| {
        let comm = Communicator::clone(&tape);
        let y = tape.checkpoint_steps(&[x], 4, 2, move |_, x| Ok(vec![step(&comm, 0, &x[0])?]))?;
        Ok(y[0].sin())
    };
    testing::gradcheck(&tape, &[&x], |x| f(&x[0]))?;
    testing::gradgradcheck(&tape, &x, f)
}

/// A kept state that is changed in place is an error when it is needed.
fn states_that_are_changed_later(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let expect = |error: String, i: usize, j: usize| {
        let expected = format!(
            "Tape::checkpoint_steps: tensor {j} of the state before step {i} was changed in place \
             after the state was kept; return a copy of it from the step"
        );
        assert!(error.ends_with(&expected), "{error}");
    };
    // Two buffers in turn.
    let x = variable(&tape, 2)?;
    let buffers = Mutex::new([zeros(&[2]), zeros(&[2])]);
    let y = tape.checkpoint_steps(&[&x], 6, 3, move |i, x| {
        if x[0].requires_grad() {
            return Ok(vec![x[0].sin()]);
        }
        let buffer = &mut buffers.lock().expect("nobody panicked")[i % 2];
        buffer.copy_(&x[0].sin());
        Ok(vec![buffer.shallow_clone()])
    })?;
    expect(error_of(tape.backward(&y[0].sum(Kind::Double))), 4, 0);
    // States that the function has a part in.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let y = tape.checkpoint_steps(&[&x], 6, 3, move |_, x| {
        let y = x[0].sin();
        if !y.requires_grad() {
            kept.lock().expect("nobody panicked").push(y.shallow_clone());
        }
        Ok(vec![y])
    })?;
    for y in seen.lock().expect("nobody panicked").iter_mut() {
        let _ = y.fill_(0.1);
    }
    expect(error_of(tape.backward(&y[0].sum(Kind::Double))), 4, 0);
    // A part of the state that all steps pass on, and that is copied as a result.
    let x = variable(&tape, 2)?;
    let y = tape.checkpoint_steps(&[&x], 6, 3, |i, x| {
        let factor = if i == 0 { x[0].cos() } else { x[1].shallow_clone() };
        Ok(vec![&x[0] * &factor, factor])
    })?;
    let _ = tch::no_grad(|| y[1].shallow_clone().g_add_scalar_(1.0));
    tape.backward(&y[0].sum(Kind::Double))?;
    let alone = leaf(&x);
    (&alone * alone.cos().pow_tensor_scalar(6)).sum(Kind::Double).backward();
    assert_close(&[x.grad()], &[alone.grad()]);
    super::works(context)
}

/// The number of steps is no promise of their end.
fn loops_without_end(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    for slots in [1, 2, 3, 1000, usize::MAX] {
        for steps in [usize::MAX, usize::MAX / 2] {
            let error = error_of(tape.checkpoint_steps(&[&x], steps, slots, |i, x| {
                if i > 3 {
                    return Err(Error::Argument { call: "f", message: "no more".to_owned() });
                }
                Ok(vec![x[0].sin()])
            }));
            assert_eq!(error, "f: no more", "{steps} steps, {slots} slots");
        }
    }
    super::works(context)
}

/// A step that is only run to get to a state has no graph. So it tells the other ranks another thing
/// than the first run, and makes the same calls.
fn calls_whose_root_decides_on_recording(context: &Context) -> Result<()> {
    fn step(comm: &Communicator, x: &Tensor) -> Result<Tensor> {
        let y = comm.all_reduce(&x.sin(), Op::Mean)?;
        Ok(Replicated::broadcast(comm, &y, 0)?.tensor() * 1.0)
    }
    let tape = context.world.tape();
    let (x, z) = (variable(&tape, 2)?, variable(&tape, 2)?);
    let plain = leaf(&x);
    let y = (0..6).try_fold(plain.shallow_clone(), |y, _| step(&tape, &y))?;
    tape.backward(&(y * &z).sum(Kind::Double))?;
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint_steps(&[&x], 6, 2, move |_, x| Ok(vec![step(&comm, &x[0])?]))?;
    tape.backward(&(&y[0] * &z).sum(Kind::Double))?;
    assert_close(&[x.grad()], &[plain.grad()]);
    super::works(context)
}
