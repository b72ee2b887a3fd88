//! Tensors of devices go by pinned memory of the host: of every kind and with every op, in place and
//! in any layout, and in pieces.

use mpi4tch::{Communicator, Op, Result, testing};
use stand_in::device_of;
use tch::{Kind, Tensor};

use crate::common::kinds::{KINDS, is_defined};
use crate::common::ring::neighbours;
use crate::common::{Context, serial, works};
use crate::{PLACES, leaf, moved, whole_numbers, with_delay};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        every_kind_and_op,
        every_kind_of_message,
        every_layout,
        nothing_at_all,
        in_place,
        in_place_on_views,
        derivatives_in_place,
    ]
}

fn every_kind_and_op(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    for place in PLACES.map(|place| place(world.rank())) {
        for (kind, op) in KINDS.into_iter().flat_map(|kind| Op::ALL.map(|op| (kind, op))) {
            if !is_defined(op, kind) {
                continue;
            }
            let x = leaf(&whole_numbers(world, &[size, 2], kind)?, place);
            let counts = vec![1; world.size().unsigned_abs() as usize];
            let (host, y) = (leaf(&x, None), world.all_reduce(&x, op)?);
            assert_eq!(device_of(&y), place);
            assert_eq!(y.kind(), kind);
            assert_eq!(moved(&y, None), world.all_reduce(&host, op)?, "{op:?} of {kind:?}");
            let y = world.ireduce_scatter(&x, 0, &counts, op)?.wait()?;
            assert_eq!(device_of(&y), place);
            let expected = world.ireduce_scatter(&host, 0, &counts, op)?.wait()?;
            assert_eq!(moved(&y, None), expected, "{op:?} of {kind:?}");
        }
    }
    Ok(())
}

fn every_kind_of_message(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    for kind in KINDS {
        for place in PLACES.map(|place| place(world.rank())) {
            let x = leaf(&testing::random(world, &[5], kind)?, place);
            let shift = |x: &Tensor| world.sendrecv(x, right, x, left, 1);
            testing::assert_serial(world, &x, shift, |xs| serial::shift(xs, 1))?;
        }
    }
    Ok(())
}

fn every_layout(context: &Context) -> Result<()> {
    let world = &context.world;
    for place in PLACES.map(|place| place(world.rank())) {
        let random = |shape: &[i64], kind| -> Result<Tensor> {
            Ok(leaf(&testing::random(world, shape, kind)?, place))
        };
        let layouts: [Tensor; 9] = [
            random(&[], Kind::Double)?,
            random(&[3, 4], Kind::Double)?.transpose(0, 1),
            random(&[9], Kind::Int64)?.slice(0, 1, 8, 3),
            random(&[3, 4], Kind::Float)?.select(1, 2),
            random(&[1, 3], Kind::Double)?.expand([4, 3], false),
            random(&[3], Kind::ComplexDouble)?.conj(),
            random(&[3], Kind::ComplexFloat)?.conj().imag(),
            random(&[2, 3, 2], Kind::Double)?.permute([2, 0, 1]),
            random(&[7], Kind::Double)?.narrow(0, 3, 2),
        ];
        for x in layouts {
            let sum = |x: &Tensor| world.all_reduce(x, Op::Sum);
            testing::assert_serial(world, &x, sum, |xs| serial::all_reduce(xs, Op::Sum))?;
            let first = |x: &Tensor| world.ibroadcast(x, 0)?.wait();
            testing::assert_serial(world, &x, first, |xs| serial::broadcast(xs, 0))?;
        }
    }
    Ok(())
}

/// Tensors without elements, and messages to nobody.
fn nothing_at_all(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    for place in PLACES.map(|place| place(world.rank())) {
        let x = leaf(&testing::random(world, &[0, 3], Kind::Double)?, place);
        for y in [
            world.all_reduce(&x, Op::Sum)?,
            world.iall_reduce(&x, Op::Max)?.wait()?,
            world.sendrecv(&x, right, &x, left, 0)?,
        ] {
            assert_eq!((y.size(), device_of(&y)), (vec![0, 3], place));
        }
        let x = leaf(&testing::random(world, &[3], Kind::Double)?, place);
        let y = world.recv(&x, mpi4tch::PROC_NULL, 0)?;
        assert_eq!(device_of(&y), place);
        assert_eq!(y, x.zeros_like());
    }
    works(world)
}

type InPlace = fn(&Communicator, &mut Tensor) -> Result<()>;
type OutOfPlace = fn(&Communicator, &Tensor) -> Result<Tensor>;

const PAIRS: [(InPlace, OutOfPlace); 5] = [
    (|c, x| c.all_reduce_(x, Op::Sum), |c, x| c.all_reduce(x, Op::Sum)),
    (|c, x| c.all_reduce_(x, Op::Mean), |c, x| c.all_reduce(x, Op::Mean)),
    (|c, x| c.all_reduce_(x, Op::Prod), |c, x| c.all_reduce(x, Op::Prod)),
    (|c, x| c.reduce_(x, Op::Max, c.size() - 1), |c, x| c.reduce(x, Op::Max, c.size() - 1)),
    (|c, x| c.broadcast_(x, 0), |c, x| c.broadcast(x, 0)),
];

/// The tensor is the same one afterwards, and others that share its memory see the result.
fn in_place(context: &Context) -> Result<()> {
    let world = &context.world;
    for place in PLACES.map(|place| place(world.rank())) {
        for kind in [Kind::Double, Kind::Half, Kind::Int] {
            for (i, (in_place, out_of_place)) in PAIRS.into_iter().enumerate() {
                let x = testing::random(world, &[2, 3], kind)?;
                let Ok(expected) = out_of_place(world, &leaf(&x, None)) else { continue };
                with_delay(5, || -> Result<()> {
                    let mut y = (leaf(&x, place) * 1).to_kind(kind);
                    let (alias, address) = (y.detach(), y.data_ptr());
                    in_place(world, &mut y)?;
                    assert_eq!((device_of(&y), y.data_ptr()), (place, address));
                    assert_eq!(moved(&alias, None), expected, "pair {i}, {kind:?}");
                    // And again before anybody has looked.
                    let twice = out_of_place(world, &expected)?;
                    in_place(world, &mut y)?;
                    assert_eq!(moved(&y, None), twice, "pair {i}, {kind:?}");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// The elements between those of the view stay.
fn in_place_on_views(context: &Context) -> Result<()> {
    let world = &context.world;
    let views: [fn(&Tensor) -> Tensor; 5] = [
        |x| x.transpose(0, 1),
        |x| x.slice(1, 0, 4, 2),
        |x| x.narrow(0, 1, 1),
        |x| x.select(1, 2),
        |x| x.permute([1, 0]).slice(0, 1, 4, 2),
    ];
    for place in PLACES.map(|place| place(world.rank())) {
        for (in_place, out_of_place) in PAIRS {
            for view in views {
                let x = testing::random(world, &[3, 4], Kind::Double)?;
                let expected = leaf(&x, None).copy();
                let part = out_of_place(world, &view(&expected))?;
                view(&expected).copy_(&part);
                let base = leaf(&x, place) * 1.0;
                in_place(world, &mut view(&base))?;
                assert_eq!(moved(&base, None), expected);
            }
        }
    }
    Ok(())
}

fn derivatives_in_place(context: &Context) -> Result<()> {
    let world = &context.world;
    for place in PLACES.map(|place| place(world.rank())) {
        for (in_place, out_of_place) in PAIRS {
            let x = testing::random(world, &[3, 4], Kind::Double)?;
            let gradient = |x: Tensor, f: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<Tensor> {
                let x = x.set_requires_grad(true);
                f(&x)?.square().sum(Kind::Double).f_backward()?;
                Ok(moved(&x.grad(), None))
            };
            let on_device = gradient(leaf(&x, place), &|x| {
                let y = x.sin();
                in_place(world, &mut y.transpose(0, 1).narrow(0, 1, 2))?;
                Ok(y)
            })?;
            let on_host = gradient(leaf(&x, None), &|x| {
                let y = x.sin().tr();
                let middle = out_of_place(world, &y.narrow(0, 1, 2))?;
                Ok(Tensor::cat(&[&y.narrow(0, 0, 1), &middle, &y.narrow(0, 3, 1)], 0))
            })?;
            assert!(on_device.allclose(&on_host, 1e-12, 1e-12, false));
        }
    }
    Ok(())
}
