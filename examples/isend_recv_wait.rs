//! A ring: every rank sends its `a` to the right, and adds to it the `b` that comes from the left.
//!
//! ```sh
//! cargo build --example isend_recv_wait
//! scripts/mpiexec.sh -n 3 target/debug/examples/isend_recv_wait
//! ```
//!
//! ```text
//!    rank 0          rank 1          rank 2
//!    a ── isend ──→  a ── isend ──→  a ── isend ──→  to rank 0
//!    a + b           a + b           a + b
//! ```
//!
//! Each `a` is in the sum of its own rank and in that of the right neighbour, so the gradient of
//! the sum of all ranks' losses is 2. One half of it comes back from the right neighbour, by the
//! adjoint of the send. But nothing that this rank computes depends on its send, so libtorch would
//! skip it, and this rank would not receive the cotangent: the gradient would be 1, or the program
//! would hang. This example shows two ways to make the send a part of the backward pass.

use std::process::ExitCode;

use mpi4tch::tch::{Kind, Tensor};
use mpi4tch::{Communicator, Rank, Result};

fn main() -> ExitCode {
    mpi4tch::run(|universe| run(&universe.world()))
}

/// Runs the ring with dummies, then with a tape, on any number of ranks.
pub(crate) fn run(world: &Communicator) -> Result<()> {
    let (rank, size) = (world.rank(), world.size());
    let (left, right) = ((rank + size - 1) % size, (rank + 1) % size);
    let value = |rank: Rank| Tensor::from_slice(&[1.0 + f64::from(rank)]);

    for (way, ring) in [("dummies", with_dummies as Ring), ("a tape", with_tape)] {
        let a = value(rank).set_requires_grad(true);
        let sum = ring(world, &a, left, right)?;
        assert_eq!(sum, value(rank) + value(left));
        assert_eq!(a.grad(), Tensor::from_slice(&[2.0]));
        println!(
            "rank {rank}, with {way}: {} + {} = {}, gradient {}",
            a.double_value(&[0]),
            value(left).double_value(&[0]),
            sum.double_value(&[0]),
            a.grad().double_value(&[0]),
        );
    }
    Ok(())
}

/// A function that computes a + b and adds the gradient to `a`.
type Ring = fn(&Communicator, &Tensor, Rank, Rank) -> Result<Tensor>;

/// Orders the calls by dummies. The result depends on the wait, the wait on the receive, and the
/// receive on the start of the send; the backward pass goes through them in reverse.
fn with_dummies(world: &Communicator, a: &Tensor, left: Rank, right: Rank) -> Result<Tensor> {
    let request = world.isend(a, right, 0)?;
    let like = mpi4tch::join_dummies(&a.detach(), &[&request.dummy()])?;
    let b = world.recv(&like, left, 0)?;
    let sent = request.join_dummies(&[&b]).wait()?;
    let sum = mpi4tch::join_dummies(&(a + b), &[&sent])?;
    sum.sum(Kind::Double).f_backward()?;
    Ok(sum.detach())
}

/// Records the calls on a tape, which chains them in their order, and goes back through all of
/// them.
fn with_tape(world: &Communicator, a: &Tensor, left: Rank, right: Rank) -> Result<Tensor> {
    let tape = world.tape();
    let request = tape.isend(a, right, 0)?;
    let b = tape.recv(&a.detach(), left, 0)?;
    let _ = request.wait()?;
    let sum = a + b;
    tape.backward(&sum.sum(Kind::Double))?;
    Ok(sum.detach())
}
