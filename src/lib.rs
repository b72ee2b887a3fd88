//! Differentiable MPI for [`tch`]: every MPI call on a tensor is a node of libtorch's own autograd
//! graph, so a program that runs on many ranks can simply be differentiated.
//!
//! ```
//! use mpi4tch::Op;
//! use tch::{Kind, Tensor};
//!
//! let universe = mpi4tch::initialize()?;
//! let world = universe.world();
//!
//! // Each rank has its own x; the loss is the square of their sum.
//! let x = Tensor::from_slice(&[1.0 + f64::from(world.rank())]).set_requires_grad(true);
//! let sum = world.all_reduce(&x, Op::Sum)?;
//! let loss = (&sum * &sum).sum(Kind::Double) / f64::from(world.size());
//! loss.backward();
//! assert_eq!(x.grad(), 2.0 * sum.detach());
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! # Operations
//!
//! All are methods of [`Communicator`], collective over its ranks.
//!
//! | method | MPI | adjoint | kinds |
//! | --- | --- | --- | --- |
//! | [`all_reduce`](Communicator::all_reduce) | `MPI_Allreduce` | [below](crate#adjoints) | [by op](Op#kinds) |
//! | [`barrier`](Communicator::barrier) | `MPI_Barrier` | – | – |
//! | [`duplicate`](Communicator::duplicate) | `MPI_Comm_dup` | – | – |
//!
//! # Adjoints
//!
//! The objective is L = Σ ℓ_r, the sum of all ranks' losses. Every rank's copy of a tensor is a
//! variable of its own, with the cotangent ȳ_r = ∂L/∂y_r. A loss that lives on one rank is the case
//! that the others' are zero; they take part in the backward pass all the same.
//!
//! | operation | adjoint |
//! | --- | --- |
//! | all_reduce `Sum` | x̄ = all_reduce(ȳ, `Sum`) |
//! | all_reduce `Mean` | x̄ = all_reduce(ȳ, `Mean`) |
//! | all_reduce `Max`, `Min` | m_s = \[x_s = y\], k = Σ m_s; x̄_s = (m_s / k) · Σ ȳ_r, both sums in one call |
//! | all_reduce `Prod` | x̄_s = conj(E_s) · Σ ȳ_r, with E_s the product of the other ranks' factors |
//!
//! A scalar that is all-reduced and then taken for the loss on every rank counts once per rank:
//! its gradient is [`size`](Communicator::size) times that of the sum. Divide it, as above.
//!
//! # Communication in the backward pass
//!
//! The backward pass communicates too, and each rank's graph is its own: every rank must run a
//! backward pass through the same calls. An input that requires grad on one rank must do so on all.
//!
//! # Errors
//!
//! What can be returned is returned: see [`Error`]. An error or a panic in a pullback comes out of
//! `f_backward` as an `Err`.

mod agreement;
mod autograd;
mod blocks;
mod buffer;
mod call;
mod collective;
mod communicator;
pub mod datatype;
mod environment;
mod error;
mod operator;
mod reduction;
pub mod testing;

pub use mpi_sys;
pub use tch;

pub use communicator::{Communicator, Rank};
pub use environment::{Library, ThreadLevel, Universe, initialize, initialize_with};
pub use error::{Error, Result};
pub use reduction::Op;

/// The README's code, compiled and run with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
