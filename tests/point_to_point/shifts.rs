//! Tensors go around the ring or along it: values, derivatives, and the order of the backward pass.

use mpi4tch::{Op, PROC_NULL, Result, Source, TagMatch, join_dummies, mpi_sys, testing};
use tch::{Kind, Tensor};

use crate::common::kinds::KINDS;
use crate::common::ring::{away, neighbours};
use crate::common::tensors::{tensor, values, variable, zeros};
use crate::common::{Context, communicators, serial};
use crate::ways::{TAG, WAYS, Way, check_ring};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        a_ring_in_every_way,
        a_ring_from_any_rank,
        every_kind,
        every_layout,
        small_and_large_messages,
        every_pair_of_ranks,
        shifts_by_any_distance,
        a_shift_that_is_no_ring,
        nobody,
        derivatives_by_differences,
        a_ring_on_a_tape,
        shapes_that_differ_by_rank,
        forward_and_backward_do_not_meet,
    ]
}

fn a_ring_in_every_way(context: &Context) -> Result<()> {
    for (_, comm) in communicators(&context.world) {
        for (_, way) in WAYS {
            let x = testing::random(&comm, &[2, 3], Kind::Double)?;
            testing::assert_adjoint(&comm, &x, |x| way(&comm, x, neighbours(&comm)))?;
            check_ring(&comm, &x, way)?;
        }
    }
    // Sent before it is received, where ranks alternate.
    let world = &context.world;
    let ends @ (right, left) = neighbours(world);
    let f = |x: &Tensor| -> Result<Tensor> {
        if right == left && right == world.rank() {
            return WAYS[0].1(world, x, ends);
        }
        if world.rank() % 2 == 0 {
            let sent = world.send(x, right, TAG)?;
            return world.recv(&join_dummies(x, &[&sent])?, left, TAG);
        }
        let y = world.recv(x, left, TAG)?;
        let sent = world.send(&join_dummies(x, &[&y])?, right, TAG)?;
        join_dummies(&y, &[&sent])
    };
    for length in [1, 300_000] {
        let x = testing::random(world, &[length], Kind::Double)?;
        testing::assert_serial(world, &x, f, |xs| serial::shift(xs, 1))?;
    }
    Ok(())
}

/// What a rank receives from any is sent back to the one that it came from.
fn a_ring_from_any_rank(context: &Context) -> Result<()> {
    let mut all = communicators(&context.world);
    let tape = context.world.tape();
    all.push(("tape", (*tape).clone()));
    for (_, comm) in all {
        let (right, left) = neighbours(&comm);
        let f = |x: &Tensor| {
            // No message of another call may be taken for this one's.
            comm.barrier()?;
            let y = comm.sendrecv(x, right, x, Source::Any, TAG)?;
            comm.barrier()?;
            Ok(y)
        };
        let x = testing::random(&comm, &[2, 3], Kind::Double)?;
        testing::assert_adjoint(&comm, &x, f)?;
        testing::assert_serial(&comm, &x, f, |xs| serial::shift(xs, 1))?;
        // From any to nobody, and from nobody: the last rank's neighbour is the first.
        let last = comm.size() - 1;
        let to = if comm.rank() < last { right } else { PROC_NULL };
        let from = if comm.rank() > 0 { Source::Any } else { PROC_NULL.into() };
        let g = |x: &Tensor| {
            comm.barrier()?;
            let y = comm.sendrecv(x, to, x, from, TAG)?;
            comm.barrier()?;
            Ok(y)
        };
        testing::assert_serial(&comm, &x, g, |xs| {
            let mut ys = serial::shift(xs, 1);
            ys[0] = ys[0].zeros_like();
            ys
        })?;
        // It has resolved to the left neighbour.
        let rank = tensor(&[comm.rank()]);
        assert_eq!(f(&rank)?, tensor(&[left]));
    }
    Ok(())
}

fn every_kind(context: &Context) -> Result<()> {
    for kind in KINDS {
        for (_, way) in WAYS {
            let x = testing::random(&context.world, &[5], kind)?;
            check_ring(&context.world, &x, way)?;
        }
    }
    Ok(())
}

fn every_layout(context: &Context) -> Result<()> {
    let world = &context.world;
    let random = |shape: &[i64], kind| testing::random(world, shape, kind);
    for (_, way) in WAYS {
        for x in [
            random(&[], Kind::Double)?,
            random(&[0], Kind::Double)?,
            random(&[3, 0, 2], Kind::Float)?,
            random(&[3, 4], Kind::Double)?.transpose(0, 1),
            random(&[9], Kind::Int64)?.slice(0, 1, 8, 3),
            random(&[3, 4], Kind::Float)?.select(1, 2),
            random(&[1, 3], Kind::Double)?.expand([4, 3], false),
            random(&[3], Kind::ComplexDouble)?.conj(),
            random(&[3], Kind::ComplexFloat)?.conj().imag(),
        ] {
            check_ring(world, &x, way)?;
        }
    }
    Ok(())
}

/// Below and above what MPI sends without being asked for it.
fn small_and_large_messages(context: &Context) -> Result<()> {
    for length in [1, 1_000, 300_000] {
        let x = testing::random(&context.world, &[length], Kind::Double)?;
        for (_, way) in WAYS {
            check_ring(&context.world, &x, way)?;
        }
    }
    Ok(())
}

/// Only two ranks take part, or one alone.
fn every_pair_of_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    for to in 0..world.size() {
        for from in 0..world.size() {
            let x = testing::random(world, &[3], Kind::Double)?;
            let f = |x: &Tensor| -> Result<Tensor> {
                match (world.rank() == from, world.rank() == to) {
                    (true, true) => WAYS[1].1(world, x, (to, from)),
                    (true, false) => world.send(x, to, 3),
                    (false, true) => world.recv(x, from, 3),
                    (false, false) => Ok(x.shallow_clone()),
                }
            };
            let serial = |xs: &[Tensor]| {
                let mut ys: Vec<Tensor> = xs.iter().map(Tensor::shallow_clone).collect();
                let [from, to] = [from, to].map(|rank| rank.unsigned_abs() as usize);
                ys[to] = xs[from].shallow_clone();
                ys
            };
            testing::assert_serial(world, &x, f, serial)?;
        }
    }
    Ok(())
}

fn shifts_by_any_distance(context: &Context) -> Result<()> {
    let world = &context.world;
    for distance in 0..=world.size() {
        let ends = (away(world, distance), away(world, -distance));
        for (_, way) in WAYS {
            let x = testing::random(world, &[3], Kind::Double)?;
            let steps = distance.unsigned_abs() as usize;
            testing::assert_serial(
                world,
                &x,
                |x| way(world, x, ends),
                |xs| serial::shift(xs, steps),
            )?;
        }
    }
    Ok(())
}

/// From each rank to the next, from nobody to the first and from the last to nobody.
fn a_shift_that_is_no_ring(context: &Context) -> Result<()> {
    let world = &context.world;
    let to = if world.rank() + 1 < world.size() { world.rank() + 1 } else { PROC_NULL };
    let from = if world.rank() > 0 { world.rank() - 1 } else { PROC_NULL };
    for kind in [Kind::Double, Kind::ComplexFloat, Kind::Int64] {
        for (_, way) in WAYS {
            let x = testing::random(world, &[3], kind)?;
            let serial = |xs: &[Tensor]| {
                let mut ys = serial::shift(xs, 1);
                ys[0] = ys[0].zeros_like();
                ys
            };
            testing::assert_serial(world, &x, |x| way(world, x, (to, from)), serial)?;
        }
    }
    Ok(())
}

/// Each call with `PROC_NULL` alone.
fn nobody(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[3], Kind::Double)?;
    let same = |xs: &[Tensor]| xs.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
    let nothing = |xs: &[Tensor]| xs.iter().map(Tensor::zeros_like).collect::<Vec<_>>();
    testing::assert_serial(world, &x, |x| world.send(x, PROC_NULL, 0), same)?;
    testing::assert_serial(world, &x, |x| world.isend(x, PROC_NULL, 0)?.wait(), same)?;
    testing::assert_serial(world, &x, |x| world.recv(x, PROC_NULL, 0), nothing)?;
    testing::assert_serial(world, &x, |x| world.irecv(x, PROC_NULL, 0)?.wait(), nothing)?;
    testing::assert_serial(world, &x, |x| world.recv(x, PROC_NULL, TagMatch::Any), nothing)?;
    let both = |x: &Tensor| world.sendrecv(x, PROC_NULL, x, PROC_NULL, 0);
    testing::assert_serial(world, &x, both, nothing)?;
    let (y, status) = world.recv_with_status(&x, PROC_NULL, TagMatch::Any)?;
    assert_eq!(y, zeros(&[3]));
    assert_eq!((status.source(), status.tag()), (PROC_NULL, mpi_sys::MPI_ANY_TAG));
    assert_eq!(status.count(Kind::Double), Some(0));
    let status = world.probe(PROC_NULL, 0)?;
    assert_eq!((status.source(), status.count(Kind::Float)), (PROC_NULL, Some(0)));
    Ok(())
}

fn derivatives_by_differences(context: &Context) -> Result<()> {
    let world = &context.world;
    let ends = neighbours(world);
    let x = testing::random(world, &[3], Kind::Double)?;
    for (_, way) in WAYS {
        let f = |x: &Tensor| Ok(way(world, &x.sin(), ends)? * x);
        testing::gradcheck(world, &[&x], |x| f(&x[0]))?;
        testing::gradgradcheck(world, &x, f)?;
    }
    Ok(())
}

/// The inner-product test where the order is the tape's.
fn a_ring_on_a_tape(context: &Context) -> Result<()> {
    let plain: [Way; 3] = [
        |c, x, (to, from)| c.sendrecv(x, to, x, from, TAG),
        |c, x, (to, from)| {
            let request = c.isend(x, to, TAG)?;
            let y = c.recv(&x.detach(), from, TAG)?;
            let _ = request.wait()?;
            Ok(y)
        },
        |c, x, (to, from)| {
            let receive = c.irecv(&x.detach(), from, TAG)?;
            let sent = c.isend(x, to, TAG)?;
            let mut results = mpi4tch::wait_all([sent, receive])?;
            Ok(results.remove(1))
        },
    ];
    let total = |x: f64| -> Result<f64> {
        Ok(values(&context.world.all_reduce(&tensor(&[x]), Op::Sum)?)[0])
    };
    for way in plain {
        for length in [1, 1_000, 300_000] {
            let tape = context.world.tape();
            let x = variable(&tape, &[length])?;
            let y = way(&tape, &x, neighbours(&tape))?;
            let cotangent = testing::random(&tape, &[length], Kind::Double)?;
            let loss = (&y * &cotangent).sum(Kind::Double);
            let gradient = tape.grad(Some(&loss), &[&x])?.remove(0);
            let (forward, backward) = (
                total(values(&loss)[0])?,
                total(values(&(gradient * x.detach()).sum(Kind::Double))[0])?,
            );
            assert!((forward - backward).abs() <= 1e-9, "{forward} and {backward}");
        }
    }
    Ok(())
}

/// What goes to the right has another shape than what comes from the left.
fn shapes_that_differ_by_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let own = i64::from(world.rank() % 3);
    let x = variable(world, &[own, 2])?;
    let like = zeros(&[2, i64::from(left % 3)]).set_requires_grad(true);
    let y = world.sendrecv(&x, right, &like, left, 0)?;
    assert_eq!(y.size(), like.size());
    (y * f64::from(world.rank() + 1)).sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), zeros(&[own, 2]) + f64::from(right + 1));
    assert_eq!(like.grad(), like.zeros_like());
    Ok(())
}

/// Messages of the user's own, with the same ranks and tags, are outstanding meanwhile.
fn forward_and_backward_do_not_meet(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = variable(world, &[2])?;
    let other = (zeros(&[2]) + 1000.0 + f64::from(world.rank())).set_requires_grad(true);
    // What the backward pass sends goes to the left.
    let y = world.sendrecv(&x, right, &x, left, TAG)?;
    let sending = world.isend(&other, left, TAG)?;
    (&y * f64::from(world.rank() + 1)).sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), zeros(&[2]) + f64::from(right + 1));
    let _ = world.recv(&other, right, TAG)?;
    let _ = sending.wait()?;
    // And what the user is to receive is not the backward pass's.
    let y = world.sendrecv(&x, right, &x, left, TAG)?;
    let other = other.detach();
    let receiving = world.irecv(&other, Source::Any, TagMatch::Any)?;
    (&y * f64::from(world.rank() + 1)).sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), zeros(&[2]) + 2.0 * f64::from(right + 1));
    let _ = world.send(&other, left, TAG)?;
    assert_eq!(receiving.wait()?, zeros(&[2]) + 1000.0 + f64::from(right));
    Ok(())
}
