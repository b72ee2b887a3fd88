//! Tensors that many tests start from, on the device of the test.

use mpi4tch::{Communicator, Result, testing};
use tch::kind::Element;
use tch::{Device, Kind, Scalar, Tensor};

use super::device::placed;

/// These numbers.
pub fn tensor<T: Element>(numbers: &[T]) -> Tensor {
    placed(Tensor::from_slice(numbers))
}

pub fn zeros(shape: &[i64]) -> Tensor {
    full(shape, Kind::Double, 0.0)
}

pub fn ones(shape: &[i64], kind: Kind) -> Tensor {
    full(shape, kind, 1.0)
}

pub fn full(shape: &[i64], kind: Kind, value: impl Into<Scalar>) -> Tensor {
    placed(Tensor::full(shape, value, (kind, Device::Cpu)))
}

/// A tensor that is sparse. It is in host memory: the stand-in has no such tensors.
pub fn sparse() -> Tensor {
    Tensor::zeros([2, 2], (Kind::Double, Device::Cpu)).to_sparse_sparse_dim(2)
}

/// The numbers from 0 to `end` - 1.
pub fn range(end: i64, kind: Kind) -> Tensor {
    placed(Tensor::arange(end, (kind, Device::Cpu)))
}

/// A leaf of random numbers, which differ from rank to rank.
pub fn variable(comm: &Communicator, shape: &[i64]) -> Result<Tensor> {
    Ok(testing::random(comm, shape, Kind::Double)?.set_requires_grad(true))
}

/// The elements, in order.
pub fn values(x: &Tensor) -> Vec<f64> {
    Vec::try_from(x.detach().to_kind(Kind::Double).flatten(0, -1)).expect("numbers")
}
