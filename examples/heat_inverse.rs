//! The initial temperature of a plate, recovered from the final one. The plate is cut over a grid of
//! ranks, and so are the vectors of the optimizer.
//!
//! ```sh
//! make demo EXAMPLE=heat_inverse RANKS=4
//! make demo EXAMPLE=heat_inverse RANKS=4 ARGS='--noise 0.01 --out target/plots'
//! ```
//!
//! L-BFGS, of the crate argmin, minimizes half the squared distance between the final temperature
//! that it gets and the one that was observed. The gradient comes from a backward pass through all
//! time steps, whose halo exchanges have halo exchanges as their adjoints. Steps are computed again
//! in the backward pass, so only `--slots` temperatures are in memory.
//!
//! The example checks that the backward pass is the adjoint of the time steps, that the gradient is
//! the one on one rank, and how far the misfit falls.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mpi4tch::tch::{self, Device, Kind, Tensor, no_grad};
use mpi4tch::{PassOptions, Universe, testing};

use heat::Heat;
use heat_map::{Colors, HeatMap, range};
use picture::Picture;
use recovery::recover;

#[path = "common/command_line.rs"]
mod command_line;
#[path = "heat_inverse/field.rs"]
mod field;
#[path = "heat_inverse/heat.rs"]
mod heat;
#[path = "common/heat_map.rs"]
mod heat_map;
#[path = "common/picture.rs"]
mod picture;
#[path = "common/progress.rs"]
mod progress;
#[path = "heat_inverse/recovery.rs"]
mod recovery;
#[path = "common/stencil.rs"]
mod stencil;

/// The misfit must fall by this factor at least, in [`ITERATIONS`] iterations or more.
const FALL: f64 = 500.0;
const ITERATIONS: u64 = 60;

/// Recovers the initial temperature of a plate, cut over a grid of MPI ranks.
///
/// Prints how far the misfit falls, and how far the result is from the true initial temperature.
#[derive(Parser)]
#[command(override_usage = "mpiexec -n RANKS heat_inverse [OPTIONS]")]
pub(crate) struct Arguments {
    /// The number of cells along the plate's short side
    #[arg(long, value_name = "N", default_value = "90")]
    #[arg(value_parser = clap::value_parser!(i64).range(1..=4096))]
    pub(crate) rows: i64,

    /// The number of cells along its long side
    #[arg(long, value_name = "N", default_value = "120")]
    #[arg(value_parser = clap::value_parser!(i64).range(1..=4096))]
    pub(crate) columns: i64,

    /// The number of time steps
    #[arg(long, value_name = "N", default_value = "50")]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) steps: usize,

    /// How many temperatures to keep in memory for the backward pass
    #[arg(long, value_name = "N", default_value = "8")]
    #[arg(value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) slots: usize,

    /// The number of iterations of L-BFGS
    #[arg(long, value_name = "N", default_value_t = ITERATIONS)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) iterations: u64,

    /// The standard deviation of the errors of the observation; the highest temperature is 1
    #[arg(long, value_name = "X", default_value = "0.001")]
    pub(crate) noise: f64,

    /// Draw the true, the observed and the recovered temperature in FOLDER/heat_inverse.png
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
}

fn main() -> ExitCode {
    mpi4tch::run(|universe| command_line::parse_and_run(universe, run))
}

pub(crate) fn run(universe: &Universe, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let world = universe.world();
    let Arguments { rows, columns, steps, slots, .. } = *arguments;
    let heat = Heat::new(&world, [0; 2], steps, slots)?;
    let dims = [heat.grid.dims()[0], heat.grid.dims()[1]];
    if rows < dims[0].into() || columns < dims[1].into() {
        return Err(format!("{rows} × {columns} cells cannot be cut over {} × {} ranks; at least one cell for each is needed", dims[0], dims[1]).into());
    }
    let picture = Picture::create(&world, arguments.out.as_deref(), "heat_inverse.png")?;

    // Rank 0 makes the truth and the noise, so that they do not depend on the number of ranks.
    tch::manual_seed(1);
    let whole = truth(rows, columns);
    let noise = whole.randn_like() * arguments.noise;
    let truth = heat.grid.distribute(&whole, &[0, 1], 0)?;
    let noise = heat.grid.distribute(&noise, &[0, 1], 0)?;
    let observed = no_grad(|| heat.run(&truth))? + noise;

    let mismatch = adjoint_mismatch(&heat, &truth)?;
    assert!(mismatch < 1e-12, "the backward pass is off by {mismatch:e} from the adjoint");
    let difference = difference_to_one_rank(universe, &heat, &observed, arguments)?;
    assert!(difference < 1e-10, "the gradient is off by {difference:e} from that on one rank");

    let bar = progress::bar(&world, arguments.iterations.try_into()?);
    let (recovered, misfits) = recover(&heat, &observed, arguments.iterations, &bar)?;
    bar.finish_and_clear();
    let [before, after] = misfits;
    let error = |u: &Tensor| -> mpi4tch::Result<f64> {
        Ok((heat.total(&(u - &truth).square())? / heat.total(&truth.square())?).sqrt())
    };
    let [blurred, error] = [error(&observed)?, error(&recovered)?];
    if heat.grid.rank() == 0 {
        println!("{rows} × {columns} cells on {} × {} ranks, {steps} steps", dims[0], dims[1]);
        println!(
            "adjoint: off by {mismatch:.1e}; gradient: off by {difference:.1e} from one rank's"
        );
        println!("misfit: {before:.3e}, after {} iterations {after:.3e}", arguments.iterations);
        println!("distance to the truth: observed {blurred:.3}, recovered {error:.3}");
    }
    let fields = [&observed, &recovered].map(|x| heat.grid.collect(x, &[0, 1], 0));
    if let (Some(picture), [observed, recovered]) = (picture, fields) {
        picture.write(&maps(whole, observed?, recovered?))?;
    }
    if arguments.iterations >= ITERATIONS {
        assert!(after * FALL < before, "the misfit falls from {before:e} to {after:e} only");
    }
    Ok(())
}

/// A hot ring, two discs and a bar.
fn truth(rows: i64, columns: i64) -> Tensor {
    let cells = |n| Tensor::arange(n, (Kind::Double, Device::Cpu)) + 0.5;
    // In units of the short side.
    let (x, y) = (cells(columns) / rows as f64, cells(rows).unsqueeze(1) / rows as f64);
    let near = |a: f64, b: f64, r: f64| ((&x - a).square() + (&y - b).square()).lt(r * r);
    let ring = near(0.42, 0.58, 0.28).logical_and(&near(0.42, 0.58, 0.17).logical_not());
    let bar = (&x - 0.95).abs().lt(0.06).logical_and(&(&y - 0.5).abs().lt(0.38));
    let hot = ring.logical_or(&bar).logical_or(&near(0.42, 0.58, 0.07));
    let warm = near(0.75, 0.16, 0.1) * 0.6 + near(1.18, 0.78, 0.08) * 0.8;
    (hot + warm).to_kind(Kind::Double)
}

/// By how much ⟨S v, w⟩ and ⟨v, Sᵀ w⟩ differ for random v and w, where S is all time steps and Sᵀ is
/// their backward pass.
fn adjoint_mismatch(heat: &Heat, like: &Tensor) -> mpi4tch::Result<f64> {
    let random = || testing::random(&heat.grid, &like.size(), Kind::Double);
    let (v, w) = (random()?.set_requires_grad(true), random()?);
    let sv = heat.run(&v)?;
    let adjoint = heat.tape.vjp(&[(&sv, &w)], &[&v], PassOptions::default())?.remove(0);
    let [forward, backward] = [heat.total(&(&sv * &w))?, heat.total(&(&v * adjoint))?];
    let scale = (heat.total(&sv.square())? * heat.total(&w.square())?).sqrt();
    Ok((forward - backward).abs() / scale)
}

/// The largest difference of the gradient to that of rank 0 alone, relative to the largest entry.
fn difference_to_one_rank(
    universe: &Universe,
    heat: &Heat,
    observed: &Tensor,
    arguments: &Arguments,
) -> mpi4tch::Result<f64> {
    let gradient = heat.gradient(&observed.zeros_like(), observed)?;
    let [whole, observed] =
        [&gradient, observed].map(|x| heat.grid.collect(&x.detach(), &[0, 1], 0));
    let (whole, observed) = (whole?, observed?);
    let mut difference = Tensor::from(0.0);
    if heat.grid.rank() == 0 {
        let alone = Heat::new(&universe.self_comm()?, [1; 2], arguments.steps, arguments.slots)?;
        let gradient = alone.gradient(&observed.zeros_like(), &observed)?;
        difference = (whole - &gradient).abs().max() / gradient.abs().max();
    }
    Ok(heat.grid.broadcast(&difference, 0)?.double_value(&[]))
}

/// The temperatures, in the colors of the true one.
fn maps(truth: Tensor, observed: Tensor, recovered: Tensor) -> [HeatMap<'static>; 3] {
    let (rows, columns) = (truth.size()[0] as f64, truth.size()[1] as f64);
    let range = range(&truth);
    [("true", truth), ("observed at the end", observed), ("recovered", recovered)].map(
        |(title, field)| HeatMap {
            title,
            x: ("column", columns),
            y: ("row", rows),
            field,
            range: range.clone(),
            colors: Colors::Sequential,
            width: 480,
        },
    )
}
