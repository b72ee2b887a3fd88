//! What would lose a gradient, or leave ranks waiting, is an error where it can be known.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use harness::Test;
use mpi4tch::{Communicator, Error, Op, Result, Source, TagMatch};
use tch::{Kind, Tensor};

use super::{Context, assert_close, error_of, leaf, variable, works};
use crate::common::ring::neighbours;

pub fn tests() -> Vec<Test<Context>> {
    harness::tests![
        errors_and_panics,
        other_outputs_in_the_second_run,
        other_calls_in_the_second_run,
        other_checkpoints_on_other_ranks,
        other_steps_on_other_ranks,
        messages_that_cross_the_border,
        communicators_of_another_tape,
        messages_on_no_tape,
        other_arguments_in_the_second_run,
        another_communicator_in_the_second_run,
        requests_that_outlive_their_checkpoint,
        outputs_that_are_inputs,
        outputs_that_are_captured,
        captured_graphs,
        results_that_are_no_inputs,
        passes_in_a_checkpoint,
        passes_that_are_not_the_tapes,
        a_tape_that_was_dropped,
        undefined_tensors,
        changes_in_place,
    ]
}

/// A function that does something else from its second run on.
fn changing(
    comm: &Communicator,
    f: fn(&Communicator, bool, &Tensor) -> Result<Vec<Tensor>>,
) -> impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static {
    let (comm, runs) = (comm.clone(), AtomicUsize::new(0));
    move |x| f(&comm, runs.fetch_add(1, Ordering::Relaxed) > 0, &x[0])
}

fn errors_and_panics(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    let failed = || Error::Argument { call: "f", message: "it failed".to_owned() };
    let error = error_of(tape.checkpoint(&[&x], move |_| Err(failed())));
    assert_eq!(error, "f: it failed");
    let error = error_of(tape.checkpoint(&[&x], |_| panic!("too bad")));
    assert_eq!(error, "Tape::checkpoint: the function panicked: too bad");
    let text = |again: &str| format!("Tape::backward: backward of Tape::checkpoint: {again}");
    let f = changing(&tape, |comm, is_again, x| {
        let y = comm.all_reduce(x, Op::Sum)?;
        if is_again {
            return Err(Error::Argument { call: "f", message: "it failed".to_owned() });
        }
        Ok(vec![y])
    });
    let y = tape.checkpoint(&[&x], f)?;
    assert_eq!(error_of(tape.backward(&y[0].sum(Kind::Double))), text("f: it failed"));
    let f = changing(&tape, |_, is_again, x| {
        assert!(!is_again, "too bad");
        Ok(vec![x.sin()])
    });
    let y = tape.checkpoint(&[&x], f)?;
    let expected = text("Tape::checkpoint: the function panicked: too bad");
    assert_eq!(error_of(tape.backward(&y[0].sum(Kind::Double))), expected);
    // The tape goes on.
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint(&[&x], move |x| Ok(vec![comm.all_reduce(&x[0], Op::Sum)?]))?;
    let gradient = tape.grad(&y[0].sum(Kind::Double), &[&x])?;
    assert_close(&gradient, &[x.ones_like() * f64::from(tape.size())]);
    works(context)
}

fn other_outputs_in_the_second_run(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    let f = changing(&tape, |_, is_again, x| {
        Ok(if is_again { vec![x.sin(), x.cos()] } else { vec![x.sin()] })
    });
    let y = tape.checkpoint(&[&x], f)?;
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    let expected = "in the backward pass the function returned 2 tensors, in its first run 1";
    assert!(error.ends_with(expected), "{error}");
    let f =
        changing(&tape, |_, is_again, x| Ok(vec![if is_again { x.repeat([2]) } else { x.sin() }]));
    let y = tape.checkpoint(&[&x], f)?;
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    let expected = "in the backward pass the function returned a tensor of kind Double and shape [4], \
                    in its first run of kind Double and shape [2]";
    assert!(error.ends_with(expected), "{error}");
    works(context)
}

fn other_calls_in_the_second_run(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    let f = changing(&tape, |comm, is_again, x| {
        let y = comm.all_reduce(x, Op::Sum)?;
        Ok(vec![if is_again { comm.broadcast(&y, 0)? } else { y }])
    });
    let y = tape.checkpoint(&[&x], f)?;
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    let start = "in the backward pass the function made other calls than in its first run: call 2, \
                 broadcast at tests/checkpoint/refusals.rs:";
    let end = ", is one more than the 1 call of the first run";
    assert!(error.contains(start) && error.ends_with(end), "{error}");
    let f = changing(&tape, |comm, is_again, x| {
        let y = comm.all_reduce(x, Op::Sum)?;
        Ok(vec![if is_again { comm.all_reduce(&y, Op::Sum)? } else { comm.broadcast(&y, 0)? }])
    });
    let y = tape.checkpoint(&[&x], f)?;
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    let (start, middle) =
        ("first run: call 2 is all_reduce at tests/", ", and was broadcast at tests/");
    assert!(error.contains(start) && error.contains(middle), "{error}");
    let f = changing(&tape, |comm, is_again, x| {
        let y = comm.all_reduce(x, Op::Sum)?;
        let y = comm.all_reduce(&y, Op::Sum)?;
        Ok(vec![if is_again { y } else { comm.broadcast(&y, 0)? }])
    });
    let y = tape.checkpoint(&[&x], f)?;
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    let expected = "first run: 2 calls, without call 3, broadcast at tests/checkpoint/refusals.rs:";
    assert!(error.contains(expected), "{error}");
    works(context)
}

/// The first rank makes both calls in one checkpoint, the others in two.
fn other_checkpoints_on_other_ranks(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    if tape.size() == 1 {
        return Ok(());
    }
    let x = variable(&tape, 2)?;
    let one = |comm: &Communicator, x: &Tensor| comm.all_reduce(&x.sin(), Op::Sum);
    let comm = Communicator::clone(&tape);
    let y = if tape.rank() == 0 {
        tape.checkpoint(&[&x], move |x| Ok(vec![one(&comm, &one(&comm, &x[0])?)?]))?
    } else {
        let other = comm.clone();
        let y = tape.checkpoint(&[&x], move |x| Ok(vec![one(&comm, &x[0])?]))?;
        tape.checkpoint(&[&y[0]], move |x| Ok(vec![one(&other, &x[0])?]))?
    };
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    assert!(error.starts_with("the ranks recorded different calls on the tape:"), "{error}");
    assert!(error.contains("all_reduce in checkpoint 1"), "{error}");
    assert!(error.contains("all_reduce in checkpoint 2"), "{error}");
    works(context)
}

fn other_steps_on_other_ranks(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    if tape.size() == 1 {
        return Ok(());
    }
    let x = variable(&tape, 2)?;
    let slots = if tape.rank() == 0 { 2 } else { 3 };
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint_steps(&[&x], 5, slots, move |_, x| {
        Ok(vec![comm.all_reduce(&x[0].sin(), Op::Sum)?])
    })?;
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    assert!(error.contains("in checkpoint 1 of 5 steps with 2 slots, step 0"), "{error}");
    assert!(error.contains("in checkpoint 1 of 5 steps with 3 slots, step 0"), "{error}");
    works(context)
}

/// A message is sent in a checkpoint and received outside; and the same the other way round, so that
/// there are as many sends as receives in checkpoints.
fn messages_that_cross_the_border(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (right, left) = neighbours(&tape);
    if tape.size() == 1 {
        return Ok(());
    }
    let x = variable(&tape, 2)?;
    let comm = Communicator::clone(&tape);
    if tape.rank() % 2 == 0 {
        let _ = tape.isend(&x, right, 2)?.wait()?;
    }
    let _ = tape.checkpoint(&[&x], move |x| {
        if comm.rank() % 2 == 0 {
            let _ = comm.isend(&x[0].sin(), right, 2)?.wait()?;
        } else {
            let _ = comm.recv(&x[0], left, 2)?;
        }
        Ok(Vec::new())
    })?;
    if tape.rank() % 2 == 1 {
        let _ = tape.recv(&x, left, 2)?;
    }
    let error = error_of(tape.backward(None));
    assert!(error.starts_with("the ranks recorded different calls on the tape:"), "{error}");
    assert!(error.contains("in checkpoint 1, message 2 of its tag"), "{error}");
    // With an odd number of ranks, two messages have been received by nobody.
    if tape.size() % 2 == 1 && tape.rank() == 0 {
        let _ = context.world.recv(&x.detach(), left, 2);
        let _ = context.world.recv(&x.detach(), left, 2);
    }
    works(context)
}

fn communicators_of_another_tape(context: &Context) -> Result<()> {
    let world = &context.world;
    let (tape, other) = (world.tape(), world.tape());
    let x = variable(&tape, 2)?;
    let comm = Communicator::clone(&other);
    let y = tape.checkpoint(&[&x], move |x| Ok(vec![comm.all_reduce(&x[0], Op::Sum)?]))?;
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    assert!(error.contains("all_reduce: called at tests/checkpoint/refusals.rs:"), "{error}");
    let expected =
        " on another tape, in a checkpoint; put its communicator on the checkpoint's tape";
    assert!(error.ends_with(expected), "{error}");
    works(context)
}

fn results_that_are_no_inputs(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    let sum = tape.all_reduce(&x, Op::Sum)?;
    let captured = Mutex::new(sum);
    let y = tape.checkpoint(&[&x], move |x| {
        Ok(vec![&x[0] * &*captured.lock().expect("nobody panicked")])
    })?;
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    let expected = "outside of a checkpoint that uses its result; give the result to the checkpoint as \
                    an input";
    assert!(error.starts_with("all_reduce: called at ") && error.ends_with(expected), "{error}");
    works(context)
}

fn passes_in_a_checkpoint(context: &Context) -> Result<()> {
    let tape = Arc::new(context.world.tape());
    let x = variable(&tape, 2)?;
    let inner = Arc::downgrade(&tape);
    let error = error_of(tape.checkpoint(&[&x], move |x| {
        inner.upgrade().expect("it is there").backward(&x[0].sum(Kind::Double))?;
        Ok(Vec::new())
    }));
    let expected = "Tape::backward: called in a checkpoint of the tape, whose calls it cannot go \
                    through yet";
    assert_eq!(error, expected);
    works(context)
}

fn passes_that_are_not_the_tapes(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint(&[&x], move |x| Ok(vec![comm.all_reduce(&x[0], Op::Sum)?]))?;
    let error = y[0].sum(Kind::Double).f_backward().expect_err("it is not the tape's").to_string();
    let expected = "on a tape, and reached by a backward pass that is not the tape's";
    assert!(error.contains(expected), "{error}");
    tape.backward(&y[0].sum(Kind::Double))?;
    works(context)
}

fn a_tape_that_was_dropped(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint(&[&x], move |x| Ok(vec![comm.all_reduce(&x[0], Op::Sum)?]))?;
    drop(tape);
    let error = y[0].sum(Kind::Double).f_backward().expect_err("the tape is gone").to_string();
    let expected = "the tape has been dropped, so the function cannot be run again";
    assert!(error.contains(expected), "{error}");
    works(context)
}

fn undefined_tensors(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let expected =
        "Tape::checkpoint: the tensor is undefined, like a gradient that was never computed";
    let error = error_of(tape.checkpoint(&[&Tensor::new()], |_| Ok(Vec::new())));
    assert_eq!(error, expected);
    let error = error_of(tape.checkpoint(&[], |_| Ok(vec![Tensor::new()])));
    assert_eq!(error, expected);
    let error =
        error_of(tape.checkpoint_steps(&[&Tensor::new()], 0, 1, |_, _| unreachable!("no step")));
    let expected =
        "Tape::checkpoint_steps: the tensor is undefined, like a gradient that was never computed";
    assert_eq!(error, expected);
    tape.backward(None)
}

fn changes_in_place(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    let error = error_of(tape.checkpoint_steps(&[&x], 2, 1, |_, x| {
        let _ = x[0].shallow_clone().g_add_scalar_(1.0);
        Ok(vec![x[0].sin()])
    }));
    let expected = "Tape::checkpoint_steps: the function changed input 0 in place, which it needs when \
                    it is run again";
    assert_eq!(error, expected);
    // After the first run it is libtorch's error.
    let y = leaf(&x);
    let z = &y + 0.0;
    let loss = tape.checkpoint(&[&z], |x| Ok(vec![x[0].sin()]))?.remove(0).sum(Kind::Double);
    let _ = z.shallow_clone().g_add_scalar_(1.0);
    let error = error_of(tape.backward(&loss));
    assert!(error.contains("modified by an inplace operation"), "{error}");
    works(context)
}

/// A message on no tape would be sent again in the backward pass, in the context of the program's own.
fn messages_on_no_tape(context: &Context) -> Result<()> {
    type Messages = fn(&Communicator) -> Result<()>;
    let calls: [(&str, Messages); 6] = [
        ("send", |comm| comm.send(&Tensor::from(7), neighbours(comm).0, 5).map(drop)),
        ("send", |comm| comm.isend(&Tensor::from(7), neighbours(comm).0, 5)?.wait().map(drop)),
        ("recv", |comm| comm.recv(&Tensor::from(7), neighbours(comm).1, 5).map(drop)),
        ("recv", |comm| comm.irecv(&Tensor::from(7), Source::Any, 5)?.wait().map(drop)),
        ("sendrecv", |comm| {
            let (right, left) = neighbours(comm);
            comm.sendrecv(&Tensor::from(7), right, &Tensor::from(7), left, 5).map(drop)
        }),
        ("probe", |comm| comm.probe(Source::Any, TagMatch::Any).map(drop)),
    ];
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    for (name, call) in calls {
        let comm = context.world.clone();
        let outcome = tape.checkpoint(&[&x], move |x| {
            call(&comm)?;
            Ok(vec![x[0].sin()])
        });
        let error = error_of(outcome);
        let start = format!("{name}: called at tests/checkpoint/refusals.rs:");
        let end = " on no tape, in a checkpoint; put its communicator on the checkpoint's tape";
        assert!(error.starts_with(&start) && error.ends_with(end), "{error}");
    }
    works(context)
}

/// A function that makes a call with other arguments in its second run.
fn other_arguments_in_the_second_run(context: &Context) -> Result<()> {
    type Calls = fn(&Communicator, bool, &Tensor) -> Result<Tensor>;
    let cases: [(&str, Calls); 9] = [
        ("all_reduce", |comm, again, x| comm.all_reduce(x, if again { Op::Sum } else { Op::Mean })),
        ("all_reduce", |comm, again, x| {
            let mut y = x * 1.0;
            comm.all_reduce_(&mut y, if again { Op::Sum } else { Op::Mean })?;
            Ok(y)
        }),
        ("broadcast", |comm, again, x| comm.broadcast(x, if again { 0 } else { comm.size() - 1 })),
        ("sendrecv", |comm, again, x| {
            let (right, left) = neighbours(comm);
            comm.sendrecv(x, right, x, left, if again { 3 } else { 4 })
        }),
        ("all_reduce", |comm, again, x| {
            let x = if again { x.repeat([2]) } else { x.shallow_clone() };
            Ok(comm.all_reduce(&x, Op::Sum)?.narrow(0, 0, 2))
        }),
        ("all_reduce", |comm, again, x| {
            let kind = if again { Kind::Float } else { Kind::Double };
            Ok(comm.all_reduce(&x.to_kind(kind), Op::Sum)?.to_kind(Kind::Double))
        }),
        ("recv", |comm, again, x| {
            let (right, left) = neighbours(comm);
            let sent = comm.isend(x, right, 3)?;
            let y = if again {
                comm.recv(x, left, 3)?
            } else {
                comm.irecv(x, left, TagMatch::Any)?.wait()?
            };
            sent.wait().map(|_| y)
        }),
        ("split", |comm, again, x| {
            let made = comm.split(Some(0), if again { comm.rank() } else { -comm.rank() - 1 })?;
            made.expect("all have a color").all_reduce(x, Op::Sum)
        }),
        ("all_gather", |comm, again, x| {
            let x = x.reshape([1, 2]);
            Ok(comm.all_gather(&x, i64::from(again))?.reshape([-1]).narrow(0, 0, 2))
        }),
    ];
    for (i, (name, calls)) in cases.into_iter().enumerate() {
        // Messages may be left on a communicator whose backward pass has failed.
        let tape = context.world.duplicate()?.tape();
        if name == "broadcast" && tape.size() == 1 {
            continue;
        }
        let x = variable(&tape, 2)?;
        let (comm, runs) = (Communicator::clone(&tape), AtomicUsize::new(0));
        let y = tape.checkpoint(&[&x], move |x| {
            let y = comm.all_reduce(&x[0], Op::Sum)?;
            Ok(vec![calls(&comm, runs.fetch_add(1, Ordering::Relaxed) > 0, &y)?])
        })?;
        let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
        let number = if name == "recv" { 3 } else { 2 };
        let start = format!(
            "in the backward pass the function made other calls than in its first run: call {number}, \
             {name} at tests/checkpoint/refusals.rs:"
        );
        let end = ", has other arguments or is on another communicator";
        assert!(error.contains(&start) && error.ends_with(end), "{i}: {error}");
    }
    works(context)
}

fn another_communicator_in_the_second_run(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 2)?;
    let (one, other) = (Communicator::clone(&tape), tape.duplicate()?);
    let runs = AtomicUsize::new(0);
    let y = tape.checkpoint(&[&x], move |x| {
        let is_again = runs.fetch_add(1, Ordering::Relaxed) > 0;
        let comm = if is_again { &other } else { &one };
        Ok(vec![comm.all_reduce(&x[0], Op::Sum)?])
    })?;
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    let end = ", has other arguments or is on another communicator";
    assert!(error.ends_with(end), "{error}");
    // One that is made in the checkpoint is another one in each run, and no error.
    let x = variable(&tape, 2)?;
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint_steps(&[&x], 4, 2, move |_, x| {
        Ok(vec![comm.duplicate()?.all_reduce(&x[0], Op::Mean)?])
    })?;
    tape.backward(&y[0].sum(Kind::Double))?;
    assert_close(&[x.grad()], &[x.ones_like()]);
    works(context)
}

/// The result of a request that is waited for after the run that has started it has no graph.
fn requests_that_outlive_their_checkpoint(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    for is_on_tape in [true, false] {
        let x = variable(&tape, 2)?;
        let comm = if is_on_tape { Communicator::clone(&tape) } else { context.world.clone() };
        let request = Arc::new(Mutex::new(None));
        let kept = Arc::clone(&request);
        let y = tape.checkpoint(&[&x], move |x| {
            let request = comm.iall_reduce(&x[0].square(), Op::Mean)?;
            *kept.lock().expect("nobody panicked") = Some(request);
            Ok(vec![x[0].sin()])
        })?;
        let request = request.lock().expect("nobody panicked").take().expect("it is there");
        let error = error_of(request.wait());
        let start = "all_reduce: started at tests/checkpoint/refusals.rs:";
        let end = " in a checkpoint that has ended; wait for it there, and return its result as an \
                   output";
        assert!(error.starts_with(start) && error.ends_with(end), "{error}");
        tape.backward(&y[0].sum(Kind::Double))?;
        assert_close(&[x.grad()], &[x.detach().cos()]);
    }
    works(context)
}

/// A change of an output must not change an input, or another output.
fn outputs_that_are_inputs(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 3)?;
    let before = x.detach().copy();
    let outputs = tape.checkpoint(&[&x], |x| {
        let y = x[0].sin();
        Ok(vec![x[0].shallow_clone(), x[0].narrow(0, 0, 2), y.shallow_clone(), y])
    })?;
    for y in &outputs[..3] {
        let _ = tch::no_grad(|| y.shallow_clone().fill_(9.0));
    }
    assert_close(&[x.detach(), outputs[3].detach()], &[before.shallow_clone(), before.sin()]);
    tape.backward(&outputs[3].sum(Kind::Double))?;
    assert_close(&[x.grad()], &[before.cos()]);
    works(context)
}

fn outputs_that_are_captured(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 3)?;
    let base = x.detach().exp();
    let before = base.copy();
    let captured = base.shallow_clone();
    let place = Arc::new(AtomicUsize::new(0));
    let noted = Arc::clone(&place);
    let outputs = tape.checkpoint(&[&x], move |x| {
        let y = &x[0] * &captured;
        noted.store(y.data_ptr().addr(), Ordering::Relaxed);
        Ok(vec![captured.shallow_clone(), captured.narrow(0, 0, 2), y])
    })?;
    assert_eq!(
        outputs[2].data_ptr().addr(),
        place.load(Ordering::Relaxed),
        "others are not copied"
    );
    for y in &outputs[..2] {
        let _ = tch::no_grad(|| y.shallow_clone().fill_(9.0));
    }
    tape.backward(&outputs[2].sum(Kind::Double))?;
    assert_close(&[base, x.grad()], &[before.shallow_clone(), before]);
    works(context)
}

/// A captured tensor with a graph of its own, which the pass of the checkpoint frees.
fn captured_graphs(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (w, x) = (variable(&tape, 2)?, variable(&tape, 2)?);
    let expected = "a checkpoint frees the graph of a tensor that its function has captured; make the \
                    tensor an input";
    let square = w.square();
    let captured = Mutex::new(square.shallow_clone());
    let y = tape.checkpoint(&[&x], move |x| {
        Ok(vec![&x[0] * &*captured.lock().expect("nobody panicked")])
    })?;
    let error = error_of(tape.backward(&(&y[0] * &square).sum(Kind::Double)));
    assert!(error.contains("a second time") && error.contains(expected), "{error}");
    let captured = Mutex::new(w.square());
    let y = tape.checkpoint_steps(&[&x], 3, 2, move |_, x| {
        Ok(vec![&x[0] * &*captured.lock().expect("nobody panicked")])
    })?;
    let error = error_of(tape.backward(&y[0].sum(Kind::Double)));
    assert!(error.contains("a second time") && error.contains(expected), "{error}");
    works(context)
}
