//! Nodes of the user's own: what their pullbacks get, may do, and may get wrong.

mod common;

use std::process::ExitCode;

use common::passes::CREATE_GRAPH;
use common::ring::neighbours;
use common::tensors::{tensor, values, variable, zeros};
use common::{Context, assert_freed, start, works};
use mpi4tch::{Communicator, Error, Op, PassOptions, Result, testing};
use tch::{Kind, Tensor, no_grad};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            derivatives,
            several_inputs_and_outputs,
            on_part_of_the_ranks,
            messages_of_a_pullback_meet_no_others,
            messages_of_a_pullback_may_be_started,
            calls_of_pullbacks_that_differ,
            calls_of_communicators_that_pullbacks_make,
            nested,
            results_can_be_changed_in_place,
            a_closure_may_hold_the_pullbacks_communicator,
            without_grad,
            what_is_saved_is_looked_after,
            gradients_that_are_too_few,
            arguments_that_are_refused,
            names_that_differ,
            the_graph_is_freed,
            the_tape_frees_what_a_closure_holds,
        ],
    )
}

/// The sum over all ranks of eˣ, by a pullback of its own.
fn sum_of_exponentials(comm: &Communicator, x: &Tensor) -> Result<Tensor> {
    let y = no_grad(|| comm.all_reduce(&x.exp(), Op::Sum))?;
    let mut y =
        comm.custom("sum_of_exponentials", &[x], &[&y], &[x], |comm, saved, cotangents| {
            let total = comm.all_reduce(&cotangents[0], Op::Sum)?;
            Ok(vec![Some(saved[0].exp() * total)])
        })?;
    Ok(y.remove(0))
}

fn derivatives(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    for comm in [world, &tape] {
        let x = testing::random(world, &[3], Kind::Double)?;
        testing::assert_serial(
            comm,
            &x,
            |x| sum_of_exponentials(comm, x),
            |xs| {
                let all = Tensor::stack(xs, 0).exp().sum_dim_intlist(0, false, Kind::Double);
                xs.iter().map(|_| all.shallow_clone()).collect()
            },
        )?;
        testing::gradcheck(comm, &[&x], |x| sum_of_exponentials(comm, &x[0].sin()))?;
        testing::gradgradcheck(comm, &x, |x| sum_of_exponentials(comm, &x.sin()))?;
    }
    Ok(())
}

/// (a, b) ↦ (a b, Σ a), where b's gradient comes by the saved output a b.
fn several_inputs_and_outputs(context: &Context) -> Result<()> {
    let world = &context.world;
    let both = |comm: &Communicator, a: &Tensor, b: &Tensor| -> Result<Vec<Tensor>> {
        let (product, sum) = no_grad(|| (a * b, comm.all_reduce(a, Op::Sum)));
        let outputs = [&product, &sum?];
        comm.custom("both", &[a, b], &outputs, &[a, b, &product], |comm, saved, cotangents| {
            let [a, b, product] = saved else { unreachable!("three were saved") };
            let total = comm.all_reduce(&cotangents[1], Op::Sum)?;
            let of_b = &cotangents[0] * product / b;
            assert!(!a.equal(b));
            Ok(vec![Some(&cotangents[0] * b + total), Some(of_b)])
        })
    };
    let b = testing::random(world, &[2], Kind::Double)? + 2.0;
    let x = testing::random(world, &[2], Kind::Double)?;
    let tape = world.tape();
    for comm in [world, &tape] {
        let f = |x: &Tensor| {
            let y = both(comm, &x.sin(), &(&b + x.square()))?;
            Ok(&y[0] * y[1].cos())
        };
        testing::gradcheck(comm, &[&x], |x| f(&x[0]))?;
        testing::gradgradcheck(comm, &x, f)?;
        // An output that nobody uses has zeros for its cotangent.
        testing::gradcheck(comm, &[&x], |x| Ok(both(comm, &x[0], &b)?.remove(0)))?;
    }
    Ok(())
}

/// On a communicator of a tape, beside those of the rest.
fn on_part_of_the_ranks(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let half = tape.split(Some(tape.rank() % 2), tape.rank())?.expect("each rank has a color");
    let x = testing::random(&tape, &[2], Kind::Double)?;
    let f = |x: &Tensor| {
        let y = if tape.rank() % 2 == 0 { sum_of_exponentials(&half, x)? } else { x.sin() };
        let y = tape.all_reduce(&y.sin(), Op::Mean)?;
        let dead = sum_of_exponentials(&half, &y)?;
        Ok(if half.rank() == 0 { dead.sin() } else { y })
    };
    testing::gradcheck(&tape, &[&x], |x| f(&x[0]))?;
    testing::gradgradcheck(&tape, &x, f)
}

/// In the backward pass the wait for the send starts to receive a cotangent from the right. The node's
/// message of the same tag comes from there before it; and so does a message of the forward pass after
/// all of that.
fn messages_of_a_pullback_meet_no_others(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let (right, left) = neighbours(world);
    let outstanding = world.irecv(&zeros(&[2]), right, 6)?;
    let x = testing::random(&tape, &[2], Kind::Double)?;
    let f = |x: &Tensor| {
        let receive = tape.irecv(x, left, 5)?;
        let send = tape.isend(&x.sin(), right, 5)?;
        let received = receive.wait()?;
        let y = no_grad(|| &received * 2.0);
        let pullback = |comm: &Communicator, _: &[Tensor], cotangents: &[Tensor]| {
            let (right, left) = neighbours(comm);
            let hundred = cotangents[0].full_like(100.0);
            for tag in [5, 6] {
                let sent = comm.isend(&hundred, left, tag)?;
                assert!(comm.recv(&hundred, right, tag)?.equal(&hundred));
                let _ = sent.wait()?;
            }
            Ok(vec![Some(&cotangents[0] * 2.0)])
        };
        let y = tape.custom("twice", &[&received], &[&y], &[], pullback)?.remove(0);
        let _ = send.wait()?;
        Ok(y.sin())
    };
    testing::gradcheck(&tape, &[&x], |x| f(&x[0]))?;
    testing::gradgradcheck(&tape, &x, f)?;
    let sent = world.isend(&zeros(&[2]), left, 6)?;
    assert_eq!(values(&outstanding.wait()?), [0.0, 0.0]);
    sent.wait().map(drop)
}

fn messages_of_a_pullback_may_be_started(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = testing::random(&tape, &[2], Kind::Double)?;
    let shift = |x: &Tensor| {
        let (right, left) = neighbours(&tape);
        let y = no_grad(|| tape.sendrecv(x, right, x, left, 1))?;
        let pullback = |comm: &Communicator, _: &[Tensor], cotangents: &[Tensor]| {
            let (right, left) = neighbours(comm);
            let receive = comm.irecv(&cotangents[0], right, 1)?;
            let send = comm.isend(&cotangents[0], left, 1)?;
            let count = comm.iall_reduce(&(&cotangents[0] * 0.0 + 1.0), Op::Mean)?;
            let gradient = receive.wait()? * count.wait()?;
            let _ = send.wait()?;
            Ok(vec![Some(gradient)])
        };
        Ok(tape.custom("shift", &[x], &[&y.detach()], &[], pullback)?.remove(0).sin())
    };
    testing::gradcheck(&tape, &[&x], |x| shift(&x[0]))?;
    testing::gradgradcheck(&tape, &x, shift)
}

/// A pullback starts calls of different sizes on what `on` makes of its communicator, and nobody waits
/// for the error. Its own derivative would go back through them, beyond the smaller one's memory, if the
/// tape were taken to have compared them.
fn calls_that_differ(
    context: &Context,
    on: fn(&Communicator) -> Result<Communicator>,
) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let comm = world.duplicate()?;
    let tape = comm.tape();
    let x = variable(&tape, &[1])?;
    let y = no_grad(|| &x * 2.0);
    let y = tape.custom("twice", &[&x], &[&y], &[], move |comm, _, cotangents| {
        let count = if comm.rank() == 0 { 16 } else { 200_000 };
        drop(on(comm)?.iall_reduce(&cotangents[0].repeat([count]), Op::Sum)?);
        Ok(vec![Some(&cotangents[0] * 2.0)])
    })?;
    let loss = y[0].square().sum(Kind::Double);
    let gradient = tape.grad_with(&loss, &[&x], CREATE_GRAPH)?.remove(0);
    let error = tape.grad(&gradient.sum(Kind::Double), &[&x]).expect_err("the sizes differ");
    assert!(error.to_string().contains("the ranks disagree on a call"), "{error}");
    works(world)
}

fn calls_of_pullbacks_that_differ(context: &Context) -> Result<()> {
    calls_that_differ(context, |comm| Ok(comm.clone()))
}

fn calls_of_communicators_that_pullbacks_make(context: &Context) -> Result<()> {
    calls_that_differ(context, |comm| {
        Ok(comm.split(Some(0), comm.rank())?.expect("each rank has a color"))
    })
}

/// A pullback that adds a node in its turn, as of a solution: x / (2 p), by x / (2 p).
fn nested(context: &Context) -> Result<()> {
    fn solve(comm: &Communicator, x: &Tensor) -> Result<Tensor> {
        let y = no_grad(|| comm.all_reduce(&x.detach(), Op::Mean))? * 0.5;
        let mut y = comm.custom("solve", &[x], &[&y], &[], |comm, _, cotangents| {
            Ok(vec![Some(solve(comm, &cotangents[0])?)])
        })?;
        Ok(y.remove(0))
    }
    let tape = context.world.tape();
    for comm in [&context.world, &*tape] {
        let x = testing::random(comm, &[2], Kind::Double)?;
        testing::gradcheck(comm, &[&x], |x| solve(comm, &x[0].sin()))?;
        testing::gradgradcheck(comm, &x, |x| solve(comm, &x.sin()))?;
        testing::assert_adjoint(comm, &x, |x| solve(comm, x))?;
    }
    Ok(())
}

fn without_grad(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = variable(world, &[2])?;
    let before = testing::live_pullbacks();
    let y = no_grad(|| sum_of_exponentials(world, &x))?;
    let z = sum_of_exponentials(world, &x.detach())?;
    assert!(!y.requires_grad() && !z.requires_grad());
    assert_freed(before, "the graph");
    // On a tape it is recorded all the same: other ranks' inputs may require grad.
    let tape = world.tape();
    let own = if tape.rank() == 0 { x.shallow_clone() } else { x.detach() };
    let y = sum_of_exponentials(&tape, &own)?;
    let inputs: &[&Tensor] = if tape.rank() == 0 { &[&own] } else { &[] };
    let gradient = tape.grad(&y.sum(Kind::Double), inputs)?;
    if let Some(gradient) = gradient.first() {
        let expected = x.exp() * f64::from(world.size());
        assert!(gradient.allclose(&expected, 1e-12, 1e-12, false));
    }
    Ok(())
}

/// A change in place on one rank is an error on all ranks, whether it is an input or an output.
fn what_is_saved_is_looked_after(context: &Context) -> Result<()> {
    let world = &context.world;
    for changes_output in [false, true] {
        let tape = world.tape();
        let x = variable(world, &[2])? * 1.0;
        let output = no_grad(|| x.exp());
        let y =
            tape.custom("exp", &[&x], &[&output], &[&x, &output], |comm, saved, cotangents| {
                let gradient = &cotangents[0] * &saved[1];
                Ok(vec![Some(comm.all_reduce(&gradient, Op::Mean)?)])
            })?;
        let loss = y[0].sum(Kind::Double);
        if world.rank() == world.size() - 1 {
            let mut changed = if changes_output { output } else { x };
            let _ = no_grad(|| changed.f_add_scalar_(1.0))?;
        }
        let error = tape.backward(&loss).expect_err("what was saved has changed").to_string();
        let expected = "modified by an inplace operation";
        assert!(error.contains(expected), "{error}");
    }
    works(world)
}

fn gradients_that_are_too_few(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = variable(world, &[2])?;
    let y = no_grad(|| &x * 2.0);
    let z = world.custom("none", &[&x], &[&y], &[], |_, _, _| Ok(Vec::new()))?;
    let error = z[0].sum(Kind::Double).f_backward().expect_err("one is needed").to_string();
    let expected = "none: the pullback returned 0 gradients; one for each of 1 inputs is needed";
    assert!(error.contains(expected), "{error}");
    // None for an input is no gradient.
    let z = world.custom("none", &[&x], &[&y], &[], |_, _, _| Ok(vec![None]))?;
    z[0].sum(Kind::Double).f_backward()?;
    assert!(!x.grad().defined());
    // Of a shape that is not the input's.
    let z = world.custom("long", &[&x], &[&y], &[], |_, _, _| Ok(vec![Some(zeros(&[3]))]))?;
    let error = z[0].sum(Kind::Double).f_backward().expect_err("two are needed").to_string();
    assert!(error.contains("got [3] but expected shape compatible with [2]"), "{error}");
    // What the user's pullback returns as an error.
    let fails = |_: &Communicator, _: &[Tensor], _: &[Tensor]| {
        Err(Error::Argument { call: "mine", message: "no solution".to_owned() })
    };
    let z = world.custom("fails", &[&x], &[&y], &[], fails)?;
    let error = z[0].sum(Kind::Double).f_backward().expect_err("it fails").to_string();
    assert!(error.contains("backward of fails: mine: no solution"), "{error}");
    works(world)
}

fn arguments_that_are_refused(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = variable(world, &[2])?;
    let (good, integers, undefined) = (zeros(&[2]), tensor(&[1_i64]), Tensor::new());
    let with_history = &x * 2.0;
    let cases: [(&[&Tensor], &str); 4] = [
        (&[], "node: a node has at least one output; none was given"),
        (&[&integers], "node: an output is of kind Int64; one that carries gradients is needed"),
        (
            &[&good, &undefined],
            "node: the tensor is undefined, like a gradient that was never computed",
        ),
        (&[&with_history], "node: an output requires grad; detach it, or compute it without grad"),
    ];
    let last = world.rank() == world.size() - 1;
    for (outputs, expected) in cases {
        let outputs = if last { outputs } else { &[&good] };
        let outcome = world
            .custom("node", &[&x], outputs, &[], |_, _, c| Ok(vec![Some(c[0].shallow_clone())]));
        let error = outcome.expect_err(expected).to_string();
        if last {
            assert_eq!(error, expected);
        } else {
            assert!(error.contains(&format!("refused: {expected}")), "{error}");
        }
    }
    works(world)
}

fn names_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let x = variable(world, &[2])?;
    let y = zeros(&[2]);
    let name = if world.rank() == 0 { "one" } else { "another" };
    let error = world.custom(name, &[&x], &[&y], &[], |_, _, _| Ok(vec![None]));
    let error = error.expect_err("the names differ").to_string();
    assert!(error.contains("operation: one on rank 0; another on rank"), "{error}");
    works(world)
}

fn the_graph_is_freed(context: &Context) -> Result<()> {
    let world = &context.world;
    let before = testing::live_pullbacks();
    let x = variable(world, &[2])?;
    let y = sum_of_exponentials(world, &x)?;
    assert_eq!(testing::live_pullbacks(), before + 1);
    drop(y);
    assert_freed(before, "the graph");
    // A saved output holds no node.
    let output = no_grad(|| x.exp());
    let y = world.custom("exp", &[&x], &[&output], &[&output], |_, saved, cotangents| {
        Ok(vec![Some(&cotangents[0] * &saved[0])])
    })?;
    drop(y);
    assert_freed(before, "the graph");
    Ok(())
}

/// A closure on a tape that holds the tape's communicator, which holds the record of the tape, which
/// holds the token, which holds the closure.
fn the_tape_frees_what_a_closure_holds(context: &Context) -> Result<()> {
    let world = &context.world;
    let before = testing::live_pullbacks();
    let add_to = |tape: &mpi4tch::Tape, x: &Tensor| -> Result<Tensor> {
        let (comm, y) = (Communicator::clone(tape), no_grad(|| x * 2.0));
        let mut y = tape.custom("twice", &[x], &[&y], &[], move |_, _, cotangents| {
            Ok(vec![Some(&cotangents[0] * f64::from(comm.size()))])
        })?;
        Ok(y.remove(0))
    };
    let x = variable(world, &[2])?;
    let tape = world.tape();
    drop(add_to(&tape, &x)?);
    assert_eq!(testing::live_pullbacks(), before + 1);
    drop(tape);
    assert_freed(before, "the tape was dropped");
    let tape = world.tape();
    for options in [PassOptions::default(), CREATE_GRAPH] {
        let y = add_to(&tape, &x)?;
        let gradient = tape.grad_with(&y.sum(Kind::Double), &[&x], options)?.remove(0);
        assert_eq!(values(&gradient), [f64::from(world.size()); 2]);
    }
    tape.backward(None)?;
    assert_freed(before, "the tape has started anew");
    Ok(())
}

fn results_can_be_changed_in_place(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[2], Kind::Double)?;
    testing::gradcheck(world, &[&x], |x| {
        let mut y = twice(world, &x[0])?;
        world.all_reduce_(&mut y, Op::Sum)?;
        let _ = y.f_add_scalar_(1.0)?;
        Ok(y.sin())
    })
}

/// A node without communication of its own.
fn twice(comm: &Communicator, x: &Tensor) -> Result<Tensor> {
    let y = no_grad(|| x * 2.0);
    let mut y = comm.custom("twice", &[x], &[&y], &[], |_, _, cotangents| {
        Ok(vec![Some(&cotangents[0] * 2.0)])
    })?;
    Ok(y.remove(0))
}

/// The communicator of the pullback's own record, which holds the token, which holds the node that a
/// pullback adds, which holds the closure.
fn a_closure_may_hold_the_pullbacks_communicator(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let before = testing::live_pullbacks();
    for _ in 0..3 {
        let x = variable(&tape, &[2])?;
        let y = no_grad(|| &x * 2.0);
        let y = tape.custom("outer", &[&x], &[&y], &[], |comm, _, cotangents| {
            let (held, z) = (comm.clone(), no_grad(|| &cotangents[0] * 2.0));
            comm.custom("inner", &[&cotangents[0]], &[&z], &[], move |_, _, cotangents| {
                Ok(vec![Some(&cotangents[0] * f64::from(2 * held.size() / held.size()))])
            })
            .map(|z| z.into_iter().map(Some).collect())
        })?;
        let loss = y[0].square().sum(Kind::Double);
        let gradient = tape.grad_with(&loss, &[&x], CREATE_GRAPH)?.remove(0);
        let second = tape.grad(&gradient.sum(Kind::Double), &[&x])?.remove(0);
        assert_eq!(values(&second), [8.0, 8.0]);
    }
    drop(tape);
    assert_freed(before, "the graph");
    Ok(())
}
