//! A convolutional network that learns to read handwritten digits, data-parallel: every rank has the
//! whole network, and trains on some of the images of each batch.
//!
//! ```sh
//! make demo EXAMPLE=digits
//! make demo EXAMPLE=digits RANKS=4 ARGS='--epochs 20 --out target/plots'
//! ```
//!
//! `DataParallel` makes the networks equal, and averages the gradients over the ranks in the backward
//! pass of each step, so the networks stay equal. A batch need not divide by the number of ranks: the
//! average is weighted by the number of each rank's images, which may be zero. The gradients of the
//! first step are compared with those of the whole batch on one rank.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mpi4tch::tch::nn::{self, Module, OptimizerConfig};
use mpi4tch::tch::{self, Device, Kind, Tensor, no_grad};
use mpi4tch::{Communicator, DataParallel, Op, Universe};

use data::Digits;
use diagram::{Diagram, Style};
use picture::Picture;

#[path = "common/command_line.rs"]
mod command_line;
#[path = "common/data.rs"]
mod data;
#[path = "common/diagram.rs"]
mod diagram;
#[path = "common/picture.rs"]
mod picture;
#[path = "common/progress.rs"]
mod progress;

const SEED: i64 = 1;

/// Every fifth image is held out.
const HELD_OUT: i64 = 5;

const BATCH: i64 = 64;
const LEARNING_RATE: f64 = 5e-3;

/// After so many epochs with batches of [`BATCH`], the accuracy on the images that are held out must
/// be more than [`MIN_ACCURACY`].
const EPOCHS: i64 = 12;
const MIN_ACCURACY: f64 = 0.97;

/// Trains a convolutional network to read digits, on any number of MPI ranks.
///
/// Prints the mean loss and the accuracy of each epoch, on the images of the training and on others.
#[derive(Parser)]
#[command(override_usage = "mpiexec -n RANKS digits [--epochs N] [--batch N] [--out FOLDER]")]
pub(crate) struct Arguments {
    /// How often to go through the data
    #[arg(long, value_name = "N", default_value_t = EPOCHS)]
    #[arg(value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) epochs: i64,

    /// The number of images of a batch, on all ranks together
    #[arg(long, value_name = "N", default_value_t = BATCH)]
    #[arg(value_parser = clap::value_parser!(i64).range(1..=256))]
    pub(crate) batch: i64,

    /// Draw the loss and the accuracy of each epoch in FOLDER/digits.png
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,
}

fn main() -> ExitCode {
    mpi4tch::run(|universe| command_line::parse_and_run(universe, run))
}

/// Trains on all ranks together.
pub(crate) fn run(universe: &Universe, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let world = universe.world();
    let picture = Picture::create(&world, arguments.out.as_deref(), "digits.png")?;
    let (training, held_out) = parts(&Digits::read()?);
    if world.rank() == 0 {
        let (rows, others) = (training.rows(), held_out.rows());
        println!("ranks: {}, images: {rows} for training, {others} held out", world.size());
    }
    let epochs = train(&world, arguments, &training, &held_out)?;
    if world.rank() == 0 {
        println!("        training             held out");
        println!("epoch   loss      accuracy   loss      accuracy");
        for (number, Epoch { training, held_out }) in (1..).zip(&epochs) {
            let row = [training, held_out].map(|x| format!("{:.6}  {:7.2} %", x.loss, x.percent()));
            println!("{number:>5}   {}  {}", row[0], row[1]);
        }
    }
    if let Some(picture) = picture {
        picture.write(&diagrams(&epochs))?;
    }
    if arguments.epochs >= EPOCHS && arguments.batch == BATCH {
        let accuracy = epochs[epochs.len() - 1].held_out.accuracy;
        assert!(accuracy > MIN_ACCURACY, "only {accuracy} of the images held out are read right");
    }
    Ok(())
}

/// The images to train on, and those that are held out.
fn parts(digits: &Digits) -> (Digits, Digits) {
    let places = Tensor::arange(digits.rows(), (Kind::Int64, Device::Cpu));
    let held_out = places.remainder(HELD_OUT).eq(0);
    let [training, held_out] = [held_out.logical_not(), held_out]
        .map(|chosen| digits.select(&places.masked_select(&chosen)));
    (training, held_out)
}

/// Trains one network on all ranks. Returns the results of each epoch on all ranks.
fn train(
    world: &Communicator,
    arguments: &Arguments,
    training: &Digits,
    held_out: &Digits,
) -> Result<Vec<Epoch>, Box<dyn Error>> {
    let network = Network::new();
    let model = DataParallel::new(world, &network.store)?;
    let mut optimizer = nn::Adam::default().build(&network.store, LEARNING_RATE)?;
    let share_held_out = held_out.share(world);
    let mut epochs: Vec<Epoch> = Vec::new();
    let steps = (training.rows() + arguments.batch - 1) / arguments.batch;
    let bar = progress::bar(world, arguments.epochs * steps);
    for epoch in 0..arguments.epochs {
        // Every rank shuffles the images in the same way.
        tch::manual_seed(SEED + epoch);
        let order = Tensor::randperm(training.rows(), (Kind::Int64, Device::Cpu));
        let mut results = Tensor::zeros([2], (Kind::Double, Device::Cpu));
        for (step, batch) in training.select(&order).split(arguments.batch).enumerate() {
            let share = batch.share(world);
            let output = network.forward(&share.images);
            let loss = share.loss(&output);
            optimizer.zero_grad();
            // The last batch may have fewer images than there are ranks.
            let mean = (share.rows() > 0).then(|| &loss / share.rows());
            model.backward_weighted(mean.as_ref(), share.rows() as f64)?;
            if epoch == 0 && step == 0 {
                check_gradients(world, &network, &batch)?;
            }
            optimizer.step();
            results += results_of(&share, &output, &loss);
            bar.inc(1);
        }
        let output = no_grad(|| network.forward(&share_held_out.images));
        let loss = share_held_out.loss(&output);
        let others = results_of(&share_held_out, &output, &loss);
        let sums = Vec::try_from(world.all_reduce(&Tensor::cat(&[results, others], 0), Op::Sum)?)?;
        epochs.push(Epoch {
            training: Results::new(&sums[..2], training.rows()),
            held_out: Results::new(&sums[2..], held_out.rows()),
        });
        bar.set_message(format!("loss {:.4}", sums[0] / training.rows() as f64));
    }
    bar.finish_and_clear();
    Ok(epochs)
}

/// Compares the gradients of the first step with those of the whole batch on one rank.
fn check_gradients(
    world: &Communicator,
    network: &Network,
    batch: &Digits,
) -> Result<(), Box<dyn Error>> {
    let alone = Network::new();
    let loss = batch.loss(&alone.forward(&batch.images)) / batch.rows();
    loss.f_backward()?;
    let gradients = |network: &Network| {
        let parameters = network.store.trainable_variables();
        Tensor::cat(&parameters.iter().map(|x| x.grad().flatten(0, -1)).collect::<Vec<_>>(), 0)
    };
    let error = (gradients(network) - gradients(&alone)).abs().max().double_value(&[]);
    if world.rank() == 0 {
        println!("gradients of the first step: within {error:.1e} of those on one rank\n");
    }
    assert!(error < 1e-12, "the gradients are off by {error:e} from those on one rank");
    Ok(())
}

/// Two convolutions, each followed by the maxima of squares of 2 × 2 pixels, and a linear layer.
struct Network {
    store: nn::VarStore,
    layers: nn::Sequential,
}

impl Network {
    /// The initial weights are the same each time.
    fn new() -> Self {
        tch::manual_seed(SEED);
        let mut store = nn::VarStore::new(Device::Cpu);
        store.set_kind(Kind::Double);
        let root = store.root();
        let same_size = nn::ConvConfig { padding: 1, ..Default::default() };
        let layers = nn::seq()
            .add_fn(|x| x.view([-1, 1, 8, 8]))
            .add(nn::conv2d(&root / "first", 1, 16, 3, same_size))
            .add_fn(|x| x.relu().max_pool2d_default(2))
            .add(nn::conv2d(&root / "second", 16, 32, 3, same_size))
            .add_fn(|x| x.relu().max_pool2d_default(2).flatten(1, -1))
            .add(nn::linear(&root / "last", 128, Digits::CLASSES, Default::default()));
        Self { store, layers }
    }

    fn forward(&self, images: &Tensor) -> Tensor {
        self.layers.forward(images)
    }
}

struct Epoch {
    training: Results,
    held_out: Results,
}

/// The mean loss, and the share of the images that were read right.
struct Results {
    loss: f64,
    accuracy: f64,
}

impl Results {
    /// From the sums over all images.
    fn new(sums: &[f64], images: i64) -> Self {
        Self { loss: sums[0] / images as f64, accuracy: sums[1] / images as f64 }
    }

    fn percent(&self) -> f64 {
        100.0 * self.accuracy
    }
}

/// The sum of the losses, and the number of images that were read right.
fn results_of(digits: &Digits, output: &Tensor, loss: &Tensor) -> Tensor {
    Tensor::stack(&[loss.detach(), digits.correct(output).to_kind(Kind::Double)], 0)
}

fn diagrams(epochs: &[Epoch]) -> [Diagram<'_>; 2] {
    let diagram = |y, value: fn(&Results) -> f64| Diagram {
        x: "epoch",
        y,
        series: vec![
            ("training", epochs.iter().map(|epoch| value(&epoch.training)).collect()),
            ("held out", epochs.iter().map(|epoch| value(&epoch.held_out)).collect()),
        ],
        style: Style::Lines,
    };
    [
        diagram("mean cross-entropy / nat", |results| results.loss),
        diagram("images read right / %", Results::percent),
    ]
}
