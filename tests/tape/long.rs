//! Tapes of many operations: the stack does not grow with their number, and the memory in proportion.

use std::thread;

use crate::common::device;
use crate::common::memory::{assert_flat, growth};
use crate::common::passes::CREATE_GRAPH;
use crate::common::ring::neighbours;
use mpi4tch::{Communicator, Op, PROC_NULL, Result, wait_all};
use tch::{Kind, Tensor};

use crate::common::{Context, works};
use crate::number;

const MANY: usize = 20_000;

/// Too small for a recursion that takes 30 bytes for each operation.
const STACK: usize = 512 << 10;

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        the_stack_does_not_grow,
        the_stack_does_not_grow_with_derivatives,
        the_memory_of_an_operation_does_not_grow,
        many_steps_take_no_memory,
    ]
}

/// Operations that wait for no other rank, so that many take little time.
const OPERATIONS: [(&str, Operation); 5] = [
    ("all_reduce", |own, x| own.all_reduce(x, Op::Sum)),
    ("all_reduce that saves its input", |own, x| own.all_reduce(x, Op::Max)),
    ("iall_reduce", |own, x| own.iall_reduce(x, Op::Sum)?.wait()),
    ("send", |own, x| own.send(x, PROC_NULL, 0)),
    ("messages", |own, x| Ok(wait_all([own.irecv(x, 0, 0)?, own.isend(x, 0, 0)?])?.swap_remove(0))),
];

type Operation = fn(&Communicator, &Tensor) -> Result<Tensor>;

/// A chain of operations.
fn chain(comm: &Communicator, x: &Tensor, count: usize, operation: Operation) -> Result<Tensor> {
    (0..count).try_fold(x.shallow_clone(), |y, _| operation(comm, &y))
}

/// Whether more ranks show nothing new, as those that are alone do the same on each: such tests run on one
/// and two ranks only, since more would share the cores.
fn have_fewer_shown_it(context: &Context) -> bool {
    context.world.size() > 2
}

/// This rank alone.
fn own() -> Result<Communicator> {
    mpi4tch::initialize()?.self_comm()
}

/// Runs `f` on a thread with a small stack, with the world and a communicator of this rank alone.
fn with_small_stack(
    context: &Context,
    f: impl FnOnce(&Communicator, &Communicator) -> Result<()> + Send + 'static,
) -> Result<()> {
    let (world, own) = (context.world.clone(), own()?);
    let thread = thread::Builder::new().stack_size(STACK).spawn(move || f(&world, &own));
    thread.expect("the thread starts").join().expect("it does not panic")?;
    works(&context.world)
}

fn the_stack_does_not_grow(context: &Context) -> Result<()> {
    if device::left_out_on_devices("libtorch goes back on a thread of its own, of another stack") {
        return Ok(());
    }
    if have_fewer_shown_it(context) {
        return Ok(());
    }
    for (_, operation) in OPERATIONS {
        with_small_stack(context, move |world, own| {
            let tape = world.tape();
            let on_tape = tape.on(own)?;
            let x = number(&tape, 1.0);
            let y = chain(&on_tape, &x, MANY, operation)?;
            tape.backward(&y.sum(Kind::Double))?;
            assert_eq!(x.grad(), x.ones_like());
            // The graph is dropped with the tape, or with a result that outlives it.
            drop(chain(&on_tape, &x, MANY, operation)?);
            drop((on_tape, tape));
            let tape = world.tape();
            let y = chain(&tape.on(own)?, &x, MANY, operation)?;
            drop(tape);
            drop(y);
            drop(chain(own, &x, MANY, operation)?);
            Ok(())
        })?;
    }
    Ok(())
}

fn the_stack_does_not_grow_with_derivatives(context: &Context) -> Result<()> {
    if device::left_out_on_devices("libtorch goes back on a thread of its own, of another stack") {
        return Ok(());
    }
    if have_fewer_shown_it(context) {
        return Ok(());
    }
    for (_, operation) in OPERATIONS {
        with_small_stack(context, move |world, own| {
            let tape = world.tape();
            let x = number(&tape, 1.0);
            let y = chain(&tape.on(own)?, &x, MANY / 4, operation)?.square();
            let g = tape.grad_with(&y.sum(Kind::Double), &[&x], CREATE_GRAPH)?.remove(0);
            let h = tape.grad(&g.sum(Kind::Double), &[&x])?.remove(0);
            assert_eq!(h, x.ones_like() * 2.0);
            Ok(())
        })?;
    }
    Ok(())
}

fn the_memory_of_an_operation_does_not_grow(context: &Context) -> Result<()> {
    if device::left_out_on_devices("the memory of a device is not this process's heap") {
        return Ok(());
    }
    if have_fewer_shown_it(context) {
        return Ok(());
    }
    for (name, operation) in OPERATIONS {
        let tape = context.world.tape();
        let (own, x) = (tape.on(&own()?)?, number(&tape, 1.0));
        let y = chain(&own, &x, 100, operation)?;
        let mut last = y;
        let mut more = |count| {
            growth(|| {
                last = chain(&own, &last, count, operation)?;
                Ok(())
            })
        };
        let [few, many] = [more(1000)? / 1000, more(10_000)? / 10_000];
        // The list of the calls doubles its memory now and then.
        let bytes = (few.max(1), many);
        assert!(many < 2 * few.max(1) && many < 10_000, "{name}: bytes an operation: {bytes:?}");
        let freed = growth(|| {
            tape.backward(&last.sum(Kind::Double))?;
            drop(last);
            Ok(())
        })?;
        assert!(-freed > 10_000 * (many / 2), "{name}: {freed} bytes are more after the pass");
    }
    Ok(())
}

fn many_steps_take_no_memory(context: &Context) -> Result<()> {
    if device::left_out_on_devices("the memory of a device is not this process's heap") {
        return Ok(());
    }
    let world = &context.world;
    let tape = world.tape();
    let (right, left) = neighbours(world);
    let x = number(&tape, 1.0);
    // With the datatypes that are made of the headers of messages, which debug builds have.
    type Step<'a> = (&'a str, i32, &'a dyn Fn(&Tensor) -> Result<Tensor>);
    let steps: [Step; 4] = [
        ("all_reduce", 0, &|x| tape.all_reduce(x, Op::Max)),
        ("iall_reduce", 0, &|x| tape.iall_reduce(x, Op::Sum)?.wait()),
        ("sendrecv", 4, &|x| tape.sendrecv(x, right, x, left, 0)),
        ("isend, irecv", 4, &|x| {
            Ok(wait_all([tape.irecv(x, left, 0)?, tape.isend(x, right, 0)?])?.swap_remove(0))
        }),
    ];
    for (name, datatypes, step) in steps {
        assert_flat(name, datatypes, || {
            let y = step(&x.square())?;
            let loss = (tape.rank() == 0).then(|| y.sum(Kind::Double));
            tape.backward(loss.as_ref())?;
            x.shallow_clone().zero_grad();
            Ok(())
        })?;
    }
    Ok(())
}
