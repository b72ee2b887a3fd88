//! The line that an error names is the user's, whichever way a call goes through the crate.

mod common;

use std::process::ExitCode;

use common::kinds::DIFFERENTIABLE;
use common::passes::{CREATE_GRAPH, KEEP_GRAPH};
use common::ring::neighbours;
use common::tensors::zeros;
use common::{Context, start, works};
use mpi4tch::{
    Communicator, Error, Op, Replicated, Request, Result, Tape, Test, testing, wait_all, wait_any,
    wait_some,
};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            collectives,
            collectives_in_the_backward_pass,
            calls_that_make_communicators,
            messages,
            waits,
            backward_passes,
            changes_in_flight,
        ],
    )
}

/// Every line that the error names is one of this file, and it names at least one.
fn names_this_file(error: &Error, what: &str) {
    let text = error.to_string();
    // A path, a line and a column.
    let named =
        |word: &&str| word.split(':').nth(1).is_some_and(|line| line.parse::<u32>().is_ok());
    let lines: Vec<&str> = text.split([' ', ',', ';', '\n']).filter(named).collect();
    assert!(!lines.is_empty(), "{what} names no line: {text}");
    let own = lines.iter().all(|line| line.starts_with(concat!(file!(), ":")));
    assert!(own, "{what}: {text}");
}

type Call = fn(&Communicator, &Tensor, Op) -> Result<Tensor>;

fn in_place(x: &Tensor, f: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<Tensor> {
    let mut y = x.alias_copy();
    f(&mut y)?;
    Ok(y)
}

/// Those that combine with an op. The counts that calls are given are wrong for no rank.
const COMBINING: [(&str, Call); 15] = [
    ("all_reduce", |c, x, op| c.all_reduce(x, op)),
    ("all_reduce_", |c, x, op| in_place(x, |x| c.all_reduce_(x, op))),
    ("all_reduce_ of a view", |c, x, op| in_place(x, |x| c.all_reduce_(&mut x.select(1, 0), op))),
    ("iall_reduce", |c, x, op| c.iall_reduce(x, op)?.wait()),
    ("reduce", |c, x, op| c.reduce(x, op, 0)),
    ("reduce_", |c, x, op| in_place(x, |x| c.reduce_(x, op, 0))),
    ("ireduce", |c, x, op| c.ireduce(x, op, 0)?.wait()),
    ("scan", |c, x, op| c.scan(x, op)),
    ("iscan", |c, x, op| c.iscan(x, op)?.wait()),
    ("exscan", |c, x, op| c.exscan(x, op)),
    ("iexscan", |c, x, op| c.iexscan(x, op)?.wait()),
    ("reduce_scatter", |c, x, op| c.reduce_scatter(x, 0, 1, op)),
    ("ireduce_scatter", |c, x, op| c.ireduce_scatter(x, 0, 1, op)?.wait()),
    ("reduce_scatter_with_counts", |c, x, op| c.reduce_scatter(x, 0, &ones(c), op)),
    ("ireduce_scatter_with_counts", |c, x, op| c.ireduce_scatter(x, 0, &ones(c), op)?.wait()),
];

/// Those that do not.
const OTHERS: [(&str, Call); 39] = [
    ("broadcast", |c, x, _| c.broadcast(x, 0)),
    ("broadcast_", |c, x, _| in_place(x, |x| c.broadcast_(x, 0))),
    ("broadcast_ of a view", |c, x, _| in_place(x, |x| c.broadcast_(&mut x.select(1, 0), 0))),
    ("ibroadcast", |c, x, _| c.ibroadcast(x, 0)?.wait()),
    ("gather", |c, x, _| c.gather(x, 0, 0)),
    ("igather", |c, x, _| c.igather(x, 0, 0)?.wait()),
    ("gather_with_counts", |c, x, _| c.gather_with_counts(x, 0, &sizes(c), 0)),
    ("igather_with_counts", |c, x, _| c.igather_with_counts(x, 0, &sizes(c), 0)?.wait()),
    ("all_gather", |c, x, _| c.all_gather(x, 0)),
    ("iall_gather", |c, x, _| c.iall_gather(x, 0)?.wait()),
    ("all_gather_with_counts", |c, x, _| c.all_gather_with_counts(x, 0, &sizes(c))),
    ("iall_gather_with_counts", |c, x, _| c.iall_gather_with_counts(x, 0, &sizes(c))?.wait()),
    ("scatter", |c, x, _| c.scatter(x, 0, 1, 0)),
    ("iscatter", |c, x, _| c.iscatter(x, 0, 1, 0)?.wait()),
    ("scatter_with_counts", |c, x, _| c.scatter(x, 0, &ones(c), 0)),
    ("iscatter_with_counts", |c, x, _| c.iscatter(x, 0, &ones(c), 0)?.wait()),
    ("all_to_all", |c, x, _| c.all_to_all(x, 0, 1, 1)),
    ("iall_to_all", |c, x, _| c.iall_to_all(x, 0, 1, 1)?.wait()),
    ("all_to_all to counts", |c, x, _| c.all_to_all(x, 0, 1, &ones(c))),
    ("iall_to_all to counts", |c, x, _| c.iall_to_all(x, 0, 1, &ones(c))?.wait()),
    ("all_to_all_with_counts", |c, x, _| c.all_to_all_with_counts(x, 0, &sizes(c), 1, &ones(c))),
    ("iall_to_all_with_counts", |c, x, _| {
        c.iall_to_all_with_counts(x, 0, &sizes(c), 1, &ones(c))?.wait()
    }),
    ("all_to_all_v", |c, x, _| c.all_to_all_v(x, 0, &ones(c))),
    ("iall_to_all_v", |c, x, _| c.iall_to_all_v(x, 0, &ones(c))?.wait()),
    ("all_to_all_v_with_counts", |c, x, _| c.all_to_all_v_with_counts(x, 0, &ones(c), &ones(c))),
    ("iall_to_all_v_with_counts", |c, x, _| {
        c.iall_to_all_v_with_counts(x, 0, &ones(c), &ones(c))?.wait()
    }),
    ("max_loc", |c, x, _| c.max_loc(x).map(|(values, _)| values)),
    ("min_loc", |c, x, _| c.min_loc(x).map(|(values, _)| values)),
    ("assume and vary", |c, x, _| Replicated::assume(c, x)?.vary()),
    ("assume and shard", |c, x, _| Replicated::assume(c, x)?.shard(0)),
    ("isum and ivary", |c, x, _| Replicated::isum(c, x)?.wait()?.ivary()?.wait()),
    ("sum and shard", |c, x, _| Replicated::sum(c, x)?.shard(0)),
    ("isum and ishard", |c, x, _| Replicated::isum(c, x)?.wait()?.ishard(0)?.wait()),
    ("mean and vary", |c, x, _| Replicated::mean(c, x)?.vary()),
    ("imean and ivary", |c, x, _| Replicated::imean(c, x)?.wait()?.ivary()?.wait()),
    ("concat and vary", |c, x, _| Replicated::concat(c, x, 0)?.vary()),
    ("iconcat and ivary", |c, x, _| Replicated::iconcat(c, x, 0)?.wait()?.ivary()?.wait()),
    ("broadcast and vary", |c, x, _| Replicated::broadcast(c, x, 0)?.vary()),
    ("ibroadcast and ivary", |c, x, _| Replicated::ibroadcast(c, x, 0)?.wait()?.ivary()?.wait()),
];

/// Every call with every op that it has.
fn every_call() -> impl Iterator<Item = (&'static str, Call, Op)> {
    let combining = COMBINING.iter().flat_map(|call| DIFFERENTIABLE.map(|op| (call, op)));
    let all = combining.chain(OTHERS.iter().map(|call| (call, Op::Sum)));
    let is_defined = |name: &str, op| !(name.contains("exscan") && op == Op::Mean);
    all.map(|((name, call), op)| (*name, *call, op))
        .filter(move |(name, _, op)| is_defined(name, *op))
}

fn ones(comm: &Communicator) -> Vec<i64> {
    vec![1; comm.size().unsigned_abs() as usize]
}

fn sizes(comm: &Communicator) -> Vec<i64> {
    vec![comm.size().into(); comm.size().unsigned_abs() as usize]
}

/// Kinds that go through a kind of their own; recorded or not, on a tape or not.
fn collectives(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    if size == 1 {
        return Ok(());
    }
    let last = world.rank() == world.size() - 1;
    for (on_tape, requires_grad) in [(false, false), (false, true), (true, false), (true, true)] {
        for kind in [Kind::Double, Kind::Half] {
            // The ranks disagree on the kind.
            let own = if last { Kind::Float } else { kind };
            let x = zeros(&[size, size]).to_kind(own).set_requires_grad(requires_grad);
            for (name, call, op) in every_call() {
                let tape = world.tape();
                let comm = if on_tape { &*tape } else { world };
                let error = call(comm, &x, op).unwrap_err();
                let what = format!(
                    "{name}, {op:?}, {kind:?}, requires_grad {requires_grad}, on a tape {on_tape}"
                );
                assert!(matches!(error, Error::Mismatch { .. }), "{what}: {error}");
                names_this_file(&error, &what);
            }
        }
    }
    let nothing = zeros(&[1]);
    let started = |request: Result<Request>| request?.wait().map(drop);
    for (what, error) in [
        ("barrier", if last { world.broadcast(&nothing, 0).map(drop) } else { world.barrier() }),
        (
            "ibarrier",
            if last { started(world.ibroadcast(&nothing, 0)) } else { started(world.ibarrier()) },
        ),
    ] {
        names_this_file(&error.unwrap_err(), what);
    }
    works(world)
}

/// The last rank alone records what it does in the backward pass.
fn collectives_in_the_backward_pass(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    if size == 1 {
        return Ok(());
    }
    let last = world.rank() == world.size() - 1;
    for kind in [Kind::Double, Kind::Half] {
        for (name, call, op) in every_call() {
            if name.starts_with('i') && op == Op::Prod {
                // Other calls are made where the derivative is recorded, and what is started does
                // not wait for the others to agree.
                continue;
            }
            let x = zeros(&[size, size]).to_kind(kind).set_requires_grad(true);
            let y = call(world, &x, op)?;
            let cotangent = y.ones_like().set_requires_grad(true);
            let error = testing::vjp(&[&y], &[&cotangent], &[&x], last).unwrap_err();
            let what = format!("{name}, {op:?}, {kind:?}");
            let text = error.to_string();
            assert!(text.contains("the ranks disagree on a call"), "{what}: {text}");
            assert!(text.contains(" in the backward pass"), "{what}: {text}");
            names_this_file(&error, &what);
        }
    }
    works(world)
}

fn calls_that_make_communicators(context: &Context) -> Result<()> {
    let world = &context.world;
    let calls: [fn(&Communicator) -> Result<()>; 3] = [
        |comm| comm.duplicate().map(drop),
        |comm| comm.split(Some(0), 0).map(drop),
        |comm| comm.split_shared().map(drop),
    ];
    for i in 0..if world.size() > 1 { calls.len() } else { 0 } {
        let own = if world.rank() == 0 { i } else { (i + 1) % calls.len() };
        names_this_file(&calls[own](world).unwrap_err(), "a call that makes a communicator");
    }
    works(world)
}

/// A message of which only one end is on the tape.
fn messages(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = zeros(&[2]).set_requires_grad(true);
    // Not waited for until there is a receive: a send to oneself may wait for it.
    let send = || world.isend(&x, right, 0);
    let receive = || world.recv(&x, left, 0).map(drop);
    type Way<'a> = Box<dyn Fn(&Tape) -> Result<()> + 'a>;
    let ways: [(&str, Way); 6] = [
        (
            "send",
            Box::new(|tape| {
                let received = world.irecv(&x, left, 0)?;
                let _ = tape.send(&x, right, 0)?;
                received.wait().map(drop)
            }),
        ),
        (
            "isend",
            Box::new(|tape| {
                let sent = tape.isend(&x, right, 0)?;
                receive()?;
                sent.wait().map(drop)
            }),
        ),
        (
            "recv",
            Box::new(|tape| {
                let sent = send()?;
                let _ = tape.recv(&x, left, 0)?;
                sent.wait().map(drop)
            }),
        ),
        (
            "recv_with_status",
            Box::new(|tape| {
                let sent = send()?;
                let _ = tape.recv_with_status(&x, left, 0)?;
                sent.wait().map(drop)
            }),
        ),
        (
            "irecv",
            Box::new(|tape| {
                let received = tape.irecv(&x, left, 0)?;
                let sent = send()?;
                let _ = received.wait()?;
                sent.wait().map(drop)
            }),
        ),
        (
            "sendrecv",
            Box::new(|tape| {
                let comm = if world.rank() == 0 { &**tape } else { world };
                comm.sendrecv(&x, right, &x, left, 0).map(drop)
            }),
        ),
    ];
    for (name, way) in &ways {
        if *name == "sendrecv" && world.size() == 1 {
            continue;
        }
        let tape = world.tape();
        way(&tape)?;
        let error = tape.backward(None).unwrap_err();
        assert!(matches!(error, Error::Tape { .. }), "{name}: {error}");
        names_this_file(&error, name);
    }
    works(world)
}

/// The first rank waits for what the others drop.
fn waits(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    type Way = fn(Request) -> Result<()>;
    let ways: [(&str, Way); 5] = [
        ("wait", |request| request.wait().map(drop)),
        ("test", |mut request| {
            loop {
                match request.test()? {
                    Test::Done(_) => return Ok(()),
                    Test::Pending(again) => request = again,
                }
            }
        }),
        ("wait_all", |request| wait_all([request]).map(drop)),
        ("wait_any", |request| wait_any(&mut vec![request]).map(drop)),
        ("wait_some", |request| wait_some(&mut vec![request]).map(drop)),
    ];
    for op in DIFFERENTIABLE {
        for (name, way) in ways {
            let tape = world.tape();
            let request = tape.iall_reduce(&zeros(&[2]).set_requires_grad(true), op)?;
            if world.rank() == 0 {
                way(request)?
            } else {
                drop(request)
            }
            let error = tape.backward(None).unwrap_err();
            assert!(matches!(error, Error::Tape { .. }), "{name}, {op:?}: {error}");
            names_this_file(&error, name);
        }
    }
    works(world)
}

fn backward_passes(context: &Context) -> Result<()> {
    let world = &context.world;
    let calls: [fn(&Tape, &Replicated) -> Result<()>; 5] = [
        |tape, _| tape.backward(None),
        |tape, _| tape.backward_with(None, KEEP_GRAPH),
        |tape, _| tape.grad(None, &[]).map(drop),
        |tape, _| tape.grad_with(None, &[], CREATE_GRAPH).map(drop),
        |_, loss| loss.backward(),
    ];
    for i in 0..if world.size() > 1 { calls.len() } else { 0 } {
        let own = if world.rank() == 0 { i } else { (i + 1) % calls.len() };
        let tape = world.tape();
        let loss = Replicated::assume(&tape, &zeros(&[]).set_requires_grad(true))?;
        names_this_file(&calls[own](&tape, &loss).unwrap_err(), "a backward pass");
    }
    works(world)
}

fn changes_in_flight(context: &Context) -> Result<()> {
    let world = &context.world;
    type Start = fn(&Communicator, &Tensor, Op) -> Result<Request>;
    let starts: [(&str, Start); 15] = [
        ("iall_reduce", |c, x, op| c.iall_reduce(x, op)),
        ("ireduce", |c, x, op| c.ireduce(x, op, 0)),
        ("iscan", |c, x, op| c.iscan(x, op)),
        ("iexscan", |c, x, op| c.iexscan(x, if op == Op::Mean { Op::Sum } else { op })),
        ("ireduce_scatter_with_counts", |c, x, op| c.ireduce_scatter(x, 0, &ones(c), op)),
        ("ibroadcast", |c, x, _| c.ibroadcast(x, 0)),
        ("igather", |c, x, _| c.igather(x, 0, 0)),
        ("igather_with_counts", |c, x, _| c.igather_with_counts(x, 0, &sizes(c), 0)),
        ("iall_gather", |c, x, _| c.iall_gather(x, 0)),
        ("iscatter", |c, x, _| c.iscatter(x, 0, 1, 0)),
        ("iall_to_all", |c, x, _| c.iall_to_all(x, 0, 1, 1)),
        ("iall_to_all_with_counts", |c, x, _| {
            c.iall_to_all_with_counts(x, 0, &sizes(c), 1, &ones(c))
        }),
        ("iall_to_all_v", |c, x, _| c.iall_to_all_v(x, 0, &ones(c))),
        ("iall_to_all_v_with_counts", |c, x, _| {
            c.iall_to_all_v_with_counts(x, 0, &ones(c), &ones(c))
        }),
        ("isend", |c, x, _| {
            let (right, left) = neighbours(c);
            let sent = c.isend(x, right, 0)?;
            let _ = c.recv(x, left, 0)?;
            Ok(sent)
        }),
    ];
    for op in DIFFERENTIABLE {
        for (name, start) in starts {
            let size = i64::from(world.size());
            let mut x = zeros(&[size, size]);
            let request = start(world, &x, op)?;
            let _ = x.f_add_scalar_(1.0)?;
            let error = request.wait().unwrap_err();
            assert!(matches!(error, Error::InFlight { .. }), "{name}, {op:?}: {error}");
            names_this_file(&error, name);
        }
    }
    works(world)
}
