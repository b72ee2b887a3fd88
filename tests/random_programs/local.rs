//! Work of each rank on its own tensors.

use tch::{Kind, Tensor};

use crate::program::Var;

#[derive(Clone, Debug)]
pub enum Local {
    Sin(Var),
    /// By each rank's own factor.
    Scale(Var, Vec<f64>),
    /// What is detached on these ranks.
    Detach(Var, Vec<bool>),
    Clamp(Var, f64),
    Add(Var, Var),
    Mul(Var, Var),
    /// The first, and the sum of the second's elements.
    AddSum(Var, Var),
    /// From, and how many, on each rank.
    Narrow(Var, i64, Vec<(i64, i64)>),
    Cat(Var, Var),
    Transpose(Var),
    Flatten(Var),
}

impl Local {
    pub fn reads(&self) -> Vec<Var> {
        match *self {
            Self::Sin(x)
            | Self::Scale(x, _)
            | Self::Detach(x, _)
            | Self::Clamp(x, _)
            | Self::Narrow(x, ..)
            | Self::Transpose(x)
            | Self::Flatten(x) => vec![x],
            Self::Add(x, y) | Self::Mul(x, y) | Self::AddSum(x, y) | Self::Cat(x, y) => vec![x, y],
        }
    }

    /// The result on a rank, whose tensors `at` gives.
    pub fn run(&self, rank: usize, at: impl Fn(Var) -> Tensor) -> Tensor {
        match self {
            Self::Sin(x) => at(*x).sin(),
            Self::Scale(x, factors) => at(*x) * factors[rank],
            Self::Detach(x, ranks) if ranks[rank] => at(*x).detach(),
            Self::Detach(x, _) => at(*x),
            Self::Clamp(x, most) => at(*x).clamp(-most, *most),
            Self::Add(x, y) => at(*x) + at(*y),
            Self::Mul(x, y) => at(*x) * at(*y),
            Self::AddSum(x, y) => at(*x) + at(*y).sum(Kind::Double),
            Self::Narrow(x, axis, parts) => at(*x).narrow(*axis, parts[rank].0, parts[rank].1),
            Self::Cat(x, y) => Tensor::cat(&[at(*x), at(*y)], 0),
            Self::Transpose(x) => at(*x).transpose(0, 1),
            Self::Flatten(x) => at(*x).flatten(0, -1),
        }
    }
}
