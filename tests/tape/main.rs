//! A tape carries out every communication in the backward pass, on every rank, in one order. Each
//! of these tests hangs or comes to a wrong result without one.

#[path = "../common/mod.rs"]
mod common;
mod communicators;
mod differences;
mod gradients;
mod lifetime;
mod long;
mod requests;

use std::process::ExitCode;

use common::start;
use common::tensors::tensor;
use mpi4tch::{Communicator, Error, Result};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    let tests = [
        gradients::tests(),
        requests::tests(),
        differences::tests(),
        lifetime::tests(),
        long::tests(),
        communicators::tests(),
    ];
    harness::run(start, tests.into_iter().flatten().collect())
}

/// A leaf of one element: `first` on rank 0, and one more on each rank.
fn number(comm: &Communicator, first: f64) -> Tensor {
    tensor(&[first + f64::from(comm.rank())]).set_requires_grad(true)
}

/// The single element.
fn value(x: &Tensor) -> f64 {
    f64::try_from(x.sum(Kind::Double)).expect("one element")
}

fn tape_error(result: Result<()>) -> String {
    match result {
        Err(Error::Tape { differences }) => differences,
        other => panic!("an error of the tape was expected: {other:?}"),
    }
}

/// All ranks have the same text.
fn same_everywhere(comm: &Communicator, text: &str) -> Result<()> {
    let bytes = tensor(text.as_bytes());
    let first = comm.broadcast(&tensor(&[bytes.size()[0]]), 0)?;
    assert_eq!(first, tensor(&[bytes.size()[0]]), "{text}");
    assert_eq!(comm.broadcast(&bytes, 0)?, bytes, "{text}");
    Ok(())
}
