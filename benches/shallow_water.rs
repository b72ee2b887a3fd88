//! The time of a forward step of the model in examples/shallow_water, and the kinetic energy in the end.
//!
//! ```text
//! cargo bench --bench shallow_water        # on 2 ranks
//! make bench-peers                         # against mpi4jax
//! ```
//!
//! benches/peers/shallow_water.py computes the same model.

#[path = "../examples/shallow_water/model.rs"]
mod model;
#[path = "../examples/common/stencil.rs"]
mod stencil;
#[path = "side_by_side/turns.rs"]
mod turns;

use std::error::Error;

use model::Model;
use mpi4tch::{Communicator, Op};
use tch::{Kind, no_grad};
use turns::{Run, in_turns, median, on_ranks};

/// Rows, columns, and steps of a run.
const CASES: [(i64, i64, usize); 2] = [(180, 360, 200), (720, 1440, 20)];
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    tch::set_num_threads(1);
    on_ranks(2, |world| {
        if world.rank() == 0 {
            println!(
                "forward steps, one thread a rank; median and least of {RUNS} runs; the kinetic \
                 energy in the end\n"
            );
        }
        CASES.iter().try_for_each(|&case| no_grad(|| measure(world, case)))
    })
}

fn measure(world: &Communicator, (rows, columns, steps): (i64, i64, usize)) -> mpi4tch::Result<()> {
    let tape = world.tape();
    let grid = tape.cartesian(&[0; 2], &[false, true], false)?.expect("all ranks are in the grid");
    let model = Model::new(grid, rows, columns);
    let initial = model.initial_fields();
    let run = || model.run(&tape, &initial, steps, 1, || ());
    let last = run()?;
    let [h, u, v] = [0, 1, 2].map(|i| last.get(i));
    let energy = ((u.square() + v.square()) * h).sum(Kind::Double) * 0.5;
    let energy = world.all_reduce(&energy, Op::Sum)?.double_value(&[]);
    let mut timed: Run<'_> = Box::new(|| run().map(drop));
    let times = in_turns(world, RUNS, 1, &mut [&mut timed])?.remove(0);
    if world.rank() == 0 {
        let least = times.iter().copied().fold(f64::INFINITY, f64::min);
        let [step, least] = [median(&times), least].map(|time| time / 1e3 / steps as f64);
        let case = format!("{rows} x {columns}");
        println!(
            "{case:<14}{:<28}{step:>9.2} ms{least:>9.2} ms    energy {energy:.12e}",
            "mpi4tch"
        );
    }
    Ok(())
}
