//! A perceptron whose layers are cut over the ranks of one axis of a grid, and whose batches are cut
//! over the ranks of the other.
//!
//! ```sh
//! make demo EXAMPLE=tensor_parallel RANKS=4
//! make demo EXAMPLE=tensor_parallel RANKS=6 ARGS='--cuts 3 --out target/plots'
//! ```
//!
//! ```text
//!            half of the layers   half of the layers
//! images 1         rank 0    ─ sums ─   rank 1
//!                    │ gradients          │
//! images 2         rank 2    ─ sums ─   rank 3
//! ```
//!
//! Along a row of the grid, the layers come in pairs: the first one is cut by columns, the second one
//! by rows. Their inputs and outputs are `Replicated`: the row's ranks have them in common. Along
//! a column, `DataParallel` averages the gradients. All is on one tape, whose backward pass it is.
//!
//! The losses are compared with those on one rank. The all-reduces of a pair of layers are counted
//! by MPI's profiling interface, and compared with those of Megatron-LM, whose authors placed them
//! by hand: one in the forward pass, one in the backward pass.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use indicatif::ProgressBar;
use mpi4tch::tch::nn::{self, OptimizerConfig};
use mpi4tch::tch::{self, Device, Kind, Tensor};
use mpi4tch::{Communicator, DataParallel, Op, Rank, Replicated, Universe};

use data::Digits;
use diagram::{Diagram, Style};
use layer::linear;
use pair::Pair;
use picture::Picture;

#[path = "tensor_parallel/calls.rs"]
mod calls;
#[path = "common/command_line.rs"]
mod command_line;
#[path = "common/data.rs"]
mod data;
#[path = "common/diagram.rs"]
mod diagram;
#[path = "common/layer.rs"]
mod layer;
#[path = "tensor_parallel/pair.rs"]
mod pair;
#[path = "common/picture.rs"]
mod picture;
#[path = "common/progress.rs"]
mod progress;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The number of pairs of layers, and the widths of their inputs and of their hidden layers.
const PAIRS: usize = 3;
const WIDTH: i64 = 32;
const HIDDEN: i64 = 64;

const SEED: i64 = 1;
const BATCH: i64 = 128;
const LEARNING_RATE: f64 = 2e-3;

/// Trains a perceptron to read digits, cut over a grid of MPI ranks.
///
/// Prints the mean loss of each epoch, how far the losses are from those on one rank, and how many
/// all-reduces a pair of layers makes.
#[derive(Parser)]
#[command(
    override_usage = "mpiexec -n RANKS tensor_parallel [--epochs N] [--cuts N] [--out FOLDER]"
)]
pub(crate) struct Arguments {
    /// How often to go through the data
    #[arg(long, value_name = "N", default_value = "10")]
    #[arg(value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) epochs: i64,

    /// Over how many ranks to cut the layers; it must divide RANKS [default: the smallest such number
    /// above 1]
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) cuts: Option<Rank>,

    /// Draw the loss of each epoch, and how far it is from that on one rank, in
    /// FOLDER/tensor_parallel.png
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
}

fn main() -> ExitCode {
    mpi4tch::run(|universe| command_line::parse_and_run(universe, run))
}

/// Trains on all ranks together, then on each rank alone, and compares.
pub(crate) fn run(universe: &Universe, arguments: &Arguments) -> Outcome<()> {
    let world = universe.world();
    let ranks = world.size();
    let smallest = || (2..ranks).find(|cuts| ranks % cuts == 0).unwrap_or(ranks);
    let cuts = arguments.cuts.unwrap_or_else(smallest);
    if ranks % cuts != 0 {
        return Err(format!("the layers cannot be cut over {cuts} of {ranks} ranks; a number that divides {ranks} is needed").into());
    }
    let picture = Picture::create(&world, arguments.out.as_deref(), "tensor_parallel.png")?;
    let digits = Digits::read()?;
    let epochs = arguments.epochs;
    let bar = progress::bar(&world, 2 * epochs);
    let losses = train(&world, cuts, &digits, epochs, &bar)?;
    let serial = train(&universe.self_comm()?, 1, &digits, epochs, &bar)?;
    bar.finish_and_clear();
    let difference = (&losses - &serial).abs().max().double_value(&[]);
    let [forward, backward] = count_all_reduces(&world, cuts)?;

    if world.rank() == 0 {
        println!("grid: {cuts} ranks for the layers × {} for the images\n", ranks / cuts);
        println!("epoch   loss");
        for (number, mean) in (1..).zip(means(&losses, epochs)?) {
            println!("{number:>5}   {mean:.12}");
        }
        println!("\nlargest difference to the losses on one rank: {difference:.1e}");
        println!("\nall-reduces of {PAIRS} pairs of layers   forward   backward");
        println!("counted                        {forward:>10} {backward:>10}");
        println!("by Megatron-LM                 {PAIRS:>10} {PAIRS:>10}");
    }
    if let Some(picture) = picture {
        picture.write(&diagrams(&losses, &serial, epochs)?)?;
    }
    assert!(difference < 1e-6, "the losses are off by {difference:e} from those on one rank");
    assert_eq!([forward, backward], [PAIRS; 2], "all-reduces, forward and backward");
    Ok(())
}

/// Trains on a grid of ranks with so many columns. Returns the loss of each batch on all of them.
fn train(
    world: &Communicator,
    cuts: Rank,
    digits: &Digits,
    epochs: i64,
    bar: &ProgressBar,
) -> Outcome<Tensor> {
    let tape = world.tape();
    let row = row(&tape, cuts)?;
    let column = part(world, world.rank() % cuts)?;
    let network = Network::new(&row);
    let model = DataParallel::new(&column, &network.store)?;
    let mut optimizer = nn::Adam::default().build(&network.store, LEARNING_RATE)?;
    let mut losses = Vec::new();
    for _ in 0..epochs {
        for batch in digits.split(BATCH) {
            let share = batch.share(&column);
            let images = Replicated::assume(&row, &share.images)?;
            let output = network.forward(&images)?;
            // The mean over the ranks of the column is the mean over the batch.
            let scale = f64::from(column.size()) / batch.rows() as f64;
            let loss = output.map(|output| share.loss(output) * scale)?;
            optimizer.zero_grad();
            model.backward_on(&tape, loss.tensor())?;
            optimizer.step();
            losses.push(loss.tensor().detach());
        }
        bar.inc(1);
    }
    Ok(column.all_reduce(&Tensor::stack(&losses, 0), Op::Mean)?)
}

/// The ranks that have a network together.
fn row(tape: &Communicator, cuts: Rank) -> mpi4tch::Result<Communicator> {
    part(tape, tape.rank() / cuts)
}

/// The ranks with the same number, in their order.
fn part(comm: &Communicator, number: i32) -> mpi4tch::Result<Communicator> {
    Ok(comm.split(Some(number), comm.rank())?.expect("every rank has a number"))
}

/// A layer that all ranks of the row have, pairs of layers that are cut, and another layer.
struct Network {
    store: nn::VarStore,
    first: Tensor,
    pairs: Vec<Pair>,
    last: Tensor,
}

impl Network {
    fn new(row: &Communicator) -> Self {
        tch::manual_seed(SEED);
        let mut store = nn::VarStore::new(Device::Cpu);
        store.set_kind(Kind::Double);
        let root = store.root();
        let layer = |name, inputs: i64, outputs| {
            let deviation = 1.0 / (inputs as f64).sqrt();
            root.randn(name, &[inputs + 1, outputs], 0.0, deviation)
        };
        let first = layer("first", Digits::PIXELS, WIDTH);
        let pairs = (0..PAIRS).map(|i| Pair::new(row, &(&root / i), WIDTH, HIDDEN)).collect();
        let last = layer("last", WIDTH, Digits::CLASSES);
        Self { first, pairs, last, store }
    }

    fn forward(&self, images: &Replicated) -> mpi4tch::Result<Replicated> {
        let row = images.communicator();
        let whole = |x: &Replicated, layer: &Tensor| {
            Replicated::combine(&[x, &Replicated::assume(row, layer)?], |parts| {
                linear(parts[0], parts[1])
            })
        };
        let mut x = whole(images, &self.first)?.map(Tensor::relu)?;
        for pair in &self.pairs {
            x = pair.forward(&x)?;
        }
        whole(&x, &self.last)
    }
}

/// How many all-reduces of the row's ranks the pairs of layers make, forward and backward.
fn count_all_reduces(world: &Communicator, cuts: Rank) -> mpi4tch::Result<[usize; 2]> {
    let tape = world.tape();
    let row = row(&tape, cuts)?;
    let network = Network::new(&row);
    let x = Tensor::ones([5, WIDTH], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let mut y = Replicated::assume(&row, &x)?;
    let bytes = 8 * i64::try_from(x.numel()).expect("it is small");
    let (loss, forward) = calls::all_reduces(bytes, || {
        for pair in &network.pairs {
            y = pair.forward(&y)?;
        }
        y.map(|y| y.sum(Kind::Double))
    })?;
    let ((), backward) = calls::all_reduces(bytes, || loss.backward())?;
    Ok([forward, backward])
}

/// The mean loss of each epoch.
fn means(losses: &Tensor, epochs: i64) -> Outcome<Vec<f64>> {
    Ok(Vec::try_from(losses.view([epochs, -1]).mean_dim(1, false, Kind::Double))?)
}

fn diagrams(losses: &Tensor, serial: &Tensor, epochs: i64) -> Outcome<[Diagram<'static>; 2]> {
    let difference = (losses - serial).abs().view([epochs, -1]).amax(1, false) * 1e15;
    let curves =
        vec![("on one rank", means(serial, epochs)?), ("on the grid", means(losses, epochs)?)];
    let style = Style::Lines;
    Ok([
        Diagram { x: "epoch", y: "mean cross-entropy / nat", series: curves, style },
        Diagram {
            x: "epoch",
            y: "largest difference / 10⁻¹⁵ nat",
            series: vec![("of the grid's loss to that on one rank", Vec::try_from(difference)?)],
            style,
        },
    ])
}
