use std::process::ExitCode;

use mpi4tch::{Op, Universe};
use tch::{Cuda, Device, Kind, Tensor};

fn main() -> ExitCode {
    mpi4tch::run(program)
}

pub fn program(universe: &Universe) -> mpi4tch::Result<()> {
    let world = universe.world();
    let rank = i64::from(world.split_shared()?.rank()); // among those of this node
    let device = match Cuda::device_count() {
        0 => Device::Cpu,
        count => Device::Cuda(usize::try_from(rank % count).expect("it is not negative")),
    };

    let x = Tensor::ones([3], (Kind::Double, device)).set_requires_grad(true);
    let y = world.all_reduce(&x, Op::Sum)?;
    y.square().sum(Kind::Double).f_backward()?;

    assert_eq!((y.device(), x.grad().device()), (device, device));
    let expected = f64::from(2 * world.size()) * &y;
    assert!(x.grad().allclose(&expected, 1e-12, 0.0, false));
    Ok(())
}
