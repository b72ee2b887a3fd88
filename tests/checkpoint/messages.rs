//! Messages of a checkpoint meet no others, and match the same messages when it is run again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::Test;
use mpi4tch::{Communicator, Op, Result, Source, TagMatch};
use tch::{Kind, Tensor};

use super::{Context, assert_close, gradient, leaf, variable};
use crate::common::ring::neighbours;
use crate::common::tensors::zeros;

pub fn tests() -> Vec<Test<Context>> {
    harness::tests![
        the_same_tags_and_peers_around,
        outstanding_receives_of_the_forward_pass,
        wildcards_match_the_same_again,
        stages_of_a_pipeline,
    ]
}

fn shift(comm: &Communicator, x: &Tensor) -> Result<Tensor> {
    let (right, left) = neighbours(comm);
    let receive = comm.irecv(x, left, 5)?;
    let send = comm.isend(&x.sin(), right, 5)?;
    let y = receive.wait()?;
    let _ = send.wait()?;
    Ok(y * x)
}

/// A message around the checkpoint is sent before it and waited for after it.
fn the_same_tags_and_peers_around(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (right, left) = neighbours(&tape);
    let program = |x: &Tensor, in_checkpoint: bool| -> Result<Tensor> {
        let y = shift(&tape, x)?;
        let around = tape.isend(&(&y * 3.0), right, 5)?;
        let received = tape.recv(&y, left, 5)?;
        let y = if in_checkpoint {
            let comm = Communicator::clone(&tape);
            tape.checkpoint(&[&y], move |y| Ok(vec![shift(&comm, &y[0])?]))?.remove(0)
        } else {
            shift(&tape, &y)?
        };
        let _ = around.wait()?;
        let z = shift(&tape, &(y + received))?;
        let comm = Communicator::clone(&tape);
        let z = if in_checkpoint {
            tape.checkpoint_steps(&[&z], 5, 2, move |_, z| Ok(vec![shift(&comm, &z[0])?]))?
                .remove(0)
        } else {
            (0..5).try_fold(z, |z, _| shift(&tape, &z))?
        };
        shift(&tape, &z)
    };
    let (x, other) = (variable(&tape, 3)?, variable(&tape, 3)?);
    for v in [&x, &other] {
        let (plain, kept) = (leaf(v), leaf(v));
        tape.backward(&program(&plain, false)?.sum(Kind::Double))?;
        tape.backward(&program(&kept, true)?.sum(Kind::Double))?;
        assert_close(&[kept.grad()], &[plain.grad()]);
    }
    Ok(())
}

fn outstanding_receives_of_the_forward_pass(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let (right, left) = neighbours(world);
    let x = variable(&tape, 3)?;
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint(&[&x], move |x| Ok(vec![shift(&comm, &x[0])?]))?;
    let outstanding = world.irecv(&x.detach(), left, 5)?;
    tape.backward(&y[0].sum(Kind::Double))?;
    let _ = world.send(&(x.detach() * 0.0 + 7.0), right, 5)?;
    assert_close(&[outstanding.wait()?], &[x.detach() * 0.0 + 7.0]);
    let plain = leaf(&x);
    tape.backward(&shift(&tape, &plain)?.sum(Kind::Double))?;
    assert_close(&[x.grad()], &[plain.grad()]);
    Ok(())
}

/// Rank 0 receives from any rank, and weighs what comes by when it comes. In the first run the ranks
/// send in their order, and in the second in the reverse order.
fn wildcards_match_the_same_again(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let x = variable(&tape, 2)?;
    let (comm, plain) = (Communicator::clone(&tape), world.duplicate()?);
    let runs: Arc<Mutex<Vec<Vec<i32>>>> = Arc::default();
    let sources = Arc::clone(&runs);
    let y = tape.checkpoint(&[&x], move |x| {
        let mut sources = sources.lock().expect("nobody panicked");
        let is_again = !sources.is_empty();
        let (mut own, mut y) = (Vec::new(), x[0].zeros_like());
        // Rank 0 asks for a message only when it has received the one before.
        for turn in 1..comm.size() {
            if comm.rank() == 0 {
                let status = comm.probe(Source::Any, TagMatch::Any)?;
                let (z, received) = comm.recv_with_status(&x[0], Source::Any, TagMatch::Any)?;
                assert_eq!((status.source(), status.tag()), (received.source(), received.tag()));
                own.push(received.source());
                y += z * f64::from(turn);
            } else if comm.rank() == turn {
                if is_again {
                    std::thread::sleep(Duration::from_millis(
                        20 * u64::from((comm.size() - turn).unsigned_abs()),
                    ));
                }
                let _ = comm.send(&x[0].sin(), 0, turn)?;
            }
            if !is_again {
                plain.barrier()?;
            }
        }
        sources.push(own);
        Ok(vec![y])
    })?;
    let loss = (tape.rank() == 0).then(|| y[0].sum(Kind::Double));
    tape.backward(loss.as_ref())?;
    let runs = runs.lock().expect("nobody panicked");
    let in_order: Vec<i32> = (1..tape.size()).filter(|_| tape.rank() == 0).collect();
    assert_eq!(*runs, [in_order.clone(), in_order]);
    let weight = f64::from(tape.rank());
    assert_close(&[gradient(&x)], &[x.detach().cos() * weight]);
    Ok(())
}

/// Each rank has checkpoints of its own, whose work is local, and the messages are around them: no
/// rank waits for another at a checkpoint.
fn stages_of_a_pipeline(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (rank, last) = (tape.rank(), tape.size() - 1);
    let x = variable(&tape, 2)?;
    let mut losses = zeros(&[]);
    for batch in 0..3 {
        let input = if rank == 0 { &x * f64::from(batch + 1) } else { tape.recv(&x, rank - 1, 0)? };
        let y = tape.checkpoint(&[&input], |x| Ok(vec![x[0].sin()]))?.remove(0);
        if rank == last {
            losses += y.sum(Kind::Double);
        } else {
            let _ = tape.send(&y, rank + 1, 0)?;
        }
    }
    tape.backward((rank == last).then_some(&losses))?;
    if rank == 0 {
        let serial = leaf(&x);
        let loss: Tensor = (0..3)
            .map(|batch| {
                let first = &serial * f64::from(batch + 1);
                (0..=last).fold(first, |y, _| y.sin()).sum(Kind::Double)
            })
            .sum();
        loss.backward();
        assert_close(&[x.grad()], &[serial.grad()]);
    }
    let _ = tape.all_reduce(&x.detach(), Op::Sum)?;
    Ok(())
}
