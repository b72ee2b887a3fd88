//! Memory after many training steps.

use std::error::Error;

use mpi4tch::{Communicator, DataParallel, Op, Result};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Tensor};

use crate::memory::{allocated, resident};
use crate::print;

const STEPS: i32 = 10_000;
const BETWEEN: i32 = 500;

pub fn measure(world: &Communicator) -> std::result::Result<(), Box<dyn Error>> {
    let store = nn::VarStore::new(Device::Cpu);
    let layer = nn::linear(store.root(), 64, 64, Default::default());
    let mut optimizer = nn::Sgd::default().build(&store, 1e-3)?;
    let batch = Tensor::randn([16, 64], (Kind::Float, Device::Cpu));
    {
        let model = DataParallel::new(world, &store)?;
        watch(world, "DataParallel", || {
            optimizer.zero_grad();
            model.backward(&layer.forward(&batch).square().mean(Kind::Float))?;
            optimizer.step();
            Ok(())
        })?;
    }
    // A started sum and messages, on a tape.
    let tape = world.tape();
    let (rank, size) = (world.rank(), world.size());
    watch(world, "a tape, with started calls", || {
        optimizer.zero_grad();
        let y = layer.forward(&batch);
        let request = tape.iall_reduce(&y.mean(Kind::Float), Op::Sum)?;
        let z = tape.sendrecv(&y, (rank + 1) % size, &y, (rank + size - 1) % size, 0)?;
        let loss = z.square().mean(Kind::Float) + request.wait()?.square();
        tape.backward(&loss)?;
        optimizer.step();
        Ok(())
    })
}

fn watch(
    world: &Communicator,
    name: &str,
    mut step: impl FnMut() -> Result<()>,
) -> std::result::Result<(), Box<dyn Error>> {
    for number in 1..=STEPS {
        step()?;
        if number % BETWEEN == 0 {
            print(world, "resident memory", name, number, resident()?);
            print(world, "allocated memory", name, number, allocated() / 1048576.0);
        }
    }
    Ok(())
}
