//! The cost of `all_gather` against raw MPI: forward against one `MPI_Allgatherv`, forward and
//! backward against that and one `MPI_Reduce_scatter`. Bytes are per rank.
//!
//! ```text
//! cargo bench --bench all_gather           # on 4 ranks
//! ```

mod side_by_side;

use std::error::Error;
use std::ffi::c_int;

use mpi4tch::mpi_sys::{self, MPI_Allgatherv, MPI_COMM_WORLD, MPI_DOUBLE, MPI_Reduce_scatter};
use mpi4tch::{Communicator, testing};
use side_by_side::{Pair, compare};
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    side_by_side::run(4, [(1, 500), (1 << 13, 50), (1 << 20, 1)], measure)
}

fn measure(world: &Communicator, (count, calls): (c_int, u32)) -> mpi4tch::Result<()> {
    let x = Tensor::ones([i64::from(count)], (Kind::Double, Device::Cpu));
    let whole = Tensor::ones([i64::from(count * world.size())], (Kind::Double, Device::Cpu));
    let variable = x.copy().set_requires_grad(true);
    let (gathered, reduced) = (whole.zeros_like(), x.zeros_like());
    let counts: Vec<c_int> = (0..world.size()).map(|_| count).collect();
    let displacements: Vec<c_int> = (0..world.size()).map(|rank| rank * count).collect();
    let known: Vec<i64> = counts.iter().map(|&count| count.into()).collect();
    let forward = || {
        // SAFETY: `count` doubles are sent, as many per rank fit into `gathered`.
        unsafe {
            MPI_Allgatherv(
                x.data_ptr(),
                count,
                MPI_DOUBLE,
                gathered.data_ptr(),
                counts.as_ptr(),
                displacements.as_ptr(),
                MPI_DOUBLE,
                MPI_COMM_WORLD,
            )
        };
    };
    let backward = || {
        // SAFETY: `count` doubles per rank are sent, `count` fit into `reduced`.
        unsafe {
            MPI_Reduce_scatter(
                whole.data_ptr(),
                reduced.data_ptr(),
                counts.as_ptr(),
                MPI_DOUBLE,
                mpi_sys::MPI_SUM,
                MPI_COMM_WORLD,
            )
        };
    };
    let forward_only = || -> side_by_side::Run {
        Box::new(|| {
            forward();
            Ok(())
        })
    };
    let both = || -> side_by_side::Run {
        Box::new(|| {
            forward();
            backward();
            Ok(())
        })
    };
    let pull_back = |y: &Tensor| testing::vjp(&[y], &[&whole], &[&variable], false).map(drop);
    let mut pairs = [
        Pair {
            work: "forward, counts given",
            raw: forward_only(),
            ours: Box::new(|| world.all_gather_with_counts(&x, 0, &known).map(drop)),
        },
        Pair {
            work: "forward",
            raw: forward_only(),
            ours: Box::new(|| world.all_gather(&x, 0).map(drop)),
        },
        Pair {
            work: "and backward, counts given",
            raw: both(),
            ours: Box::new(|| pull_back(&world.all_gather_with_counts(&variable, 0, &known)?)),
        },
        Pair {
            work: "and backward",
            raw: both(),
            ours: Box::new(|| pull_back(&world.all_gather(&variable, 0)?)),
        },
    ];
    compare(world, x.numel() * 8, calls, &mut pairs)
}
