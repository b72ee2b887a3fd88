//! Time and memory of an operation on longer tapes: chains of operations on one number.

use std::error::Error;
use std::time::Instant;

use mpi4tch::{Communicator, Op, Result};
use tch::{Kind, Tensor};

use crate::memory::allocated;
use crate::operations::{OF_ONE_SHAPE, Operation};
use crate::print;
use crate::turns::median;

/// The numbers of operations, and how often tapes of that length are measured.
const LENGTHS: [(i32, usize); 4] = [(100, 21), (1000, 11), (10_000, 5), (100_000, 1)];

/// What an operation of a tape takes: seconds forward and backward, and bytes.
struct Cost {
    forward: f64,
    backward: f64,
    bytes: f64,
}

pub fn measure(world: &Communicator) -> std::result::Result<(), Box<dyn Error>> {
    for (name, operation) in OF_ONE_SHAPE {
        for (length, times) in LENGTHS {
            let costs = (0..times).map(|_| cost(world, operation, length));
            let costs = costs.collect::<Result<Vec<_>>>()?;
            let of = |part: fn(&Cost) -> f64| median(&costs.iter().map(part).collect::<Vec<_>>());
            let [forward, backward] = [of(|cost| cost.forward), of(|cost| cost.backward)];
            let table = "time on a tape";
            print(world, table, &format!("{name}, forward"), length, forward * 1e6);
            print(world, table, &format!("{name}, backward"), length, backward * 1e6);
            print(world, "memory on a tape", name, length, of(|cost| cost.bytes));
        }
    }
    Ok(())
}

fn cost(world: &Communicator, operation: Operation, length: i32) -> Result<Cost> {
    let tape = world.tape();
    let x = Tensor::from(1.0).set_requires_grad(true);
    let before = allocated();
    world.barrier()?;
    let start = Instant::now();
    let mut y = x.shallow_clone();
    for _ in 0..length {
        y = operation(&tape, &y)?;
    }
    let forward = start.elapsed().as_secs_f64();
    let bytes = allocated() - before;
    let loss = y.f_sum(Kind::Double)?;
    world.barrier()?;
    let start = Instant::now();
    tape.backward(&loss)?;
    let backward = start.elapsed().as_secs_f64();
    let slowest = world.all_reduce(&Tensor::from_slice(&[forward, backward, bytes]), Op::Max)?;
    let of_each = |i| slowest.double_value(&[i]) / f64::from(length);
    Ok(Cost { forward: of_each(0), backward: of_each(1), bytes: of_each(2) })
}
