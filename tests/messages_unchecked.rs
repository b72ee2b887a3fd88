//! Messages where ranks do not compare their calls: what they bring is their length alone.

mod common;

use std::process::ExitCode;

use common::limits::{self, Limit};
use common::ring::neighbours;
use common::{Context, start_with_local_checks};
use mpi4tch::{Error, Op, Result, TagMatch, testing};
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    harness::run(start_with_local_checks, harness::tests![lengths, statuses, a_ring])
}

fn zeros(count: i64, kind: Kind) -> Tensor {
    Tensor::zeros([count], (kind, Device::Cpu))
}

fn lengths(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(&context.world);
    let of = |count, kind| format!("`like` has {count} elements of {kind:?}, which are");
    for (sent, like, what) in [
        ((2, Kind::Double), (3, Kind::Double), "has 16 bytes; {} 24 bytes"),
        ((0, Kind::Float), (1, Kind::Bool), "has 0 bytes; {} 1 bytes"),
        ((3, Kind::Half), (2, Kind::Float), "has 6 bytes; {} 8 bytes"),
        ((3, Kind::Double), (2, Kind::Double), "is longer than `like`; {} 16 bytes"),
        ((1, Kind::Double), (0, Kind::Double), "is longer than `like`; {} 0 bytes"),
        ((300_000, Kind::Float), (2, Kind::Float), "is longer than `like`; {} 8 bytes"),
        (
            (300_000, Kind::Double),
            (200_000, Kind::Double),
            "is longer than `like`; {} 1600000 bytes",
        ),
        ((200_000, Kind::Double), (300_000, Kind::Double), "has 1600000 bytes; {} 2400000 bytes"),
        ((2, Kind::Double), (1_000, Kind::Double), "has 16 bytes; {} 8000 bytes"),
    ] {
        let ends_within = sent.1 == Kind::Half && like.1 == Kind::Float;
        let limit = match world.size() {
            1 => Limit::MessageToOneselfThatDoesNotFit,
            _ => Limit::MessageThatEndsWithinAnElement,
        };
        if ends_within && limits::has(limit) {
            continue;
        }
        let (sent, tensor) = (zeros(sent.0, sent.1), zeros(like.0, like.1));
        let what = what.replace("{}", &of(like.0, like.1));
        let assert_refused = |call: &str, result: Result<Tensor>| {
            let error = result.expect_err("it does not fit");
            assert!(matches!(error, Error::Message { .. }));
            let expected = format!("{call}: the message of rank {left} with tag 3 {what}");
            assert_eq!(error.to_string(), expected);
        };
        let request = world.isend(&sent, right, 3)?;
        assert_refused("recv", world.recv(&tensor, left, 3));
        let _ = request.wait()?;
        let receive = world.irecv(&tensor, left, TagMatch::Any)?;
        let request = world.isend(&sent, right, 3)?;
        assert_refused("recv", receive.wait());
        let _ = request.wait()?;
        if sent.kind() == tensor.kind() {
            assert_refused("sendrecv", world.sendrecv(&sent, right, &tensor, left, 3));
        }
        let sum = world.iall_reduce(&Tensor::from_slice(&[1]), Op::Sum)?.wait()?;
        assert_eq!(sum, Tensor::from_slice(&[world.size()]));
    }
    Ok(())
}

fn statuses(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(&context.world);
    for count in [0, 3, 300_000] {
        let x = zeros(count, Kind::Double);
        let request = world.isend(&x, right, 3)?;
        assert_eq!(world.probe(left, 3)?.count(Kind::Double), Some(count));
        let (_, status) = world.recv_with_status(&x, left, 3)?;
        assert_eq!(status.count(Kind::Double), Some(count));
        let _ = request.wait()?;
    }
    Ok(())
}

fn a_ring(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(&context.world);
    for (count, largest) in [(0, i32::MAX), (5, i32::MAX), (300_000, i32::MAX), (1_001, 10)] {
        testing::set_largest_count(largest);
        let x = testing::random(world, &[count], Kind::Double)?;
        let outcome = testing::assert_serial(
            world,
            &x,
            |x| world.sendrecv(x, right, x, left, 0),
            |xs| {
                let mut ys: Vec<Tensor> = xs.iter().map(Tensor::shallow_clone).collect();
                ys.rotate_right(1);
                ys
            },
        );
        testing::set_largest_count(i32::MAX);
        outcome?;
    }
    Ok(())
}
