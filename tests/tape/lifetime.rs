//! How long the graph is there: for more passes than one if it is kept, no longer otherwise.

use mpi4tch::{Communicator, Error, Op, Result, Tape, testing};
use tch::{Device, Kind, Tensor};

use crate::common::Context;
use crate::common::ring::neighbours;
use crate::{number, value};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        keeping_the_graph,
        requests_that_outlive_the_pass,
        results_that_outlive_the_pass,
        passes_that_fail,
        a_pass_that_another_tape_went_through,
        the_graph_is_freed,
    ]
}

fn keeping_the_graph(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = number(&tape, 1.0);
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
        only_rank_0_fails(&tape, tape.backward_with(&loss, false, create_graph));
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
        let result = tape.backward_with(&y.sum(Kind::Double), false, create_graph);
        assert!(matches!(result, Err(Error::Autograd { .. })), "{result:?}");
        goes_on(&tape)?;
    }
    Ok(())
}

fn a_pass_that_another_tape_went_through(context: &Context) -> Result<()> {
    let (first, second) = (context.world.tape(), context.world.tape());
    let x = number(&first, 1.0);
    let y = first.all_reduce(&(&x * &x), Op::Max)?;
    let z = second.all_reduce(&y.exp(), Op::Sum)?;
    second.backward(&z.sum(Kind::Double))?;
    let error = first.backward(None).expect_err("there is nothing left of it").to_string();
    let line = concat!("\nall_reduce at ", file!(), ":");
    assert!(error.contains(line), "{error}");
    assert!(error.ends_with("by a backward pass that was not the tape's"), "{error}");
    goes_on(&first)?;
    goes_on(&second)
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
