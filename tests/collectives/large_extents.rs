//! Tensors without elements whose extents multiply to more than an `i64` holds: torch makes them, so
//! a collective takes them, or refuses them alike on all ranks.

use std::panic::{AssertUnwindSafe, catch_unwind};

use mpi4tch::{Communicator, Error, Op, Result, testing};
use tch::{Kind, Tensor};

use crate::common::tensors::{full, tensor, zeros};
use crate::common::{Context, works};
use crate::table::{Arguments, OPERATIONS, Operation, STARTED, Takes, own};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        products_beyond_an_i64,
        messages_of_products_beyond_an_i64,
        results_that_torch_cannot_make,
    ]
}

/// Parts that sum to `whole`, the first of them larger by `skew`.
fn parts(comm: &Communicator, whole: i64, skew: i64) -> Vec<i64> {
    let size = i64::from(comm.size());
    let part = (whole - skew) / size;
    let mut parts = vec![part; comm.size().unsigned_abs() as usize];
    parts[0] = whole - part * (size - 1);
    parts
}

/// The shape of a rank's result.
fn result_shape(operation: &Operation, comm: &Communicator, a: &Arguments) -> Vec<i64> {
    let mut shape = a.shape.clone();
    match operation.takes {
        Takes::Same => {}
        // A gather to one rank only.
        Takes::Block if operation.has_root && !operation.name.contains("broadcast") => {
            if comm.rank() != a.root {
                shape[0] = 0;
            }
        }
        Takes::Block => {}
        Takes::Whole | Takes::WholeOnRoot => shape[0] = own(comm, &a.counts),
        Takes::BlockOfWhole => shape[1] = own(comm, &a.scatter_counts),
        Takes::Row => shape[0] = a.column(comm.rank().unsigned_abs() as usize).iter().sum(),
    }
    shape
}

fn products_beyond_an_i64(context: &Context) -> Result<()> {
    let world = &context.world;
    let ways = [
        (Op::Sum, Kind::Double),
        (Op::Mean, Kind::Half),
        (Op::Max, Kind::Double),
        (Op::Prod, Kind::Float),
        (Op::LogicalAnd, Kind::Int),
    ];
    for (op, kind) in ways {
        for operation in OPERATIONS.iter().chain(&STARTED) {
            if operation.ops.is_some_and(|ops| !ops(op)) {
                continue;
            }
            for skew in [0, 1000] {
                // Of these extents torch makes a tensor, as they multiply to no more than 2⁶³.
                let a = Arguments {
                    shape: vec![1 << 32, 1 << 31, 0],
                    axis: 0,
                    scatter_axis: 1,
                    counts: parts(world, 1 << 32, skew),
                    scatter_counts: parts(world, 1 << 31, skew),
                    root: world.size() - 1,
                    op,
                };
                let what = format!("{}, {op:?}, skew {skew}", operation.name);
                let own = world.rank().unsigned_abs() as usize;
                let shape = a.input_shape(operation.takes, own);
                let x = full(&shape, kind, 0.0);
                let y = (operation.run)(world, &x, &a)?;
                let expected = result_shape(operation, world, &a);
                assert_eq!((y.kind(), y.size()), (kind, expected.clone()), "{what}");
                if op == Op::LogicalAnd {
                    continue;
                }
                let x = x.set_requires_grad(true);
                let recorded = (operation.run)(world, &x, &a).and_then(|y| {
                    y.f_sum(kind)?.f_backward()?;
                    Ok((y.size(), x.grad().size()))
                });
                // Derivatives that stack the ranks' tensors may be too much for torch, on all ranks.
                let failed = tensor(&[i64::from(recorded.is_err())]);
                assert_eq!(world.all_reduce(&failed, Op::Min)?, failed, "{what}: {recorded:?}");
                match recorded {
                    Ok(shapes) => assert_eq!(shapes, (expected, shape), "{what}"),
                    Err(error) => {
                        let stacks = matches!(op, Op::Max | Op::Prod);
                        assert!(stacks && matches!(error, Error::Torch(_)), "{what}: {error}");
                    }
                }
            }
        }
    }
    works(world)
}

fn messages_of_products_beyond_an_i64(context: &Context) -> Result<()> {
    let world = &context.world;
    let me = world.rank();
    let x = zeros(&[1 << 32, 1 << 31, 0]).set_requires_grad(true);
    for y in [
        world.sendrecv(&x, me, &x, me, 0)?,
        {
            let receive = world.irecv(&x, me, 0)?;
            let sent = world.send(&x, me, 0)?;
            receive.join_dummies(&[&sent]).wait()?
        },
        {
            let send = world.isend(&x, me, 0)?;
            let y = world.recv(&x, me, 0)?;
            send.join_dummies(&[&y]).wait()?
        },
    ] {
        assert_eq!(y.size(), x.size());
        y.sum(Kind::Double).f_backward()?;
        assert_eq!(x.grad().size(), x.size());
    }
    let tape = world.tape();
    let error = tape.backward(&tape.sendrecv(&x, me, &x, me, 0)?).unwrap_err().to_string();
    let text =
        "Tape::backward: the loss has shape [4294967296, 2147483648, 0]; one element is needed";
    assert_eq!(error, text);
    testing::assert_adjoint(world, &x, |x| world.all_reduce(x, Op::Sum))?;
    testing::assert_serial(
        world,
        &x,
        |x| world.broadcast(x, 0),
        |xs| xs.iter().map(|_| xs[0].shallow_clone()).collect(),
    )
}

/// The blocks can be made and the whole cannot. All ranks find out, also those that get no part of
/// it.
fn results_that_torch_cannot_make(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    if size == 1 {
        return Ok(());
    }
    let x = zeros(&[1, 1 << 61, 2, 0]);
    let ones = vec![1 << 61; world.size() as usize];
    // Only the first rank gets a part that torch cannot make.
    let (cut, me) = (zeros(&[1, 1 << 59, 8, 0]), world.rank());
    type Call<'a> = Box<dyn Fn() -> Result<Tensor> + 'a>;
    let calls: Vec<(&str, Call)> = vec![
        ("gather", Box::new(|| world.gather(&x, 1, 0))),
        ("gather", Box::new(|| world.igather(&x, 1, 0)?.wait())),
        ("gather", Box::new(|| world.gather_with_counts(&x, 1, &ones, 0))),
        ("all_gather", Box::new(|| world.all_gather(&x, 1))),
        ("all_gather", Box::new(|| world.all_gather_with_counts(&x, 1, &ones))),
        ("all_to_all", Box::new(|| world.all_to_all(&cut, 1, 2, if me == 0 { 8 } else { 0 }))),
    ];
    for (name, call) in calls {
        let outcome = catch_unwind(AssertUnwindSafe(call));
        let error = outcome.expect("no panic").expect_err(name).to_string();
        assert!(error.starts_with(&format!("{name}: ")), "{error}");
        let reasons = ["is too large for torch", "sum to more than an extent can be"];
        assert!(reasons.iter().any(|reason| error.contains(reason)), "{error}");
        works(world)?;
    }
    Ok(())
}
