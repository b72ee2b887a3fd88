//! A network whose layers are distributed over the ranks. Each rank receives its input from the
//! rank before it, and sends its output to the rank after it.
//!
//! ```sh
//! cargo build --example pipeline
//! scripts/mpiexec.sh -n 3 target/debug/examples/pipeline
//! scripts/mpiexec.sh -n 3 target/debug/examples/pipeline --epochs 20 --micro-batches 8
//! ```
//!
//! Each batch is cut into micro-batches, so that the ranks work at the same time, in the forward
//! pass and in the backward pass. All communication is in the calls on the tape:
//!
//! ```text
//! rank 0   1 2 3 4 · · · · 4 3 2 1
//! rank 1   · 1 2 3 4 · · 4 3 2 1 ·
//! rank 2   · · 1 2 3 4 4 3 2 1 · ·    → time
//! ```

use std::cmp::Ordering;
use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use mpi4tch::tch::nn::{self, Module, OptimizerConfig};
use mpi4tch::tch::{self, Device, Kind, Tensor};
use mpi4tch::{Communicator, Rank, Tape, Universe};

use data::Digits;

#[path = "common/command_line.rs"]
mod command_line;
#[path = "common/data.rs"]
mod data;

type Outcome<T> = Result<T, Box<dyn Error>>;

const LAYERS: Rank = 4;

/// The widths before and after each layer.
const WIDTHS: [i64; LAYERS as usize + 1] = [Digits::PIXELS, 48, 32, 24, Digits::CLASSES];

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

const BATCH: i64 = 256;
const LEARNING_RATE: f64 = 0.2;
const MOMENTUM: f64 = 0.9;

/// Trains a network to read digits, cut over any number of MPI ranks.
///
/// Prints the mean loss of each epoch, and how far the losses are from those on one rank.
#[derive(Parser)]
#[command(override_usage = "mpiexec -n RANKS pipeline [--epochs N] [--micro-batches N]")]
pub(crate) struct Arguments {
    /// How often to go through the data
    #[arg(long, value_name = "N", default_value = "5")]
    #[arg(value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) epochs: i64,

    /// Into how many parts to cut each batch of 256
    #[arg(long, value_name = "N", default_value = "4")]
    #[arg(value_parser = clap::value_parser!(i64).range(1..=BATCH))]
    pub(crate) micro_batches: i64,
}

fn main() -> ExitCode {
    mpi4tch::run(|universe| command_line::parse_and_run(universe, run))
}

/// Trains on all ranks together, then on each rank alone, and compares.
pub(crate) fn run(universe: &Universe, arguments: &Arguments) -> Outcome<()> {
    let world = universe.world();
    let digits = Digits::read()?;
    let losses = train(&world, &digits, arguments.epochs, arguments.micro_batches)?;
    let serial = train(&universe.self_comm()?, &digits, arguments.epochs, 1)?;

    let difference = (&losses - serial).abs().max().double_value(&[]);
    if world.rank() == 0 {
        println!("ranks: {}, layers: {LAYERS}\n\nepoch   loss", world.size());
        let means = losses.view([arguments.epochs, -1]).mean_dim(1, false, Kind::Double);
        for (epoch, mean) in Vec::<f64>::try_from(means)?.iter().enumerate() {
            println!("{:>5}   {mean:.12}", epoch + 1);
        }
        println!("\nlargest difference to the losses on one rank: {difference:.1e}");
    }
    assert!(difference < 1e-6, "the losses are off by {difference:e} from those on one rank");
    Ok(())
}

/// Trains on the ranks of `comm`. Returns the loss of each batch on all of them.
fn train(comm: &Communicator, digits: &Digits, epochs: i64, parts: i64) -> Outcome<Tensor> {
    let stage = Stage::new(comm);
    let sgd = nn::Sgd { momentum: MOMENTUM, ..nn::Sgd::default() };
    let mut optimizer = sgd.build(&stage.parameters, LEARNING_RATE)?;
    let mut losses = Vec::new();
    for _ in 0..epochs {
        for batch in digits.split(BATCH) {
            let tape = comm.tape();
            let mut loss = Tensor::zeros([], DOUBLE);
            for part in batch.split((batch.rows() + parts - 1) / parts) {
                if let Some(sum) = stage.forward(&tape, &part)? {
                    loss += sum / batch.rows() as f64;
                }
            }
            optimizer.zero_grad();
            // Only the last stage has a loss. The others go back through the messages that they
            // sent.
            tape.backward(stage.next.is_none().then_some(&loss))?;
            optimizer.step();
            losses.push(loss.detach());
        }
    }
    Ok(comm.broadcast(&Tensor::stack(&losses, 0), comm.size() - 1)?)
}

/// The layers of this rank. If it has none, it passes its input on.
struct Stage {
    parameters: nn::VarStore,
    layers: nn::Sequential,
    /// The width of the input.
    width: i64,
    previous: Option<Rank>,
    next: Option<Rank>,
}

impl Stage {
    fn new(comm: &Communicator) -> Self {
        let (rank, size) = (comm.rank(), comm.size());
        let mut parameters = nn::VarStore::new(Device::Cpu);
        parameters.set_kind(Kind::Double);
        let mut layers = nn::seq();
        let mut width = WIDTHS[0];
        for (layer, widths) in (0..LAYERS).zip(WIDTHS.windows(2)) {
            match (layer * size / LAYERS).cmp(&rank) {
                Ordering::Less => width = widths[1],
                Ordering::Equal => {
                    // The initial weights of a layer do not depend on its rank.
                    tch::manual_seed(layer.into());
                    let path = parameters.root() / layer;
                    let config = nn::LinearConfig::default();
                    layers = layers.add(nn::linear(path, widths[0], widths[1], config));
                    if layer + 1 < LAYERS {
                        layers = layers.add_fn(Tensor::tanh);
                    }
                }
                Ordering::Greater => {}
            }
        }
        let previous = (rank > 0).then_some(rank - 1);
        let next = (rank + 1 < size).then_some(rank + 1);
        Self { parameters, layers, width, previous, next }
    }

    /// Takes a micro-batch through these layers. The last stage returns the sum of its losses.
    fn forward(&self, tape: &Tape, part: &Digits) -> mpi4tch::Result<Option<Tensor>> {
        let output = match self.previous {
            Some(rank) => {
                let like = Tensor::zeros([part.rows(), self.width], DOUBLE);
                self.layers.forward(&tape.recv(&like, rank, 0)?)
            }
            None => self.layers.forward(&part.images),
        };
        match self.next {
            Some(rank) => tape.send(&output, rank, 0).map(|_| None),
            None => Ok(Some(part.loss(&output))),
        }
    }
}
