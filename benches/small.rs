//! Where the time of a small forward and backward pass goes: `all_reduce` of one double, built up step
//! by step.
//!
//! ```text
//! cargo bench --bench small                # on 2 ranks
//! ```

#[path = "side_by_side/turns.rs"]
mod turns;

use std::error::Error;

use mpi4tch::mpi_sys;
use mpi4tch::{Communicator, Op, PROC_NULL, PassOptions, testing};
use tch::{Device, Kind, Tensor};
use turns::{Run, in_turns, median, median_difference, on_ranks};

const ROUNDS: usize = 101;
const CALLS: u32 = 500;
/// The operations of a pass on a tape.
const OPERATIONS: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    on_ranks(2, measure)
}

/// What a step does, and what it is compared to.
struct Step<'a> {
    name: &'static str,
    /// The step that it adds something to.
    base: Option<usize>,
    run: Run<'a>,
}

fn measure(world: &Communicator) -> mpi4tch::Result<()> {
    let x = Tensor::ones([1], (Kind::Double, Device::Cpu));
    let variable = x.copy().set_requires_grad(true);
    let (received, cotangent) = (x.zeros_like(), x.ones_like());
    let allreduce = || {
        // SAFETY: both hold one double, and do not overlap.
        unsafe {
            mpi_sys::MPI_Allreduce(
                x.data_ptr(),
                received.data_ptr(),
                1,
                mpi_sys::MPI_DOUBLE,
                mpi_sys::MPI_SUM,
                mpi_sys::MPI_COMM_WORLD,
            )
        };
    };
    let pull_back = |y: &Tensor| testing::vjp(&[y], &[&cotangent], &[&variable], false).map(drop);
    // A send to no rank makes every step of an operation but an MPI call.
    let chain = |comm: &Communicator, count: usize| {
        let first = Ok(variable.shallow_clone());
        (0..count).fold(first, |y, _| comm.send(&y?, PROC_NULL, 0))
    };
    let mut steps = vec![
        Step {
            name: "MPI_Allreduce",
            base: None,
            run: Box::new(|| {
                allreduce();
                Ok(())
            }),
        },
        Step {
            name: "all_reduce, not recorded",
            base: Some(0),
            run: Box::new(|| world.all_reduce(&x, Op::Sum).map(drop)),
        },
        Step {
            name: "all_reduce, recorded",
            base: Some(1),
            run: Box::new(|| world.all_reduce(&variable, Op::Sum).map(drop)),
        },
        Step {
            name: "a view of libtorch's, and back",
            base: None,
            run: Box::new(|| pull_back(&variable.f_alias()?)),
        },
        Step {
            name: "all_reduce, and back",
            base: Some(2),
            run: Box::new(|| pull_back(&world.all_reduce(&variable, Op::Sum)?)),
        },
        Step {
            name: "all_reduce on a tape, and back",
            base: Some(4),
            run: Box::new(|| {
                let tape = world.tape();
                let y = tape.all_reduce(&variable, Op::Sum)?;
                tape.vjp(&[(&y, &cotangent)], &[&variable], PassOptions::default()).map(drop)
            }),
        },
    ];
    let mut passes = vec![
        Step {
            name: "64 operations, and back",
            base: None,
            run: Box::new(|| pull_back(&chain(world, OPERATIONS)?)),
        },
        Step {
            name: "64 operations on a tape, and back",
            base: Some(0),
            run: Box::new(|| {
                let tape = world.tape();
                let y = chain(&tape, OPERATIONS)?;
                tape.vjp(&[(&y, &cotangent)], &[&variable], PassOptions::default()).map(drop)
            }),
        },
    ];
    report(world, &mut steps, CALLS, 1)?;
    report(world, &mut passes, CALLS / 20, OPERATIONS)
}

/// Prints the time of each step, and what it adds to its base, per operation.
fn report(
    world: &Communicator,
    steps: &mut [Step<'_>],
    calls: u32,
    operations: usize,
) -> mpi4tch::Result<()> {
    let mut runs: Vec<_> = steps.iter_mut().map(|step| &mut step.run).collect();
    let times = in_turns(world, ROUNDS, calls, &mut runs)?;
    if world.rank() == 0 {
        let each = |time: f64| time / operations as f64;
        for (step, own) in steps.iter().zip(&times) {
            print!("{:<34}{:>8.2} µs", step.name, each(median(own)));
            match step.base {
                None => println!(),
                Some(base) => {
                    println!("{:>8.2} µs more", each(median_difference(own, &times[base])));
                }
            }
        }
    }
    Ok(())
}
