//! Receiving: from whom, with which tag, into what, and what is known of the message.

use mpi4tch::{Rank, Result, Source, TagMatch, join_dummies, testing};
use tch::Kind;

use crate::common::Context;
use crate::common::ring::neighbours;
use crate::common::tensors::{full, tensor, values, variable, zeros};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        any_source_and_any_tag,
        any_source_in_requests,
        like_is_not_written,
        probes_and_statuses,
    ]
}

/// Rank 0 receives from whoever comes, and weighs each message by its place.
fn any_source_and_any_tag(context: &Context) -> Result<()> {
    let world = &context.world;
    for (any_source, any_tag) in [(true, true), (true, false), (false, true)] {
        let tag_of = |rank: Rank| if any_tag { rank * 10 } else { 6 };
        let x = variable(world, &[4])?;
        let mut order = vec![0.0; world.size().unsigned_abs() as usize];
        if world.rank() == 0 {
            let all = world.all_gather(&x.detach(), 0)?;
            let own = world.isend(&x, 0, tag_of(0))?;
            let mut loss = zeros(&[]);
            for place in 0..world.size() {
                let tag = if any_tag { TagMatch::Any } else { 6.into() };
                let source = if any_source { Source::Any } else { place.into() };
                let like = zeros(&[4]).set_requires_grad(true);
                let (y, status) = world.recv_with_status(&like, source, tag)?;
                let from = status.source();
                assert_eq!(status.tag(), tag_of(from));
                assert_eq!(status.count(Kind::Double), Some(4));
                assert_eq!(y.detach(), all.narrow(0, i64::from(from) * 4, 4));
                order[from.unsigned_abs() as usize] = f64::from(place + 1);
                loss += (y * f64::from(place + 1)).sum(Kind::Double);
            }
            let sent = own.wait()?;
            (loss + (sent * 0.0).sum(Kind::Double)).f_backward()?;
        } else {
            let _ = world.all_gather(&x.detach(), 0)?;
            let sent = world.send(&x, 0, tag_of(world.rank()))?;
            (sent * 0.0).sum(Kind::Double).f_backward()?;
        }
        // The gradient is the weight of the place that the own message had.
        let order = values(&world.broadcast(&tensor(&order), 0)?);
        let own = order[world.rank().unsigned_abs() as usize];
        assert!(own > 0.0);
        assert_eq!(x.grad(), zeros(&[4]).fill(own));
    }
    Ok(())
}

fn any_source_in_requests(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let size = tape.size();
    let x = variable(&tape, &[2])?;
    let all = context.world.all_gather(&x.detach(), 0)?;
    let mut requests = Vec::new();
    for _ in 0..size {
        requests.push(tape.irecv(&zeros(&[2]), Source::Any, TagMatch::Any)?);
    }
    for dest in 0..size {
        requests.push(tape.isend(&x, dest, tape.rank() * size + dest)?);
    }
    let received = mpi4tch::wait_all(requests)?;
    // The message of rank r is weighed by r + 1 here, times this rank's own weight.
    let mut loss = zeros(&[]);
    for y in &received[..size.unsigned_abs() as usize] {
        let from = (0..size).find(|r| all.narrow(0, i64::from(*r) * 2, 2) == y.detach());
        let from = from.expect("it is one rank's");
        loss += (y * f64::from((from + 1) * (tape.rank() + 1))).sum(Kind::Double);
    }
    tape.backward(&loss)?;
    let weight = f64::from((tape.rank() + 1) * size * (size + 1) / 2);
    assert_eq!(x.grad(), zeros(&[2]).fill(weight));
    Ok(())
}

fn like_is_not_written(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = variable(world, &[3])?;
    let seven = || (zeros(&[3]) + 7.0).set_requires_grad(true);
    let likes = [seven(), seven(), seven()];
    let send = world.isend(&x, right, 0)?;
    let a = world.recv(&join_dummies(&likes[0], &[&send.dummy()])?, left, 0)?;
    let sent = send.join_dummies(&[&a]).wait()?;
    let receive = world.irecv(&join_dummies(&likes[1], &[&sent])?, left, 1)?;
    let sent = world.send(&join_dummies(&sent, &[&receive.dummy()])?, right, 1)?;
    let b = receive.join_dummies(&[&sent]).wait()?;
    let c = world.sendrecv(&join_dummies(&x, &[&b])?, right, &likes[2], left, 2)?;
    for y in [&a, &b, &c] {
        assert!(y.data_ptr() != likes[0].data_ptr() && y.data_ptr() != likes[1].data_ptr());
    }
    (a + b * 2.0 + c * 3.0).sum(Kind::Double).f_backward()?;
    for like in likes {
        assert_eq!(like.detach(), zeros(&[3]) + 7.0);
        assert_eq!(like.grad(), zeros(&[3]));
    }
    assert_eq!(x.grad(), zeros(&[3]) + 6.0);
    // Nor is it read: it may change, or go, while the message is under way.
    let mut like = zeros(&[3]);
    let receive = world.irecv(&like, left, 0)?;
    like += 1.0;
    drop(like);
    let _ = world.send(&x.detach(), right, 0)?;
    let _ = receive.wait()?;
    Ok(())
}

fn probes_and_statuses(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    for (kind, count, other, in_other) in [
        (Kind::Double, 3, Kind::ComplexDouble, None),
        (Kind::Double, 2, Kind::ComplexDouble, Some(1)),
        (Kind::Float, 3, Kind::Double, None),
        (Kind::Uint8, 1, Kind::Half, None),
        (Kind::Int64, 0, Kind::Bool, Some(0)),
        (Kind::Double, 300_000, Kind::Float, Some(600_000)),
    ] {
        let x = testing::random(world, &[count], kind)?;
        let request = world.isend(&x, right, 30 + world.rank())?;
        let expected = (left, 30 + left, Some(count), in_other);
        let seen = |status: mpi4tch::Status| {
            (status.source(), status.tag(), status.count(kind), status.count(other))
        };
        assert_eq!(seen(world.probe(Source::Any, TagMatch::Any)?), expected);
        assert_eq!(seen(world.probe(left, TagMatch::Any)?), expected);
        let status = world.probe(Source::Any, 30 + left)?;
        assert_eq!(seen(status), expected);
        let like = full(&[count], kind, 0.0);
        let (y, status) = world.recv_with_status(&like, status.source(), status.tag())?;
        assert_eq!(seen(status), expected);
        assert_eq!(y.numel(), x.numel());
        let _ = request.wait()?;
    }
    Ok(())
}
