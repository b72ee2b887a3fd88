//! Water in a basin on a rotating planet, cut over a grid of ranks: how does its kinetic energy
//! in the end depend on its height in the beginning?
//!
//! ```sh
//! make demo EXAMPLE=shallow_water RANKS=4
//! make demo EXAMPLE=shallow_water RANKS=4 ARGS='--rows 180 --columns 360 --out target/plots'
//! ```
//!
//! The model is that of the example of mpi4jax, with the same constants. Each time step exchanges the
//! three fields once, corners included. One backward pass through all steps gives the derivative by
//! the height in each cell; the states between `--slots` of them are computed again on the way.
//!
//! The example checks that no water is lost, and that the remainder of the first-order Taylor expansion
//! with that derivative falls by four if the perturbation is halved.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use mpi4tch::tch::{Kind, Tensor, no_grad};
use mpi4tch::{Op, Universe};

use heat_map::{Colors, HeatMap, symmetric_range};
use model::{DEPTH, LENGTHS, Model};
use picture::Picture;

#[path = "common/command_line.rs"]
mod command_line;
#[path = "common/heat_map.rs"]
mod heat_map;
#[path = "shallow_water/model.rs"]
mod model;
#[path = "common/picture.rs"]
mod picture;
#[path = "common/progress.rs"]
mod progress;
#[path = "common/stencil.rs"]
mod stencil;

/// The perturbations: parts of the initial height above the mean depth.
const PERTURBATIONS: [f64; 3] = [4e-3, 2e-3, 1e-3];

/// Differentiates the kinetic energy of a basin of water by its initial height, cut over a grid of MPI
/// ranks.
///
/// Prints the time of a step and of the gradient, the change of the mass, and the remainders of the
/// Taylor expansion.
#[derive(Parser)]
#[command(override_usage = "mpiexec -n RANKS shallow_water [OPTIONS]")]
pub(crate) struct Arguments {
    /// The number of cells from the southern to the northern wall, which are 900 km apart
    #[arg(long, value_name = "N", default_value = "90")]
    #[arg(value_parser = clap::value_parser!(i64).range(2..=4096))]
    pub(crate) rows: i64,

    /// The number of cells to the east, where the basin repeats after 1800 km
    #[arg(long, value_name = "N", default_value = "180")]
    #[arg(value_parser = clap::value_parser!(i64).range(2..=4096))]
    pub(crate) columns: i64,

    /// The number of time steps
    #[arg(long, value_name = "N", default_value = "600")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) steps: u32,

    /// How many states to keep in memory for the backward pass
    #[arg(long, value_name = "N", default_value = "20")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) slots: u32,

    /// Draw the height in the beginning and in the end, and the derivative, in
    /// FOLDER/shallow_water.png
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
}

fn main() -> ExitCode {
    mpi4tch::run(|universe| command_line::parse_and_run(universe, run))
}

pub(crate) fn run(universe: &Universe, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let world = universe.world();
    let tape = world.tape();
    let grid = tape.cartesian(&[0; 2], &[false, true], false)?.expect("all ranks are in the grid");
    let Arguments { rows, columns, steps, slots, .. } = *arguments;
    let dims = [grid.dims()[0], grid.dims()[1]];
    if rows < dims[0].into() || columns < dims[1].into() {
        return Err(format!("{rows} × {columns} cells cannot be cut over {} × {} ranks; at least one cell for each is needed", dims[0], dims[1]).into());
    }
    let picture = Picture::create(&world, arguments.out.as_deref(), "shallow_water.png")?;
    let is_first = grid.rank() == 0;
    let model = Model::new(grid.clone(), rows, columns);
    let bar = progress::bar(&world, i64::from(steps) * 5);
    let total = |x: &Tensor| -> mpi4tch::Result<f64> {
        Ok(grid.all_reduce(&x.detach().sum(Kind::Double), Op::Sum)?.double_value(&[]))
    };
    let forward = |initial: &Tensor| {
        let bar = bar.clone();
        let count = move || bar.inc(1);
        no_grad(|| model.run(&tape, initial, steps as usize, slots as usize, count))
    };

    let initial = model.initial_fields();
    let start = Instant::now();
    let last = forward(&initial)?;
    let time = start.elapsed().as_secs_f64();
    let [mass, lost] = [total(&initial.get(0))?, total(&(last.get(0) - initial.get(0)))?];
    let lost = lost.abs() / mass;

    let start = Instant::now();
    let leaf = initial.copy().set_requires_grad(true);
    let energy = energy_of(&model.run(&tape, &leaf, steps as usize, slots as usize, || ())?);
    let gradient = tape.grad(&energy, &[&leaf])?.remove(0).get(0);
    let time_of_gradient = start.elapsed().as_secs_f64();
    bar.inc(steps.into());

    let height = initial.get(0) - DEPTH;
    let direction = Tensor::stack(&[&height, &height.zeros_like(), &height.zeros_like()], 0);
    let (energy, slope) = (total(&energy)?, total(&(&gradient * &height))?);
    let mut remainders = Vec::new();
    for size in PERTURBATIONS {
        let perturbed = total(&energy_of(&forward(&(&initial + &direction * size))?))?;
        remainders.push((perturbed - energy - size * slope).abs());
    }
    bar.finish_and_clear();

    if is_first {
        let (hours, step) =
            (f64::from(steps) * model.time_step() / 3600.0, 1e3 * time / f64::from(steps));
        println!(
            "{rows} × {columns} cells on {} × {} ranks, {steps} steps, {hours:.1} h",
            dims[0], dims[1]
        );
        println!(
            "time of a step: {step:.2} ms; of the gradient: {:.1} × that of the steps",
            time_of_gradient / time
        );
        println!("mass: {lost:.1e} of it is lost");
        println!("\nperturbation   remainder of the Taylor expansion");
        for (size, remainder) in PERTURBATIONS.iter().zip(&remainders) {
            println!("{size:<12}   {remainder:.6e}");
        }
    }
    let fields = [&initial.get(0), &last.get(0), &gradient].map(|x| grid.collect(x, &[0, 1], 0));
    if let (Some(picture), [initial, last, gradient]) = (picture, fields) {
        picture.write(&maps(initial? - DEPTH, last? - DEPTH, gradient?))?;
    }
    assert!(lost < 1e-12, "{lost:e} of the mass is lost");
    for pair in remainders.windows(2) {
        let fall = pair[0] / pair[1];
        assert!((fall - 4.0).abs() < 0.2, "the remainder falls by {fall} instead of 4");
    }
    Ok(())
}

/// The kinetic energy of this rank's cells, for a density and an area of 1.
fn energy_of(fields: &Tensor) -> Tensor {
    let [h, u, v] = [0, 1, 2].map(|i| fields.get(i));
    ((u.square() + v.square()) * h).sum(Kind::Double) * 0.5
}

fn maps(initial: Tensor, last: Tensor, gradient: Tensor) -> [HeatMap<'static>; 3] {
    let (of_height, of_gradient) = (symmetric_range(&initial), symmetric_range(&gradient));
    [
        ("initial height above the mean depth / m", initial, of_height.clone()),
        ("height in the end / m", last, of_height),
        (
            "derivative of the kinetic energy in the end by the initial height / m² s⁻²",
            gradient,
            of_gradient,
        ),
    ]
    .map(|(title, field, range)| HeatMap {
        title,
        x: ("x / km", LENGTHS[0] / 1e3),
        y: ("y / km", LENGTHS[1] / 1e3),
        field,
        range,
        colors: Colors::Diverging,
        width: 760,
    })
}
