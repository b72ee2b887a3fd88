use std::process::ExitCode;

use mpi4tch::{Op, Universe, join_dummies};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    mpi4tch::run(program)
}

pub fn program(universe: &Universe) -> mpi4tch::Result<()> {
    let comm = universe.world();
    let (rank, size) = (comm.rank(), comm.size());
    let (left, right) = ((rank + size - 1) % size, (rank + 1) % size);

    // One loss of all ranks' data. Each rank has a copy of w; the mean of the copies is used.
    let w = Tensor::from_slice(&[2.0]).set_requires_grad(true);
    let data = Tensor::from_slice(&[1.0 + f64::from(rank)]);
    let mean = comm.all_reduce(&w, Op::Sum)? / f64::from(size); // or Op::Mean
    let local = (mean * data - 1.0).square().sum(Kind::Double);
    let loss = comm.all_reduce(&local, Op::Sum)?;
    loss.f_backward()?;
    let (loss, gradient) = (loss.double_value(&[]), w.grad().double_value(&[0]));
    println!("rank {rank}: loss {loss:.1}, gradient {gradient:.1}");
    let over_ranks = |f: fn(f64) -> f64| (1..=size).map(f64::from).map(f).sum::<f64>();
    assert_eq!(loss, over_ranks(|d| (2.0 * d - 1.0).powi(2)));
    assert_eq!(gradient, over_ranks(|d| 2.0 * (2.0 * d - 1.0) * d));

    // A ring of messages, ordered by dummies.
    let a = Tensor::from_slice(&[1.0 + f64::from(rank)]).set_requires_grad(true);
    let request = comm.isend(&a, right, 0)?;
    let like = join_dummies(&a.empty_like(), &[&request.dummy()])?;
    let b = comm.recv(&like, left, 0)?;
    let sent = request.join_dummies(&[&b]).wait()?;
    let total = join_dummies(&(&a + b), &[&sent])?;
    total.square().sum(Kind::Double).f_backward()?;
    let (sum, gradient) = (total.double_value(&[0]), a.grad().double_value(&[0]));
    println!("rank {rank}: sum {sum:.1}, gradient {gradient:.1}");
    let sum_of = |rank| f64::from(2 + rank + (rank + size - 1) % size);
    assert_eq!((sum, gradient), (sum_of(rank), 2.0 * (sum_of(rank) + sum_of(right))));

    // The same ring on a tape, which orders the calls.
    let tape = comm.tape();
    let a = a.detach().set_requires_grad(true);
    let request = tape.isend(&a, right, 0)?;
    let b = tape.recv(&a.empty_like(), left, 0)?;
    let _ = request.wait()?;
    tape.backward(&(&a + b).square().sum(Kind::Double))?;
    assert_eq!(a.grad().double_value(&[0]), gradient);
    Ok(())
}
