//! What `iall_reduce` and its wait cost above raw MPI: forward against one `MPI_Iallreduce` and its
//! wait, forward and backward against two.
//!
//! ```text
//! cargo bench --bench iall_reduce          # on 2 ranks
//! ```

mod side_by_side;

use std::error::Error;
use std::ffi::c_int;

use mpi4tch::mpi_sys::{self, MPI_Iallreduce, MPI_Wait};
use mpi4tch::{Communicator, Op, testing};
use side_by_side::{Pair, compare};
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    side_by_side::run(2, |world| {
        for (count, calls) in [(1, 2000), (1 << 13, 200), (1 << 20, 4), (10_000_000, 1)] {
            measure(world, count, calls)?;
        }
        Ok(())
    })
}

fn measure(world: &Communicator, count: c_int, calls: u32) -> mpi4tch::Result<()> {
    let x = Tensor::ones([i64::from(count)], (Kind::Double, Device::Cpu));
    let variable = x.copy().set_requires_grad(true);
    let (received, cotangent) = (x.zeros_like(), x.ones_like());
    let raw = || {
        let mut request = mpi_sys::MPI_REQUEST_NULL;
        // SAFETY: both buffers hold `count` doubles, do not overlap, and are kept until MPI_Wait.
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
            ours: Box::new(|| world.iall_reduce(&x, Op::Sum)?.wait().map(drop)),
        },
        Pair {
            work: "forward and backward",
            raw: Box::new(|| {
                raw();
                raw();
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
