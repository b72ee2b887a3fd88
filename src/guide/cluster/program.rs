use std::process::ExitCode;

use mpi4tch::{Op, Universe};
use tch::Tensor;

fn main() -> ExitCode {
    mpi4tch::run(program)
}

pub fn program(universe: &Universe) -> mpi4tch::Result<()> {
    let world = universe.world();
    let node = world.split_shared()?; // the ranks that share memory
    let ones = world.all_reduce(&Tensor::from_slice(&[1]), Op::Sum)?;
    assert_eq!(ones, Tensor::from_slice(&[world.size()]));
    println!(
        "rank {} of {}, {} of {} on its node, {} threads, {}",
        world.rank(),
        world.size(),
        node.rank(),
        node.size(),
        tch::get_num_threads(),
        universe.library().version().lines().next().unwrap_or_default(),
    );
    Ok(())
}
