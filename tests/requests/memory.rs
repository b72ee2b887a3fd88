//! The memory of what is under way: it stays while MPI uses it, and is freed afterwards, also where
//! nobody waits. A change in between is noticed.

use mpi4tch::{Communicator, Error, Op, Result, testing, wait_all};
use tch::{Kind, Tensor};

use crate::common::device;
use crate::common::memory::growth;
use crate::common::ring::neighbours;
use crate::common::tensors::{full, ones, zeros};
use crate::common::{Context, works};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        memory_stays_while_mpi_uses_it,
        a_tensor_changed_in_flight,
        dropped_and_forgotten,
        memory_of_the_dropped_is_freed,
        memory_of_the_completed_is_freed,
    ]
}

fn memory_stays_while_mpi_uses_it(context: &Context) -> Result<()> {
    if device::left_out_on_devices("MPI uses a copy of the tensor") {
        return Ok(());
    }
    let world = &context.world;
    let (right, left) = neighbours(world);
    let mut x = full(&[400_000], Kind::Double, 7.0);
    let (like, half) = (x.copy(), x.narrow(0, 0, 200_000).copy());
    // libtorch leaves a tensor that it could not resize in a state of its own: others of the memory.
    let resize = |x: &Tensor| x.detach().f_resize_([1_200_000]).map(|_| ());
    let first = world.isend(&x, right, 0)?;
    let second = world.isend(&x.narrow(0, 0, 200_000), right, 1)?;
    assert!(resize(&x).is_err());
    assert_eq!(world.recv(&like, left, 0)?, like);
    let _ = first.wait()?;
    assert!(resize(&x).is_err(), "the other is under way");
    // Another tensor takes the place, of which MPI knows nothing.
    let other = x.detach();
    x.set_data(&zeros(&[1]));
    assert_eq!(world.recv(&half, left, 1)?, half);
    let _ = second.wait();
    assert!(resize(&other).is_ok());
    Ok(())
}

fn a_tensor_changed_in_flight(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let assert_changed = |result: Result<Tensor>, call: &str, line: u32| {
        let error = result.expect_err("the tensor was changed");
        assert!(matches!(error, Error::InFlight { .. }));
        let (text, start) = (error.to_string(), format!("{}:{line}:", file!()));
        let before = format!("{call}: the tensor was changed in place between the start, at ");
        assert!(text.starts_with(&(before + &start)), "{text}");
        assert!(text.ends_with(", and the wait"), "{text}");
    };
    for recorded in [false, true] {
        let mut x = testing::random(world, &[4], Kind::Double)?.set_requires_grad(recorded).sin();
        let (line, request) = (line!(), world.iall_reduce(&x, Op::Sum)?);
        let _ = x.f_add_scalar_(1.0)?;
        assert_changed(request.wait(), "all_reduce", line);

        // A view, by its base; and the base, by a view.
        let part = x.narrow(0, 1, 2);
        let (line, request) = (line!(), world.isend(&part, right, 0)?);
        let _ = x.f_fill_(3.0)?;
        let like = part.detach().set_requires_grad(recorded);
        let _ = world.recv(&like, left, 0)?;
        assert_changed(request.wait(), "send", line);
        let (line, request) = (line!(), world.isend(&x, right, 0)?);
        let _ = x.narrow(0, 0, 1).f_zero_()?;
        let like = x.detach().set_requires_grad(recorded);
        let _ = world.recv(&like, left, 0)?;
        assert_changed(request.test().map(|_| Tensor::new()), "send", line);

        // In place of itself, by this crate.
        let (line, request) = (line!(), world.ibroadcast(&x, 0)?);
        world.all_reduce_(&mut x, Op::Sum)?;
        assert_changed(wait_all([request]).map(|_| Tensor::new()), "broadcast", line);
    }
    works(world)
}

fn dropped_and_forgotten(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    for _ in 0..1000 {
        drop(world.iall_reduce(&zeros(&[3]), Op::Sum)?);
    }
    works(world)?;
    for length in [1, 300_000] {
        let x = testing::random(world, &[length], Kind::Double)?;
        // The buffers go, the messages come.
        drop(world.isend(&(&x * 2.0), right, 0)?);
        std::mem::forget(world.isend(&(&x * 3.0), right, 1)?);
        let all = world.all_gather(&x, 0)?.narrow(0, i64::from(left) * length, length);
        drop(world.irecv(&x, left, 2)?);
        std::mem::forget(world.irecv(&x, left, 3)?);
        assert_eq!(world.recv(&x, left, 0)?, &all * 2.0);
        assert_eq!(world.recv(&x, left, 1)?, &all * 3.0);
        // These go to the requests that nobody has any more.
        let _ = wait_all([world.isend(&x, right, 2)?, world.isend(&x, right, 3)?])?;
        works(world)?;
    }
    for _ in 0..20 {
        std::mem::forget(world.iall_reduce(&zeros(&[3]), Op::Sum)?);
    }
    works(world)
}

/// Runs `f` in rounds of 100 times, for which 1 MB each would be 100 MB. MPI may keep memory of its
/// own, but not more in each round.
fn assert_frees(world: &Communicator, f: impl Fn(&Tensor) -> Result<()>) -> Result<()> {
    let mut rounds = Vec::new();
    for _ in 0..4 {
        rounds.push(growth(|| {
            for i in 0..100 {
                f(&ones(&[125_000], Kind::Double))?;
                if i % 10 == 0 {
                    world.barrier()?;
                }
            }
            works(world)
        })?);
    }
    assert!(rounds.iter().any(|more| *more < 50_000_000), "bytes more in each round: {rounds:?}");
    Ok(())
}

fn memory_of_the_dropped_is_freed(context: &Context) -> Result<()> {
    if device::left_out_on_devices("the memory of a device is not this process's heap") {
        return Ok(());
    }
    let world = &context.world;
    let (right, left) = neighbours(world);
    assert_frees(world, |x| world.iall_reduce(x, Op::Sum).map(drop))?;
    assert_frees(world, |x| world.iall_reduce(&x.set_requires_grad(true), Op::Max).map(drop))?;
    let turn = std::cell::Cell::new(0);
    assert_frees(world, |x| {
        let requests = [world.irecv(x, left, 0)?, world.isend(x, right, 0)?];
        turn.set(turn.get() + 1);
        // MPI goes on only while it is called: now and then it is, until these have come too.
        if turn.get() % 5 == 0 {
            let _ = wait_all(requests)?;
        }
        Ok(())
    })
}

fn memory_of_the_completed_is_freed(context: &Context) -> Result<()> {
    if device::left_out_on_devices("the memory of a device is not this process's heap") {
        return Ok(());
    }
    let world = &context.world;
    let (right, left) = neighbours(world);
    assert_frees(world, |x| world.iall_reduce(x, Op::Sum)?.wait().map(drop))?;
    assert_frees(world, |x| {
        let x = x.set_requires_grad(true);
        let y = world.iall_reduce(&x, Op::Max)?.wait()?;
        Ok(y.sum(Kind::Double).f_backward()?)
    })?;
    assert_frees(world, |x| {
        let requests = [world.irecv(x, left, 0)?, world.isend(x, right, 0)?];
        wait_all(requests).map(drop)
    })
}
