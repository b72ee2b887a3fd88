//! How long the graph is there: for more passes than one if it is kept, no longer otherwise.

use crate::common::passes::{CREATE_GRAPH, KEEP_GRAPH};
use mpi4tch::{Communicator, Error, Op, PassOptions, Result, Tape, testing};
use tch::{Kind, Tensor};

use crate::common::ring::neighbours;
use crate::common::tensors::{full, zeros};
use crate::common::{Context, assert_freed, works};
use crate::{number, value};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        keeping_the_graph,
        requests_that_outlive_the_pass,
        results_that_outlive_the_pass,
        passes_that_fail,
        passes_that_are_torchs_own,
        passes_of_another_tape,
        passes_of_the_gradients_graph,
        the_graph_is_freed,
        calls_of_a_dropped_tape_are_agreed_on,
        calls_of_a_nested_pass_are_agreed_on,
        after_a_pass_that_failed_on_one_rank,
        dropped_messages_of_any_size,
    ]
}

fn keeping_the_graph(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = number(&tape, 1.0);
    let y = tape.iall_reduce(&x.square(), Op::Sum)?.wait()?;
    let loss = (tape.rank() == 0).then(|| y.sum(Kind::Double));
    for _ in 0..3 {
        tape.backward_with(loss.as_ref(), KEEP_GRAPH)?;
    }
    // More on the same tape.
    let z = tape.broadcast(&x, 0)?;
    tape.backward(&z.sum(Kind::Double))?;
    let root = if tape.rank() == 0 { f64::from(tape.size()) } else { 0.0 };
    assert_eq!(value(&x.grad()), 6.0 * value(&x.detach()) + root);
    Ok(())
}

fn requests_that_outlive_the_pass(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (right, left) = neighbours(&tape);
    let x = number(&tape, 1.0);
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
    let x = number(&tape, 1.0);
    let y = tape.all_reduce(&x, Op::Sum)?.sum(Kind::Double);
    tape.backward(&y)?;
    // Nobody waits for the rank that uses it once more.
    let again = (tape.rank() == 0).then_some(&y);
    only_rank_0_fails(&tape, tape.backward(again));
    // Nor is it waited for in what it uses besides: libtorch numbers the nodes of each thread anew,
    // and comes to the old one first.
    for create_graph in [false, true] {
        let (comm, addend) = (Communicator::clone(&tape), x.shallow_clone());
        let elsewhere = std::thread::spawn(move || comm.all_reduce(&addend, Op::Sum));
        let loss = elsewhere.join().expect("no panic")?.sum(Kind::Double);
        let loss = if tape.rank() == 0 { loss + &y } else { loss };
        only_rank_0_fails(
            &tape,
            tape.backward_with(&loss, PassOptions { keep_graph: false, create_graph }),
        );
        goes_on(&tape)?;
    }
    // Elsewhere than in a pass of the tape's, it is an error at once.
    let error = y.f_backward().expect_err("the tape has left it behind").to_string();
    assert!(error.contains("before the tape's last backward pass"), "{error}");
    let mut x = x;
    x.zero_grad();
    Ok(())
}

fn only_rank_0_fails(tape: &Tape, result: Result<()>) {
    assert_eq!(result.is_err(), tape.rank() == 0, "{result:?}");
    if let Err(error) = result {
        assert!(matches!(error, Error::Argument { call: "all_reduce", .. }), "{error:?}");
        assert!(error.to_string().contains("before the tape's last backward pass"), "{error}");
    }
}

fn goes_on(tape: &Tape) -> Result<()> {
    let x = number(tape, 1.0);
    let y = tape.iall_reduce(&x.square(), Op::Sum)?.wait()?;
    let gradient = tape.grad((tape.rank() == 0).then(|| y.sum(Kind::Double)).as_ref(), &[&x])?;
    assert_eq!(gradient[0], x.detach() * 2.0);
    Ok(())
}

/// The tape starts anew.
fn passes_that_fail(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    for (ranks, create_graph) in [(1, false), (tape.size(), false), (tape.size(), true)] {
        let x = number(&tape, 1.0);
        let mut factor = &x * 1.0;
        let y = tape.all_reduce(&factor, Op::Max)?;
        if tape.rank() < ranks {
            // The pullback has saved it.
            let _ = tch::no_grad(|| factor.f_add_scalar_(1.0))?;
        }
        let result = tape
            .backward_with(&y.sum(Kind::Double), PassOptions { keep_graph: false, create_graph });
        assert!(matches!(result, Err(Error::Autograd { .. })), "{result:?}");
        goes_on(&tape)?;
    }
    Ok(())
}

/// They are refused at the first call that they come to, each time: none goes through more than the
/// one before.
fn passes_that_are_torchs_own(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = number(&tape, 1.0);
    for _ in 0..3 {
        let (line, y) = (line!(), tape.all_reduce(&x.square(), Op::Sum)?);
        let error = y.sum(Kind::Double).f_backward().expect_err("not the tape's").to_string();
        assert!(error.contains(&format!("all_reduce: called at {}:{line}:", file!())), "{error}");
        let pass = " on a tape, and reached by a backward pass that is not the tape's, as \
                    `Tensor::backward` makes it; go back by `backward` or `grad` of the tape itself";
        assert!(error.contains(pass), "{error}");
        assert!(!x.grad().defined());
    }
    // A started one is refused at its wait.
    let y = tape.iall_reduce(&x, Op::Sum)?.wait()?;
    let error = testing::vjp(&[&y], &[&y.detach()], &[&x], false).expect_err("not the tape's");
    assert!(error.to_string().contains("wait: called at "), "{error}");
    // Nothing has become of the calls.
    let z = tape.all_reduce(&x.square(), Op::Sum)?;
    let gradient = tape.grad(Some(&z.sum(Kind::Double)), &[&x])?.remove(0);
    assert_eq!(value(&gradient), 2.0 * value(&x.detach()) * f64::from(tape.size()));
    goes_on(&tape)
}

fn passes_of_another_tape(context: &Context) -> Result<()> {
    let (first, second) = (context.world.tape(), context.world.tape());
    let x = number(&first, 1.0);
    // On all ranks, and on one of them: the others need its part in what is on the second tape.
    for ranks in [first.size(), 1] {
        let mine = first.rank() < ranks;
        let before = second.all_reduce(&x.square(), Op::Sum)?;
        let (line, y) = (line!(), first.all_reduce(&(&x * 2.0), Op::Sum)?);
        let z = second.all_reduce(&if mine { before + y.exp() } else { before }, Op::Sum)?;
        let (pass, outcome) = (line!(), second.backward(&z.sum(Kind::Double)));
        assert_eq!(outcome.is_err(), mine, "{outcome:?}");
        if let Err(error) = outcome {
            assert!(matches!(error, Error::Argument { call: "all_reduce", .. }), "{error:?}");
            let file = file!();
            let error = error.to_string();
            let call = format!("all_reduce: called at {file}:{line}:");
            assert!(error.starts_with(&call), "{error}");
            let pass = format!(" on a tape, and reached by Tape::backward at {file}:{pass}:");
            assert!(error.contains(&pass) && error.contains(" of another tape; "), "{error}");
        }
        // Nothing has become of the call on the first.
        let gradient = first.grad(Some(&y.sum(Kind::Double)), &[&x])?.remove(0);
        assert_eq!(value(&gradient), 2.0 * f64::from(first.size()));
    }
    let mut x = x;
    x.zero_grad();
    goes_on(&first)?;
    goes_on(&second)
}

/// The calls of a backward pass that was recorded are the tape's as well.
fn passes_of_the_gradients_graph(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = number(&tape, 1.0);
    let y = tape.all_reduce(&x, Op::Sum)?.sum(Kind::Double);
    let g = tape.grad_with(Some(&y), &[&x], CREATE_GRAPH)?.remove(0);
    let error = g.sum(Kind::Double).f_backward().expect_err("not the tape's").to_string();
    assert!(error.contains("reached by a backward pass that is not the tape's"), "{error}");
    tape.backward(None)?;
    // And gone through once.
    let result = tape.backward((tape.rank() == 0).then(|| g.sum(Kind::Double)).as_ref());
    only_rank_0_fails(&tape, result);
    goes_on(&tape)
}

fn the_graph_is_freed(context: &Context) -> Result<()> {
    let before = testing::live_pullbacks();
    let run = |create_graph: bool| -> Result<()> {
        let tape = context.world.tape();
        let x = number(&tape, 1.0);
        let y = tape.iall_reduce(&x.square(), Op::Sum)?.wait()?;
        let (right, left) = neighbours(&tape);
        let request = tape.isend(&y, right, 0)?;
        let z = tape.recv(&x, left, 0)?;
        let _ = request.wait()?;
        drop(tape.iall_gather_with_counts(&x, 0, &vec![1; tape.size().unsigned_abs() as usize])?);
        if create_graph {
            let g = tape.grad_with(Some(&z.sum(Kind::Double)), &[&x], CREATE_GRAPH)?.remove(0);
            tape.backward_with(&g.sum(Kind::Double), CREATE_GRAPH)?;
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
    let _ = tape.all_reduce(&full(&[2], Kind::Float, 0.0), Op::Sum)?;
    drop(tape);
    assert_freed(before, "the graph");
    Ok(())
}

/// A few numbers or many, by rank: what would be written beyond the smaller ones' memory.
fn branches(comm: &Communicator) -> Result<Tensor> {
    let many = zeros(&[200_000]).set_requires_grad(true);
    let few = comm.iall_reduce(&number(comm, 1.0).repeat([16]), Op::Sum)?.wait()?;
    let many = comm.iall_reduce(&many, Op::Sum)?.wait()?;
    Ok(if comm.rank() == 0 { many } else { few }.sum(Kind::Double))
}

/// libtorch's own pass may go through them once the tape is gone, by another branch on each rank.
fn calls_of_a_dropped_tape_are_agreed_on(context: &Context) -> Result<()> {
    let comm = context.world.duplicate()?;
    if comm.size() == 1 {
        return Ok(());
    }
    let tape = comm.tape();
    let loss = branches(&tape)?;
    drop(tape);
    let error = loss.f_backward().expect_err("the ranks differ").to_string();
    assert!(error.contains("the ranks disagree on a call"), "{error}");
    works(&context.world)
}

/// Nor has the tape compared by which calls a pass goes that a pullback runs.
fn calls_of_a_nested_pass_are_agreed_on(context: &Context) -> Result<()> {
    let comm = context.world.duplicate()?;
    if comm.size() == 1 {
        return Ok(());
    }
    let tape = comm.tape();
    let loss = std::sync::Mutex::new(branches(&tape)?);
    let x = number(&tape, 1.0);
    let y = tch::no_grad(|| &x * 1.0);
    let y = tape.custom("nested", &[&x], &[&y], &[], move |_, _, cotangents| {
        loss.lock().expect("no panic").f_backward()?;
        Ok(vec![Some(&cotangents[0] * 1.0)])
    })?;
    let error = tape.backward(&y[0].sum(Kind::Double)).expect_err("the ranks differ").to_string();
    assert!(error.contains("the ranks disagree on a call"), "{error}");
    works(&context.world)
}

/// The cotangent that it has left behind is not taken for the next pass's.
fn after_a_pass_that_failed_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let comm = world.duplicate()?;
    let tape = world.tape();
    let on_tape = tape.on(&comm)?;
    for fails in [true, false] {
        let x = number(world, 1.0);
        let mut factor = &x * 1.0;
        if world.rank() == 0 {
            let _ = on_tape.send(&x, 1, 0)?;
        } else if world.rank() == 1 {
            factor = &factor * on_tape.recv(&x, 0, 0)?;
        }
        let loss = factor.square().sum(Kind::Double);
        if fails && world.rank() == 0 {
            // Rank 0 alone fails, before it receives its cotangent.
            let _ = tch::no_grad(|| factor.f_add_scalar_(1.0))?;
        }
        let outcome = tape.backward(&loss);
        if fails {
            assert_eq!(outcome.is_err(), world.rank() == 0, "{outcome:?}");
        } else {
            let error = outcome.expect_err("on all ranks").to_string();
            assert!(error.contains("an earlier backward pass has failed on this rank"), "{error}");
            assert!(error.contains(&format!("made by duplicate at {}:", file!())), "{error}");
        }
    }
    works(world)
}

/// As large as they wait for their receivers, and dropped before these are.
fn dropped_messages_of_any_size(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (right, left) = neighbours(&tape);
    for count in [1, 200_000] {
        let x = zeros(&[count]).set_requires_grad(true);
        drop(tape.isend(&x, right, 0)?);
        let y = tape.irecv(&x, left, 0)?.wait()?;
        let gradient = tape.grad(&y.sum(Kind::Double), &[&x])?.remove(0);
        assert_eq!(value(&gradient), count as f64);
    }
    // The tape is dropped, and with it what nobody has waited for.
    let before = testing::live_pullbacks();
    let x = number(&tape, 1.0);
    let receive = tape.irecv(&x, left, 0)?;
    drop(tape.isend(&x, right, 0)?);
    drop(receive);
    drop(tape);
    assert_freed(before, "the graph");
    works(&context.world)
}
