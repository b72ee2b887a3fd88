//! The time of a training step with `DataParallel`; with a loop that sums each gradient after the
//! backward pass, as one would write it by hand; and without communication. A step is `zero_grad`,
//! forward, backward, and the optimizer's `step`.
//!
//! ```text
//! cargo bench --bench data_parallel        # on 2 ranks
//! make bench-peers                         # against PyTorch's DistributedDataParallel
//! ```
//!
//! benches/peers/ddp.py trains the same models.

#[path = "side_by_side/turns.rs"]
mod turns;

use std::error::Error;
use std::ffi::c_int;

use mpi4tch::mpi_sys::{self, MPI_Allreduce};
use mpi4tch::{Communicator, DataParallel, Op};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Tensor};
use turns::{Run, in_turns, median, median_difference, on_ranks};

const BATCH: i64 = 64;
const ROUNDS: usize = 101;

/// A model, without its weights.
struct Case {
    name: &'static str,
    layers: fn(&nn::Path) -> nn::Sequential,
    /// The shape of a sample.
    sample: &'static [i64],
}

const CASES: [Case; 2] = [
    Case { name: "perceptron", layers: perceptron, sample: &[931] },
    Case { name: "convolutions", layers: convolutions, sample: &[1, 28, 28] },
];

/// Ten layers, 8.67 million parameters in 20 tensors.
fn perceptron(path: &nn::Path) -> nn::Sequential {
    let mut layers = nn::seq();
    for i in 0..10 {
        if i != 0 {
            layers = layers.add_fn(Tensor::relu);
        }
        layers = layers.add(nn::linear(path / i, 931, 931, Default::default()));
    }
    layers
}

/// The network of tch's example for MNIST, without its dropout: 1.11 million parameters in 8
/// tensors.
fn convolutions(path: &nn::Path) -> nn::Sequential {
    nn::seq()
        .add(nn::conv2d(path / "conv1", 1, 32, 5, Default::default()))
        .add_fn(|x| x.max_pool2d_default(2))
        .add(nn::conv2d(path / "conv2", 32, 64, 5, Default::default()))
        .add_fn(|x| x.max_pool2d_default(2).flatten(1, -1))
        .add(nn::linear(path / "fc1", 1024, 1024, Default::default()))
        .add_fn(Tensor::relu)
        .add(nn::linear(path / "fc2", 1024, 10, Default::default()))
}

/// A model that is trained.
struct Training {
    store: nn::VarStore,
    layers: nn::Sequential,
    optimizer: nn::Optimizer,
    batch: Tensor,
}

impl Training {
    fn new(case: &Case) -> mpi4tch::Result<Self> {
        let store = nn::VarStore::new(Device::Cpu);
        let layers = (case.layers)(&store.root());
        let optimizer = nn::Sgd::default().build(&store, 1e-3)?;
        let shape = [&[BATCH], case.sample].concat();
        let batch = Tensor::f_randn(shape, (Kind::Float, Device::Cpu))?;
        Ok(Self { store, layers, optimizer, batch })
    }

    fn step(
        &mut self,
        backward: impl FnOnce(&Tensor) -> mpi4tch::Result<()>,
    ) -> mpi4tch::Result<()> {
        self.optimizer.zero_grad();
        let loss = self.layers.forward(&self.batch).square().mean(Kind::Float);
        backward(&loss)?;
        self.optimizer.step();
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    tch::set_num_threads(1);
    on_ranks(2, |world| {
        if world.rank() == 0 {
            println!(
                "SGD, a batch of {BATCH} a rank, one thread a rank; median and least of {ROUNDS} \
                 steps; above is the\nmedian difference to the step without communication that \
                 precedes, also as a multiple of one\nMPI_Allreduce of all gradients\n"
            );
            println!(
                "model         {:<28}{:>12}{:>12}{:>12}{:>8}",
                "way", "step", "least", "above", "ratio"
            );
        }
        CASES.iter().try_for_each(|case| measure(world, case))
    })
}

fn measure(world: &Communicator, case: &Case) -> mpi4tch::Result<()> {
    let mut alone = Training::new(case)?;
    let mut by_hand = Training::new(case)?;
    let mut blocking = Training::new(case)?;
    let mut started = Training::new(case)?;
    let parameters = by_hand.store.trainable_variables();
    let blocking_model = DataParallel::new(world, &blocking.store)?;
    let started_model = DataParallel::new(world, &started.store)?;
    let variable = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let count = parameters.iter().map(Tensor::numel).sum::<usize>();
    let count = c_int::try_from(count).expect("few enough for one call");
    let gradients = Tensor::ones([i64::from(count)], (Kind::Float, Device::Cpu));
    let ways: [(&str, Run<'_>); 5] = [
        ("no communication", Box::new(|| alone.step(|loss| Ok(loss.f_backward()?)))),
        (
            "by hand",
            Box::new(|| {
                by_hand.step(|loss| {
                    loss.f_backward()?;
                    for parameter in &parameters {
                        let mut gradient = parameter.grad();
                        world.all_reduce_(&mut gradient, Op::Sum)?;
                        let _ = gradient.f_div_scalar_(f64::from(world.size()))?;
                    }
                    Ok(())
                })
            }),
        ),
        ("DataParallel", Box::new(|| blocking.step(|loss| blocking_model.backward(loss)))),
        (
            "DataParallel, sums started",
            Box::new(|| {
                // Sums are started while any result could communicate in a backward pass.
                let _result = world.all_reduce(&variable, Op::Sum)?;
                started.step(|loss| started_model.backward(loss))
            }),
        ),
        (
            "MPI_Allreduce",
            Box::new(|| {
                // SAFETY: `gradients` holds `count` floats.
                unsafe {
                    MPI_Allreduce(
                        mpi_sys::MPI_IN_PLACE,
                        gradients.data_ptr(),
                        count,
                        mpi_sys::MPI_FLOAT,
                        mpi_sys::MPI_SUM,
                        mpi_sys::MPI_COMM_WORLD,
                    )
                };
                Ok(())
            }),
        ),
    ];
    let (names, mut runs): (Vec<_>, Vec<_>) = ways.into_iter().unzip();
    let times = in_turns(world, ROUNDS, 1, &mut runs.iter_mut().collect::<Vec<_>>())?;
    if world.rank() != 0 {
        return Ok(());
    }
    let (steps, sum) = times.split_at(times.len() - 1);
    let sum = median(&sum[0]);
    for (i, (name, times)) in names.iter().zip(&times).enumerate() {
        let [step, least] = [median(times), least(times)].map(|time| time / 1e3);
        print!("{:<14}{name:<28}{step:>9.2} ms{least:>9.2} ms", case.name);
        if (1..steps.len()).contains(&i) {
            let above = median_difference(times, &steps[0]);
            print!("{:>9.2} ms{:>8.2}", above / 1e3, above / sum);
        }
        println!();
    }
    Ok(())
}

fn least(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}
