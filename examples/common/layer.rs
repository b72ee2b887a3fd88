//! A layer of a network as one tensor.

use mpi4tch::tch::Tensor;

/// A linear layer. The last row of its parameters is the bias.
pub fn linear(x: &Tensor, parameters: &Tensor) -> Tensor {
    let inputs = parameters.size()[0] - 1;
    x.matmul(&parameters.narrow(0, 0, inputs)) + parameters.get(inputs)
}
