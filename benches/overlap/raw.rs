//! The same communication by MPI itself, started.

use std::ffi::c_int;

use mpi4tch::mpi_sys::{
    self, MPI_COMM_WORLD, MPI_FLOAT, MPI_Iallgather, MPI_Iallreduce, MPI_Irecv,
    MPI_Ireduce_scatter_block, MPI_Isend, MPI_REQUEST_NULL, MPI_Request, MPI_SUM, MPI_Testall,
    MPI_Waitall,
};
use tch::{Device, Kind, Tensor};

/// Which call is made. The elements are floats.
#[derive(Clone, Copy)]
pub enum Call {
    AllReduce,
    AllGather,
    ReduceScatter,
    /// A message to the other rank, and one from it.
    Messages,
}

/// Buffers for calls on blocks of `count` elements.
pub struct Buffers {
    sent: Tensor,
    received: Tensor,
    count: c_int,
    other: c_int,
}

/// Calls under way, which use the buffers.
pub struct UnderWay<'b> {
    requests: [MPI_Request; 2],
    _buffers: &'b Buffers,
}

impl Buffers {
    pub fn new(count: c_int, ranks: c_int, other: c_int) -> Self {
        // Large enough for the block of each rank.
        let all = [i64::from(count) * i64::from(ranks)];
        let (sent, received) = (
            Tensor::ones(all, (Kind::Float, Device::Cpu)),
            Tensor::zeros(all, (Kind::Float, Device::Cpu)),
        );
        Self { sent, received, count, other }
    }

    pub fn start(&mut self, call: Call) -> UnderWay<'_> {
        let mut requests = [MPI_REQUEST_NULL; 2];
        let [first, second] = &mut requests;
        let (sent, received) = (self.sent.data_ptr(), self.received.data_ptr());
        let (count, world) = (self.count, MPI_COMM_WORLD);
        match call {
            Call::AllReduce => {
                // SAFETY: both hold `count` floats, and live until the wait.
                unsafe { MPI_Iallreduce(sent, received, count, MPI_FLOAT, MPI_SUM, world, first) };
            }
            Call::AllGather => {
                // SAFETY: `received` has room for `count` floats of each rank; as above.
                unsafe {
                    MPI_Iallgather(sent, count, MPI_FLOAT, received, count, MPI_FLOAT, world, first)
                };
            }
            Call::ReduceScatter => {
                // SAFETY: `sent` holds `count` floats for each rank; as above.
                unsafe {
                    MPI_Ireduce_scatter_block(
                        sent, received, count, MPI_FLOAT, MPI_SUM, world, first,
                    )
                };
            }
            Call::Messages => {
                // SAFETY: `received` has room for `count` floats, and lives until the wait.
                unsafe { MPI_Irecv(received, count, MPI_FLOAT, self.other, 1, world, first) };
                // SAFETY: `sent` holds `count` floats, and lives until the wait.
                unsafe { MPI_Isend(sent, count, MPI_FLOAT, self.other, 1, world, second) };
            }
        }
        UnderWay { requests, _buffers: self }
    }
}

impl UnderWay<'_> {
    pub fn test(&mut self) {
        let mut ended = 0;
        // SAFETY: the requests are those that were started, or null.
        unsafe {
            MPI_Testall(2, self.requests.as_mut_ptr(), &raw mut ended, mpi_sys::MPI_STATUSES_IGNORE)
        };
    }

    pub fn wait(mut self) {
        // SAFETY: as in `test`.
        unsafe { MPI_Waitall(2, self.requests.as_mut_ptr(), mpi_sys::MPI_STATUSES_IGNORE) };
    }
}
