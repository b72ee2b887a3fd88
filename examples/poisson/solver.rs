//! −∇·(κ ∇u) = f on a square that is cut over a grid of ranks, as one node of the graph.

use mpi4tch::tch::{Kind, Tensor, no_grad};
use mpi4tch::{Cartesian, Error, Halo, Op, Result};

use super::stencil::{X, Y, difference, inner, mean};

/// Each point has four neighbours.
const HALOS: [Halo; 2] = [
    Halo { axis: Y, along: 0, before: 1, after: 1 },
    Halo { axis: X, along: 1, before: 1, after: 1 },
];

/// The solution u at the points inside the unit square, at distances h. On the square's edge, u is 0
/// and κ is 1.
///
/// The node's pullback is a second solve, which is a node too.
pub fn solve(grid: &Cartesian, kappa: &Tensor, f: &Tensor, h: f64) -> Result<Tensor> {
    let u = no_grad(|| conjugate_gradients(grid, kappa, f, h))?;
    let dims = grid.dims().to_vec();
    let results =
        grid.custom("solve", &[kappa, f], &[&u], &[kappa, &u], move |comm, saved, cotangents| {
            let [kappa, u] = saved else { unreachable!("two tensors were saved") };
            // The pullback has a communicator of its own, on which it makes the same grid.
            let grid = &comm.cartesian(&dims, &[false; 2], false)?.expect("all ranks are in it");
            let lambda = solve(grid, kappa, &cotangents[0], h)?;
            let kappa_bar = pull_back_to_kappa(grid, u, &lambda, h)?;
            Ok(vec![Some(kappa_bar), Some(lambda)])
        })?;
    Ok(results[0].shallow_clone())
}

/// Solves A(κ) u = f, to rounding. A(κ) is symmetric and positive if κ is positive.
fn conjugate_gradients(grid: &Cartesian, kappa: &Tensor, f: &Tensor, h: f64) -> Result<Tensor> {
    let dot = |x: &Tensor, y: &Tensor| -> Result<f64> {
        Ok(grid.all_reduce(&(x * y).sum(Kind::Double), Op::Sum)?.double_value(&[]))
    };
    let faces = Faces::new(grid, kappa)?;
    let (mut u, mut r, mut p) = (f.zeros_like(), f.copy(), f.copy());
    let mut rr = dot(&r, &r)?;
    // The sums are equal on all ranks, so the number of iterations is too.
    let enough = 1e-26 * rr;
    for _ in 0..100_000 {
        if rr <= enough {
            return Ok(u);
        }
        let ap = faces.apply(grid, &p, h)?;
        let alpha = rr / dot(&p, &ap)?;
        u += &p * alpha;
        r -= ap * alpha;
        let before = rr;
        rr = dot(&r, &r)?;
        p = &r + p * (rr / before);
    }
    let message = "no convergence in 100 000 iterations; is κ positive?".to_owned();
    Err(Error::Argument { call: "solve", message })
}

/// κ half-way between neighbouring points: the mean of both.
struct Faces {
    along_y: Tensor,
    along_x: Tensor,
}

impl Faces {
    fn new(grid: &Cartesian, kappa: &Tensor) -> Result<Self> {
        // Beyond the edge, the exchange gives zeros.
        let wide = grid.halo_exchange(&(kappa - 1.0), &HALOS)? + 1.0;
        Ok(Self { along_y: mean(&inner(&wide, X), Y), along_x: mean(&inner(&wide, Y), X) })
    }

    /// A(κ) u: the differences of the fluxes between neighbouring points.
    fn apply(&self, grid: &Cartesian, u: &Tensor, h: f64) -> Result<Tensor> {
        let wide = grid.halo_exchange(u, &HALOS)?;
        let fluxes_y = &self.along_y * difference(&inner(&wide, X), Y);
        let fluxes_x = &self.along_x * difference(&inner(&wide, Y), X);
        Ok((difference(&fluxes_y, Y) + difference(&fluxes_x, X)) / (-h * h))
    }
}

/// κ̄ = −∂/∂κ (λᵀ A(κ) u). Each point has half of κ on each of its four faces, where the product of
/// the slopes of u and λ is the derivative of λᵀ A u.
fn pull_back_to_kappa(grid: &Cartesian, u: &Tensor, lambda: &Tensor, h: f64) -> Result<Tensor> {
    let both = grid.halo_exchange(&Tensor::stack(&[u, lambda], 0), &HALOS)?;
    let products = |axis, other| {
        let slopes = difference(&inner(&both, other), axis) / h;
        mean(&(slopes.select(0, 0) * slopes.select(0, 1)), axis)
    };
    Ok(-(products(Y, X) + products(X, Y)))
}
