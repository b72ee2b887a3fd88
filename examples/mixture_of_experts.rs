//! A mixture of experts, which are distributed over the ranks. A gate chooses an expert for each
//! image; the image goes to the expert's rank, and the expert's output comes back.
//!
//! ```sh
//! make demo EXAMPLE=mixture_of_experts
//! make demo EXAMPLE=mixture_of_experts RANKS=4 ARGS='--experts 6 --choices 2 --out target/plots'
//! ```
//!
//! ```text
//! every rank, for its images                      the ranks of the experts
//! embedding ─┬─ gate ── choice                    expert 1: images of all ranks
//!            └─ image ───────── all_to_all_v ──→  expert 2: images of all ranks
//! loss ←─── output · weight ←── all_to_all_v ───  expert 3: none, perhaps
//! ```
//!
//! The embedding and the gate are the same on all ranks, so they are `Replicated`. In the backward
//! pass, which is the tape's, the cotangents travel by the same two calls in the opposite
//! direction. An expert may get no image, and a rank may have no image or no expert: the calls are
//! made all the same. At the first and at the last step, the gradients are compared with those of a
//! program for one rank, which has no communication and does not route: there every expert sees
//! every image.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mpi4tch::tch::nn::{self, OptimizerConfig};
use mpi4tch::tch::{Device, Kind, Tensor};
use mpi4tch::{Communicator, Op, Replicated, Universe};

use data::Digits;
use diagram::{Diagram, Style};
use model::{Model, Shape, balance};
use picture::Picture;

#[path = "common/command_line.rs"]
mod command_line;
#[path = "common/data.rs"]
mod data;
#[path = "common/diagram.rs"]
mod diagram;
#[path = "common/layer.rs"]
mod layer;
#[path = "mixture_of_experts/model.rs"]
mod model;
#[path = "mixture_of_experts/one_rank.rs"]
mod one_rank;
#[path = "common/picture.rs"]
mod picture;
#[path = "common/progress.rs"]
mod progress;

const LEARNING_RATE: f64 = 1e-2;

/// Trains a mixture of experts to read digits, on any number of MPI ranks.
///
/// Prints the loss and the accuracy of each epoch, the load of each expert, and how far the
/// gradients are from those on one rank.
#[derive(Parser)]
#[command(override_usage = "mpiexec -n RANKS mixture_of_experts [OPTIONS]")]
pub(crate) struct Arguments {
    /// How often to go through the data
    #[arg(long, value_name = "N", default_value = "20")]
    #[arg(value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) epochs: i64,

    /// The number of images of a batch, on all ranks together
    #[arg(long, value_name = "N", default_value = "128")]
    #[arg(value_parser = clap::value_parser!(i64).range(1..=1797))]
    pub(crate) batch: i64,

    /// The number of experts, on all ranks together
    #[arg(long, value_name = "N", default_value = "8")]
    #[arg(value_parser = clap::value_parser!(i64).range(1..=64))]
    pub(crate) experts: i64,

    /// How many experts see each image
    #[arg(long, value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(i64).range(1..=8))]
    pub(crate) choices: i64,

    /// How many of the experts, the last ones, the gate never chooses
    #[arg(long, value_name = "N", default_value = "0")]
    #[arg(value_parser = clap::value_parser!(i64).range(0..))]
    pub(crate) idle: i64,

    /// Draw the loss and the load of each expert in FOLDER/mixture_of_experts.png
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
}

fn main() -> ExitCode {
    mpi4tch::run(|universe| command_line::parse_and_run(universe, run))
}

/// Trains on all ranks together.
pub(crate) fn run(universe: &Universe, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let Arguments { experts, choices, idle, .. } = *arguments;
    if choices + idle > experts {
        let problem = format!("{idle} of {experts} experts are idle");
        return Err(format!("{problem}: too few are left for --choices {choices}").into());
    }
    let world = universe.world();
    let name = "mixture_of_experts.png";
    let picture = Picture::create(&world, arguments.out.as_deref(), name)?;
    let epochs = train(&world, arguments, &Digits::read()?)?;
    let (first, last) = (&epochs[0], &epochs[epochs.len() - 1]);
    if world.rank() == 0 {
        println!("epoch   loss      accuracy   load of each expert / %");
        for (number, epoch) in (1..).zip(&epochs) {
            let load: Vec<_> = epoch.load.iter().map(|load| format!("{load:5.1}")).collect();
            let Epoch { loss, accuracy, .. } = epoch;
            println!("{number:>5}   {loss:.6}  {accuracy:7.2} %  {}", load.join(" "));
        }
    }
    if let Some(picture) = picture {
        picture.write(&diagrams(&epochs))?;
    }
    let idle = usize::try_from(idle)?;
    for epoch in &epochs {
        assert!(
            epoch.load.iter().rev().take(idle).all(|load| *load == 0.0),
            "an expert is not idle"
        );
    }
    assert!(epochs.len() == 1 || last.loss < first.loss, "the loss has not become smaller");
    Ok(())
}

/// Trains on the ranks of `world`. Returns the results of each epoch on all of them.
fn train(
    world: &Communicator,
    arguments: &Arguments,
    digits: &Digits,
) -> Result<Vec<Epoch>, Box<dyn Error>> {
    let Arguments { experts, choices, idle, .. } = *arguments;
    let model = Model::new(world, Shape { experts, choices, idle });
    let mut optimizer = nn::Adam::default().build(&model.store, LEARNING_RATE)?;
    let steps = arguments.epochs * ((digits.rows() + arguments.batch - 1) / arguments.batch);
    let bar = progress::bar(world, steps);
    let mut epochs = Vec::new();
    let mut step = 0;
    for _ in 0..arguments.epochs {
        let mut sums = Tensor::zeros([2], (Kind::Double, Device::Cpu));
        let mut load = Tensor::zeros([experts], (Kind::Double, Device::Cpu));
        for batch in digits.split(arguments.batch) {
            let share = batch.share(world);
            let tape = world.tape();
            let routed = model.forward(world, &tape, &share.images)?;
            let total = world.all_reduce(&routed.load, Op::Sum)?.to_kind(Kind::Double);
            let cross_entropy = share.loss(&routed.output) / batch.rows();
            let balance = balance(&total, &routed.probabilities, batch.rows());
            let loss = Replicated::sum(&tape, &(&cross_entropy + balance))?;
            optimizer.zero_grad();
            loss.backward()?;
            step += 1;
            if step == 1 || step == steps {
                check_gradients(world, &model, &batch, step)?;
            }
            optimizer.step();
            let correct = share.correct(&routed.output).to_kind(Kind::Double);
            sums += Tensor::stack(&[cross_entropy.detach() * batch.rows(), correct], 0);
            load += total;
            bar.inc(1);
        }
        let means = world.all_reduce(&sums, Op::Sum)? / digits.rows();
        let load = load * (100.0 / (digits.rows() * choices) as f64);
        let (loss, accuracy) = (means.double_value(&[0]), 100.0 * means.double_value(&[1]));
        epochs.push(Epoch { loss, accuracy, load: Vec::try_from(load)? });
        bar.set_message(format!("loss {loss:.4}"));
    }
    bar.finish_and_clear();
    Ok(epochs)
}

/// Compares the gradients of a step with those on one rank.
fn check_gradients(
    world: &Communicator,
    model: &Model,
    batch: &Digits,
    step: i64,
) -> Result<(), Box<dyn Error>> {
    let mut largest: f64 = 0.0;
    let gradients = one_rank::gradients(world, model, batch)?;
    for ((name, own), other) in model.parameters().iter().zip(gradients) {
        // A rank without experts has none of their gradients.
        if own.numel() > 0 {
            let error = (own.grad() - other).abs().max().double_value(&[]);
            assert!(error < 1e-10, "the gradient of the {name} is off by {error:e} at step {step}");
            largest = largest.max(error);
        }
    }
    let largest = world.all_reduce(&Tensor::from(largest), Op::Max)?.double_value(&[]);
    if world.rank() == 0 {
        println!("gradients of step {step}: within {largest:.1e} of those on one rank");
    }
    Ok(())
}

struct Epoch {
    /// The mean cross-entropy.
    loss: f64,
    /// The share of the images that were read right, in percent.
    accuracy: f64,
    /// Each expert's share of the images, in percent.
    load: Vec<f64>,
}

fn diagrams(epochs: &[Epoch]) -> [Diagram<'_>; 2] {
    let (first, last) = (&epochs[0], &epochs[epochs.len() - 1]);
    let losses = epochs.iter().map(|epoch| epoch.loss).collect();
    let load = vec![("first epoch", first.load.clone()), ("last epoch", last.load.clone())];
    [
        Diagram {
            x: "epoch",
            y: "mean cross-entropy / nat",
            series: vec![("training", losses)],
            style: Style::Lines,
        },
        Diagram { x: "expert", y: "share of the images / %", series: load, style: Style::Bars },
    ]
}
