//! The derivative of the solution of an equation. The solver is one node of the graph, however many
//! iterations it takes, and its adjoint is a second solve.
//!
//! ```sh
//! make demo EXAMPLE=implicit_solve
//! ```
//!
//! On a line that is distributed over the ranks, u solves −u″ + eᶿ u = f, with u = 0 beyond both
//! ends. θ is the parameter in each cell, and the loss is half the squared distance of u from
//! measured values. Let A = A(θ) be the matrix of the left side, and ū the cotangent of u. By the
//! implicit function theorem:
//!
//! ```text
//! A λ = ū,    f̄ = λ,    θ̄ = −eᶿ u λ
//! ```
//!
//! In each iteration of the conjugate gradients, neighbours exchange the cells at the ends of their
//! parts, and two sums over all ranks are computed; none of it is recorded. The pullback calls
//! `solve`, so it can be differentiated too. The example compares the gradient with finite
//! differences, and checks that the second derivatives are symmetric.

use std::process::ExitCode;

use mpi4tch::tch::{Device, Kind, Tensor, no_grad};
use mpi4tch::{Communicator, Op, PROC_NULL, PassOptions, Result};

/// The number of cells of each rank.
const CELLS: i64 = 16;

fn main() -> ExitCode {
    mpi4tch::run(|universe| run(&universe.world()))
}

/// Checks a gradient and second derivatives, on any number of ranks.
pub(crate) fn run(world: &Communicator) -> Result<()> {
    let cell = Tensor::arange(CELLS, (Kind::Double, Device::Cpu)) + place(world);
    let (source, measured) = ((&cell * 0.3).sin() + 1.5, (&cell * 0.2).cos());
    // Two directions in the space of all ranks' cells, along which derivatives are taken.
    let (v, w) = ((&cell * 0.7).sin(), (&cell * 1.1).cos());
    let theta = (&cell * 0.1).sin().set_requires_grad(true);

    let tape = world.tape();
    let distance = |comm: &Communicator, theta: &Tensor| -> Result<Tensor> {
        let u = solve(comm, theta, &source)?;
        Ok((u - &measured).square().sum(Kind::Double) * 0.5)
    };
    let loss = distance(&tape, &theta)?;
    let options = PassOptions { create_graph: true, ..Default::default() };
    let gradient = tape.grad_with(&loss, &[&theta], options)?.remove(0);
    let along_v = (&gradient * &v).sum(Kind::Double);
    let hessian_v = tape.grad(&along_v, &[&theta])?.remove(0);

    let total = |x: &Tensor| world.all_reduce(&x.sum(Kind::Double).detach(), Op::Sum);
    let along_v = total(&along_v)?.double_value(&[]);
    let shifted = |t: f64| -> Result<f64> {
        Ok(total(&distance(world, &(theta.detach() + &v * t))?)?.double_value(&[]))
    };
    let step = 1e-5;
    let difference = (shifted(step)? - shifted(-step)?) / (2.0 * step);
    assert!((along_v - difference).abs() < 1e-6 * difference.abs().max(1.0));

    let loss = distance(&tape, &theta)?;
    let gradient = tape.grad_with(&loss, &[&theta], options)?.remove(0);
    let hessian_w = tape.grad(&(gradient * &w).sum(Kind::Double), &[&theta])?.remove(0);
    let [vhw, whv] =
        [total(&(v * hessian_w))?.double_value(&[]), total(&(w * hessian_v))?.double_value(&[])];
    assert!((vhw - whv).abs() < 1e-8 * vhw.abs().max(1.0));

    if world.rank() == 0 {
        println!("derivative along v: {along_v:.9}, by differences {difference:.9}");
        println!("second derivative along v and w: {vhw:.9}, along w and v {whv:.9}");
    }
    Ok(())
}

/// The number of this rank's first cell.
fn place(comm: &Communicator) -> f64 {
    f64::from(comm.rank()) * CELLS as f64
}

/// The solution u, as one node of the graph.
fn solve(comm: &Communicator, theta: &Tensor, f: &Tensor) -> Result<Tensor> {
    let u = no_grad(|| conjugate_gradients(comm, &theta.detach().exp(), &f.detach()))?;
    let results =
        comm.custom("solve", &[theta, f], &[&u], &[theta, &u], |comm, saved, cotangents| {
            let [theta, u] = saved else { unreachable!("two tensors were saved") };
            let lambda = solve(comm, theta, &cotangents[0])?;
            Ok(vec![Some(-(theta.exp() * u * &lambda)), Some(lambda)])
        })?;
    Ok(results[0].shallow_clone())
}

/// Solves A u = f for the symmetric positive A = −″ + diag(a), to rounding.
fn conjugate_gradients(comm: &Communicator, a: &Tensor, f: &Tensor) -> Result<Tensor> {
    let dot = |x: &Tensor, y: &Tensor| -> Result<f64> {
        Ok(comm.all_reduce(&x.dot(y), Op::Sum)?.double_value(&[]))
    };
    let (mut u, mut r, mut p) = (f.zeros_like(), f.copy(), f.copy());
    let mut rr = dot(&r, &r)?;
    // The sums are equal on all ranks, so the number of iterations is too.
    let enough = 1e-28 * rr;
    while rr > enough {
        let ap = apply(comm, a, &p)?;
        let alpha = rr / dot(&p, &ap)?;
        u += &p * alpha;
        r -= ap * alpha;
        let before = rr;
        rr = dot(&r, &r)?;
        p = &r + p * (rr / before);
    }
    Ok(u)
}

/// A x, with the neighbours' cells beyond the ends of this rank's part, and zeros beyond the line.
fn apply(comm: &Communicator, a: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (first, last) = (x.narrow(0, 0, 1), x.narrow(0, CELLS - 1, 1));
    let wall = first.zeros_like();
    let left = if comm.rank() > 0 { comm.rank() - 1 } else { PROC_NULL };
    let right = if comm.rank() + 1 < comm.size() { comm.rank() + 1 } else { PROC_NULL };
    let from_left = comm.sendrecv(&last, right, &wall, left, 0)?;
    let from_right = comm.sendrecv(&first, left, &wall, right, 1)?;
    let wide = Tensor::cat(&[from_left, x.shallow_clone(), from_right], 0);
    let neighbours = wide.narrow(0, 0, CELLS) + wide.narrow(0, 2, CELLS);
    Ok((a + 2.0) * x - neighbours)
}
