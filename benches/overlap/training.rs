//! The backward pass of a model, whose gradients are summed over the ranks.

use std::ffi::c_int;

use mpi4tch::mpi_sys::{self, MPI_Allreduce};
use mpi4tch::{Communicator, DataParallel, Op, Result};
use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};

use crate::thread::Caller;
use crate::timing::{Pass, Row, Way, in_turns, roughly, rows, timed};

const LAYERS: i64 = 8;
const WIDTH: i64 = 362;

/// Eight layers, 4 MiB of parameters.
struct Network {
    store: nn::VarStore,
    layers: nn::Sequential,
}

impl Network {
    fn new() -> Self {
        let store = nn::VarStore::new(Device::Cpu);
        let mut layers = nn::seq();
        for i in 0..LAYERS {
            let layer = nn::linear(store.root() / i, WIDTH, WIDTH, Default::default());
            layers = layers.add(layer).add_fn(Tensor::relu);
        }
        Self { store, layers }
    }

    fn loss(&self, batch: &Tensor) -> Tensor {
        for mut parameter in self.store.trainable_variables() {
            parameter.zero_grad();
        }
        self.layers.forward(batch).square().mean(Kind::Float)
    }
}

fn batch(size: i64) -> Tensor {
    Tensor::randn([size, WIDTH], (Kind::Float, Device::Cpu))
}

/// Sums each parameter's gradient over the ranks by MPI itself.
fn sum_by_mpi(gradients: &[Tensor]) {
    for gradient in gradients {
        let count = c_int::try_from(gradient.numel()).expect("few enough for one call");
        // SAFETY: `gradient` holds `count` floats.
        unsafe {
            MPI_Allreduce(
                mpi_sys::MPI_IN_PLACE,
                gradient.data_ptr(),
                count,
                mpi_sys::MPI_FLOAT,
                mpi_sys::MPI_SUM,
                mpi_sys::MPI_COMM_WORLD,
            )
        };
    }
}

pub fn measure(world: &Communicator) -> Result<Vec<Row>> {
    let (alone, by_hand, averaged) = (Network::new(), Network::new(), Network::new());
    let model = DataParallel::new(world, &averaged.store)?;
    let parameters = by_hand.store.trainable_variables();
    let gradients: Vec<Tensor> = parameters.iter().map(Tensor::zeros_like).collect();
    let communication = roughly(world, || {
        sum_by_mpi(&gradients);
        Ok(())
    })?;
    let small = batch(64);
    let computation = roughly(world, || Ok(alone.loss(&small).f_backward()?))?;
    // The backward pass takes about two thirds of that.
    let size = (64.0 * communication / (computation * 2.0 / 3.0)).round().max(1.0);
    #[expect(clippy::cast_possible_truncation, reason = "it is rounded, and small")]
    let batch = batch(size as i64);
    let pass = || {
        let loss = averaged.loss(&batch);
        timed(world, || model.backward(&loss))
    };
    let mut ways: [Way<'_>; 6] = [
        Box::new(|| {
            let loss = alone.loss(&batch);
            timed(world, || Ok(loss.f_backward()?))
        }),
        Box::new(|| {
            timed(world, || {
                sum_by_mpi(&gradients);
                Ok(())
            })
        }),
        Box::new(|| {
            let loss = by_hand.loss(&batch);
            timed(world, || {
                loss.f_backward()?;
                for parameter in &parameters {
                    world.all_reduce_(&mut parameter.grad(), Op::Sum)?;
                }
                Ok(())
            })
        }),
        Box::new(|| timed(world, || model.backward(None))),
        Box::new(pass),
        Box::new(|| {
            let caller = Caller::start(world)?;
            let time = pass()?;
            caller.end()?;
            Ok(time)
        }),
    ];
    let times = in_turns(world, &mut ways)?;
    let by = [
        ("all_reduce_ after the pass", 1, 2),
        ("DataParallel", 3, 4),
        ("DataParallel, with a thread", 3, 5),
    ];
    Ok(rows("gradients", Pass::Backward, &times, &by))
}
