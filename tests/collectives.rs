//! Every collective, against the serial computation on all ranks' data, on every kind of
//! communicator.

mod common;

use std::process::ExitCode;

use common::{Context, start};
use mpi4tch::{Communicator, Op, Result, testing};
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    harness::run(start, harness::tests![smoke])
}

fn smoke(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, size) = (i64::from(world.rank()), i64::from(world.size()));
    let own = rank + 1;
    let total = size * (size + 1) / 2;
    for kind in [Kind::Double, Kind::ComplexDouble, Kind::Int, Kind::Bool, Kind::BFloat16] {
        let float = !matches!(kind, Kind::Int | Kind::Bool);
        for axis in [0, 1, 2, -1, -2] {
            let a = if axis < 0 { axis + 3 } else { axis };
            let mut shape = [3, 2, 4];
            shape[a as usize] = own;
            let x = testing::random(world, &shape, kind)?;
            let adjoint = |f: &dyn Fn(&Tensor) -> Result<Tensor>, x: &Tensor| {
                if float { testing::assert_adjoint(world, x, f) } else { Ok(()) }
            };
            let f = |x: &Tensor| world.all_gather(x, axis);
            testing::assert_serial(world, &x, f, |xs| {
                xs.iter().map(|_| Tensor::cat(xs, axis)).collect()
            })?;
            adjoint(&f, &x)?;
            for root in 0..world.size() {
                let f = |x: &Tensor| world.gather(x, axis, root);
                adjoint(&f, &x)?;
                testing::assert_serial(world, &x, f, |xs| {
                    let y = Tensor::cat(xs, axis);
                    (0..size)
                        .map(|r| {
                            if r == root as i64 { y.shallow_clone() } else { y.narrow(axis, 0, 0) }
                        })
                        .collect()
                })?;
                shape[a as usize] = total;
                let x = testing::random(world, &shape, kind)?;
                let f = |x: &Tensor| world.scatter(x, axis, own, root);
                adjoint(&f, &x)?;
                testing::assert_serial(world, &x, f, |xs| {
                    (0..size)
                        .map(|r| xs[root as usize].narrow(axis, r * (r + 1) / 2, r + 1))
                        .collect()
                })?;
                let f = |x: &Tensor| world.broadcast(x, root);
                adjoint(&f, &x)?;
                testing::assert_serial(world, &x, f, |xs| {
                    (0..size).map(|_| xs[root as usize].shallow_clone()).collect()
                })?;
                if kind != Kind::Bool {
                    let f = |x: &Tensor| world.reduce(x, Op::Sum, root);
                    adjoint(&f, &x)?;
                    testing::assert_serial(world, &x, f, |xs| {
                        let y = Tensor::stack(xs, 0).sum_dim_intlist(0, false, kind);
                        (0..size)
                            .map(
                                |r| {
                                    if r == root as i64 {
                                        y.shallow_clone()
                                    } else {
                                        y.zeros_like()
                                    }
                                },
                            )
                            .collect()
                    })?;
                }
            }
            if kind != Kind::Bool {
                shape[a as usize] = total;
                let x = testing::random(world, &shape, kind)?;
                let f = |x: &Tensor| world.reduce_scatter(x, axis, own, Op::Sum);
                adjoint(&f, &x)?;
                testing::assert_serial(world, &x, f, |xs| {
                    let y = Tensor::stack(xs, 0).sum_dim_intlist(0, false, kind);
                    (0..size).map(|r| y.narrow(axis, r * (r + 1) / 2, r + 1)).collect()
                })?;
                for inclusive in [true, false] {
                    let f = |x: &Tensor| {
                        if inclusive { world.scan(x, Op::Sum) } else { world.exscan(x, Op::Sum) }
                    };
                    adjoint(&f, &x)?;
                    testing::assert_serial(world, &x, f, |xs| {
                        (0..size)
                            .map(|r| {
                                let n = r + i64::from(inclusive);
                                Tensor::stack(xs, 0).narrow(0, 0, n).sum_dim_intlist(0, false, kind)
                            })
                            .collect()
                    })?;
                }
            }
            for other in [0, 1, 2] {
                shape = [3, 2, 4];
                shape[other as usize] = total;
                shape[a as usize] = own;
                let x = testing::random(world, &shape, kind)?;
                let wanted = size - rank;
                let f = |x: &Tensor| world.all_to_all(x, axis, other, wanted);
                adjoint(&f, &x)?;
                testing::assert_serial(world, &x, f, |xs| {
                    let y = Tensor::cat(xs, axis);
                    let mut start = 0;
                    (0..size)
                        .map(|r| {
                            let n = size - r;
                            start += n;
                            y.narrow(other, start - n, n)
                        })
                        .collect()
                })?;
            }
        }
    }
    let x = testing::random(world, &[5], Kind::Double)?;
    for op in [Op::Max, Op::Min, Op::Prod, Op::Mean] {
        testing::gradgradcheck(world, &x, |x| world.scan(x, op))?;
        testing::gradgradcheck(world, &x, |x| world.reduce(x, op, 0))?;
    }
    let (_v, _o) = world.max_loc(&x)?;
    testing::gradgradcheck(world, &x, |x| Ok(world.max_loc(x)?.0))?;
    let mut y = x.copy();
    world.all_reduce_(&mut y, Op::Sum)?;
    assert_eq!(y, world.all_reduce(&x, Op::Sum)?);
    testing::gradcheck(world, &[&x], |x| {
        let mut y = x[0].sin();
        let mut v = y.narrow(0, 1, 3);
        world.all_reduce_(&mut v, Op::Sum)?;
        world.broadcast_(&mut y, 0)?;
        world.reduce_(&mut y, Op::Sum, world.size() - 1)?;
        Ok(y * 2.0)
    })?;
    let _ = Device::Cpu;
    Ok(())
}

#[allow(unused)]
fn unused(_: &Communicator) {}
