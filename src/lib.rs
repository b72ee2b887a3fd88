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
//! All are methods of [`Communicator`], collective over its ranks: every rank must call them, in the
//! same order.
//!
//! | method | MPI | adjoint | kinds |
//! | --- | --- | --- | --- |
//! | [`all_reduce`](Communicator::all_reduce), [`all_reduce_`](Communicator::all_reduce_) | `MPI_Allreduce` | `all_reduce` | [by op](Op#kinds) |
//! | [`reduce`](Communicator::reduce), [`reduce_`](Communicator::reduce_) | `MPI_Reduce` | `broadcast` | [by op](Op#kinds) |
//! | [`broadcast`](Communicator::broadcast), [`broadcast_`](Communicator::broadcast_) | `MPI_Bcast` | `reduce` | [all](datatype) |
//! | [`gather`](Communicator::gather) | `MPI_Gather(v)` | `scatter` | [all](datatype) |
//! | [`scatter`](Communicator::scatter) | `MPI_Scatter(v)` | `gather` | [all](datatype) |
//! | [`all_gather`](Communicator::all_gather) | `MPI_Allgather(v)` | `reduce_scatter` | [all](datatype) |
//! | [`reduce_scatter`](Communicator::reduce_scatter) | `MPI_Reduce_scatter(_block)` | `all_gather` | [by op](Op#kinds) |
//! | [`all_to_all`](Communicator::all_to_all) | `MPI_Alltoall(v)` | `all_to_all` | [all](datatype) |
//! | [`scan`](Communicator::scan), [`exscan`](Communicator::exscan) | `MPI_Scan`, `MPI_Exscan` | the same from the other end | [by op](Op#kinds) |
//! | [`max_loc`](Communicator::max_loc), [`min_loc`](Communicator::min_loc) | `MPI_Allreduce` | to the owner | [of `Max`](Op#kinds) |
//! | [`barrier`](Communicator::barrier) | `MPI_Barrier` | – | – |
//!
//! The communicators are [`Universe::world`], [`Universe::self_comm`], and what
//! [`duplicate`](Communicator::duplicate), [`split`](Communicator::split) and
//! [`split_shared`](Communicator::split_shared) make of them; or are taken over from elsewhere by
//! [`from_raw`](Communicator::from_raw), [`from_fortran`](Communicator::from_fortran), or, with the
//! feature `rsmpi`, from the crate `mpi`.
//!
//! The adjoint of each linear one is one MPI call of the same volume. Tensors may have any layout; results are
//! contiguous and share no storage with what went in. An underscore at the end changes its argument
//! in place, by torch's rules for that. Where blocks may differ from rank to rank, their sizes travel
//! first, in one small message; the variants `…_with_counts` know them and send none.
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
//! | reduce `Sum` to root | x̄ = broadcast(ȳ, root); the result off root is a constant, its cotangent is ignored |
//! | broadcast from root | x̄ = reduce(ȳ, `Sum`, root): zeros off root |
//! | gather to root | x̄ = scatter(ȳ, root), same counts |
//! | scatter from root | x̄ = gather(ȳ, root) on root, zeros of x's own shape elsewhere |
//! | all_gather | x̄ = reduce_scatter(ȳ, `Sum`), counts = the extents gathered |
//! | reduce_scatter `Sum` | x̄ = all_gather(ȳ) |
//! | all_to_all | x̄ = all_to_all(ȳ), axes and counts exchanged |
//! | scan `Sum` | x̄_r = Σ_{s≥r} ȳ_s: a scan on a communicator with reversed ranks |
//! | exscan `Sum` | x̄_r = Σ_{s>r} ȳ_s: likewise; the result on rank 0 is a constant |
//! | max_loc, min_loc | Σ ȳ_r for the owning rank, the lowest on ties; zeros for the others |
//! | any, with `Mean` | that of `Sum`, divided |
//! | all_reduce `Max`, `Min` | m_s = \[x_s = y\], k = Σ m_s; x̄_s = (m_s / k) · Σ ȳ_r, both sums in one call |
//! | all_reduce `Prod` | x̄_s = conj(E_s) · Σ ȳ_r, with E_s the product of the other ranks' factors |
//! | reduce, reduce_scatter with `Max`, `Min`, `Prod` | as all_reduce |
//! | scan, exscan with `Max`, `Min`, `Prod` | as of the reductions of the ranks so far, by an all_gather |
//!
//! A scalar that is all-reduced and then taken for the loss on every rank counts once per rank:
//! its gradient is [`size`](Communicator::size) times that of the sum. Divide it, as above.
//!
//! # Communication in the backward pass
//!
//! The backward pass communicates too, and each rank's graph is its own. So every rank must run a
//! backward pass through the same calls, with the same `create_graph`:
//!
//! - An input that requires grad on one rank must do so on all.
//! - A rank without a loss of its own takes one of zero: `(&y * 0.0).sum(kind).backward()`.
//! - For second derivatives, cotangents must depend on variables on all ranks or on none.
//!
//! # Errors
//!
//! What can be returned is returned. An error or a panic in a pullback comes out of `f_backward` as
//! an `Err`. Common to all operations are:
//!
//! - `Error::Kind`, `Error::Layout`, `Error::Device` if MPI cannot take the tensor: it must be
//!   dense, in host memory, and of a kind in the table of [`datatype`];
//! - `Error::Mismatch` if the ranks disagree on the call, see below;
//! - `Error::Mpi` if MPI fails; `Error::Torch` or `Error::Autograd` if libtorch does;
//! - `Error::Finalized` after the universe's end, `Error::Thread` on a thread that may not call MPI.
//!
//! # Checks across ranks
//!
//! Ranks that make different calls would wait for each other for ever, or receive nonsense. With
//! `MPI4TCH_CHECK=collective` in the environment, the ranks first agree on each call, its op, kind,
//! root, axis, shape, and whether it is to be recorded, by one small message. Where they differ, all
//! get the same [`Error::Mismatch`], which names the ranks and what differs, and the communicator
//! works as before. With `MPI4TCH_CHECK=local` they do so only in calls in which sizes travel anyway.
//! The default is `collective` in debug builds and `local` in release builds.

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
#[cfg(feature = "rsmpi")]
pub mod rsmpi;
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
