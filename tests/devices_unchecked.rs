//! Tensors on devices where the ranks agree on no call: with `MPI4TCH_CHECK=none`.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use common::device::{host, placed};
use common::{Context, start_without_checks};
use mpi4tch::{Op, Result};
use tch::Tensor;

fn main() -> ExitCode {
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("MPI4TCH_TEST_DEVICE", "stand-in") };
    let tests = harness::tests![messages_depart_before_others_wait, sums_depart_in_their_order];
    harness::run(start_without_checks, tests)
}

/// A rank that waits inside MPI for a call on one communicator hands none on another one to MPI.
fn messages_depart_before_others_wait(context: &Context) -> Result<()> {
    let world = &context.world;
    let (messages, sums) = (world.duplicate()?, world.duplicate()?);
    let (x, one) = (placed(Tensor::from_slice(&[world.rank() + 7])), Tensor::from_slice(&[1]));
    stand_in::set_delay(Duration::from_millis(100));
    let send = match world.rank() {
        0 if world.size() > 1 => Some(messages.isend(&x, 1, 0)?),
        1 => {
            assert_eq!(host(&messages.recv(&x, 0, 0)?), Tensor::from_slice(&[7]));
            None
        }
        _ => None,
    };
    assert_eq!(sums.all_reduce(&one, Op::Sum)?, Tensor::from_slice(&[world.size()]));
    if let Some(send) = send {
        let _ = send.wait()?;
    }
    stand_in::set_delay(Duration::ZERO);
    Ok(())
}

/// MPI matches the calls of the ranks by their order alone.
fn sums_depart_in_their_order(context: &Context) -> Result<()> {
    let world = &context.world;
    stand_in::set_delay(Duration::from_millis(50));
    for _ in 0..3 {
        let (x, y) = (Tensor::from_slice(&[1_i64]), Tensor::from_slice(&[10_i64]));
        let x = if world.rank() == 0 { placed(x) } else { x };
        let first = world.iall_reduce(&x, Op::Sum)?;
        let second = world.iall_reduce(&y, Op::Sum)?.wait()?;
        let ranks = i64::from(world.size());
        assert_eq!(host(&first.wait()?), Tensor::from_slice(&[ranks]));
        assert_eq!(second, Tensor::from_slice(&[10 * ranks]));
    }
    stand_in::set_delay(Duration::ZERO);
    Ok(())
}
