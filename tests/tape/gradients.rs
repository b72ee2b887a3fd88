//! Every rank gets the gradients of the sum of all ranks' losses, whoever uses a result and has a
//! loss.

use crate::common::passes::CREATE_GRAPH;
use mpi4tch::{Op, Result};
use tch::{Kind, Tensor};

use crate::common::Context;
use crate::common::ring::neighbours;
use crate::common::tensors::{tensor, variable, zeros};
use crate::{number, value};

pub fn tests() -> Vec<harness::Test<Context>> {
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
        barriers,
        in_place,
        two_tapes,
        integers_are_not_recorded,
        gradients_can_be_written,
        from_cotangents,
    ]
}

fn results_that_nobody_uses(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = number(&tape, 1.0);
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
    let x = number(&tape, 1.0);
    let y = tape.broadcast(&tape.all_reduce(&x.square(), Op::Sum)?, 0)?;
    let loss = (tape.rank() == last).then(|| y.sum(Kind::Double));
    tape.backward(loss.as_ref())?;
    assert_eq!(x.grad(), 2.0 * x.detach());
    Ok(())
}

fn no_loss_at_all(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    tape.backward(None)?;
    let x = number(&tape, 1.0);
    let _ = tape.all_reduce(&x, Op::Sum)?;
    tape.backward(None)?;
    assert_eq!(value(&x.grad()), 0.0);
    // A loss that depends on nothing is a constant.
    tape.backward(&tensor(&[1.0]))?;
    assert_eq!(tape.grad(None, &[&x])?, [tensor(&[0.0])]);
    Ok(())
}

fn grad_required_on_some_ranks_only(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = tensor(&[f64::from(tape.rank())]).set_requires_grad(tape.rank() % 2 == 0);
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
    let x = number(&tape, 1.0);
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
        (0..size).map(|r| tensor(&[1.0 + f64::from(r)]).set_requires_grad(true)).collect();
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
        let (right, left) = neighbours(&tape);
        let a = variable(&tape, &[length])?;
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
    let (x, z) = (number(&tape, 1.0), number(&tape, 5.0));
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
    let x = number(&tape, 1.0);
    let _dead = tape.all_gather(&x, 0)?;
    let sum = tape.all_reduce(&x.pow_tensor_scalar(3), Op::Sum)?;
    let has_loss = tape.rank() == tape.size() - 1;
    let loss = has_loss.then(|| sum.sum(Kind::Double));
    let first = tape.grad_with(loss.as_ref(), &[&x], CREATE_GRAPH)?.remove(0);
    assert_eq!(first, 3.0 * x.detach().square());
    // The second loss is on another rank.
    let second_loss = (tape.rank() == 0).then(|| first.sum(Kind::Double));
    let second = tape.grad(second_loss.as_ref(), &[&x])?.remove(0);
    let expected = if tape.rank() == 0 { 6.0 * value(&x.detach()) } else { 0.0 };
    assert_eq!(value(&second), expected);

    // A product of ranks, where derivatives mix: f = Σ_r (Π x)·r.
    let tape = context.world.tape();
    let x = number(&tape, 2.0);
    let y = tape.all_reduce(&x, Op::Prod)? * f64::from(tape.rank());
    let first = tape.grad_with(Some(&y.sum(Kind::Double)), &[&x], CREATE_GRAPH)?.remove(0);
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
    let x = number(&tape, 1.0);
    let y = tape.all_reduce(&x.pow_tensor_scalar(4), Op::Sum)?;
    let loss = (tape.rank() == 0).then(|| y.sum(Kind::Double));
    let first = tape.grad_with(loss.as_ref(), &[&x], CREATE_GRAPH)?.remove(0);
    let second = tape.grad_with(Some(&first.sum(Kind::Double)), &[&x], CREATE_GRAPH)?.remove(0);
    let third = tape.grad(Some(&second.sum(Kind::Double)), &[&x])?.remove(0);
    assert!((value(&third) - 24.0 * value(&x.detach())).abs() < 1e-9);
    Ok(())
}

fn barriers(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    tape.barrier()?;
    let x = number(&tape, 1.0);
    let y = tape.all_reduce(&x, Op::Sum)?;
    let _ = tape.ibarrier()?.wait()?;
    tape.backward(&y.sum(Kind::Double))?;
    assert_eq!(value(&x.grad()), f64::from(tape.size()));
    Ok(())
}

fn in_place(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = number(&tape, 1.0);
    let mut y = &x * 2.0;
    tape.all_reduce_(&mut y, Op::Sum)?;
    let loss = (tape.rank() == 0).then(|| y.sum(Kind::Double));
    tape.backward(loss.as_ref())?;
    assert_eq!(value(&x.grad()), 2.0);
    Ok(())
}

fn two_tapes(context: &Context) -> Result<()> {
    let (first, second) = (context.world.tape(), context.world.tape());
    let x = number(&first, 1.0);
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
    let n = tensor(&[i64::from(tape.rank())]);
    let total = tape.all_reduce(&n, Op::Sum)?;
    assert!(!total.requires_grad());
    let (_, owners) = tape.max_loc(&tensor(&[1.0]))?;
    assert!(!owners.requires_grad());
    let (right, left) = neighbours(&tape);
    let _ = tape.sendrecv(&n, right, &n, left, 0)?;
    let all = tape.all_reduce(&n, Op::BitwiseOr)?;
    assert!(!all.requires_grad());
    tape.backward(None)
}

fn gradients_can_be_written(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (right, left) = neighbours(&tape);
    let like = zeros(&[3]).set_requires_grad(true);
    let request = tape.isend(&tensor(&[1.0, 2.0, 3.0]), right, 0)?;
    let y = tape.recv(&like, left, 0)?;
    let _ = request.wait()?;
    let mut gradient = tape.grad(Some(&y.sum(Kind::Double)), &[&like])?.remove(0);
    let _ = gradient.f_add_scalar_(1.0)?;
    assert_eq!(gradient, tensor(&[1.0; 3]));
    Ok(())
}

/// Of several outputs, some of which are constants, and with a cotangent that has a history.
fn from_cotangents(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = number(&tape, 1.0);
    let weight = number(&tape, 2.0);
    let (sum, constant) = (tape.all_reduce(&x.square(), Op::Sum)?, zeros(&[2]));
    let gathered = tape.all_gather(&x, 0)?;
    let outputs = [(&sum, &weight), (&constant, &constant), (&gathered, &gathered.ones_like())];
    let gradient = tape.vjp(&outputs, &[&x], CREATE_GRAPH)?.remove(0);
    let ranks = f64::from(tape.size());
    let weights = ranks * (ranks + 3.0) / 2.0;
    assert_eq!(value(&gradient), 2.0 * weights * value(&x.detach()) + ranks);
    // By the cotangent, too: Σ_r 2 x_r on every rank.
    let seconds =
        tape.vjp(&[(&gradient, &gradient.ones_like())], &[&x, &weight], Default::default());
    let seconds = seconds?;
    assert_eq!(value(&seconds[0]), 2.0 * weights);
    assert_eq!(value(&seconds[1]), ranks * (ranks + 1.0));
    // Nothing to start from on any rank.
    assert!(tape.vjp(&[], &[], Default::default())?.is_empty());
    Ok(())
}
