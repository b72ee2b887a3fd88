//! Tensors that many tests start from.

use mpi4tch::{Communicator, Result, testing};
use tch::{Device, Kind, Tensor};

pub fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Double, Device::Cpu))
}

/// A leaf of random numbers, which differ from rank to rank.
pub fn variable(comm: &Communicator, shape: &[i64]) -> Result<Tensor> {
    Ok(testing::random(comm, shape, Kind::Double)?.set_requires_grad(true))
}

/// The elements, in order.
pub fn values(x: &Tensor) -> Vec<f64> {
    Vec::try_from(x.detach().to_kind(Kind::Double).flatten(0, -1)).expect("numbers")
}
