//! The cost of `all_to_all` against raw MPI: forward against one `MPI_Alltoallv`, forward and
//! backward against two. Bytes are per rank. Blocks along the first axis lie in memory as MPI sends
//! them; the transposition, from rows to columns, needs a local permutation, too.
//!
//! ```text
//! cargo bench --bench all_to_all           # on 4 ranks
//! ```

mod side_by_side;

use std::error::Error;
use std::ffi::c_int;

use mpi4tch::mpi_sys::{MPI_Alltoallv, MPI_COMM_WORLD, MPI_DOUBLE};
use mpi4tch::{Communicator, testing};
use side_by_side::{Pair, Run, compare};
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    // The least is 8 B from each rank to each.
    side_by_side::run(4, [(1, 1, 500), (32, 64, 50), (512, 512, 1)], measure)
}

/// Blocks of `rows` by `columns`, one from each rank to each.
fn measure(
    world: &Communicator,
    (rows, columns, calls): (c_int, c_int, u32),
) -> mpi4tch::Result<()> {
    let (size, doubles) = (world.size(), (Kind::Double, Device::Cpu));
    let count = rows * columns;
    // A tensor of blocks, [1, p, …], becomes [p, 1, …]; a matrix that is cut into rows becomes one
    // that is cut into columns.
    let blocks = Tensor::ones([1, i64::from(size), i64::from(count)], doubles);
    let matrix = Tensor::ones([i64::from(rows), i64::from(columns * size)], doubles);
    let received = blocks.zeros_like();
    let [variable, matrix_variable] = [&blocks, &matrix].map(|x| x.copy().set_requires_grad(true));
    let cotangent = Tensor::ones([i64::from(size), 1, i64::from(count)], doubles);
    let matrix_cotangent = Tensor::ones([i64::from(rows * size), i64::from(columns)], doubles);

    let counts: Vec<c_int> = (0..size).map(|_| count).collect();
    let displacements: Vec<c_int> = (0..size).map(|rank| rank * count).collect();
    let raw = || {
        // SAFETY: both buffers hold `count` doubles per rank and do not overlap.
        unsafe {
            MPI_Alltoallv(
                blocks.data_ptr(),
                counts.as_ptr(),
                displacements.as_ptr(),
                MPI_DOUBLE,
                received.data_ptr(),
                counts.as_ptr(),
                displacements.as_ptr(),
                MPI_DOUBLE,
                MPI_COMM_WORLD,
            )
        };
    };
    let times = |n: usize| -> Run {
        Box::new(move || {
            (0..n).for_each(|_| raw());
            Ok(())
        })
    };

    let ones: Vec<i64> = vec![1; counts.len()];
    let exchanged = |x: &Tensor| world.all_to_all_with_counts(x, 0, &ones, 1, &ones);
    let (row_counts, column_counts) =
        (vec![i64::from(rows); counts.len()], vec![i64::from(columns); counts.len()]);
    let transposed =
        |x: &Tensor| world.all_to_all_with_counts(x, 0, &row_counts, 1, &column_counts);
    let mut pairs = [
        Pair {
            work: "forward, counts given",
            raw: times(1),
            ours: Box::new(|| exchanged(&blocks).map(drop)),
        },
        Pair {
            work: "forward",
            raw: times(1),
            ours: Box::new(|| world.all_to_all(&blocks, 0, 1, 1).map(drop)),
        },
        Pair {
            work: "and backward, counts given",
            raw: times(2),
            ours: Box::new(|| {
                let y = exchanged(&variable)?;
                testing::vjp(&[&y], &[&cotangent], &[&variable], false).map(drop)
            }),
        },
        Pair {
            work: "and backward",
            raw: times(2),
            ours: Box::new(|| {
                let y = world.all_to_all(&variable, 0, 1, 1)?;
                testing::vjp(&[&y], &[&cotangent], &[&variable], false).map(drop)
            }),
        },
        Pair {
            work: "transposition",
            raw: times(1),
            ours: Box::new(|| transposed(&matrix).map(drop)),
        },
        Pair {
            work: "transposition, and backward",
            raw: times(2),
            ours: Box::new(|| {
                let y = transposed(&matrix_variable)?;
                testing::vjp(&[&y], &[&matrix_cotangent], &[&matrix_variable], false).map(drop)
            }),
        },
    ];
    compare(world, blocks.numel() * 8, calls, &mut pairs)
}
