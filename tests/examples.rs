//! The examples that assert their own results, on every number of ranks.

#![allow(clippy::duplicate_mod, reason = "each example has its own copy of what they share")]

mod common;

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use common::{Context, start};

#[path = "../examples/digits.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod digits;
#[path = "../examples/heat_inverse.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod heat_inverse;
#[path = "../examples/implicit_solve.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod implicit_solve;
#[path = "../examples/isend_recv_wait.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod isend_recv_wait;
#[path = "../examples/mixture_of_experts.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod mixture_of_experts;
#[path = "../examples/pipeline.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod pipeline;
#[path = "../examples/poisson.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod poisson;
#[path = "../examples/shallow_water.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod shallow_water;
#[path = "../examples/tensor_parallel.rs"]
#[expect(dead_code, reason = "its main is another program's")]
mod tensor_parallel;

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            the_implicit_solve_has_its_derivatives,
            the_ring_gives_every_rank_the_gradient_2,
            the_pipeline_has_the_losses_of_one_rank,
            the_pipeline_refuses_what_it_cannot_do,
            the_digits_are_learnt,
            the_digits_refuse_what_they_cannot_do,
            the_mixture_of_experts_has_the_gradients_of_one_rank,
            the_mixture_of_experts_refuses_what_it_cannot_do,
            the_tensor_parallel_perceptron_has_the_losses_of_one_rank,
            the_tensor_parallel_perceptron_refuses_what_it_cannot_do,
            the_initial_temperature_is_recovered,
            the_heat_equation_refuses_what_it_cannot_do,
            poissons_equation_has_its_derivatives,
            poissons_equation_refuses_what_it_cannot_do,
            the_shallow_water_has_its_derivative,
            the_shallow_water_refuses_what_it_cannot_do,
            a_folder_that_cannot_be_written_is_an_error,
        ],
    )
}

fn the_implicit_solve_has_its_derivatives(context: &Context) -> mpi4tch::Result<()> {
    implicit_solve::run(&context.world)
}

fn the_ring_gives_every_rank_the_gradient_2(context: &Context) -> mpi4tch::Result<()> {
    isend_recv_wait::run(&context.world)
}

fn the_pipeline_has_the_losses_of_one_rank(_: &Context) -> Result<(), Box<dyn Error>> {
    // One part, parts of different sizes, and more than the last batch has rows.
    for (epochs, micro_batches) in [(2, 1), (2, 3), (1, 8)] {
        let arguments = pipeline::Arguments { epochs, micro_batches };
        pipeline::run(&mpi4tch::initialize()?, &arguments)?;
    }
    Ok(())
}

fn the_pipeline_refuses_what_it_cannot_do(_: &Context) {
    assert_refused::<pipeline::Arguments>(&[
        (["--epochs", "0"], "invalid value '0' for '--epochs <N>': 0 is not in 1.."),
        (["--micro-batches", "257"], "257 is not in 1..=256"),
        (["--micro-batches", "many"], "invalid digit found in string"),
    ]);
}

fn the_digits_are_learnt(context: &Context) -> Result<(), Box<dyn Error>> {
    let universe = mpi4tch::initialize()?;
    // With a picture, and a last batch of two images, so that some ranks have none.
    let out = missing_folder(context, "digits")?;
    let arguments = digits::Arguments { epochs: 2, batch: 205, out: Some(out.clone()) };
    digits::run(&universe, &arguments)?;
    if context.world.rank() == 0 {
        assert_picture(&out.join("digits.png"), 2)?;
    }
    // The full training, whose accuracy the example checks.
    if context.world.size() <= 2 {
        digits::run(&universe, &digits::Arguments::parse_from(["digits"]))?;
    }
    Ok(())
}

fn the_digits_refuse_what_they_cannot_do(_: &Context) {
    assert_refused::<digits::Arguments>(&[
        (["--epochs", "0"], "invalid value '0' for '--epochs <N>': 0 is not in 1.."),
        (["--batch", "0"], "invalid value '0' for '--batch <N>': 0 is not in 1..=256"),
        (["--batch", "257"], "257 is not in 1..=256"),
    ]);
}

fn the_mixture_of_experts_has_the_gradients_of_one_rank(
    context: &Context,
) -> Result<(), Box<dyn Error>> {
    let universe = mpi4tch::initialize()?;
    let out = missing_folder(context, "mixture_of_experts")?;
    let run = |experts, choices, idle, batch, out: Option<&Path>| {
        let (epochs, out) = (2, out.map(Path::to_owned));
        let arguments =
            mixture_of_experts::Arguments { epochs, batch, experts, choices, idle, out };
        mixture_of_experts::run(&universe, &arguments)
    };
    // Several experts per rank; some are idle.
    run(16, 1, 3, 256, Some(&out))?;
    if context.world.rank() == 0 {
        assert_picture(&out.join("mixture_of_experts.png"), 2)?;
    }
    // Fewer experts than ranks. The last batch, where the gradients are compared, has one image: most
    // ranks have none.
    run(3, 2, 1, 898, None)?;
    run(1, 1, 0, 898, None)
}

fn the_mixture_of_experts_refuses_what_it_cannot_do(_: &Context) -> Result<(), Box<dyn Error>> {
    assert_refused::<mixture_of_experts::Arguments>(&[
        (["--epochs", "0"], "invalid value '0' for '--epochs <N>': 0 is not in 1.."),
        (["--batch", "1798"], "1798 is not in 1..=1797"),
        (["--experts", "0"], "invalid value '0' for '--experts <N>': 0 is not in 1..=64"),
        (["--choices", "9"], "9 is not in 1..=8"),
        (["--idle", "some"], "invalid digit found in string"),
    ]);
    let arguments = ["example", "--experts", "4", "--choices", "2", "--idle", "3"];
    let arguments = mixture_of_experts::Arguments::parse_from(arguments);
    let error = mixture_of_experts::run(&mpi4tch::initialize()?, &arguments);
    let error = error.err().map(|error| error.to_string()).unwrap_or_default();
    assert_eq!(error, "3 of 4 experts are idle: too few are left for --choices 2");
    Ok(())
}

fn the_tensor_parallel_perceptron_has_the_losses_of_one_rank(
    context: &Context,
) -> Result<(), Box<dyn Error>> {
    let (universe, ranks) = (mpi4tch::initialize()?, context.world.size());
    let out = missing_folder(context, "tensor_parallel")?;
    // Every grid. On 7 × 1 ranks, some have no image of the last batch.
    for cuts in (1..=ranks).filter(|cuts| ranks % cuts == 0) {
        let arguments =
            tensor_parallel::Arguments { epochs: 2, cuts: Some(cuts), out: Some(out.clone()) };
        tensor_parallel::run(&universe, &arguments)?;
    }
    if context.world.rank() == 0 {
        assert_picture(&out.join("tensor_parallel.png"), 2)?;
    }
    Ok(())
}

fn the_tensor_parallel_perceptron_refuses_what_it_cannot_do(
    context: &Context,
) -> Result<(), Box<dyn Error>> {
    assert_refused::<tensor_parallel::Arguments>(&[
        (["--epochs", "0"], "invalid value '0' for '--epochs <N>': 0 is not in 1.."),
        (["--cuts", "0"], "invalid value '0' for '--cuts <N>': 0 is not in 1.."),
        (["--cuts", "2.0"], "invalid digit found in string"),
    ]);
    let ranks = context.world.size();
    let cuts = (ranks + 1).to_string();
    let arguments = tensor_parallel::Arguments::parse_from(["example", "--cuts", &cuts]);
    let error = tensor_parallel::run(&mpi4tch::initialize()?, &arguments);
    let error = error.err().map(|error| error.to_string()).unwrap_or_default();
    assert_eq!(
        error,
        format!(
            "the layers cannot be cut over {cuts} of {ranks} ranks; a number that divides {ranks} is needed"
        )
    );
    Ok(())
}

fn the_initial_temperature_is_recovered(context: &Context) -> Result<(), Box<dyn Error>> {
    let universe = mpi4tch::initialize()?;
    let out = missing_folder(context, "heat_inverse")?;
    // The iterations after which the example checks how far the misfit falls take a while.
    let most = if context.world.size() <= 2 { 60 } else { 5 };
    // Extents that do not divide, and blocks of one row.
    for (rows, columns, iterations, out) in [(17, 23, most, Some(&out)), (7, 9, 3, None)] {
        let (steps, slots, noise, out) = (12, 3, 1e-3, out.cloned());
        let arguments =
            heat_inverse::Arguments { rows, columns, steps, slots, iterations, noise, out };
        heat_inverse::run(&universe, &arguments)?;
    }
    if context.world.rank() == 0 {
        assert_maps(&out.join("heat_inverse.png"), [3, 1])?;
    }
    Ok(())
}

fn the_heat_equation_refuses_what_it_cannot_do(context: &Context) -> Result<(), Box<dyn Error>> {
    assert_refused::<heat_inverse::Arguments>(&[
        (["--rows", "0"], "invalid value '0' for '--rows <N>': 0 is not in 1..=4096"),
        (["--slots", "0"], "invalid value '0' for '--slots <N>': 0 is not in 1.."),
        (["--iterations", "0"], "invalid value '0' for '--iterations <N>': 0 is not in 1..=10000"),
        (["--noise", "some"], "invalid float literal"),
    ]);
    let arguments = ["example", "--rows", "1", "--columns", "1"];
    let arguments = heat_inverse::Arguments::parse_from(arguments);
    if context.world.size() > 1 {
        let error = heat_inverse::run(&mpi4tch::initialize()?, &arguments);
        assert_too_thin(error, "1 × 1 cells cannot be cut over ");
    }
    Ok(())
}

fn poissons_equation_has_its_derivatives(context: &Context) -> Result<(), Box<dyn Error>> {
    let out = missing_folder(context, "poisson")?;
    let arguments = poisson::Arguments { points: 33, out: Some(out.clone()) };
    poisson::run(&mpi4tch::initialize()?, &arguments)?;
    if context.world.rank() == 0 {
        assert_maps(&out.join("poisson.png"), [3, 1])?;
    }
    Ok(())
}

fn poissons_equation_refuses_what_it_cannot_do(context: &Context) -> Result<(), Box<dyn Error>> {
    assert_refused::<poisson::Arguments>(&[
        (["--points", "14"], "14 is not in 15..=1023"),
        (["--points", "many"], "invalid digit found in string"),
    ]);
    if context.world.size() >= 5 {
        let arguments = poisson::Arguments { points: 15, out: None };
        let error = poisson::run(&mpi4tch::initialize()?, &arguments);
        assert_too_thin(error, "3 × 3 points, the fewest to be compared, cannot be cut over ");
    }
    Ok(())
}

fn the_shallow_water_has_its_derivative(context: &Context) -> Result<(), Box<dyn Error>> {
    let universe = mpi4tch::initialize()?;
    let out = missing_folder(context, "shallow_water")?;
    // Extents that do not divide, and blocks of one row.
    for (rows, columns, steps, out) in [(18, 37, 30, Some(&out)), (7, 11, 5, None)] {
        let out = out.cloned();
        let arguments = shallow_water::Arguments { rows, columns, steps, slots: 4, out };
        shallow_water::run(&universe, &arguments)?;
    }
    if context.world.rank() == 0 {
        assert_maps(&out.join("shallow_water.png"), [1, 3])?;
    }
    Ok(())
}

fn the_shallow_water_refuses_what_it_cannot_do(context: &Context) -> Result<(), Box<dyn Error>> {
    assert_refused::<shallow_water::Arguments>(&[
        (["--rows", "1"], "invalid value '1' for '--rows <N>': 1 is not in 2..=4096"),
        (["--steps", "0"], "invalid value '0' for '--steps <N>': 0 is not in 1.."),
        (["--slots", "few"], "invalid digit found in string"),
    ]);
    if context.world.size() == 7 {
        let (rows, columns, steps, slots, out) = (2, 8, 1, 1, None);
        let arguments = shallow_water::Arguments { rows, columns, steps, slots, out };
        let error = shallow_water::run(&mpi4tch::initialize()?, &arguments);
        assert_too_thin(error, "2 × 8 cells cannot be cut over 7 × 1 ranks");
    }
    Ok(())
}

fn a_folder_that_cannot_be_written_is_an_error(context: &Context) -> Result<(), Box<dyn Error>> {
    // The other ranks would wait: in a program, an error on rank 0 ends the job.
    if context.world.size() > 1 {
        return Ok(());
    }
    let folder = missing_folder(context, "unwritable")?;
    fs::create_dir_all(folder.join("digits.png"))?;
    let file = folder.join("file");
    File::create(&file)?;
    let cases = [
        (file.clone(), format!("cannot create the folder {}: File exists", file.display())),
        (folder.clone(), format!("cannot write {}/digits.png: Is a directory", folder.display())),
    ];
    for (out, text) in cases {
        let arguments = digits::Arguments { epochs: 1, batch: 256, out: Some(out) };
        let error = digits::run(&mpi4tch::initialize()?, &arguments);
        let error = error.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with(&text), "{error}");
    }
    Ok(())
}

/// These arguments are refused with these texts.
fn assert_refused<A: Parser>(cases: &[([&str; 2], &str)]) {
    for (arguments, text) in cases {
        let usage = A::try_parse_from(["example"].iter().chain(arguments));
        let usage = usage.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(usage.contains(text), "{usage}");
    }
}

/// The run is refused because there are more ranks along an axis than cells.
fn assert_too_thin(error: Result<(), Box<dyn Error>>, beginning: &str) {
    let error = error.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.starts_with(beginning), "{error}");
    assert!(error.ends_with(" for each is needed"), "{error}");
}

/// The path of a folder that is not there, the same on all ranks.
fn missing_folder(context: &Context, name: &str) -> std::io::Result<PathBuf> {
    let ranks = context.world.size().to_string();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("examples").join(ranks).join(name);
    if context.world.rank() == 0 && folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    Ok(folder)
}

/// The file is a PNG of so many diagrams side by side, each with text and a curve or bars.
fn assert_picture(path: &Path, diagrams: u32) -> Result<(), Box<dyn Error>> {
    /// The height of the names of the series, which are above the curves.
    const NAMES: usize = 44;
    let mut reader = png::Decoder::new(BufReader::new(File::open(path)?)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or("it is too large")?];
    let info = reader.next_frame(&mut pixels)?;
    assert_eq!((info.width, info.height), (640 * diagrams, 480));
    for diagram in 0..usize::try_from(diagrams)? {
        let count = |color: [u8; 3]| {
            let lines = pixels.chunks_exact(info.line_size).skip(NAMES);
            let part = lines.flat_map(|line| line.chunks_exact(3).skip(640 * diagram).take(640));
            part.filter(|pixel| *pixel == color).count()
        };
        let [white, black, blue, orange] =
            [[255; 3], [0; 3], [0, 114, 178], [213, 94, 0]].map(count);
        assert!(white > 640 * 480 / 2, "{white} pixels are white");
        assert!(black > 500, "{black} pixels are black");
        assert!(blue + orange > 100, "{blue} pixels are blue, {orange} are orange");
    }
    Ok(())
}

/// The file is a PNG of so many maps beside and below each other, each with text and many colors.
fn assert_maps(path: &Path, [beside, below]: [usize; 2]) -> Result<(), Box<dyn Error>> {
    let mut reader = png::Decoder::new(BufReader::new(File::open(path)?)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or("it is too large")?];
    let info = reader.next_frame(&mut pixels)?;
    let (width, height) = (usize::try_from(info.width)?, usize::try_from(info.height)?);
    let lines: Vec<&[u8]> = pixels.chunks_exact(info.line_size).collect();
    for line in lines.chunks_exact(height / below) {
        for map in 0..beside {
            let part = line.iter().flat_map(|line| {
                line.chunks_exact(3).skip(map * width / beside).take(width / beside)
            });
            let black = part.clone().filter(|pixel| **pixel == [0; 3]).count();
            let colors = part.collect::<BTreeSet<_>>().len();
            assert!(black > 200, "{black} pixels are black");
            assert!(colors > 100, "there are {colors} colors");
        }
    }
    Ok(())
}
