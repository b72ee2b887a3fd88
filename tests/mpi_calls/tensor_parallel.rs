//! The pairs of layers of the example `tensor_parallel`.

use mpi4tch::{Replicated, Result};
use tch::{Device, Kind, Tensor, nn};

use crate::common::Context;
use crate::profiling::{calls, names};

#[path = "../../examples/common/layer.rs"]
mod layer;
#[path = "../../examples/tensor_parallel/pair.rs"]
mod pair;

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![a_pair_of_layers]
}

/// As Megatron-LM's: one all-reduce forward, and one in the backward pass, both of what a layer
/// passes on.
fn a_pair_of_layers(context: &Context) -> Result<()> {
    let mut store = nn::VarStore::new(Device::Cpu);
    store.set_kind(Kind::Double);
    let pair = pair::Pair::new(&context.world, &store.root(), 3, 8);
    let x = Tensor::ones([5, 3], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let x = Replicated::assume(&context.world, &x)?;
    let (y, forward) = calls(|| pair.forward(&x))?;
    let loss = y.map(|y| y.sum(Kind::Double))?;
    let ((), backward) = calls(|| loss.backward())?;
    for made in [forward, backward] {
        assert_eq!(names(&made), ["MPI_Allreduce"]);
        assert_eq!(made[0].volume, 8 * 5 * 3);
    }
    Ok(())
}
