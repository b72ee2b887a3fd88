//! The gradients are those of the same program without a checkpoint.

use std::sync::{Arc, Mutex};

use harness::Test;
use mpi4tch::{Communicator, Op, Result, Tape, testing};
use tch::{Kind, Tensor, no_grad};

use super::{Context, Function, assert_close, error_of, gradient, gradients_of, leaf, variable};
use crate::common::assert_freed;
use crate::common::passes::{CREATE_GRAPH, KEEP_GRAPH};
use crate::common::ring::neighbours;
use crate::common::tensors::tensor;

pub fn tests() -> Vec<Test<Context>> {
    harness::tests![
        each_function,
        losses_and_inputs_on_some_ranks,
        no_input_requires_grad,
        kinds_without_gradients,
        second_derivatives,
        passes_that_keep_the_graph,
        two_passes_in_a_row,
        captured_variables,
        nested,
        two_communicators,
        without_grad,
        the_graph_is_freed,
    ]
}

fn collectives(comm: &Communicator, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let sum = comm.all_reduce(&x[0].sin(), Op::Sum)?;
    let most = comm.all_reduce(&(&x[0] * &x[1]), Op::Max)?;
    let all = comm.all_gather(&(&sum * &x[1]), 0)?;
    let scan = comm.scan(&(most + all.sum(Kind::Double)), Op::Sum)?;
    Ok(vec![scan, sum.square()])
}

fn messages(comm: &Communicator, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let (right, left) = neighbours(comm);
    let y = comm.sendrecv(&x[0].exp(), right, &x[0], left, 3)?;
    let y = comm.sendrecv(&(y * &x[1]), left, &x[0], right, 3)?;
    Ok(vec![y.sin()])
}

fn started(comm: &Communicator, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let (right, left) = neighbours(comm);
    let receive = comm.irecv(&x[0], left, 5)?;
    let send = comm.isend(&x[0].sin(), right, 5)?;
    let sum = comm.iall_reduce(&x[1].exp(), Op::Sum)?;
    let y = receive.wait()? * 2.0;
    let _ = send.wait()?;
    // One that nobody waits for.
    drop(comm.isend(&x[0], right, 6)?);
    let _ = comm.recv(&x[0], left, 6)?;
    Ok(vec![y.square() * sum.wait()?])
}

fn custom(comm: &Communicator, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let y = no_grad(|| comm.all_reduce(&x[0].exp(), Op::Sum))?;
    let y = comm.custom("exponentials", &[&x[0]], &[&y], &[&x[0]], |comm, saved, cotangents| {
        let total = comm.all_reduce(&cotangents[0], Op::Sum)?;
        Ok(vec![Some(saved[0].exp() * total)])
    })?;
    Ok(vec![&y[0] * &x[1]])
}

fn in_place(comm: &Communicator, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let mut y = &x[0] * &x[1];
    comm.all_reduce_(&mut y, Op::Sum)?;
    Ok(vec![y.sin()])
}

fn makes_communicators(comm: &Communicator, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let half = comm.split(Some(comm.rank() % 2), 0)?.expect("each rank has a color");
    let (right, left) = neighbours(&half);
    let y = half.sendrecv(&x[0].sin(), right, &x[0], left, 3)?;
    Ok(vec![half.all_reduce(&(y * &x[1]), Op::Sum)?])
}

/// No output depends on what is communicated.
fn dead(comm: &Communicator, x: &[Tensor]) -> Result<Vec<Tensor>> {
    let _ = comm.all_reduce(&x[0], Op::Sum)?;
    let _ = messages(comm, x)?;
    Ok(vec![x[1].shallow_clone(), x[0].sin()])
}

pub const FUNCTIONS: [(&str, Function); 7] = [
    ("collectives", collectives),
    ("messages", messages),
    ("started", started),
    ("custom", custom),
    ("in_place", in_place),
    ("makes_communicators", makes_communicators),
    ("dead", dead),
];

fn sum(y: &[Tensor]) -> Tensor {
    y.iter().map(|y| y.sin().sum(Kind::Double)).sum()
}

fn each_function(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    for (name, f) in FUNCTIONS {
        println!("{name}");
        let inputs = [variable(&tape, 3)?, variable(&tape, 3)?];
        let loss =
            |comm: &Communicator, y: &[Tensor]| Ok(Some(comm.all_reduce(&sum(y), Op::Sum)?.sin()));
        let expected = gradients_of(&tape, &inputs, loss, f, false)?;
        assert_close(&gradients_of(&tape, &inputs, loss, f, true)?, &expected);
    }
    Ok(())
}

fn losses_and_inputs_on_some_ranks(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    for (name, f) in FUNCTIONS {
        for some in 0..tape.size().min(2) {
            println!("{name} {some}");
            let x = variable(&tape, 3)?;
            let x = if tape.rank() == some { x } else { x.detach() };
            let inputs = [x, testing::random(&tape, &[3], Kind::Double)?];
            let last = tape.size() - 1;
            let loss =
                |comm: &Communicator, y: &[Tensor]| Ok((comm.rank() == last).then(|| sum(y)));
            let expected = gradients_of(&tape, &inputs, loss, f, false)?;
            assert_close(&gradients_of(&tape, &inputs, loss, f, true)?, &expected);
        }
    }
    Ok(())
}

/// The function still communicates, on all ranks.
fn no_input_requires_grad(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = testing::random(&tape, &[3], Kind::Double)?;
    let v = variable(&tape, 3)?;
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint(&[&x], move |x| {
        Ok(vec![comm.all_reduce(&x[0], Op::Sum)?, x[0].shallow_clone()])
    })?;
    let sum = tape.all_reduce(&v, Op::Sum)?;
    // Only rank 0 uses what came of it.
    let loss =
        if tape.rank() == 0 { (&y[0] * &sum).sum(Kind::Double) } else { sum.sum(Kind::Double) };
    tape.backward(&loss)?;
    let expected = tape.all_reduce(&x, Op::Sum)? + f64::from(tape.size() - 1);
    let expected = tape.broadcast(&expected, 0)?;
    assert_close(&[v.grad()], &[expected]);
    Ok(())
}

fn kinds_without_gradients(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 3)?;
    let n = tensor(&[2_i64, 3, 4]);
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint(&[&n, &x], move |x| {
        let total = comm.all_reduce(&x[0], Op::Sum)?;
        let y = &x[1] * &total;
        let is_positive = y.gt(0.0);
        Ok(vec![total, y, is_positive])
    })?;
    assert!(!y[0].requires_grad() && !y[2].requires_grad());
    assert_eq!(y[0], &n * i64::from(tape.size()));
    tape.backward(&y[1].sum(Kind::Double))?;
    assert_close(&[x.grad()], &[(&n * i64::from(tape.size())).to_kind(Kind::Double)]);
    Ok(())
}

fn second_derivatives(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    for (name, f) in FUNCTIONS {
        println!("{name}");
        let (x, y) = (variable(&tape, 3)?, variable(&tape, 3)?);
        let second = |in_checkpoint: bool| -> Result<Vec<Tensor>> {
            let inputs = [leaf(&x), leaf(&y)];
            let both: Vec<&Tensor> = inputs.iter().collect();
            let outputs = if in_checkpoint {
                let comm = Communicator::clone(&tape);
                tape.checkpoint(&both, move |x| f(&comm, x))?
            } else {
                f(&tape, &inputs)?
            };
            // Only the last rank has a loss of the first pass, only the first one of the second.
            let (last, first) = (tape.size() - 1, 0);
            let loss = (tape.rank() == last).then(|| sum(&outputs));
            let gradients = tape.grad_with(loss.as_ref(), &both, CREATE_GRAPH)?;
            let loss = (tape.rank() == first).then(|| sum(&gradients));
            tape.grad(loss.as_ref(), &both)
        };
        assert_close(&second(true)?, &second(false)?);
    }
    let x = testing::random(&tape, &[2], Kind::Double)? * 0.5;
    testing::gradgradcheck(&tape, &x, |x| {
        let comm = Communicator::clone(&tape);
        Ok(tape.checkpoint(&[x, &x.cos()], move |x| messages(&comm, x))?.remove(0))
    })
}

fn passes_that_keep_the_graph(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 3)?;
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint(&[&x, &x], move |x| messages(&comm, x))?;
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint_steps(&[&y[0]], 7, 3, move |_, x| {
        Ok(vec![comm.all_reduce(&x[0].sin(), Op::Mean)?])
    })?;
    let loss = y[0].sin().sum(Kind::Double);
    tape.backward_with(&loss, KEEP_GRAPH)?;
    let once = x.grad().copy();
    tape.backward_with(&loss, KEEP_GRAPH)?;
    tape.backward(&loss)?;
    assert_close(&[x.grad()], &[once * 3.0]);
    Ok(())
}

fn two_passes_in_a_row(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let loss = |_: &Communicator, y: &[Tensor]| Ok(Some(sum(y)));
    let inputs = [variable(&tape, 3)?, variable(&tape, 3)?];
    let first = gradients_of(&tape, &inputs, loss, messages, true)?;
    assert_close(&gradients_of(&tape, &inputs, loss, messages, true)?, &first);
    assert_close(&gradients_of(&tape, &inputs, loss, messages, false)?, &first);
    Ok(())
}

fn captured_variables(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (x, w) = (variable(&tape, 3)?, variable(&tape, 3)?);
    let run = |tape: &Tape, w: &Tensor| {
        let (comm, w) = (Communicator::clone(tape), Mutex::new(w.shallow_clone()));
        tape.checkpoint(&[&x], move |x| {
            let w = w.lock().expect("nobody panicked");
            Ok(vec![comm.all_reduce(&(&x[0] * w.square()), Op::Sum)?])
        })
    };
    let loss = sum(&run(&tape, &w)?);
    tape.backward(&loss)?;
    let expected = {
        let (x, w) = (leaf(&x), leaf(&w));
        let y = tape.all_reduce(&(&x * w.square()), Op::Sum)?;
        tape.backward(&sum(&[y]))?;
        [x.grad(), w.grad()]
    };
    assert_close(&[x.grad(), w.grad()], &expected);
    // Through what was computed of it before, too.
    let v = leaf(&w);
    let loss = sum(&run(&tape, &(&v + 0.0))?);
    tape.backward(&loss)?;
    assert_close(&[v.grad()], &expected[1..]);
    let message = "the function uses a tensor that requires grad and is none of its inputs: such a \
                   tensor gets its gradient by `backward` without create_graph; make it an input";
    let loss = sum(&run(&tape, &w)?);
    let error = error_of(tape.grad(&loss, &[&x, &w]));
    assert!(error.contains(message), "{error}");
    let loss = sum(&run(&tape, &w)?);
    let error = error_of(tape.backward_with(&loss, CREATE_GRAPH));
    assert!(error.contains(message), "{error}");
    // One that does not require grad is no variable.
    let loss = sum(&run(&tape, &w.detach())?);
    assert_close(&tape.grad(&loss, &[&x])?, &expected[..1]);
    Ok(())
}

fn nested(context: &Context) -> Result<()> {
    let tape = Arc::new(context.world.tape());
    let run = |depth: usize, x: &Tensor| -> Result<Tensor> {
        fn part(tape: &Arc<Tape>, depth: usize, x: &Tensor) -> Result<Tensor> {
            let y = tape.all_reduce(&x.sin(), Op::Mean)?;
            let y = messages(tape, &[y.sin(), x.shallow_clone()])?.remove(0);
            if depth == 0 {
                return Ok(y);
            }
            let inner = Arc::downgrade(tape);
            let y = tape.checkpoint(&[&y], move |x| {
                let tape = inner.upgrade().expect("the tape is there");
                Ok(vec![part(&tape, depth - 1, &x[0])?])
            })?;
            let inner = Arc::downgrade(tape);
            let y = tape.checkpoint_steps(&[&y[0]], 3, 2, move |_, x| {
                let tape = inner.upgrade().expect("the tape is there");
                Ok(vec![part(&tape, depth - 1, &x[0])?])
            })?;
            Ok(tape.all_reduce(&(&y[0] * x), Op::Mean)?.sin())
        }
        part(&tape, depth, x)
    };
    let plain = |tape: &Tape, x: &Tensor| -> Result<Tensor> {
        fn part(tape: &Tape, depth: usize, x: &Tensor) -> Result<Tensor> {
            let y = tape.all_reduce(&x.sin(), Op::Mean)?;
            let mut y = messages(tape, &[y.sin(), x.shallow_clone()])?.remove(0);
            if depth > 0 {
                for _ in 0..4 {
                    y = part(tape, depth - 1, &y)?;
                }
                y = tape.all_reduce(&(y * x), Op::Mean)?.sin();
            }
            Ok(y)
        }
        part(tape, 2, x)
    };
    let x = variable(&tape, 2)?;
    let other = leaf(&x);
    let (y, expected) = (run(2, &x)?, plain(&tape, &other)?);
    assert_close(&[y.detach()], &[expected.detach()]);
    tape.backward(&(y.sum(Kind::Double) + expected.sum(Kind::Double)))?;
    assert_close(&[gradient(&x)], &[gradient(&other)]);
    testing::gradgradcheck(&tape, &(x.detach() * 0.5), |x| run(1, x))
}

fn two_communicators(context: &Context) -> Result<()> {
    let world = &context.world;
    let pair = world.split(Some(world.rank() / 2), 0)?.expect("each rank has a color");
    let tape = world.tape();
    let pair = tape.on(&pair)?;
    let f = move |comm: &Communicator, pair: &Communicator, x: &Tensor| -> Result<Tensor> {
        let y = messages(pair, &[x.sin(), x.cos()])?.remove(0);
        let y = messages(comm, &[y, x.shallow_clone()])?.remove(0);
        let y = pair.all_reduce(&y, Op::Sum)?;
        // Only some ranks communicate here.
        let y = if comm.rank() < 2 { pair.all_reduce(&y.sin(), Op::Sum)? } else { y };
        comm.all_reduce(&y, Op::Mean)
    };
    let x = variable(&tape, 3)?;
    let y = f(&tape, &pair, &x)?;
    tape.backward(&y.sin().sum(Kind::Double))?;
    let other = leaf(&x);
    let (comm, of_pair) = (Communicator::clone(&tape), pair.clone());
    let y = tape.checkpoint(&[&other], move |x| Ok(vec![f(&comm, &of_pair, &x[0])?]))?;
    tape.backward(&y[0].sin().sum(Kind::Double))?;
    assert_close(&[other.grad()], &[x.grad()]);
    // On a communicator that the other ranks have dropped.
    let spare = world.split(Some(world.rank() / 2), 0)?.expect("each rank has a color");
    let spare = if spare.rank() == 0 && spare.size() == 2 { Some(tape.on(&spare)?) } else { None };
    let y = tape.checkpoint(&[&other], move |x| match &spare {
        Some(spare) => Ok(vec![spare.sendrecv(&x[0], 0, &x[0], 0, 1)?]),
        None => Ok(vec![x[0].shallow_clone()]),
    })?;
    let gradient = tape.grad(&y[0].sum(Kind::Double), &[&other])?;
    assert_close(&gradient, &[other.ones_like()]);
    Ok(())
}

fn without_grad(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 3)?;
    let comm = Communicator::clone(&tape);
    let y =
        no_grad(|| tape.checkpoint(&[&x], move |x| messages(&comm, &[x[0].sin(), x[0].cos()])))?;
    assert!(!y[0].requires_grad());
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint(&[&x], move |x| {
        // What is done without grad has no derivative, and is done again.
        let constant = no_grad(|| messages(&comm, &[x[0].sin(), x[0].cos()]))?.remove(0);
        let most = no_grad(|| comm.all_reduce(&constant, Op::Max))?;
        Ok(vec![comm.all_reduce(&(&x[0] * (constant + most)), Op::Sum)?])
    })?;
    tape.backward(&y[0].sum(Kind::Double))?;
    let constant = messages(&context.world, &[x.detach().sin(), x.detach().cos()])?.remove(0);
    let most = context.world.all_reduce(&constant, Op::Max)?;
    assert_close(&[x.grad()], &[(constant + most) * f64::from(tape.size())]);
    Ok(())
}

fn the_graph_is_freed(context: &Context) -> Result<()> {
    let before = testing::live_pullbacks();
    let tape = context.world.tape();
    for _ in 0..3 {
        let x = variable(&tape, 3)?;
        let comm = Communicator::clone(&tape);
        let y = tape.checkpoint(&[&x, &x], move |x| started(&comm, x))?;
        // The token's node and the checkpoint's.
        assert!(testing::live_pullbacks() <= before + 2);
        tape.backward(&y[0].sum(Kind::Double))?;
    }
    let x = variable(&tape, 3)?;
    let comm = Communicator::clone(&tape);
    let y = tape.checkpoint(&[&x, &x], move |x| collectives(&comm, x))?;
    let gradients = tape.grad_with(&sum(&y), &[&x], CREATE_GRAPH)?;
    drop((y, gradients, x, tape));
    assert_freed(before, "the graph");
    Ok(())
}
