//! The minimization of the misfit.

use argmin::core::observers::{Observe, ObserverMode};
use argmin::core::{CostFunction, Executor, Gradient, IterState, KV, State};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use indicatif::ProgressBar;
use mpi4tch::tch::{Tensor, no_grad};

use super::field::Field;
use super::heat::Heat;

type Outcome<T> = Result<T, argmin::core::Error>;

/// The number of steps whose gradients L-BFGS remembers.
const MEMORY: usize = 10;

/// Minimizes the misfit by L-BFGS. Returns the initial temperature, and the misfit before and after.
pub fn recover(
    heat: &Heat,
    observed: &Tensor,
    iterations: u64,
    bar: &ProgressBar,
) -> Outcome<(Tensor, [f64; 2])> {
    let start = Field::new(&heat.grid, observed);
    let problem = Misfit { heat, observed };
    let before = problem.cost(&start)?;
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), MEMORY).with_tolerance_cost(0.0)?;
    let result = Executor::new(problem, solver)
        .configure(|state| state.param(start).max_iters(iterations))
        .add_observer(Progress(bar.clone()), ObserverMode::Always)
        .run()?;
    let best = result.state().get_best_param().expect("there is a first one");
    Ok((best.cells.shallow_clone(), [before, result.state().get_best_cost()]))
}

/// The problem to minimize. Every rank has its own cells of the parameter and of the gradient.
struct Misfit<'a> {
    heat: &'a Heat,
    observed: &'a Tensor,
}

impl CostFunction for Misfit<'_> {
    type Param = Field;
    type Output = f64;

    fn cost(&self, initial: &Field) -> Outcome<f64> {
        let own = no_grad(|| self.heat.misfit(&initial.cells, self.observed))?;
        Ok(self.heat.total(&own)?)
    }
}

impl Gradient for Misfit<'_> {
    type Param = Field;
    type Gradient = Field;

    fn gradient(&self, initial: &Field) -> Outcome<Field> {
        let gradient = self.heat.gradient(&initial.cells, self.observed)?;
        Ok(Field::new(&self.heat.grid, &gradient))
    }
}

struct Progress(ProgressBar);

impl Observe<IterState<Field, Field, (), (), (), f64>> for Progress {
    fn observe_iter(
        &mut self,
        state: &IterState<Field, Field, (), (), (), f64>,
        _: &KV,
    ) -> Outcome<()> {
        self.0.inc(1);
        self.0.set_message(format!("misfit {:.2e}", state.get_cost()));
        Ok(())
    }
}
