//! Operations from a tensor to one of the same shape, or to a larger one.

use mpi4tch::{Communicator, Op, Result};
use tch::Tensor;

pub type Operation = fn(&Communicator, &Tensor) -> Result<Tensor>;

/// To a tensor of the same shape, so that they can make a chain.
pub const OF_ONE_SHAPE: [(&str, Operation); 3] = [
    ("all_reduce", |comm, x| comm.all_reduce(x, Op::Sum)),
    ("iall_reduce and wait", |comm, x| comm.iall_reduce(x, Op::Sum)?.wait()),
    ("sendrecv", |comm, x| {
        let (rank, size) = (comm.rank(), comm.size());
        comm.sendrecv(x, (rank + 1) % size, x, (rank + size - 1) % size, 0)
    }),
];

pub const ALL_GATHER: (&str, Operation) = ("all_gather", |comm, x| comm.all_gather(x, 0));
