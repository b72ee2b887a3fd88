//! What a program comes to, and the numbers that it goes by.

use tch::{Device, Kind, Tensor};

use crate::program::{Input, Program, Var};

/// What a program comes to on a rank: tensors with their names.
#[derive(Default)]
pub struct Outcome {
    pub values: Vec<(String, Tensor)>,
    pub gradients: Vec<(String, Tensor)>,
    pub second: Vec<(String, Tensor)>,
}

pub const REAL: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Tells the weights in the losses from the inputs.
const WEIGHTS: u64 = 1 << 32;

impl Input {
    pub fn on(&self, seed: u64, rank: usize) -> Tensor {
        let shape = &self.shapes[rank];
        normal(seed, self.var, rank, shape).set_requires_grad(self.requires_grad[rank])
    }
}

/// Normal numbers that depend on all of this, and that every rank can draw.
fn normal(seed: u64, var: Var, rank: usize, shape: &[i64]) -> Tensor {
    let mixed = seed.wrapping_mul(10_007) + var as u64 * 101 + rank as u64;
    tch::manual_seed(mixed.cast_signed());
    Tensor::randn(shape, REAL)
}

/// A rank's loss; none if it has none.
pub fn loss(
    program: &Program,
    seed: u64,
    rank: usize,
    at: impl Fn(Var) -> Tensor,
) -> Option<Tensor> {
    let term = |&x: &Var| weighed(seed, x, rank, &(at(x).sin()));
    program.losses[rank].iter().map(term).reduce(|sum, term| sum + term)
}

fn weighed(seed: u64, x: Var, rank: usize, tensor: &Tensor) -> Tensor {
    (tensor * normal(seed + WEIGHTS, x, rank, &tensor.size())).sum(Kind::Double)
}

/// What the gradients, in the order of the inputs, are called.
pub fn named(program: &Program, rank: usize, gradients: Vec<Tensor>) -> Vec<(String, Tensor)> {
    let inputs = program.inputs.iter().filter(|input| input.requires_grad[rank]);
    inputs.map(|input| format!("v{}", input.var)).zip(gradients).collect()
}

/// The loss of the second derivative: of a rank's first gradients.
pub fn second_loss(seed: u64, rank: usize, gradients: &[Tensor]) -> Option<Tensor> {
    let gradients = gradients.iter().enumerate();
    gradients
        .map(|(i, gradient)| weighed(seed, 1000 + i, rank, gradient))
        .reduce(|sum, term| sum + term)
}
