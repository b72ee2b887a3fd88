//! A tape carries out every communication in the backward pass, on every rank, in one order. Each
//! of these tests hangs or comes to a wrong result without one.

mod common;

use std::process::ExitCode;

use common::{Context, start};
use mpi4tch::{Communicator, Error, Op, Result, Source, TagMatch, testing};
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            results_that_nobody_uses,
            a_loss_on_one_rank_only,
            no_loss_at_all,
            grad_required_on_some_ranks_only,
            branches_that_differ_by_rank,
            a_ring_shift_without_dummies,
            inputs_unrelated_to_some_communication,
            second_derivatives,
            third_derivatives,
            requests_on_a_tape,
            requests_that_are_dropped,
            barriers,
            in_place,
            keeping_the_graph,
            two_tapes,
            integers_are_not_recorded,
            a_call_more_on_one_rank,
            another_call_on_one_rank,
            a_send_that_nobody_receives,
            a_message_that_is_refused,
            waits_in_different_order,
            messages_that_are_alike,
            requests_that_outlive_the_pass,
            results_that_outlive_the_pass,
            gradients_can_be_written,
            bad_arguments_are_refused_on_all_ranks,
            options_that_differ,
            the_graph_is_freed,
        ],
    )
}

fn double(values: &[f64]) -> Tensor {
    Tensor::from_slice(values)
}

fn variable(comm: &Communicator, value: f64) -> Tensor {
    double(&[value + f64::from(comm.rank())]).set_requires_grad(true)
}

/// The single element.
fn value(x: &Tensor) -> f64 {
    f64::try_from(x.sum(Kind::Double)).expect("one element")
}

fn ring(comm: &Communicator) -> (i32, i32) {
    let (rank, size) = (comm.rank(), comm.size());
    ((rank + 1) % size, (rank + size - 1) % size)
}

fn results_that_nobody_uses(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 1.0);
    let used = tape.all_reduce(&x, Op::Sum)?;
    // Its adjoint is carried out nowhere else than here.
    let dead = tape.all_gather(&(&x * 2.0), 0)?;
    let loss = if tape.rank() % 2 == 0 {
        used.sum(Kind::Double)
    } else {
        (used + dead.sum(Kind::Double)).sum(Kind::Double)
    };
    tape.backward(&loss)?;
    let odd = f64::from(tape.size() / 2);
    assert_eq!(value(&x.grad()), f64::from(tape.size()) + 2.0 * odd);
    Ok(())
}

fn a_loss_on_one_rank_only(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let last = tape.size() - 1;
    let x = variable(&tape, 1.0);
    let y = tape.broadcast(&tape.all_reduce(&x.square(), Op::Sum)?, 0)?;
    let loss = (tape.rank() == last).then(|| y.sum(Kind::Double));
    tape.backward(loss.as_ref())?;
    assert_eq!(x.grad(), 2.0 * x.detach());
    Ok(())
}

fn no_loss_at_all(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    tape.backward(None)?;
    let x = variable(&tape, 1.0);
    let _ = tape.all_reduce(&x, Op::Sum)?;
    tape.backward(None)?;
    assert_eq!(value(&x.grad()), 0.0);
    // A loss that depends on nothing is a constant.
    tape.backward(&double(&[1.0]))?;
    assert_eq!(tape.grad(None, &[&x])?, [double(&[0.0])]);
    Ok(())
}

fn grad_required_on_some_ranks_only(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = double(&[f64::from(tape.rank())]).set_requires_grad(tape.rank() % 2 == 0);
    let y = tape.all_reduce(&x, Op::Max)?;
    let z = tape.scan(&(&y * &x), Op::Sum)?;
    tape.backward(&z.sum(Kind::Double))?;
    if tape.rank() % 2 == 0 {
        // ℓ = Σ_r Σ_{s≤r} M x_s, where M is the largest x.
        let (rank, size) = (f64::from(tape.rank()), f64::from(tape.size()));
        let most = size - 1.0;
        let mut expected = most * (size - rank);
        if rank == most {
            let sum: f64 = (0..tape.size()).map(|s| f64::from(s) * (size - f64::from(s))).sum();
            expected += sum;
        }
        assert_eq!(value(&x.grad()), expected);
    }
    Ok(())
}

fn branches_that_differ_by_rank(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 1.0);
    let y = if tape.rank() == 0 {
        // Local work in another order, and communication at another line.
        let late = tape.all_reduce(&x, Op::Sum)?;
        let _unused = tape.all_reduce(&late, Op::Sum)?;
        &x * late
    } else {
        let early = &x * 3.0;
        let sum = tape.all_reduce(&early, Op::Sum)?;
        tape.all_reduce(&(sum * &x), Op::Sum)?
    };
    tape.backward(&y.sum(Kind::Double))?;
    // By the serial computation.
    let size = tape.size();
    let xs: Vec<Tensor> =
        (0..size).map(|r| double(&[1.0 + f64::from(r)]).set_requires_grad(true)).collect();
    let sent = |r: usize| if r == 0 { xs[r].shallow_clone() } else { &xs[r] * 3.0 };
    let sum: Tensor = (0..xs.len()).map(sent).sum();
    let second: Tensor =
        (0..xs.len()).map(|r| if r == 0 { sum.shallow_clone() } else { &sum * &xs[r] }).sum();
    let loss = &xs[0] * &sum + &second * f64::from(size - 1);
    loss.sum(Kind::Double).backward();
    assert_eq!(x.grad(), xs[tape.rank().unsigned_abs() as usize].grad());
    Ok(())
}

fn a_ring_shift_without_dummies(context: &Context) -> Result<()> {
    // Below and above what MPI sends without being asked for it.
    for length in [1, 300_000] {
        let tape = context.world.tape();
        let (right, left) = ring(&tape);
        let a = testing::random(&tape, &[length], Kind::Double)?.set_requires_grad(true);
        let request = tape.isend(&a, right, 3)?;
        let b = tape.recv(&a.detach(), left, 3)?;
        let _ = request.wait()?;
        let weight = f64::from(tape.rank() + 1);
        tape.backward(&(&a + b * weight).sum(Kind::Double))?;
        let expected = 1.0 + f64::from(right + 1);
        assert_eq!(a.grad(), a.detach().full_like(expected));
    }
    Ok(())
}

fn inputs_unrelated_to_some_communication(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (x, z) = (variable(&tape, 1.0), variable(&tape, 5.0));
    let y = tape.all_reduce(&x, Op::Sum)?;
    let w = tape.all_reduce(&z.square(), Op::Sum)?;
    let loss = (y + w).sum(Kind::Double);
    // On the even ranks only what z contributes, on the odd ones nothing.
    if tape.rank() % 2 == 0 {
        let gradients = tape.grad(Some(&loss), &[&z])?;
        assert_eq!(gradients, [2.0 * z.detach() * f64::from(tape.size())]);
    } else {
        assert!(tape.grad(Some(&loss), &[])?.is_empty());
    }
    assert!(!x.grad().defined() && !z.grad().defined(), "leaves are left alone");
    Ok(())
}

/// f(x) = Σ_r (Σ_s x_s³)·w_r on the ranks that have a loss; its Hessian is 6 x_s W on the diagonal.
fn second_derivatives(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 1.0);
    let _dead = tape.all_gather(&x, 0)?;
    let sum = tape.all_reduce(&x.pow_tensor_scalar(3), Op::Sum)?;
    let has_loss = tape.rank() == tape.size() - 1;
    let loss = has_loss.then(|| sum.sum(Kind::Double));
    let first = tape.grad_with(loss.as_ref(), &[&x], false, true)?.remove(0);
    assert_eq!(first, 3.0 * x.detach().square());
    // The second loss is on another rank.
    let second_loss = (tape.rank() == 0).then(|| first.sum(Kind::Double));
    let second = tape.grad(second_loss.as_ref(), &[&x])?.remove(0);
    let expected = if tape.rank() == 0 { 6.0 * value(&x.detach()) } else { 0.0 };
    assert_eq!(value(&second), expected);

    // A product of ranks, where derivatives mix: f = Σ_r (Π x)·r.
    let tape = context.world.tape();
    let x = variable(&tape, 2.0);
    let y = tape.all_reduce(&x, Op::Prod)? * f64::from(tape.rank());
    let first = tape.grad_with(Some(&y.sum(Kind::Double)), &[&x], false, true)?.remove(0);
    let second = tape.grad(Some(&first.sum(Kind::Double)), &[&x])?.remove(0);
    let all: Vec<f64> = (0..tape.size()).map(|r| 2.0 + f64::from(r)).collect();
    let product: f64 = all.iter().product();
    let weight = f64::from(tape.size() * (tape.size() - 1)) / 2.0;
    let own = all[tape.rank().unsigned_abs() as usize];
    let expected: f64 = all.iter().map(|other| weight * product / own / other).sum::<f64>()
        - weight * product / own / own;
    assert!((value(&second) - expected).abs() <= 1e-9 * expected.abs().max(1.0));
    Ok(())
}

fn third_derivatives(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 1.0);
    let y = tape.all_reduce(&x.pow_tensor_scalar(4), Op::Sum)?;
    let loss = (tape.rank() == 0).then(|| y.sum(Kind::Double));
    let first = tape.grad_with(loss.as_ref(), &[&x], false, true)?.remove(0);
    let second = tape.grad_with(Some(&first.sum(Kind::Double)), &[&x], false, true)?.remove(0);
    let third = tape.grad(Some(&second.sum(Kind::Double)), &[&x])?.remove(0);
    assert!((value(&third) - 24.0 * value(&x.detach())).abs() < 1e-9);
    Ok(())
}

fn requests_on_a_tape(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let size = f64::from(tape.size());
    let (right, left) = ring(&tape);
    let x = variable(&tape, 1.0);
    let sum = tape.iall_reduce(&x, Op::Sum)?;
    let receive = tape.irecv(&x, Source::Any, TagMatch::Any)?;
    let send = tape.isend(&(&x * 2.0), right, 9)?;
    let most = tape.iall_reduce(&x, Op::Max)?;
    let results = mpi4tch::wait_all([sum, receive, send, most])?;
    let loss =
        (tape.rank() == 0).then(|| (&results[0] * &results[1] * &results[3]).sum(Kind::Double));
    let gradient = tape.grad_with(loss.as_ref(), &[&x], false, true)?.remove(0);
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
    let x = variable(&tape, 1.0);
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
    let (right, left) = ring(&tape);
    drop((tape.irecv(&x, left, 0)?, tape.isend(&x, right, 0)?));
    let gradient = tape.grad(Some(&y.sum(Kind::Double)), &[&x])?.remove(0);
    assert_eq!(value(&gradient), f64::from(tape.size()));
    Ok(())
}

fn barriers(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    tape.barrier()?;
    let x = variable(&tape, 1.0);
    let y = tape.all_reduce(&x, Op::Sum)?;
    let _ = tape.ibarrier()?.wait()?;
    tape.backward(&y.sum(Kind::Double))?;
    assert_eq!(value(&x.grad()), f64::from(tape.size()));
    Ok(())
}

fn in_place(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 1.0);
    let mut y = &x * 2.0;
    tape.all_reduce_(&mut y, Op::Sum)?;
    let loss = (tape.rank() == 0).then(|| y.sum(Kind::Double));
    tape.backward(loss.as_ref())?;
    assert_eq!(value(&x.grad()), 2.0);
    Ok(())
}

fn keeping_the_graph(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 1.0);
    let y = tape.iall_reduce(&x.square(), Op::Sum)?.wait()?;
    let loss = (tape.rank() == 0).then(|| y.sum(Kind::Double));
    for _ in 0..3 {
        tape.backward_with(loss.as_ref(), true, false)?;
    }
    // More on the same tape.
    let z = tape.broadcast(&x, 0)?;
    tape.backward(&z.sum(Kind::Double))?;
    let root = if tape.rank() == 0 { f64::from(tape.size()) } else { 0.0 };
    assert_eq!(value(&x.grad()), 6.0 * value(&x.detach()) + root);
    Ok(())
}

fn two_tapes(context: &Context) -> Result<()> {
    let (first, second) = (context.world.tape(), context.world.tape());
    let x = variable(&first, 1.0);
    let y = first.all_reduce(&x, Op::Sum)?;
    let z = second.all_reduce(&x, Op::Sum)?;
    let half = context.world.split(Some(context.world.rank() % 2), 0)?.expect("each has a color");
    let third = half.tape();
    let w = third.all_reduce(&x, Op::Sum)?;
    second.backward(&z.sum(Kind::Double))?;
    third.backward(&w.sum(Kind::Double))?;
    first.backward(&y.sum(Kind::Double))?;
    assert_eq!(value(&x.grad()), f64::from(2 * first.size() + half.size()));
    Ok(())
}

fn integers_are_not_recorded(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let n = Tensor::from_slice(&[i64::from(tape.rank())]);
    let total = tape.all_reduce(&n, Op::Sum)?;
    assert!(!total.requires_grad());
    let (_, owners) = tape.max_loc(&double(&[1.0]))?;
    assert!(!owners.requires_grad());
    let (right, left) = ring(&tape);
    let _ = tape.sendrecv(&n, right, &n, left, 0)?;
    let all = tape.all_reduce(&n, Op::BitwiseOr)?;
    assert!(!all.requires_grad());
    tape.backward(None)
}

fn tape_error(result: Result<()>) -> String {
    match result {
        Err(Error::Tape { differences }) => differences,
        other => panic!("an error of the tape was expected: {other:?}"),
    }
}

/// All ranks have the same text.
fn same_everywhere(comm: &Communicator, text: &str) -> Result<()> {
    let bytes = Tensor::from_slice(text.as_bytes());
    let first = comm.broadcast(&Tensor::from_slice(&[bytes.size()[0]]), 0)?;
    assert_eq!(first, Tensor::from_slice(&[bytes.size()[0]]), "{text}");
    assert_eq!(comm.broadcast(&bytes, 0)?, bytes, "{text}");
    Ok(())
}

fn a_call_more_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let tape = world.tape();
    let x = variable(world, 1.0);
    let y = tape.all_reduce(&x, Op::Sum)?;
    let mut line = 0;
    let request = if world.rank() == 1 {
        line = line!() + 1;
        Some(tape.isend(&x, 1, 5)?)
    } else {
        None
    };
    let text = tape_error(tape.backward(&y.sum(Kind::Double)));
    let line = world.broadcast(&Tensor::from_slice(&[i64::from(line)]), 1)?;
    let line = i64::try_from(line).expect("one number");
    assert_eq!(
        text,
        format!(
            "\n  send at tests/tape.rs:{line}:19 on rank 1, to rank 1 with tag 5: not received on the tape"
        )
    );
    same_everywhere(world, &text)?;
    if let Some(request) = request {
        let _ = world.recv(&x.detach(), 1, 5);
        let _ = request.wait()?;
    }
    Ok(())
}

fn another_call_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let tape = world.tape();
    let x = variable(world, 1.0);
    // All make the call, and one of them on the tape.
    let comm: &Communicator = if world.rank() == 1 { &tape } else { world };
    let y = comm.all_reduce(&x, Op::Sum)?;
    let text = tape_error(tape.backward(&y.sum(Kind::Double)));
    assert!(text.contains("call 1 of all ranks: nothing on rank"), "{text}");
    assert!(text.contains("all_reduce at tests/tape.rs:"), "{text}");
    assert!(text.contains("on rank 1"), "{text}");
    same_everywhere(world, &text)?;
    // The communicator works as before.
    let tape = world.tape();
    let y = tape.all_reduce(&x, Op::Sum)?;
    tape.backward(&y.sum(Kind::Double))
}

fn a_send_that_nobody_receives(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let (right, left) = ring(world);
    let x = variable(world, 1.0);
    let request = tape.isend(&x, right, 1)?;
    // Received, though not on the tape.
    let _ = tch::no_grad(|| world.recv(&x, left, 1));
    let _ = request.wait()?;
    let text = tape_error(tape.backward(None));
    assert!(text.contains("not received on the tape"), "{text}");
    same_everywhere(world, &text)
}

/// Nobody can go back through a message that was not what it was to be received into.
fn a_message_that_is_refused(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let (right, left) = ring(world);
    let x = variable(world, 1.0);
    let receive = tape.irecv(&Tensor::zeros([2], (Kind::Double, Device::Cpu)), left, 1)?;
    let _ = tape.send(&x, right, 1)?;
    assert!(matches!(receive.wait(), Err(Error::Message { .. })));
    let text = tape_error(tape.backward(None));
    assert!(text.contains("not received on the tape"), "{text}");
    same_everywhere(world, &text)
}

fn waits_in_different_order(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    if tape.size() == 1 {
        return Ok(());
    }
    let x = variable(&tape, 1.0);
    let (a, b) = (tape.iall_reduce(&x, Op::Sum)?, tape.iall_reduce(&(&x * 2.0), Op::Sum)?);
    let (first, second) = if tape.rank() == 0 { (a, b) } else { (b, a) };
    let y = first.wait()? + second.wait()?;
    let text = tape_error(tape.backward(&y.sum(Kind::Double)));
    assert!(text.contains("call 3 of all ranks: "), "{text}");
    same_everywhere(&context.world, &text)
}

/// Messages between the same ranks with the same tag, where the ends wait in orders of their own:
/// each cotangent comes back to what it is of.
fn messages_that_are_alike(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = ring(world);
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
        for receiver_is_reversed in [false, true] {
            let tape = world.tape();
            let xs: Vec<Tensor> = (0..4).map(|i| variable(&tape, f64::from(i))).collect();
            let mut receives: Vec<_> = (0..4)
                .map(|_| tape.irecv(&xs[0].detach(), left, 5).map(Some))
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
            let mut loss = Tensor::zeros([1], (Kind::Double, Device::Cpu));
            for (i, y) in (0..).zip(ys.iter().flatten()) {
                loss += y * 10_f64.powi(i) * f64::from(tape.rank() + 1);
            }
            tape.backward(&loss)?;
            for (i, x) in (0..).zip(&xs) {
                let expected = 10_f64.powi(i) * f64::from(right + 1);
                assert_eq!(value(&x.grad()), expected, "{order:?}, message {i}");
            }
        }
    }
    Ok(())
}

fn requests_that_outlive_the_pass(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (right, left) = ring(&tape);
    let x = variable(&tape, 1.0);
    let send = tape.isend(&x, right, 0)?;
    let receive = tape.irecv(&x, left, 0)?;
    tape.backward(None)?;
    for request in [send, receive] {
        let error = request.wait().expect_err("the pass has gone through the start").to_string();
        assert!(error.contains("before the tape's last backward pass"), "{error}");
    }
    // The tape goes on.
    let y = tape.all_reduce(&x, Op::Sum)?;
    let gradient = tape.grad(Some(&y.sum(Kind::Double)), &[&x])?.remove(0);
    assert_eq!(value(&gradient), f64::from(tape.size()));
    Ok(())
}

fn results_that_outlive_the_pass(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 1.0);
    let y = tape.all_reduce(&x, Op::Sum)?.sum(Kind::Double);
    tape.backward(&y)?;
    // Nobody waits for the rank that uses it once more.
    let again = (tape.rank() == 0).then_some(&y);
    let result = tape.backward(again);
    assert_eq!(result.is_err(), tape.rank() == 0, "{result:?}");
    if let Err(error) = result {
        assert!(error.to_string().contains("before the tape's last backward pass"), "{error}");
    }
    Ok(())
}

fn gradients_can_be_written(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (right, left) = ring(&tape);
    let like = Tensor::zeros([3], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let request = tape.isend(&double(&[1.0, 2.0, 3.0]), right, 0)?;
    let y = tape.recv(&like, left, 0)?;
    let _ = request.wait()?;
    let mut gradient = tape.grad(Some(&y.sum(Kind::Double)), &[&like])?.remove(0);
    let _ = gradient.f_add_scalar_(1.0)?;
    assert_eq!(gradient, double(&[1.0; 3]));
    Ok(())
}

fn bad_arguments_are_refused_on_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let x = double(&[1.0, 2.0]).set_requires_grad(true);
    let y = tape.all_reduce(&x, Op::Sum)?;
    let bad = if world.rank() == 0 { &y } else { &y.sum(Kind::Double) };
    let error = tape.backward(bad).expect_err("the loss has two elements").to_string();
    if world.rank() == 0 {
        assert_eq!(error, "Tape::backward: the loss has shape [2]; one element is needed");
    } else {
        assert!(error.contains("refused: Tape::backward: the loss has shape [2]"), "{error}");
    }
    let loss = y.sum(Kind::Double);
    let constant = double(&[1.0]);
    let inputs = if world.rank() == 0 { [&constant] } else { [&x] };
    let error = tape.grad(Some(&loss), &inputs).expect_err("the input is a constant").to_string();
    assert!(error.contains("Tape::grad: input 0 does not require grad"), "{error}");
    tape.backward(&loss)?;
    assert_eq!(x.grad(), x.full_like(f64::from(world.size())).detach());
    Ok(())
}

fn options_that_differ(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    if tape.size() == 1 {
        return Ok(());
    }
    let x = variable(&tape, 1.0);
    let y = tape.all_reduce(&x, Op::Sum)?.sum(Kind::Double);
    let result = tape.backward_with(&y, false, tape.rank() == 0);
    let error = result.expect_err("the options differ").to_string();
    assert!(
        error.contains(
            "operation: Tape::backward with create_graph on rank 0; Tape::backward on rank"
        ),
        "{error}"
    );
    tape.backward(&y)
}

fn the_graph_is_freed(context: &Context) -> Result<()> {
    let before = testing::live_pullbacks();
    let run = |create_graph: bool| -> Result<()> {
        let tape = context.world.tape();
        let x = variable(&tape, 1.0);
        let y = tape.iall_reduce(&x.square(), Op::Sum)?.wait()?;
        let (right, left) = ring(&tape);
        let request = tape.isend(&y, right, 0)?;
        let z = tape.recv(&x, left, 0)?;
        let _ = request.wait()?;
        drop(tape.iall_gather_with_counts(&x, 0, &vec![1; tape.size().unsigned_abs() as usize])?);
        if create_graph {
            let g = tape.grad_with(Some(&z.sum(Kind::Double)), &[&x], false, true)?.remove(0);
            tape.backward_with(&g.sum(Kind::Double), false, true)?;
            // What torch itself would keep: the leaf's gradient has a graph that leads to the leaf.
            let mut x = x;
            x.zero_grad();
        } else {
            tape.backward(&z.sum(Kind::Double))?;
        }
        Ok(())
    };
    run(false)?;
    run(true)?;
    // Never gone back through.
    let tape = context.world.tape();
    let _ = tape.all_reduce(&Tensor::zeros([2], (Kind::Float, Device::Cpu)), Op::Sum)?;
    drop(tape);
    assert_eq!(testing::live_pullbacks(), before);
    Ok(())
}
