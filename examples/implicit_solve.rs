//! The derivative of a solution: what solves an equation is one node of the graph, however many
//! iterations it took, and its adjoint is a second solve.
//!
//! ```sh
//! make demo EXAMPLE=implicit_solve
//! ```
//!
//! On a line that is cut over the ranks, u solves −u″ + eᶿ u = f, with walls at both ends; θ is the
//! unknown in each cell, and the loss is half the squared distance of u to what was measured. With
//! A = A(θ) for the left side and ū for the loss's cotangent of u, the implicit function theorem
//! says:
//!
//! ```text
//! A λ = ū,    f̄ = λ,    θ̄ = −eᶿ u λ
//! ```
//!
//! The conjugate gradients exchange the ends of their parts with both neighbours and sum up two
//! numbers per iteration; none of it is recorded. The pullback calls the same function, so it has a
//! derivative in its turn: the example checks the gradient against differences, and that the second
//! derivatives are symmetric.

use std::process::ExitCode;

use mpi4tch::tch::{Device, Kind, Tensor, no_grad};
use mpi4tch::{Communicator, Op, PROC_NULL, PassOptions, Result};

/// The cells of each rank.
const CELLS: i64 = 16;

fn main() -> ExitCode {
    mpi4tch::run(|universe| run(&universe.world()))
}

/// A gradient and second derivatives, on any number of ranks.
pub(crate) fn run(world: &Communicator) -> Result<()> {
    let cell = Tensor::arange(CELLS, (Kind::Double, Device::Cpu)) + place(world);
    let (source, measured) = ((&cell * 0.3).sin() + 1.5, (&cell * 0.2).cos());
    // Directions in which derivatives are taken, of all ranks' cells at once.
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

/// Where this rank's cells begin.
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
    // The sums are the same on all ranks, and so is the number of iterations.
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

/// A x, with the neighbours' cells beside the ends, and walls of zeros.
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
