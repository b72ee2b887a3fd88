//! The heat equation on a grid of ranks.

use mpi4tch::tch::{Kind, Tensor};
use mpi4tch::{Cartesian, Communicator, Halo, Op, Result, Tape};

use super::stencil::{X, Y, laplacian};

/// The part of the difference to its neighbours that a cell takes over in a step: the diffusivity
/// times the time step, in units of the cells' area. The steps are stable up to 1/4.
const RATE: f64 = 0.2;

/// Each cell has four neighbours.
const HALOS: [Halo; 2] = [
    Halo { axis: Y, along: 0, before: 1, after: 1 },
    Halo { axis: X, along: 1, before: 1, after: 1 },
];

/// The heat equation, with the temperature 0 beyond the edges.
pub struct Heat {
    pub tape: Tape,
    pub grid: Cartesian,
    steps: usize,
    slots: usize,
}

impl Heat {
    pub fn new(comm: &Communicator, dims: [i32; 2], steps: usize, slots: usize) -> Result<Self> {
        let tape = comm.tape();
        let grid = tape.cartesian(&dims, &[false; 2], false)?.expect("all ranks are in the grid");
        Ok(Self { tape, grid, steps, slots })
    }

    /// The final temperature, from the initial one. The backward pass computes the steps again, so
    /// that few of their states are in memory.
    pub fn run(&self, initial: &Tensor) -> Result<Tensor> {
        let grid = self.grid.clone();
        let step = move |_: usize, state: &[Tensor]| Ok(vec![step(&grid, &state[0])?]);
        Ok(self.tape.checkpoint_steps(&[initial], self.steps, self.slots, step)?.remove(0))
    }

    /// This rank's part of half the squared distance to the observed final temperature.
    pub fn misfit(&self, initial: &Tensor, observed: &Tensor) -> Result<Tensor> {
        Ok((self.run(initial)? - observed).square().sum(Kind::Double) * 0.5)
    }

    /// This rank's cells of the gradient of all ranks' misfit.
    pub fn gradient(&self, initial: &Tensor, observed: &Tensor) -> Result<Tensor> {
        let initial = initial.detach().set_requires_grad(true);
        let misfit = self.misfit(&initial, observed)?;
        Ok(self.tape.grad(&misfit, &[&initial])?.remove(0))
    }

    /// The sum over all ranks, on each of them.
    pub fn total(&self, x: &Tensor) -> Result<f64> {
        Ok(self.grid.all_reduce(&x.detach().sum(Kind::Double), Op::Sum)?.double_value(&[]))
    }
}

/// One step. While the cells at the edges of the blocks are under way, those inside are computed. In
/// the backward pass it is the same for the cotangents.
fn step(grid: &Cartesian, u: &Tensor) -> Result<Tensor> {
    let request = grid.ihalo_exchange(u, &HALOS)?;
    let (rows, columns) = u.size2()?;
    if rows < 2 || columns < 2 {
        return Ok(u + laplacian(&request.wait()?) * RATE);
    }
    let inside = laplacian(u);
    let wide = request.wait()?;
    let [bottom, top] = [0, rows - 1].map(|row| laplacian(&wide.narrow(Y, row, 3)));
    let between = wide.narrow(Y, 1, rows);
    let [left, right] = [0, columns - 1].map(|column| laplacian(&between.narrow(X, column, 3)));
    let middle = Tensor::cat(&[left, inside, right], X);
    Ok(u + Tensor::cat(&[bottom, middle, top], Y) * RATE)
}
