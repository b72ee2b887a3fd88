//! Waiting for what was started: one by one, all, any and some, and by testing.

use mpi4tch::{
    Communicator, Op, Rank, Request, Result, Test, join_dummies, testing, wait_all, wait_any,
    wait_some,
};
use tch::{Kind, Tensor};

use crate::common::ring::neighbours;
use crate::common::tensors::{ones, variable, zeros};
use crate::common::{Context, serial, works};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        tested_until_done,
        all_in_order,
        any_by_any,
        some_by_some,
        no_requests_at_all,
        one_of_several_fails,
        a_blocking_call_meets_a_started_one,
    ]
}

fn until_done(mut request: Request) -> Result<Tensor> {
    loop {
        match request.test()? {
            Test::Done(y) => return Ok(y),
            Test::Pending(again) => request = again,
        }
    }
}

fn tested_until_done(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = testing::random(world, &[3], Kind::Double)?;
    let reduce = |x: &Tensor| until_done(world.iall_reduce(x, Op::Sum)?);
    testing::assert_serial(world, &x, reduce, |xs| serial::all_reduce(xs, Op::Sum))?;
    let ring = |x: &Tensor| {
        let receive = world.irecv(x, left, 0)?;
        let sent = world.isend(&join_dummies(x, &[&receive.dummy()])?, right, 0)?;
        let sent = until_done(sent.join_dummies(&[&receive.dummy()]))?;
        until_done(receive.join_dummies(&[&sent]))
    };
    testing::assert_serial(world, &x, ring, |xs| serial::shift(xs, 1))?;
    // It does not wait: there is nothing yet.
    let request = world.irecv(&x, left, 0)?;
    let Test::Pending(request) = request.test()? else { panic!("nobody has sent") };
    world.barrier()?;
    let _ = world.send(&x, right, 0)?;
    assert_eq!(until_done(request)?.size(), [3]);
    Ok(())
}

fn all_in_order(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[2], Kind::Double)?;
    let expected = [
        world.all_reduce(&x, Op::Sum)?,
        world.scan(&x, Op::Max)?,
        world.all_gather(&x, 0)?,
        world.broadcast(&x, world.size() - 1)?,
    ];
    let requests = [
        world.iall_reduce(&x, Op::Sum)?,
        world.iscan(&x, Op::Max)?,
        world.iall_gather(&x, 0)?,
        world.ibroadcast(&x, world.size() - 1)?,
    ];
    // A sum may be rounded in another order.
    for (result, expected) in wait_all(requests)?.iter().zip(expected) {
        assert!(result.allclose(&expected, 1e-12, 1e-12, false), "{result} for {expected}");
    }
    Ok(())
}

/// Requests for a message of each rank, and the sends of this one's.
fn exchange(comm: &Communicator, x: &Tensor) -> Result<(Vec<Request>, Vec<Request>)> {
    let all = 0..comm.size();
    let like = x.detach();
    let receives = all.clone().map(|r| comm.irecv(&like, r, r)).collect::<Result<_>>()?;
    let sends = all.map(|r| comm.isend(x, r, comm.rank())).collect::<Result<_>>()?;
    Ok((receives, sends))
}

/// The place that an entry had at first.
fn take_place(places: &mut Vec<Rank>, place: usize) -> f64 {
    f64::from(places.remove(place) + 1)
}

fn any_by_any(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, &[2])?;
    let all = context.world.all_gather(&x.detach(), 0)?;
    let (mut receives, sends) = exchange(&tape, &x)?;
    let mut places: Vec<Rank> = (0..tape.size()).collect();
    let mut loss = zeros(&[]);
    while !receives.is_empty() {
        let (place, y) = wait_any(&mut receives)?;
        let weight = take_place(&mut places, place);
        assert_eq!(places.len(), receives.len());
        #[expect(clippy::cast_possible_truncation, reason = "a rank")]
        let from = weight as i64 - 1;
        assert_eq!(y.detach(), all.narrow(0, from * 2, 2));
        loss += (y * weight).sum(Kind::Double);
    }
    let _ = wait_all(sends)?;
    tape.backward(&loss)?;
    let weight = f64::from((tape.rank() + 1) * tape.size());
    assert_eq!(x.grad(), zeros(&[2]) + weight);
    Ok(())
}

fn some_by_some(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, &[2])?;
    let all = context.world.all_gather(&x.detach(), 0)?;
    let (mut receives, mut sends) = exchange(&tape, &x)?;
    let mut places: Vec<Rank> = (0..tape.size()).collect();
    let mut loss = zeros(&[]);
    while !receives.is_empty() {
        let (before, done) = (receives.len(), wait_some(&mut receives)?);
        assert!(!done.is_empty() && done.len() + receives.len() == before);
        assert!(done.is_sorted_by_key(|(place, _)| *place));
        for (place, y) in done.iter().rev() {
            let weight = take_place(&mut places, *place);
            #[expect(clippy::cast_possible_truncation, reason = "a rank")]
            let from = weight as i64 - 1;
            assert_eq!(y.detach(), all.narrow(0, from * 2, 2));
            loss += (y * weight).sum(Kind::Double);
        }
    }
    while !sends.is_empty() {
        let _ = wait_some(&mut sends)?;
    }
    tape.backward(&loss)?;
    let weight = f64::from((tape.rank() + 1) * tape.size());
    assert_eq!(x.grad(), zeros(&[2]) + weight);
    Ok(())
}

fn no_requests_at_all(_: &Context) -> Result<()> {
    assert_eq!(wait_all([])?.len(), 0);
    let error = wait_any(&mut Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "wait_any: there are no requests to wait for");
    let error = wait_some(&mut Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "wait_some: there are no requests to wait for");
    Ok(())
}

fn one_of_several_fails(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let start = || -> Result<Vec<Request>> {
        Ok(vec![
            world.irecv(&zeros(&[2]), left, 0)?,
            world.irecv(&zeros(&[3]), left, 1)?,
            world.irecv(&zeros(&[2]), left, 2)?,
            world.isend(&zeros(&[2]), right, 0)?,
            world.isend(&zeros(&[2]), right, 1)?,
            world.isend(&zeros(&[2]), right, 2)?,
        ])
    };
    let text = format!(
        "recv: the message of rank {left} with tag 1 has 2 elements of Double; `like` has 3 of \
         Double"
    );
    assert_eq!(wait_all(start()?).unwrap_err().to_string(), text);
    works(world)?;
    let mut requests = start()?;
    let mut failures = 0;
    for left in (0..requests.len()).rev() {
        if let Err(error) = wait_any(&mut requests) {
            assert_eq!(error.to_string(), text);
            failures += 1;
        }
        // Also what failed is taken out.
        assert_eq!(requests.len(), left);
    }
    assert_eq!(failures, 1);
    let mut requests = start()?;
    let (mut results, mut failures) = (0, 0);
    // So that several are found at once.
    world.barrier()?;
    while !requests.is_empty() {
        match wait_some(&mut requests) {
            Ok(done) => results += done.len(),
            Err(error) => {
                assert_eq!(error.to_string(), text);
                failures += 1;
            }
        }
    }
    assert_eq!((results, failures), (5, 1), "nothing is lost");
    works(world)
}

/// The ranks agree on how a call is made: where one of them has started it, nobody waits inside MPI.
fn a_blocking_call_meets_a_started_one(context: &Context) -> Result<()> {
    let world = &context.world;
    let counts: Vec<i64> = (0..i64::from(world.size())).map(|rank| rank % 2 + 1).collect();
    for starts in 0..world.size() {
        let is_here = world.rank() == starts;
        for op in [Op::Sum, Op::Max, Op::Prod] {
            let x = testing::random(world, &[2, 3], Kind::Double)?;
            let f = |x: &Tensor| match is_here {
                true => world.iall_reduce(x, op)?.wait(),
                false => world.all_reduce(x, op),
            };
            testing::assert_serial(world, &x, f, |xs| serial::all_reduce(xs, op))?;
        }
        let own = counts[usize::try_from(world.rank()).unwrap_or(0)];
        let x = testing::random(world, &[own, 2], Kind::Double)?;
        let gather = |x: &Tensor| match is_here {
            true => world.iall_gather_with_counts(x, 0, &counts)?.wait(),
            false => world.all_gather_with_counts(x, 0, &counts),
        };
        testing::assert_adjoint(world, &x, gather)?;
        let large = ones(&[100_000], Kind::Double) * f64::from(starts);
        let y = match is_here {
            true => world.ibroadcast(&large, starts)?.wait()?,
            false => world.broadcast(&large.zeros_like(), starts)?,
        };
        assert_eq!(y, large);
        match is_here {
            true => world.ibarrier()?.wait().map(drop)?,
            false => world.barrier()?,
        }
    }
    Ok(())
}
