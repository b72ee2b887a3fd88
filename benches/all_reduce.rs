//! The cost of `all_reduce`, and of `iall_reduce` with its wait, against raw MPI: forward against
//! one `MPI_Allreduce`, or `MPI_Iallreduce` and `MPI_Wait`; forward and backward against two.
//!
//! ```text
//! cargo bench --bench all_reduce           # on 2 ranks
//! MPI4TCH_BENCH_RANKS=4 cargo bench --bench all_reduce
//! ```

mod side_by_side;

use std::error::Error;
use std::ffi::c_int;

use mpi4tch::mpi_sys::{self, MPI_Allreduce, MPI_Iallreduce, MPI_Wait};
use mpi4tch::{Communicator, Op, testing};
use side_by_side::{Pair, compare};
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    side_by_side::run(2, [(1, 2000), (1 << 13, 200), (1 << 20, 4), (10_000_000, 1)], measure)
}

fn measure(world: &Communicator, (count, calls): (c_int, u32)) -> mpi4tch::Result<()> {
    let x = Tensor::ones([i64::from(count)], (Kind::Double, Device::Cpu));
    let variable = x.copy().set_requires_grad(true);
    let (received, cotangent) = (x.zeros_like(), x.ones_like());
    let raw = || {
        // SAFETY: both buffers hold `count` doubles and do not overlap.
        unsafe {
            MPI_Allreduce(
                x.data_ptr(),
                received.data_ptr(),
                count,
                mpi_sys::MPI_DOUBLE,
                mpi_sys::MPI_SUM,
                mpi_sys::MPI_COMM_WORLD,
            )
        };
    };
    let started = || {
        let mut request = mpi_sys::MPI_REQUEST_NULL;
        // SAFETY: as above; both buffers are kept until MPI_Wait.
        unsafe {
            MPI_Iallreduce(
                x.data_ptr(),
                received.data_ptr(),
                count,
                mpi_sys::MPI_DOUBLE,
                mpi_sys::MPI_SUM,
                mpi_sys::MPI_COMM_WORLD,
                &mut request,
            );
            MPI_Wait(&mut request, mpi_sys::MPI_STATUS_IGNORE);
        }
    };
    let mut pairs = [
        Pair {
            work: "forward",
            raw: Box::new(|| {
                raw();
                Ok(())
            }),
            ours: Box::new(|| world.all_reduce(&x, Op::Sum).map(drop)),
        },
        Pair {
            work: "forward and backward",
            raw: Box::new(|| {
                raw();
                raw();
                Ok(())
            }),
            ours: Box::new(|| {
                let y = world.all_reduce(&variable, Op::Sum)?;
                testing::vjp(&[&y], &[&cotangent], &[&variable], false).map(drop)
            }),
        },
        Pair {
            work: "started, forward",
            raw: Box::new(|| {
                started();
                Ok(())
            }),
            ours: Box::new(|| world.iall_reduce(&x, Op::Sum)?.wait().map(drop)),
        },
        Pair {
            work: "started, forward and backward",
            raw: Box::new(|| {
                started();
                started();
                Ok(())
            }),
            ours: Box::new(|| {
                let y = world.iall_reduce(&variable, Op::Sum)?.wait()?;
                testing::vjp(&[&y], &[&cotangent], &[&variable], false).map(drop)
            }),
        },
    ];
    compare(world, x.numel() * 8, calls, &mut pairs)
}
