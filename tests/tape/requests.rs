//! What is started on a tape: waited for, dropped, and received in any order.

use crate::common::passes::CREATE_GRAPH;
use mpi4tch::{Error, Op, Result, Source, TagMatch};
use tch::{Kind, Tensor};

use crate::common::Context;
use crate::common::ring::neighbours;
use crate::common::tensors::{variable, zeros};
use crate::{number, value};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        requests_on_a_tape,
        requests_that_are_dropped,
        messages_that_are_alike,
        messages_that_end_without_grad,
        waits_without_grad,
    ]
}

fn requests_on_a_tape(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let size = f64::from(tape.size());
    let (right, left) = neighbours(&tape);
    let x = number(&tape, 1.0);
    let sum = tape.iall_reduce(&x, Op::Sum)?;
    let receive = tape.irecv(&x, Source::Any, TagMatch::Any)?;
    let send = tape.isend(&(&x * 2.0), right, 9)?;
    let most = tape.iall_reduce(&x, Op::Max)?;
    let results = mpi4tch::wait_all([sum, receive, send, most])?;
    let loss =
        (tape.rank() == 0).then(|| (&results[0] * &results[1] * &results[3]).sum(Kind::Double));
    let gradient = tape.grad_with(loss.as_ref(), &[&x], CREATE_GRAPH)?.remove(0);
    // ℓ = (Σ x)·2 x_left·max x, where left is rank 0's.
    let all: Vec<f64> = (0..tape.size()).map(|r| 1.0 + f64::from(r)).collect();
    let total: f64 = all.iter().sum();
    let last = tape.size() - 1;
    let before = all[all.len() - 1];
    let mut expected = 2.0 * before * size;
    if tape.rank() == last {
        // It is rank 0's left neighbour, and the largest.
        expected += 2.0 * total * size + 2.0 * total * before;
    }
    assert_eq!(value(&gradient), expected);
    let _ = left;
    // And once more through it.
    let second = tape.grad(Some(&gradient.sum(Kind::Double)), &[&x])?.remove(0);
    assert!(value(&second).is_finite());
    Ok(())
}

fn requests_that_are_dropped(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = number(&tape, 1.0);
    let request = tape.iall_reduce(&x, Op::Sum)?;
    // On rank 0 nobody waits.
    let loss = if tape.rank() == 0 {
        drop(request);
        None
    } else {
        Some(request.wait()?.sum(Kind::Double))
    };
    let result = tape.backward(loss.as_ref());
    // The wait is not on rank 0's tape.
    if tape.size() > 1 {
        assert!(matches!(result, Err(Error::Tape { .. })), "{result:?}");
    }
    // On no rank anybody waits: the adjoint is carried out with zeros.
    let tape = context.world.tape();
    let y = tape.all_reduce(&x, Op::Sum)?;
    drop(tape.iall_reduce(&x, Op::Sum)?);
    // Nor for messages, of which each rank receives first.
    let (right, left) = neighbours(&tape);
    drop((tape.irecv(&x, left, 0)?, tape.isend(&x, right, 0)?));
    let gradient = tape.grad(Some(&y.sum(Kind::Double)), &[&x])?.remove(0);
    assert_eq!(value(&gradient), f64::from(tape.size()));
    Ok(())
}

/// Messages between the same ranks with the same tag, where the ends wait in orders of their own:
/// each cotangent comes back to what it is of, also where the receives name neither.
fn messages_that_are_alike(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    // The order in which the sender waits for its four messages, of which some are blocking: they
    // have no wait; or are dropped.
    const BLOCKING: usize = 9;
    for (order, dropped) in [
        ([0, 1, 2, 3], BLOCKING),
        ([3, 2, 1, 0], BLOCKING),
        ([2, 0, 3, 1], BLOCKING),
        ([0, 2, 3, BLOCKING], 1),
        ([3, 0, 2, BLOCKING], 1),
        ([1, 0, BLOCKING, BLOCKING], 2),
    ] {
        for (receiver_is_reversed, wildcards) in
            [(false, 0), (true, 0), (false, 1), (true, 1), (true, 2), (true, 3)]
        {
            let tape = world.tape();
            let xs: Vec<Tensor> = (0..4).map(|i| number(&tape, f64::from(i))).collect();
            let named = (Source::Rank(left), TagMatch::Tag(5));
            // All receives name both; or the four ways take turns, from this one on.
            let ways = [
                named,
                (Source::Any, TagMatch::Any),
                (Source::Any, TagMatch::Tag(5)),
                (Source::Rank(left), TagMatch::Any),
            ];
            let mut receives: Vec<_> = (0..4)
                .map(|i| ways[if wildcards == 0 { 0 } else { (i + wildcards) % 4 }])
                .map(|(source, tag)| tape.irecv(&xs[0].detach(), source, tag).map(Some))
                .collect::<Result<_>>()?;
            let mut sends = Vec::new();
            for (i, x) in xs.iter().enumerate() {
                let waits = order.contains(&i) || i == dropped;
                sends.push(if waits { Some(tape.isend(x, right, 5)?) } else { None });
                if !waits {
                    let _ = tape.send(x, right, 5)?;
                }
            }
            for i in order.into_iter().filter(|i| *i != BLOCKING) {
                let _ = sends[i].take().expect("waited for once").wait()?;
            }
            drop(sends);
            let mut ys: Vec<Option<Tensor>> = (0..4).map(|_| None).collect();
            let places: Vec<usize> =
                if receiver_is_reversed { vec![3, 1, 0, 2] } else { vec![0, 1, 2, 3] };
            for i in places {
                ys[i] = Some(receives[i].take().expect("waited for once").wait()?);
            }
            let mut loss = zeros(&[1]);
            for (i, y) in (0..).zip(ys.iter().flatten()) {
                loss += y * 10_f64.powi(i) * f64::from(tape.rank() + 1);
            }
            tape.backward(&loss)?;
            for (i, x) in (0..).zip(&xs) {
                let expected = 10_f64.powi(i) * f64::from(right + 1);
                assert_eq!(value(&x.grad()), expected, "{order:?}, {wildcards}, message {i}");
            }
        }
    }
    Ok(())
}

/// A send is on the tape whatever the grad mode is where it ends; messages below and above the eager
/// limit.
fn messages_that_end_without_grad(context: &Context) -> Result<()> {
    for length in [2, 200_000] {
        for ending in ["wait", "drop", "backward"] {
            let tape = context.world.tape();
            let (right, left) = neighbours(&tape);
            let x = variable(&tape, &[length])?;
            let request = tape.isend(&x, right, 0)?;
            let loss = (&x + tape.recv(&x, left, 0)?).sum(Kind::Double);
            match ending {
                "wait" => {
                    let _ = tch::no_grad(|| request.wait())?;
                    tape.backward(&loss)?;
                }
                "drop" => {
                    tch::no_grad(|| drop(request));
                    tape.backward(&loss)?;
                }
                _ => tch::no_grad(|| tape.backward(&loss))?,
            }
            assert_eq!(x.grad(), x.full_like(2.0).detach(), "{ending}");
        }
    }
    Ok(())
}

fn waits_without_grad(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (x, z) = (number(&tape, 1.0), number(&tape, 1.0));
    let (first, second) = (tape.iall_reduce(&x, Op::Sum)?, tape.iall_reduce(&z, Op::Sum)?);
    let second = tch::no_grad(|| second.wait())?;
    let first = tch::no_grad(|| first.wait())?;
    let last = tape.size() - 1;
    let loss = match tape.rank() {
        rank if rank == last => Some(second * 100.0),
        0 => Some(first * 10.0),
        _ => None,
    };
    tape.backward(loss.map(|loss| loss.sum(Kind::Double)).as_ref())?;
    assert_eq!(value(&z.grad()), 100.0);
    if last > 0 {
        assert_eq!(value(&x.grad()), 10.0);
    }
    Ok(())
}
