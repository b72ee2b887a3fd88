//! A backward pass has a queue for each device, and a thread for each queue: calls on tensors in host
//! memory go back by one, those on devices by others. The tape keeps their order over all of them.

use mpi4tch::{Communicator, Op, Result, testing, wait_all};
use tch::{Kind, Tensor};

use crate::common::passes::CREATE_GRAPH;
use crate::common::ring::neighbours;
use crate::common::{Context, works};
use crate::{PLACES, Place, leaf, moved, with_delay};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        ordered_by_the_data,
        ordered_by_the_tape,
        other_queues_on_each_rank,
        dead_branches_in_either_queue,
        started_calls_in_both_queues,
        started_calls_without_a_tape,
        second_derivatives,
        a_pass_within_a_pass,
    ]
}

/// Hosts and devices in turn, from another one on each rank.
fn place(comm: &Communicator, turn: i32) -> Place {
    [None, Some(0), None, Some(1)][(comm.rank() + turn).unsigned_abs() as usize % 4]
}

fn assert_close(x: &Tensor, expected: &Tensor) {
    let [x, expected] = [x, expected].map(|x| moved(&x.detach(), None));
    assert!(x.allclose(&expected, 1e-12, 1e-12, false), "{x} instead of {expected}");
}

/// Without a tape: each call needs the result of the one before.
fn ordered_by_the_data(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = leaf(&testing::random(world, &[3], Kind::Double)?, None);
    let chain = |on: &dyn Fn(i32) -> Place| -> Result<Tensor> {
        let x = x.detach().set_requires_grad(true);
        let mut y = x.shallow_clone();
        for turn in 0..8 {
            y = moved(&y, on(turn)).sin();
            y = match turn % 3 {
                0 => world.all_reduce(&y, Op::Mean)?,
                1 => world.iall_reduce(&y, Op::Max)?.wait()?,
                _ => world.scan(&y, Op::Sum)?,
            };
        }
        moved(&y, None).sum(Kind::Double).f_backward()?;
        Ok(x.grad())
    };
    let expected = chain(&|_| None)?;
    // The same on all ranks, and another one on each.
    assert_close(
        &with_delay(3, || chain(&|turn| [None, Some(0), Some(1)][turn as usize % 3]))?,
        &expected,
    );
    assert_close(&with_delay(3, || chain(&|turn| place(world, turn)))?, &expected);
    works(world)
}

/// The gradient of a loss of calls that do not depend on each other, made in one order on all ranks.
fn independent(comm: &Communicator, x: &Tensor, on: &dyn Fn(i32) -> Place) -> Result<Tensor> {
    let (right, left) = neighbours(comm);
    let mut loss = Tensor::zeros([], (Kind::Double, tch::Device::Cpu));
    for turn in 0..9 {
        let z = moved(x, on(turn)) * f64::from(turn + 1);
        let y = match turn % 3 {
            0 => comm.all_reduce(&z.sin(), Op::Sum)?,
            1 => comm.sendrecv(&z, right, &z, left, 4)?.square(),
            _ => comm.all_reduce(&z, Op::Max)?.cos(),
        };
        loss += moved(&y.sum(Kind::Double), None) * f64::from(comm.rank() + 1);
    }
    Ok(loss)
}

/// Nothing but the token orders them. Without it, each thread takes a call of its own queue, and the
/// ranks go back through them in different orders.
fn ordered_by_the_tape(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = leaf(&testing::random(&tape, &[3], Kind::Double)?, None).set_requires_grad(true);
    let loss = independent(&tape, &x, &|_| None)?;
    let expected = tape.grad(&loss, &[&x])?.remove(0);
    for shift in 0..4 {
        for delay in [0, 3] {
            let gradient = with_delay(delay, || {
                let on = |turn: i32| [None, Some(0), Some(1), None][(turn + shift) as usize % 4];
                let loss = independent(&tape, &x, &on)?;
                Ok::<_, mpi4tch::Error>(tape.grad(&loss, &[&x])?.remove(0))
            })?;
            assert_close(&gradient, &expected);
        }
    }
    works(&context.world)
}

/// What is in the queue of a device here is in that of the host there.
fn other_queues_on_each_rank(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = leaf(&testing::random(&tape, &[3], Kind::Double)?, None).set_requires_grad(true);
    let loss = independent(&tape, &x, &|_| None)?;
    let expected = tape.grad(&loss, &[&x])?.remove(0);
    for delay in [0, 3, 10] {
        let gradient = with_delay(delay, || {
            let loss = independent(&tape, &x, &|turn| place(&tape, turn))?;
            Ok::<_, mpi4tch::Error>(tape.grad(&loss, &[&x])?.remove(0))
        })?;
        assert_close(&gradient, &expected);
    }
    works(&context.world)
}

/// The loss needs the calls on the host only, or those on the device only, by rank; the others are
/// carried out by the token all the same.
fn dead_branches_in_either_queue(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = leaf(&testing::random(world, &[3], Kind::Double)?, None).set_requires_grad(true);
    let gradient = |devices: bool| -> Result<Tensor> {
        let tape = world.tape();
        let mut sums = Vec::new();
        for turn in 0..4 {
            let on = if devices && turn % 2 == 0 { Some(turn / 2 % 2) } else { None };
            let y = tape.all_reduce(&(moved(&x, on) * f64::from(turn + 1)).sin(), Op::Sum)?;
            sums.push(moved(&y, None).sum(Kind::Double));
        }
        let used = (0..4).filter(|turn| turn % 2 == world.rank() % 2);
        let loss: Tensor = used.map(|turn| sums[turn as usize].shallow_clone()).sum();
        Ok(tape.grad(&loss, &[&x])?.remove(0))
    };
    let expected = gradient(false)?;
    for delay in [0, 3] {
        assert_close(&with_delay(delay, || gradient(true))?, &expected);
    }
    works(world)
}

/// Waits and starts are nodes, and lie in the queue of their own tensor.
fn started_calls_in_both_queues(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = leaf(&testing::random(world, &[3], Kind::Double)?, None).set_requires_grad(true);
    let gradient = |on: &dyn Fn(i32) -> Place| -> Result<Tensor> {
        let tape = world.tape();
        let mut requests = Vec::new();
        for turn in 0..3 {
            let z = moved(&x, on(turn)) * f64::from(turn + 1);
            requests.push(tape.iall_reduce(&z.sin(), Op::Sum)?);
            requests.push(tape.irecv(&moved(&x.detach(), on(turn + 1)), left, turn)?);
            requests.push(tape.isend(&z, right, turn)?);
        }
        let results = wait_all(requests)?;
        let weigh = |(i, y): (i32, &Tensor)| moved(&y.square(), None).sum(None) * f64::from(i + 1);
        let loss: Tensor = (0..).zip(&results).map(weigh).sum();
        Ok(tape.grad(&loss, &[&x])?.remove(0))
    };
    let expected = gradient(&|_| None)?;
    for delay in [0, 3] {
        assert_close(&with_delay(delay, || gradient(&|turn| place(world, turn)))?, &expected);
        let on = |turn: i32| [Some(0), None][turn as usize % 2];
        assert_close(&with_delay(delay, || gradient(&on))?, &expected);
    }
    works(world)
}

/// All nodes of a device's calls are in its queue, the starts too: they run in the reverse order of their
/// creation, as on the host.
fn started_calls_without_a_tape(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = leaf(&testing::random(world, &[3], Kind::Double)?, None);
    let gradient = |place: Place| -> Result<Tensor> {
        let x = leaf(&x, place).set_requires_grad(true);
        let before = world.scan(&x.cos(), Op::Sum)?;
        let then = world.all_reduce(&x.sin(), Op::Mean)?;
        // The adjoint of `then` comes after that of this one, and before that of the scan.
        let last = world.iall_reduce(&then.square(), Op::Sum)?.wait()?;
        (last * before).sum(Kind::Double).f_backward()?;
        Ok(x.grad())
    };
    let expected = gradient(None)?;
    for delay in [0, 2] {
        for place in PLACES.map(|place| place(world.rank())) {
            assert_close(&with_delay(delay, || gradient(place))?, &expected);
        }
    }
    works(world)
}

fn second_derivatives(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = leaf(&testing::random(world, &[2], Kind::Double)?, None).set_requires_grad(true);
    let second = |on: &dyn Fn(i32) -> Place| -> Result<Tensor> {
        let tape = world.tape();
        let loss = independent(&tape, &x, on)?;
        let first = tape.grad_with(&loss, &[&x], CREATE_GRAPH)?.remove(0);
        Ok(tape.grad(&first.square().sum(Kind::Double), &[&x])?.remove(0))
    };
    let expected = second(&|_| None)?;
    assert_close(&with_delay(1, || second(&|turn| place(world, turn)))?, &expected);
    works(world)
}

/// A checkpoint's pass runs on the thread of a device, within the tape's.
fn a_pass_within_a_pass(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = leaf(&testing::random(world, &[3], Kind::Double)?, None).set_requires_grad(true);
    let gradient = |on: fn(&Communicator, i32) -> Place| -> Result<Tensor> {
        let tape = world.tape();
        let mut y = tape.all_reduce(&x.sin(), Op::Mean)?;
        for turn in 0..4 {
            let comm = Communicator::clone(&tape);
            let z = moved(&y, on(world, turn));
            let z = tape.checkpoint(&[&z], move |z| {
                let inner = moved(&z[0], on(&comm, turn + 1));
                let inner = comm.all_reduce(&inner.cos(), Op::Sum)?;
                Ok(vec![comm.all_reduce(&(moved(&inner, on(&comm, turn)) * &z[0]), Op::Mean)?])
            })?;
            y = moved(&z[0], None);
        }
        Ok(tape.grad(&y.sum(Kind::Double), &[&x])?.remove(0))
    };
    let expected = gradient(|_, _| None)?;
    assert_close(&with_delay(2, || gradient(place))?, &expected);
    works(world)
}
