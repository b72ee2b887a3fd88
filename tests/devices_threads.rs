//! The threads on which libtorch goes back through the calls of devices: while there is one of them, all calls
//! are made by MPI's blocking functions, large ones in pieces. With a second one they are polled for.

#[path = "common/mod.rs"]
mod common;

use std::process::ExitCode;

use common::{Context, start_on_stand_in, works};
use mpi4tch::{Communicator, Op, Result, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(start_on_stand_in, harness::tests![one_device_and_then_another])
}

/// The pieces of the tensors of this test.
const PIECES: u32 = 4;

/// How many copies an `all_reduce` of a tensor on the device makes, forward and backward.
fn copies(world: &Communicator, device: i32) -> Result<[u64; 2]> {
    let x = stand_in::to_device(&Tensor::ones([12], (Kind::Double, tch::Device::Cpu)), device);
    let (x, cotangent) = (x.detach().set_requires_grad(true), x.detach());
    let counted = |f: &dyn Fn() -> Result<Tensor>| -> Result<(Tensor, u64)> {
        stand_in::synchronize(device);
        let before = stand_in::copies_made();
        let y = f()?;
        stand_in::synchronize(device);
        Ok((y, stand_in::copies_made() - before))
    };
    testing::set_staging_piece(12 * 8 / PIECES as usize);
    let (y, forward) = counted(&|| world.all_reduce(&x, Op::Sum))?;
    let back = || Ok(testing::vjp(&[&y], &[&cotangent], &[&x], false)?.remove(0));
    let (_gradient, backward) = counted(&back)?;
    testing::set_staging_piece(4 << 20);
    Ok([forward, backward])
}

fn one_device_and_then_another(context: &Context) -> Result<()> {
    let world = &context.world;
    // There and back.
    for _ in 0..2 {
        assert_eq!(copies(world, 0)?, [u64::from(2 * PIECES); 2], "one device");
    }
    // Of these, MPI gets pointers, Open MPI too.
    stand_in::set_reachable(true);
    testing::force_direct(true)?;
    let direct = copies(world, 0);
    testing::force_direct(false)?;
    stand_in::set_reachable(false);
    assert_eq!(direct?, [0; 2], "direct");
    // That its pullbacks are on another thread is known when they begin.
    let _first = copies(world, 1)?;
    for device in [0, 1] {
        assert_eq!(copies(world, device)?, [2; 2], "two devices");
    }
    works(world)
}
