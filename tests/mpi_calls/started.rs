//! Messages, and what is started and waited for: the calls of both passes, in order.

use mpi4tch::mpi_sys;
use mpi4tch::{Communicator, Op, Request, Result, join_dummies, testing};
use tch::{Kind, Tensor};

use crate::common::Context;
use crate::common::ring::neighbours;
use crate::profiling::{calls, names, tests_in};
use crate::{Operation, after_agreement, assert_derivatives, matrix};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        started_and_waited_for,
        messages,
        work_between_start_and_wait,
        many_at_a_time,
        a_tape_of_many_communicators,
    ]
}

/// The calls of a forward pass, and of the backward pass of its result.
fn both(x: &Tensor, f: Operation) -> Result<[Vec<&'static str>; 2]> {
    let x = x.detach().set_requires_grad(true);
    let (y, forward) = calls(|| f(&x))?;
    let ((), backward) = calls(|| Ok(y.sum(Kind::Double).f_backward()?))?;
    Ok([names(&forward), names(&backward)])
}

fn started_and_waited_for(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = matrix(context, 2, 3)?;
    let operations: [(&str, &str, Operation); 3] = [
        ("MPI_Iallreduce", "MPI_Iallreduce", &|x| world.iall_reduce(x, Op::Sum)?.wait()),
        ("MPI_Ibcast", "MPI_Ireduce", &|x| world.ibroadcast(x, 0)?.wait()),
        ("MPI_Ireduce", "MPI_Ibcast", &|x| world.ireduce(x, Op::Sum, 0)?.wait()),
    ];
    for (forward, backward, f) in operations {
        assert_eq!(both(&x, f)?, [[forward, "MPI_Test"], [backward, "MPI_Test"]]);
        let variable = x.detach().set_requires_grad(true);
        let (y, made) = calls(|| f(&variable))?;
        assert_eq!(names(&made), [forward, "MPI_Test"]);
        assert_derivatives(context, (&variable, &y), &made, &[backward, "MPI_Test"])?;
    }
    Ok(())
}

fn messages(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, size) = (world.rank(), world.size());
    let (right, left) = neighbours(world);
    let x = matrix(context, 2, 3)?;
    // Only MPICH's message is not looked at before it is received.
    let is_mpich = mpi_sys::library_version().starts_with("MPICH");
    let receive = if is_mpich { "MPI_Irecv" } else { "MPI_Improbe" };
    let f = |x: &Tensor| world.sendrecv(x, right, x, left, 0);
    let [forward, backward] = both(&x, &f)?;
    for mut made in [forward, backward] {
        made.sort_unstable();
        assert_eq!(made, [receive, "MPI_Isend", "MPI_Test", "MPI_Test"]);
    }
    if size == 1 {
        return Ok(());
    }
    // From the even to the odd; the last may be alone.
    if rank % 2 == 0 && rank + 1 < size {
        let f = |x: &Tensor| world.send(x, rank + 1, 0);
        assert_eq!(both(&x, &f)?, [["MPI_Isend", "MPI_Test"], [receive, "MPI_Test"]]);
        let f = |x: &Tensor| world.isend(x, rank + 1, 0)?.wait();
        assert_eq!(both(&x, &f)?, [["MPI_Isend", "MPI_Test"], ["MPI_Irecv", "MPI_Test"]]);
    } else if rank % 2 == 1 {
        let f = |x: &Tensor| world.recv(x, rank - 1, 0);
        assert_eq!(both(&x, &f)?, [[receive, "MPI_Test"], ["MPI_Isend", "MPI_Test"]]);
        let f = |x: &Tensor| world.irecv(x, rank - 1, 0)?.wait();
        assert_eq!(both(&x, &f)?, [["MPI_Irecv", "MPI_Test"], ["MPI_Isend", "MPI_Test"]]);
    }
    Ok(())
}

/// What lies between start and wait in the forward pass lies between them in the backward pass too,
/// by dummies and on a tape, and in the derivative of the derivative.
fn work_between_start_and_wait(context: &Context) -> Result<()> {
    let world = &context.world;
    let duplicate = world.duplicate()?;
    let x = matrix(context, 2, 3)?;
    let expected = ["MPI_Iallreduce", "MPI_Allreduce", "MPI_Test"];
    let between = |x: &Tensor, comm: &Communicator| {
        let request = world.iall_reduce(x, Op::Sum)?;
        let between = comm.all_reduce(&join_dummies(x, &[&request.dummy()])?, Op::Sum)?;
        request.join_dummies(&[&between]).wait()
    };
    assert_eq!(both(&x, &|x| between(x, world))?, [expected; 2]);
    assert_eq!(both(&x, &|x| between(x, &duplicate))?, [expected; 2]);

    let variable = x.detach().set_requires_grad(true);
    let y = between(&variable, &duplicate)?;
    let cotangent = x.ones_like().set_requires_grad(true);
    let (gradient, made) =
        calls(|| Ok(testing::vjp(&[&y], &[&cotangent], &[&variable], true)?.remove(0)))?;
    assert_eq!(names(&made), expected, "recorded");
    let (_, made) = calls(|| testing::vjp(&[&gradient], &[&x.ones_like()], &[&cotangent], false))?;
    assert_eq!(names(&made), expected, "second derivative");

    // Also where what lies between contributes nothing.
    let (own, other) = (x.detach().set_requires_grad(true), x.detach().set_requires_grad(true));
    let request = world.iall_reduce(&own, Op::Sum)?;
    let between = duplicate.all_reduce(&join_dummies(&other, &[&request.dummy()])?, Op::Sum)?;
    let y = request.join_dummies(&[&between]).wait()?;
    let (gradient, made) =
        calls(|| Ok(testing::vjp(&[&y], &[&cotangent], &[&own], true)?.remove(0)))?;
    assert_eq!(names(&made), expected, "unrelated");
    let (_, made) = calls(|| testing::vjp(&[&gradient], &[&x.ones_like()], &[&cotangent], false))?;
    assert_eq!(names(&made), expected, "second derivative, unrelated");

    let tape = world.tape();
    let (loss, made) = calls(|| {
        let request = tape.iall_reduce(&variable, Op::Sum)?;
        let between = tape.all_reduce(&variable, Op::Sum)?;
        Ok((request.wait()? + between).sum(Kind::Double))
    })?;
    assert_eq!(names(&made), expected);
    let ((), mut made) = calls(|| tape.backward(&loss))?;
    // The ranks compare their tapes first.
    made = after_agreement(context, made);
    assert_eq!(made.remove(0).name, "MPI_Allreduce");
    assert_eq!(names(&made), expected, "on a tape");
    Ok(())
}

/// However many calls are under way, each is looked at a few times only.
fn many_at_a_time(_: &Context) -> Result<()> {
    let this = mpi4tch::initialize()?.self_comm()?;
    let x = Tensor::from_slice(&[1.0]);
    type Fate = fn(Vec<Request>) -> Result<()>;
    let fates: [Fate; 4] = [
        |requests| mpi4tch::wait_all(requests).map(drop),
        |requests| mpi4tch::wait_all(requests.into_iter().rev()).map(drop),
        |requests| requests.into_iter().try_for_each(|request| request.wait().map(drop)),
        |requests| {
            drop(requests);
            Ok(())
        },
    ];
    for fate in fates {
        let many = |count: i32| {
            tests_in(|| {
                let mut requests = Vec::new();
                for tag in 0..count {
                    requests.push(this.irecv(&x, 0, tag)?);
                    requests.push(this.isend(&x, 0, tag)?);
                    requests.push(this.iall_reduce(&x, Op::Sum)?);
                }
                fate(requests)
            })
        };
        let (few, more) = (many(100)?, many(1000)?);
        assert!(more <= 12 * few.max(300), "{few} looks at 300 calls, {more} at 3000");
    }
    // What was dropped is let go of while others are started.
    let dropped =
        |count| tests_in(|| (0..count).try_for_each(|_| this.iall_reduce(&x, Op::Sum).map(drop)));
    // The first of them lets go of what the last fate has left.
    let (_, few, more) = (dropped(10)?, dropped(100)?, dropped(1000)?);
    // With Intel MPI, a call of a rank alone has ended at the sixth look only.
    let most = if mpi_sys::library_version().starts_with("Intel") { 700 } else { 200 };
    assert!(few <= most, "{few} looks at 100 calls");
    assert!(more <= 12 * few.max(100), "{few} looks at 100 calls, {more} at 1000");
    Ok(())
}

/// The ranks compare what they recorded by one number, however many communicators there are.
fn a_tape_of_many_communicators(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    for count in [1, 2, 8] {
        let tape = world.tape();
        let comms = (0..count).map(|_| tape.duplicate()).collect::<Result<Vec<_>>>()?;
        for comm in &comms {
            let _ = comm.iall_reduce(&x, Op::Sum)?.wait()?;
        }
        let ((), made) = calls(|| tape.backward(None))?;
        let after = names(&after_agreement(context, made));
        assert_eq!(after[0], "MPI_Allreduce", "{count} communicators");
        let adjoints: Vec<_> = after[1..].iter().filter(|name| **name != "MPI_Test").collect();
        assert_eq!(adjoints, vec![&"MPI_Iallreduce"; count], "{count} communicators");
    }
    Ok(())
}
