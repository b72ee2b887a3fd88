//! Points inside a square that is cut over a grid of ranks, and fields on them.

use std::f64::consts::PI;
use std::ops::Range;

use mpi4tch::tch::{Device, Kind, Tensor};
use mpi4tch::{Cartesian, Result};

use super::solver::solve;

/// This rank's points of the unit square. Those on the edge are left out.
pub struct Square<'a> {
    grid: &'a Cartesian,
    /// The distance of neighbouring points.
    pub h: f64,
    /// The coordinates: of a row of points, and of a column.
    x: Tensor,
    y: Tensor,
}

impl<'a> Square<'a> {
    pub fn new(grid: &'a Cartesian, points: i64) -> Self {
        let h = 1.0 / (points + 1) as f64;
        let coordinates = |Range { start, end }| {
            (Tensor::arange_start(start, end, (Kind::Double, Device::Cpu)) + 1.0) * h
        };
        let (x, y) = (coordinates(grid.block(1, points)), coordinates(grid.block(0, points)));
        Self { grid, h, x, y: y.unsqueeze(1) }
    }

    pub fn solve(&self, kappa: &Tensor, f: &Tensor) -> Result<Tensor> {
        solve(self.grid, kappa, f, self.h)
    }

    /// A conductivity with a spot that is too low, and one that is too high.
    pub fn conductivity(&self) -> Tensor {
        1.0 - self.spot(0.3, 0.6) * 0.6 + self.spot(0.7, 0.35) * 0.8
    }

    fn spot(&self, x: f64, y: f64) -> Tensor {
        (((&self.x - x).square() + (&self.y - y).square()) / -0.01).exp()
    }

    /// Heat that is put in everywhere.
    pub fn sources(&self) -> Tensor {
        (&self.x + &self.y).full_like(10.0)
    }

    /// A field with so many half waves along each side.
    pub fn wave(&self, along_x: f64, along_y: f64) -> Tensor {
        (&self.x * (along_x * PI)).sin() * (&self.y * (along_y * PI)).sin()
    }

    /// The largest difference, on this rank, to the solution u = sin(πx) sin(2πy) for
    /// κ = 1 + ½ sin(πx) sin(πy), from which f = −κ Δu − ∇κ·∇u follows.
    pub fn error_of_known_solution(&self) -> Result<Tensor> {
        let (x, y) = (&self.x * PI, &self.y * PI);
        let u = x.sin() * (&y * 2.0).sin();
        let kappa: Tensor = x.sin() * y.sin() * 0.5 + 1.0;
        let slopes_x = x.cos() * y.sin() * x.cos() * (&y * 2.0).sin() * 0.5;
        let slopes_y = x.sin() * y.cos() * x.sin() * (&y * 2.0).cos();
        let f = (&kappa * &u * 5.0 - slopes_x - slopes_y) * (PI * PI);
        Ok((self.solve(&kappa, &f)? - u).abs().max())
    }
}
