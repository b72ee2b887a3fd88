//! Time and memory on more ranks: of operations on 1 MiB, forward and backward, and of a training
//! step.

use std::error::Error;

use mpi4tch::{Communicator, DataParallel, PassOptions};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Tensor};

use crate::memory::resident;
use crate::operations::{ALL_GATHER, OF_ONE_SHAPE, Operation};
use crate::print;
use crate::turns::{Run, in_turns, median};

const ELEMENTS: i64 = 1 << 17;
const ROUNDS: usize = 21;
/// How many results the memory is measured of.
const RESULTS: usize = 16;

pub fn measure(world: &Communicator) -> Result<(), Box<dyn Error>> {
    let x = Tensor::ones([ELEMENTS], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let operations: Vec<(&str, Operation)> = OF_ONE_SHAPE.into_iter().chain([ALL_GATHER]).collect();
    let store = nn::VarStore::new(Device::Cpu);
    let mut layers = nn::seq();
    for i in 0..4 {
        let layer = nn::linear(store.root() / i, 256, 256, Default::default());
        layers = layers.add(layer).add_fn(Tensor::relu);
    }
    let model = DataParallel::new(world, &store)?;
    let mut optimizer = nn::Sgd::default().build(&store, 1e-3)?;
    let batch = Tensor::randn([64, 256], (Kind::Float, Device::Cpu));
    let mut runs: Vec<Run<'_>> = Vec::new();
    for &(_, operation) in &operations {
        let x = &x;
        runs.push(Box::new(move || {
            let tape = world.tape();
            let y = operation(&tape, x)?;
            let _ = tape.vjp(&[(&y, &y.detach())], &[x], PassOptions::default())?;
            Ok(())
        }));
    }
    runs.push(Box::new(|| {
        optimizer.zero_grad();
        model.backward(&layers.forward(&batch).square().mean(Kind::Float))?;
        optimizer.step();
        Ok(())
    }));
    let names = operations.iter().map(|(name, _)| *name).chain(["training step"]);
    let times = in_turns(world, ROUNDS, 4, &mut runs.iter_mut().collect::<Vec<_>>())?;
    for (name, times) in names.zip(&times) {
        print(world, "time on ranks", name, world.size(), median(times) / 1e3);
    }
    print(world, "memory of a rank", "all", world.size(), resident()?);
    // All are kept: a result that is dropped gives its memory to the next, and nothing would grow.
    let mut kept = Vec::new();
    for &(name, operation) in &operations {
        let mut before = 0.0;
        for _ in 0..2 {
            before = resident()?;
            for _ in 0..RESULTS {
                kept.push(operation(world, &x)?);
            }
        }
        let each = (resident()? - before) / RESULTS as f64;
        print(world, "memory on ranks", name, world.size(), each);
    }
    Ok(())
}
