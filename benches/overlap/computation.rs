//! A chain of products of matrices, which takes a given time.

use mpi4tch::{Communicator, Result};
use tch::{Device, Kind, Tensor};

use crate::timing::roughly;

/// A product takes about a millisecond, after which a program may look at its requests.
const SIZE: i64 = 256;

pub struct Computation {
    x: Tensor,
    factor: Tensor,
    products: usize,
}

impl Computation {
    /// One that takes about as many seconds.
    pub fn of(world: &Communicator, seconds: f64) -> Result<Self> {
        let x = Tensor::f_ones([SIZE, SIZE], (Kind::Float, Device::Cpu))?;
        let factor = Tensor::f_eye(SIZE, (Kind::Float, Device::Cpu))?;
        let mut computation = Self { x, factor, products: 20 };
        let each = roughly(world, || computation.run(|| Ok(())))? / 20.0;
        #[expect(clippy::cast_possible_truncation, reason = "it is rounded, and small")]
        let products = (seconds / each).round() as usize;
        computation.products = products.max(1);
        Ok(computation)
    }

    /// Computes, and calls `between` after each product.
    pub fn run(&self, mut between: impl FnMut() -> Result<()>) -> Result<()> {
        let mut y = self.x.shallow_clone();
        for _ in 0..self.products {
            y = y.f_matmul(&self.factor)?;
            between()?;
        }
        Ok(())
    }

    /// The same with a graph, of which the backward pass takes as long.
    pub fn record(&self) -> Result<Tensor> {
        let mut y = self.x.copy().set_requires_grad(true);
        for _ in 0..self.products {
            y = y.f_matmul(&self.factor)?;
        }
        Ok(y.f_sum(Kind::Double)?)
    }
}
