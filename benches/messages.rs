//! The cost of messages against raw MPI: each rank exchanges one with a partner, forward, and
//! forward and backward.
//!
//! ```text
//! cargo bench --bench messages             # on 2 ranks, or any even number
//! ```

mod side_by_side;

use std::error::Error;
use std::ffi::c_int;

use mpi4tch::mpi_sys::{
    self, MPI_COMM_WORLD, MPI_DOUBLE, MPI_Irecv, MPI_Isend, MPI_Recv, MPI_Send, MPI_Sendrecv,
    MPI_Waitall,
};
use mpi4tch::{Communicator, testing, wait_all};
use side_by_side::{Pair, compare};
use tch::{Device, Kind, Tensor};

const TAG: c_int = 1;

fn main() -> Result<(), Box<dyn Error>> {
    side_by_side::run(2, [(1, 2000), (1 << 13, 200), (1 << 20, 4), (10_000_000, 1)], measure)
}

fn measure(world: &Communicator, (count, calls): (c_int, u32)) -> mpi4tch::Result<()> {
    let partner = world.rank() ^ 1;
    let leads = world.rank() < partner;
    let x = Tensor::ones([i64::from(count)], (Kind::Double, Device::Cpu));
    let variable = x.copy().set_requires_grad(true);
    let (received, cotangent) = (x.zeros_like(), x.ones_like());
    let send = || {
        // SAFETY: `x` holds `count` doubles.
        unsafe { MPI_Send(x.data_ptr(), count, MPI_DOUBLE, partner, TAG, MPI_COMM_WORLD) };
    };
    let receive = || {
        let status = mpi_sys::MPI_STATUS_IGNORE;
        // SAFETY: `received` has room for `count` doubles.
        unsafe {
            MPI_Recv(received.data_ptr(), count, MPI_DOUBLE, partner, TAG, MPI_COMM_WORLD, status)
        };
    };
    let exchange = || {
        // SAFETY: both hold `count` doubles and do not overlap.
        unsafe {
            MPI_Sendrecv(
                x.data_ptr(),
                count,
                MPI_DOUBLE,
                partner,
                TAG,
                received.data_ptr(),
                count,
                MPI_DOUBLE,
                partner,
                TAG,
                MPI_COMM_WORLD,
                mpi_sys::MPI_STATUS_IGNORE,
            )
        };
    };
    let start_and_wait = || {
        let mut requests = [mpi_sys::MPI_REQUEST_NULL; 2];
        let [receipt, sending] = &mut requests;
        let (sent, room) = (x.data_ptr(), received.data_ptr());
        // SAFETY: as above; both are kept until MPI_Waitall.
        unsafe {
            MPI_Irecv(room, count, MPI_DOUBLE, partner, TAG, MPI_COMM_WORLD, receipt);
            MPI_Isend(sent, count, MPI_DOUBLE, partner, TAG, MPI_COMM_WORLD, sending);
            MPI_Waitall(2, requests.as_mut_ptr(), mpi_sys::MPI_STATUSES_IGNORE);
        }
    };
    let started = |x: &Tensor| -> mpi4tch::Result<Vec<Tensor>> {
        wait_all([world.irecv(&cotangent, partner, TAG)?, world.isend(x, partner, TAG)?])
    };
    let mut pairs = [
        Pair {
            work: "send, recv",
            raw: Box::new(|| {
                if leads {
                    send();
                    receive();
                } else {
                    receive();
                    send();
                }
                Ok(())
            }),
            ours: Box::new(|| {
                if leads {
                    let _ = world.send(&x, partner, TAG)?;
                    world.recv(&cotangent, partner, TAG).map(drop)
                } else {
                    let _ = world.recv(&cotangent, partner, TAG)?;
                    world.send(&x, partner, TAG).map(drop)
                }
            }),
        },
        Pair {
            work: "sendrecv",
            raw: Box::new(|| {
                exchange();
                Ok(())
            }),
            ours: Box::new(|| world.sendrecv(&x, partner, &cotangent, partner, TAG).map(drop)),
        },
        Pair {
            work: "sendrecv and backward",
            raw: Box::new(|| {
                exchange();
                exchange();
                Ok(())
            }),
            ours: Box::new(|| {
                let y = world.sendrecv(&variable, partner, &cotangent, partner, TAG)?;
                testing::vjp(&[&y], &[&cotangent], &[&variable], false).map(drop)
            }),
        },
        Pair {
            work: "irecv, isend, wait_all",
            raw: Box::new(|| {
                start_and_wait();
                Ok(())
            }),
            ours: Box::new(|| started(&x).map(drop)),
        },
    ];
    compare(world, x.numel() * 8, calls, &mut pairs)
}
