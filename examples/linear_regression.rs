//! Data-parallel least squares: every rank holds some of the rows, and all ranks run the same
//! iterations of L-BFGS.
//!
//! ```sh
//! cargo build --example linear_regression
//! scripts/mpiexec.sh -n 4 target/debug/examples/linear_regression
//! scripts/mpiexec.sh -n 4 target/debug/examples/linear_regression --synthetic
//! scripts/mpiexec.sh -n 4 target/debug/examples/linear_regression --data my.csv
//! ```
//!
//! All communication of the fit is in `LeastSquares::loss`: two calls of `all_reduce`, which
//! libtorch differentiates like any other operation. The optimizer, from the crate argmin, is not
//! parallel.

use std::cell::Cell;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use argmin::core::observers::{Observe, ObserverMode};
use argmin::core::{CostFunction, Executor, Gradient, IterState, KV, State};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use clap::Parser;
use mpi4tch::tch::{Kind, Tensor, no_grad};
use mpi4tch::{Communicator, Op, Universe};

use closed_form::NormalEquations;
use data::{Standardized, Table};

#[path = "linear_regression/closed_form.rs"]
mod closed_form;
#[path = "common/command_line.rs"]
mod command_line;
#[path = "linear_regression/data.rs"]
mod data;

type Outcome<T> = Result<T, argmin::core::Error>;

/// The largest error of a coefficient that is accepted.
const TOLERANCE: f64 = 1e-6;

/// Fits a linear model by least squares, on any number of MPI ranks.
///
/// Prints the loss of each iteration (the share of the target's variance that the model leaves
/// unexplained), the coefficients, and how far they are from the closed-form solution.
#[derive(Parser)]
#[command(override_usage = "mpiexec -n RANKS linear_regression [--data FILE.csv | --synthetic]")]
struct Arguments {
    /// The data: a line of names, then numbers; the last column is the target
    #[arg(long, value_name = "FILE.csv")]
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/diabetes.csv"))]
    data: PathBuf,

    /// Fit 10 000 points of y = 0.1 + 1.0·x − 2.0·x² instead
    #[arg(long, conflicts_with = "data")]
    synthetic: bool,
}

fn main() -> ExitCode {
    mpi4tch::run(|universe| command_line::parse_and_run(universe, run))
}

fn run(universe: &Universe, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let world = &universe.world();
    let table = match arguments.synthetic {
        true => Table::synthetic(world),
        false => Table::read(world, &arguments.data)?,
    };
    let data = table.standardize(world)?;
    let names = table.features();
    if world.rank() == 0 {
        println!("{}", table.source());
        println!("rows: {}, features: {}, ranks: {}\n", data.rows, names.len(), world.size());
    }
    let closed_form = NormalEquations::new(world, &data)?;
    let exact = closed_form.solve(names).map_err(|error| format!("{}: {error}", table.source()))?;

    // Where all coefficients are zero, the gradient is known. It is checked because the fit would
    // not notice a gradient that is wrong by a factor: it vanishes at the same point.
    let zeros = vec![0.0; names.len()];
    let gradient = LeastSquares::new(world, &data, &zeros)?.gradient(&zeros)?;
    let error = largest_difference(&gradient, &closed_form.gradient_at_zero()?);
    assert!(error < 1e-12, "the gradient at zero is off by {error:e}");

    let fitted = fit(world, &data)?;
    let error = largest_difference(&fitted, &exact);
    let coefficients = data.in_units_of_the_table(&fitted);
    if world.rank() == 0 {
        report(names, &fitted, &coefficients);
        println!("\nlargest difference to the closed-form solution: {error:.1e}");
    }
    assert!(error < TOLERANCE, "off by {error:e} from the closed-form solution");
    if arguments.synthetic {
        let error = largest_difference(&coefficients, &Table::SYNTHETIC);
        assert!(error < TOLERANCE, "off by {error:e} from the coefficients of the synthetic data");
    }
    Ok(())
}

/// The problem to minimize: the change of the mean squared residual of all ranks' rows by a step
/// away from given coefficients.
struct LeastSquares<'a> {
    world: &'a Communicator,
    data: &'a Standardized,
    /// The residuals of this rank's rows, without the step.
    residuals: Tensor,
    /// The mean squared residual of all ranks' rows, without the step.
    mean_square: f64,
    evaluations: Cell<u32>,
}

impl<'a> LeastSquares<'a> {
    fn new(
        world: &'a Communicator,
        data: &'a Standardized,
        coefficients: &[f64],
    ) -> mpi4tch::Result<Self> {
        let residuals = data.features.mv(&Tensor::from_slice(coefficients)) - &data.target;
        let local = residuals.square().sum(Kind::Double) / data.rows;
        let mean_square = world.all_reduce(&local, Op::Sum)?.double_value(&[]);
        Ok(Self { world, data, residuals, mean_square, evaluations: Cell::new(0) })
    }

    /// The change of the total loss, on every rank.
    ///
    /// Each rank calls `backward` on its copy, so the backward pass differentiates the *sum* of all
    /// ranks' copies: on p ranks p times the total loss L = Σᵣ ℓᵣ. Every rank's gradient is that of
    /// L nevertheless, because of the mean of the steps. From a cotangent of 1 on each rank:
    ///
    /// - the adjoint of the sum is a sum: the cotangent of each ℓᵣ is p;
    /// - the cotangent of the mean step on rank r is p·∇ℓᵣ;
    /// - the adjoint of the mean is a mean: the gradient is (1/p)·Σᵣ p·∇ℓᵣ = ∇L on each rank.
    fn loss(&self, step: &Tensor) -> mpi4tch::Result<Tensor> {
        let step = self.world.all_reduce(step, Op::Mean)?;
        let change = self.data.features.mv(&step);
        // (r + c)² − r² without the cancellation for small c.
        let squares = &change * (&change + &self.residuals * 2.0);
        self.world.all_reduce(&(squares.sum(Kind::Double) / self.data.rows), Op::Sum)
    }
}

impl CostFunction for LeastSquares<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, step: &Vec<f64>) -> Outcome<f64> {
        // argmin's line search has no limit of its own, and may not end.
        self.evaluations.set(self.evaluations.get() + 1);
        if self.evaluations.get() > 1000 {
            return Err(argmin::core::Error::msg("evaluated 1000 times"));
        }
        let loss = no_grad(|| self.loss(&Tensor::from_slice(step)))?;
        Ok(loss.double_value(&[]))
    }
}

impl Gradient for LeastSquares<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, step: &Vec<f64>) -> Outcome<Vec<f64>> {
        let step = Tensor::from_slice(step).set_requires_grad(true);
        self.loss(&step)?.backward();
        Ok(Vec::try_from(step.grad())?)
    }
}

/// Minimizes by L-BFGS, in rounds.
///
/// Where the gradient is below about 1e-8 of its initial value, changes of the loss are lost in the
/// rounding errors of double precision, and a line search fails. So each round starts where the
/// last one ended, and computes the change of the loss from there. Most data needs one round only:
/// with accurate line searches and a memory of as many steps as there are coefficients, L-BFGS
/// converges in that many iterations, as conjugate gradients do.
fn fit(world: &Communicator, data: &Standardized) -> Result<Vec<f64>, Box<dyn Error>> {
    let zeros = vec![0.0; usize::try_from(data.features.size()[1])?];
    let mut coefficients = zeros.clone();
    let mut iterations = 0;
    for _ in 0..10 {
        let problem = LeastSquares::new(world, data, &coefficients)?;
        let gradient = problem.gradient(&zeros)?.iter().map(|g| g * g).sum::<f64>().sqrt();
        if gradient < 1e-12 {
            return Ok(coefficients);
        }
        let progress =
            Progress { world: world.clone(), iterations, mean_square: problem.mean_square };
        let line_search = MoreThuenteLineSearch::new().with_c(1e-4, 1e-2)?;
        let solver = LBFGS::new(line_search, zeros.len())
            .with_tolerance_grad(f64::max(1e-6 * gradient, 1e-12))?
            .with_tolerance_cost(0.0)?;
        let result = Executor::new(problem, solver)
            .configure(|state| state.param(zeros.clone()))
            .add_observer(progress, ObserverMode::Always)
            .run()?;
        let state = result.state();
        iterations += state.get_iter();
        // A round whose line search failed has no current step, but a best one.
        let step = state.get_param().or(state.get_best_param()).unwrap_or(&zeros);
        coefficients.iter_mut().zip(step).for_each(|(sum, step)| *sum += step);
    }
    Err(format!("no convergence in {iterations} iterations").into())
}

/// Prints the loss of each iterate, and checks that all ranks have the same iterates.
struct Progress {
    world: Communicator,
    /// The number of iterations before this round.
    iterations: u64,
    /// The loss at the beginning of the round.
    mean_square: f64,
}

type Iterate = IterState<Vec<f64>, Vec<f64>, (), (), (), f64>;

impl Progress {
    fn observe(&self, iteration: u64, state: &Iterate) -> Outcome<()> {
        // There are no parameters if the iteration failed.
        let Some(step) = state.get_param() else { return Ok(()) };
        let step = Tensor::from_slice(step);
        let [least, greatest] = [Op::Min, Op::Max].map(|op| self.world.all_reduce(&step, op));
        assert_eq!(least?, greatest?, "the iterates differ between the ranks");
        if self.world.rank() == 0 {
            let iteration = self.iterations + iteration;
            println!("{iteration:>9}   {:.15}", self.mean_square + state.get_cost());
        }
        Ok(())
    }
}

impl Observe<Iterate> for Progress {
    fn observe_init(&mut self, _: &str, state: &Iterate, _: &KV) -> Outcome<()> {
        if self.iterations > 0 {
            return Ok(());
        }
        if self.world.rank() == 0 {
            println!("iteration   loss");
        }
        self.observe(0, state)
    }

    fn observe_iter(&mut self, state: &Iterate, _: &KV) -> Outcome<()> {
        self.observe(state.get_iter() + 1, state)
    }
}

/// Prints the coefficients by name. Standardized data has no intercept.
fn report(names: &[String], standardized: &[f64], coefficients: &[f64]) {
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(11);
    println!("\n{:width$}   {:>20}   {:>20}", "", "coefficient", "standardized");
    println!("{:width$}   {:>20.12}", "(intercept)", coefficients[0]);
    let rows = names.iter().zip(&coefficients[1..]).zip(standardized);
    for ((name, coefficient), standardized) in rows {
        println!("{name:width$}   {coefficient:>20.12}   {standardized:>20.12}");
    }
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}
