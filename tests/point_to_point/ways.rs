//! The ways to send a tensor to one rank and to receive one like it from another.

use mpi4tch::{Communicator, PROC_NULL, Rank, Result, Tag, TagMatch, join_dummies, testing};
use tch::Tensor;

use crate::common::ring::neighbours;
use crate::common::serial;

/// Sends the tensor to the first of the ranks, and receives one like it from the second.
pub type Way = fn(&Communicator, &Tensor, (Rank, Rank)) -> Result<Tensor>;

pub const TAG: Tag = 4;

/// Each ordered by dummies, so that the backward pass waits for nobody for ever.
pub const WAYS: [(&str, Way); 5] = [
    ("sendrecv", |c, x, (to, from)| c.sendrecv(x, to, x, from, TAG)),
    ("isend, recv", |c, x, (to, from)| {
        let request = c.isend(x, to, TAG)?;
        let y = c.recv(&join_dummies(x, &[&request.dummy()])?, from, TAG)?;
        let sent = request.join_dummies(&[&y]).wait()?;
        join_dummies(&y, &[&sent])
    }),
    ("irecv, send", |c, x, (to, from)| {
        let request = c.irecv(x, from, TAG)?;
        let sent = c.send(&join_dummies(x, &[&request.dummy()])?, to, TAG)?;
        request.join_dummies(&[&sent]).wait()
    }),
    ("isend, irecv", |c, x, (to, from)| {
        let send = c.isend(x, to, TAG)?;
        let receive = c.irecv(&join_dummies(x, &[&send.dummy()])?, from, TAG)?;
        let sent = send.join_dummies(&[&receive.dummy()]).wait()?;
        receive.join_dummies(&[&sent]).wait()
    }),
    ("irecv, isend, any", |c, x, (to, from)| {
        // From nobody, any is not meant.
        let receive = if from == PROC_NULL {
            c.irecv(x, from, TAG)?
        } else {
            c.irecv(x, from, TagMatch::Any)?
        };
        let send = c.isend(&join_dummies(x, &[&receive.dummy()])?, to, TAG)?;
        let y = receive.join_dummies(&[&send.dummy()]).wait()?;
        let sent = send.join_dummies(&[&y]).wait()?;
        join_dummies(&y, &[&sent])
    }),
];

/// Once around the ring, against the serial computation.
pub fn check_ring(comm: &Communicator, x: &Tensor, way: Way) -> Result<()> {
    let ends = neighbours(comm);
    testing::assert_serial(comm, x, |x| way(comm, x, ends), |xs| serial::shift(xs, 1))
}
