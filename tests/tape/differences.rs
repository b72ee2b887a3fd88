//! Ranks whose tapes differ, or that ask for different passes: every rank gets the same error.

use crate::common::passes::CREATE_GRAPH;
use mpi4tch::{Communicator, Error, Op, PassOptions, Result};
use tch::{Kind, Tensor};

use crate::common::Context;
use crate::common::ring::neighbours;
use crate::common::tensors::{tensor, zeros};
use crate::{number, same_everywhere, tape_error};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        a_call_more_on_one_rank,
        another_call_on_one_rank,
        a_send_that_nobody_receives,
        a_message_that_is_refused,
        waits_in_different_order,
        bad_arguments_are_refused_on_all_ranks,
        bad_cotangents_are_refused_on_all_ranks,
        options_that_differ,
        what_the_ranks_have_not_agreed_on,
        calls_that_are_on_different_tapes,
    ]
}

fn a_call_more_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let tape = world.tape();
    let x = number(world, 1.0);
    let y = tape.all_reduce(&x, Op::Sum)?;
    let mut line = 0;
    let request = if world.rank() == 1 {
        line = line!() + 1;
        Some(tape.isend(&x, 1, 5)?)
    } else {
        None
    };
    let text = tape_error(tape.backward(&y.sum(Kind::Double)));
    let line = world.broadcast(&tensor(&[i64::from(line)]), 1)?;
    let line = i64::try_from(line).expect("one number");
    assert_eq!(
        text,
        format!(
            "\n  send at {}:{line}:19 on rank 1, to rank 1 with tag 5: not received on the tape",
            file!()
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
    let x = number(world, 1.0);
    // All make the call, and one of them on the tape.
    let comm: &Communicator = if world.rank() == 1 { &tape } else { world };
    let y = comm.all_reduce(&x, Op::Sum)?;
    let text = tape_error(tape.backward(&y.sum(Kind::Double)));
    assert!(text.contains("call 1 of all ranks: nothing on rank"), "{text}");
    assert!(text.contains(concat!("all_reduce at ", file!(), ":")), "{text}");
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
    let (right, left) = neighbours(world);
    let x = number(world, 1.0);
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
    let (right, left) = neighbours(world);
    let x = number(world, 1.0);
    let receive = tape.irecv(&zeros(&[2]), left, 1)?;
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
    let x = number(&tape, 1.0);
    let (a, b) = (tape.iall_reduce(&x, Op::Sum)?, tape.iall_reduce(&(&x * 2.0), Op::Sum)?);
    let (first, second) = if tape.rank() == 0 { (a, b) } else { (b, a) };
    let y = first.wait()? + second.wait()?;
    let text = tape_error(tape.backward(&y.sum(Kind::Double)));
    assert!(text.contains("call 3 of all ranks: "), "{text}");
    same_everywhere(&context.world, &text)
}

fn bad_arguments_are_refused_on_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let x = tensor(&[1.0, 2.0]).set_requires_grad(true);
    let y = tape.all_reduce(&x, Op::Sum)?;
    let bad = if world.rank() == 0 { &y } else { &y.sum(Kind::Double) };
    let error = tape.backward(bad).expect_err("the loss has two elements").to_string();
    if world.rank() == 0 {
        assert_eq!(error, "Tape::backward: the loss has shape [2]; one element is needed");
    } else {
        assert!(error.contains("refused: Tape::backward: the loss has shape [2]"), "{error}");
    }
    let loss = y.sum(Kind::Double);
    // libtorch would go back from the real part of a complex one.
    let complex = Tensor::complex(&loss, &loss);
    let bad = if world.rank() == 0 { &complex } else { &loss };
    for error in [tape.backward(bad).err(), tape.grad(Some(bad), &[&x]).err()] {
        let error = error.expect("the loss is complex").to_string();
        let expected = "the loss is of kind ComplexDouble; a real kind is needed";
        assert!(error.contains(expected), "{error}");
        assert_eq!(error.starts_with("Tape::"), world.rank() == 0, "{error}");
    }
    let constant = tensor(&[1.0]);
    let inputs = if world.rank() == 0 { [&constant] } else { [&x] };
    let error = tape.grad(Some(&loss), &inputs).expect_err("the input is a constant").to_string();
    assert!(error.contains("Tape::grad: input 0 does not require grad"), "{error}");
    tape.backward(&loss)?;
    assert_eq!(x.grad(), x.full_like(f64::from(world.size())).detach());
    Ok(())
}

fn bad_cotangents_are_refused_on_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let x = number(world, 1.0);
    let y = tape.all_reduce(&x, Op::Sum)?;
    let good = y.ones_like();
    let (long, single, none) = (zeros(&[2]), good.to_kind(Kind::Float), Tensor::new());
    let cases = [
        (&long, "but its cotangent of kind Double and shape [2]"),
        (&single, "but its cotangent of kind Float and shape [1]"),
        (&none, "output 0 or its cotangent is undefined"),
    ];
    for (bad, expected) in cases {
        let last = world.rank() == world.size() - 1;
        let outputs = [(&y, if last { bad } else { &good })];
        let error = tape.vjp(&outputs, &[&x], PassOptions::default()).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.to_string().starts_with("Tape::vjp: "), last, "{error}");
    }
    let gradient = tape.vjp(&[(&y, &good)], &[&x], PassOptions::default())?.remove(0);
    assert_eq!(gradient, good * f64::from(world.size()));
    Ok(())
}

fn options_that_differ(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    if tape.size() == 1 {
        return Ok(());
    }
    let x = number(&tape, 1.0);
    let y = tape.all_reduce(&x, Op::Sum)?.sum(Kind::Double);
    let result = tape
        .backward_with(&y, if tape.rank() == 0 { CREATE_GRAPH } else { PassOptions::default() });
    let error = result.expect_err("the options differ").to_string();
    assert!(
        error.contains(
            "operation: Tape::backward with create_graph on rank 0; Tape::backward on rank"
        ),
        "{error}"
    );
    tape.backward(&y)
}

/// Calls that were started with different sizes, whose error nobody has waited for: going back through
/// them would overrun the smaller one's memory.
fn what_the_ranks_have_not_agreed_on(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    for forget in [false, true] {
        let tape = world.tape();
        let count = if world.rank() == 0 { 16 } else { 200_000 };
        let x = zeros(&[count]).set_requires_grad(true);
        let request = tape.iall_reduce(&x, Op::Sum)?;
        if forget {
            std::mem::forget(request);
        } else {
            drop(request);
        }
        let text = tape_error(tape.backward(None));
        assert!(text.starts_with("\n  call 1 of all ranks: all_reduce at "), "{text}");
        assert!(text.ends_with(", which the ranks have not agreed on"), "{text}");
        same_everywhere(world, &text)?;
    }
    Ok(())
}

/// In the same order on all ranks, but not on the same tapes.
fn calls_that_are_on_different_tapes(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let (mut first, mut second) = (world.tape(), world.tape());
    if world.rank() == 0 {
        std::mem::swap(&mut first, &mut second);
    }
    let (few, many) = (zeros(&[16]).set_requires_grad(true), zeros(&[200_000]));
    let small = first.iall_reduce(&few, Op::Sum)?;
    let large = second.iall_reduce(&many.set_requires_grad(true), Op::Sum)?;
    let _ = mpi4tch::wait_all([small, large])?;
    if world.rank() == 0 {
        std::mem::swap(&mut first, &mut second);
    }
    let text = tape_error(first.backward(None));
    assert!(text.contains("call 1 of all ranks: all_reduce at "), "{text}");
    Ok(())
}
