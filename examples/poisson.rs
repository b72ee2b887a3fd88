//! Where does a plate conduct heat worse than it should? The steady temperature on a square that is
//! cut over a grid of ranks, solved by conjugate gradients, and its derivative by the conductivity in
//! each point.
//!
//! ```sh
//! make demo EXAMPLE=poisson RANKS=4
//! make demo EXAMPLE=poisson RANKS=4 ARGS='--points 127 --out target/plots'
//! ```
//!
//! u solves −∇·(κ ∇u) = f inside, with u = 0 on the edge. With A(κ) for the left side, the cotangent ū
//! of u and the implicit function theorem:
//!
//! ```text
//! A(κ) λ = ū,    f̄ = λ,    κ̄ = −∂/∂κ (λᵀ A(κ) u)
//! ```
//!
//! So the solver is one node of the graph, however many iterations it takes, and its adjoint is a
//! second solve, since A is symmetric. No iteration is recorded.
//!
//! The example checks that the error of a solution that is known falls with the square of the distance
//! between the points, and compares the derivatives by κ and f with finite differences.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mpi4tch::tch::{Kind, Tensor, no_grad};
use mpi4tch::{Cartesian, Op, Universe};

use heat_map::{Colors, HeatMap, range, symmetric_range};
use picture::Picture;
use square::Square;

#[path = "common/command_line.rs"]
mod command_line;
#[path = "common/heat_map.rs"]
mod heat_map;
#[path = "common/picture.rs"]
mod picture;
#[path = "common/progress.rs"]
mod progress;
#[path = "poisson/solver.rs"]
mod solver;
#[path = "poisson/square.rs"]
mod square;
#[path = "common/stencil.rs"]
mod stencil;

/// Differentiates the steady temperature of a square, cut over a grid of MPI ranks.
///
/// Prints the errors of a solution that is known, on three grids of points, and the derivatives of a
/// loss by the conductivity and by the sources, beside finite differences.
#[derive(Parser)]
#[command(override_usage = "mpiexec -n RANKS poisson [--points N] [--out FOLDER]")]
pub(crate) struct Arguments {
    /// The number of points along each side, without those on the edge
    #[arg(long, value_name = "N", default_value = "63")]
    #[arg(value_parser = clap::value_parser!(i64).range(15..=1023))]
    pub(crate) points: i64,

    /// Draw the conductivity, the temperature and the derivative in FOLDER/poisson.png
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
}

fn main() -> ExitCode {
    mpi4tch::run(|universe| command_line::parse_and_run(universe, run))
}

pub(crate) fn run(universe: &Universe, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let world = universe.world();
    let tape = world.tape();
    let grid = tape.cartesian(&[0; 2], &[false; 2], false)?.expect("all ranks are in the grid");
    let (dims, points) = (grid.dims(), arguments.points);
    // The three grids of points that are compared.
    let coarsest = (points + 1) / 4 - 1;
    let sizes = [coarsest, 2 * coarsest + 1, 4 * coarsest + 3];
    if coarsest < i64::from(dims[0].max(dims[1])) {
        return Err(format!("{coarsest} × {coarsest} points, the fewest to be compared, cannot be cut over {} × {} ranks; at least one for each is needed", dims[0], dims[1]).into());
    }
    let picture = Picture::create(&world, arguments.out.as_deref(), "poisson.png")?;
    let bar = progress::bar(&world, 8);
    let mut errors = Vec::new();
    for points in sizes {
        let own = no_grad(|| Square::new(&grid, points).error_of_known_solution())?;
        errors.push(grid.all_reduce(&own, Op::Max)?.double_value(&[]));
        bar.inc(1);
    }

    // The temperature was measured, the conductivity is thought to be 1.
    let square = Square::new(&grid, points);
    let (kappa, f) = (square.conductivity(), square.sources());
    let measured = no_grad(|| square.solve(&kappa, &f))?;
    let loss = |kappa: &Tensor, f: &Tensor| -> mpi4tch::Result<Tensor> {
        bar.inc(1);
        Ok((square.solve(kappa, f)? - &measured).square().sum(Kind::Double) * square.h.powi(2))
    };
    let guess = kappa.ones_like().set_requires_grad(true);
    let f = f.set_requires_grad(true);
    let gradients = tape.grad(&loss(&guess, &f)?, &[&guess, &f])?;
    let directions = [square.wave(1.0, 2.0), square.wave(3.0, 1.0)];
    let derivatives = check(&grid, loss, [&guess, &f], &gradients, &directions)?;
    bar.finish_and_clear();

    if grid.rank() == 0 {
        println!("{points} × {points} points on {} × {} ranks", dims[0], dims[1]);
        println!("\npoints   largest error of a known solution");
        for (points, error) in sizes.iter().zip(&errors) {
            println!("{points:>6}   {error:.3e}");
        }
        println!("\nderivative by   backward pass         differences");
        for (name, [backward, difference]) in ["κ", "f"].iter().zip(derivatives) {
            println!("{name:<13}   {backward:<19.12e}   {difference:<.12e}");
        }
    }
    // Per area, the derivative does not depend on the number of points.
    let by_kappa = &gradients[0] / square.h.powi(2);
    let fields = [&kappa, &measured, &by_kappa].map(|x| grid.collect(x, &[0, 1], 0));
    if let (Some(picture), [kappa, u, gradient]) = (picture, fields) {
        picture.write(&maps(kappa?, u?, gradient?))?;
    }
    for pair in errors.windows(2) {
        let order = (pair[0] / pair[1]).log2();
        assert!((order - 2.0).abs() < 0.2, "the error falls with the order {order} instead of 2");
    }
    for [backward, difference] in derivatives {
        let error = (backward / difference - 1.0).abs();
        assert!(error < 1e-7, "a derivative is off by {error:e} from finite differences");
    }
    Ok(())
}

/// The derivatives of all ranks' losses by κ and by f, in a direction each: by the gradients, and by
/// differences.
fn check(
    grid: &Cartesian,
    loss: impl Fn(&Tensor, &Tensor) -> mpi4tch::Result<Tensor>,
    inputs: [&Tensor; 2],
    gradients: &[Tensor],
    directions: &[Tensor],
) -> mpi4tch::Result<[[f64; 2]; 2]> {
    const STEP: f64 = 1e-4;
    let total = |x: &Tensor| -> mpi4tch::Result<f64> {
        Ok(grid.all_reduce(&x.detach().sum(Kind::Double), Op::Sum)?.double_value(&[]))
    };
    let mut derivatives = [[0.0; 2]; 2];
    for i in 0..2 {
        let shifted = |t: f64| -> mpi4tch::Result<f64> {
            let mut inputs = inputs.map(Tensor::detach);
            inputs[i] = &inputs[i] + &directions[i] * t;
            total(&no_grad(|| loss(&inputs[0], &inputs[1]))?)
        };
        let difference = (shifted(STEP)? - shifted(-STEP)?) / (2.0 * STEP);
        derivatives[i] = [total(&(&gradients[i] * &directions[i]))?, difference];
    }
    Ok(derivatives)
}

fn maps(kappa: Tensor, u: Tensor, gradient: Tensor) -> [HeatMap<'static>; 3] {
    let map = |title, field, range, colors| HeatMap {
        title,
        x: ("x", 1.0),
        y: ("y", 1.0),
        field,
        range,
        colors,
        width: 480,
    };
    let ranges = [range(&kappa), range(&u), symmetric_range(&gradient)];
    let [of_kappa, of_u, of_gradient] = ranges;
    [
        map("conductivity κ", kappa, of_kappa, Colors::Sequential),
        map("temperature u", u, of_u, Colors::Sequential),
        map("derivative of the misfit by κ, at 1", gradient, of_gradient, Colors::Diverging),
    ]
}
