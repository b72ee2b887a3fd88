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
//! The [guide] is for who is new to derivatives across ranks. A [`Tape`] sees to it that all
//! ranks go back through the same communication.
//!
//! # Operations
//!
//! All are methods of [`Communicator`]. These are collective over its ranks: every rank must call
//! them, in the same order.
//!
//! | method | MPI | adjoint | kinds |
//! | --- | --- | --- | --- |
//! | [`all_reduce`](Communicator::all_reduce), [`all_reduce_`](Communicator::all_reduce_), [`iall_reduce`](Communicator::iall_reduce) | `MPI_Allreduce` | `all_reduce` | [by op](Op#kinds) |
//! | [`reduce`](Communicator::reduce), [`reduce_`](Communicator::reduce_), [`ireduce`](Communicator::ireduce) | `MPI_Reduce` | `broadcast` | [by op](Op#kinds) |
//! | [`broadcast`](Communicator::broadcast), [`broadcast_`](Communicator::broadcast_), [`ibroadcast`](Communicator::ibroadcast) | `MPI_Bcast` | `reduce` | [all](datatype) |
//! | [`gather`](Communicator::gather), [`igather`](Communicator::igather) | `MPI_Gather(v)` | `scatter` | [all](datatype) |
//! | [`scatter`](Communicator::scatter), [`iscatter`](Communicator::iscatter) | `MPI_Scatter(v)` | `gather` | [all](datatype) |
//! | [`all_gather`](Communicator::all_gather), [`iall_gather`](Communicator::iall_gather) | `MPI_Allgather(v)` | `reduce_scatter` | [all](datatype) |
//! | [`reduce_scatter`](Communicator::reduce_scatter), [`ireduce_scatter`](Communicator::ireduce_scatter) | `MPI_Reduce_scatter(_block)` | `all_gather` | [by op](Op#kinds) |
//! | [`all_to_all`](Communicator::all_to_all), [`iall_to_all`](Communicator::iall_to_all) | `MPI_Alltoall(v)` | `all_to_all` | [all](datatype) |
//! | [`all_to_all_v`](Communicator::all_to_all_v), [`iall_to_all_v`](Communicator::iall_to_all_v) | `MPI_Alltoallv` | `all_to_all_v` | [all](datatype) |
//! | [`scan`](Communicator::scan), [`exscan`](Communicator::exscan), [`iscan`](Communicator::iscan), [`iexscan`](Communicator::iexscan) | `MPI_Scan`, `MPI_Exscan` | the same from the other end | [by op](Op#kinds) |
//! | [`max_loc`](Communicator::max_loc), [`min_loc`](Communicator::min_loc) | `MPI_Allreduce` | to the owner | [of `Max`](Op#kinds) |
//! | [`barrier`](Communicator::barrier), [`ibarrier`](Communicator::ibarrier) | `MPI_Barrier` | a barrier, on a [`Tape`] | – |
//!
//! These are between two ranks:
//!
//! | method | MPI | adjoint | kinds |
//! | --- | --- | --- | --- |
//! | [`send`](Communicator::send), [`isend`](Communicator::isend) | `MPI_Send` | `recv` | [all](datatype) |
//! | [`recv`](Communicator::recv), [`recv_with_status`](Communicator::recv_with_status), [`irecv`](Communicator::irecv) | `MPI_Recv` | `send` | [all](datatype) |
//! | [`sendrecv`](Communicator::sendrecv) | `MPI_Sendrecv` | `sendrecv`, the other way round | [all](datatype) |
//! | [`probe`](Communicator::probe) | `MPI_Probe` | – | – |
//!
//! A method that begins with an `i` only starts the operation and gives a [`Request`], to be waited
//! for alone, or with others by [`wait_all`], [`wait_any`] and [`wait_some`]. In the backward pass
//! the wait's pullback starts the adjoint, and the start's waits for it.
//!
//! The communicators are [`Universe::world`], [`Universe::self_comm`], and what
//! [`duplicate`](Communicator::duplicate), [`split`](Communicator::split) and
//! [`split_shared`](Communicator::split_shared) make of them; or are taken over from elsewhere by
//! [`from_raw`](Communicator::from_raw), [`from_fortran`](Communicator::from_fortran), or, with the
//! feature `rsmpi`, from the crate `mpi`.
//!
//! The adjoint of each linear one is one MPI call of the same volume. Tensors may have any layout;
//! results are contiguous and share no storage with what went in, but for a send's, which is what was
//! sent. An underscore at the end changes its argument in place, by torch's rules for that. Where
//! blocks may differ from rank to rank, their sizes travel first, in one small message, unless the
//! call is given those of all ranks: by a slice in place of an `i64`, see [`Counts`], or by the
//! variants `…_with_counts`.
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
//! | all_to_all_v | x̄ = all_to_all_v(ȳ), what is sent and what is received exchanged |
//! | scan `Sum` | x̄_r = Σ_{s≥r} ȳ_s: a scan on a communicator with reversed ranks |
//! | exscan `Sum` | x̄_r = Σ_{s>r} ȳ_s: likewise; the result on rank 0 is a constant |
//! | max_loc, min_loc | Σ ȳ_r for the owning rank, the lowest on ties; zeros for the others |
//! | any, with `Mean` | that of `Sum`, divided |
//! | all_reduce `Max`, `Min` | m_s = \[x_s = y\], k = Σ m_s; x̄_s = (m_s / k) · Σ ȳ_r, both sums in one call |
//! | all_reduce `Prod` | x̄_s = conj(E_s) · Σ ȳ_r, with E_s the product of the other ranks' factors |
//! | reduce, reduce_scatter with `Max`, `Min`, `Prod` | as all_reduce |
//! | send from A to B | B sends ȳ to A, where it is added |
//! | recv on B from A | x̄ = send of ȳ to A; wildcards stand for what the message resolved |
//! | sendrecv | sendrecv of ȳ with source and destination exchanged |
//! | scan, exscan with `Max`, `Min`, `Prod` | as of the reductions of the ranks so far, by an all_gather |
//!
//! A scalar that is all-reduced and then taken for the loss on every rank counts once per rank:
//! its gradient is [`size`](Communicator::size) times that of the sum. Divide it, as above.
//!
//! # Communication in the backward pass
//!
//! The backward pass communicates too, and each rank's graph is its own: libtorch goes back through
//! what this rank's loss depends on, newest first. So every rank must go back through the same
//! calls, with the same `create_graph`. A [`Tape`] does that, whatever the losses depend on. Without
//! one:
//!
//! - An input that requires grad on one rank must do so on all; what is received must be received
//!   into a `like` that requires grad if what is sent does.
//! - A rank without a loss of its own takes one of zero: `(&y * 0.0).sum(kind).backward()`.
//! - What a result does not depend on is joined to it by [`join_dummies`].
//! - For second derivatives, cotangents must depend on variables on all ranks or on none. That of a
//!   tensor that is only joined as a dummy depends on variables where that of what it is joined to
//!   does. A tape has no such rule.
//!
//! # Errors
//!
//! What can be returned is returned. An error or a panic in a pullback comes out of `f_backward` as
//! an `Err`. Common to all operations are:
//!
//! - `Error::Kind`, `Error::Layout`, `Error::Device` if MPI cannot take the tensor: it must be
//!   dense, in host memory, and of a kind in the table of [`datatype`];
//! - `Error::Argument` if the result would be a tensor that torch cannot make;
//! - `Error::Mismatch` if the ranks disagree on the call, see below;
//! - `Error::Mpi` if MPI fails; `Error::Torch` or `Error::Autograd` if libtorch does;
//! - `Error::Finalized` after the universe's end, `Error::Thread` on a thread that may not call MPI.
//!
//! # Checks across ranks
//!
//! Ranks that make different calls would wait for each other for ever, receive nonsense, or, with
//! some MPIs, write beyond their buffers. So the ranks agree on each collective call before it is
//! made: on the operation, its op, kind, root, axis, counts and shape. Where they differ, all get the
//! same [`Error::Mismatch`], which names the ranks and what differs, and the communicator works as
//! before.
//! A call that is only started is agreed on while it is under way, and is an error at its wait; it
//! may meet a blocking one of the same kind on other ranks.
//!
//! The agreement is one small message to and from another rank, in ⌈log₂ p⌉ rounds: 0.5 to 0.8 µs
//! on 2 ranks of one machine, and about 1 µs with all that belongs to it. On a [`Tape`], what was
//! started in the forward pass is not agreed on again in the backward pass, as [`Tape::backward`]
//! has compared what the ranks recorded.
//!
//! `MPI4TCH_CHECK` in the environment says what is compared:
//!
//! | `MPI4TCH_CHECK` | |
//! | --- | --- |
//! | `collective` | Also whether calls are to be recorded. Messages between two ranks bring their kind along, so that the receiver can tell. The default in debug builds. |
//! | `local` | What is said above, and, for `Max`, `Min` and `Prod`, which are made by other calls where they are recorded, whether they are. Of messages, only the length is checked. The default in release builds. |
//! | `none` | Nothing, except in calls in which sizes travel. **What keeps memory safe across ranks is then up to the program**: with some MPIs, a call whose sizes differ between ranks writes beyond its buffers. |
//!
//! The most that any rank's environment says holds for all.
//!
//! # Waiting for what does not come
//!
//! A rank that has waited in one call for a minute, or for `MPI4TCH_NOTICE=<seconds>`, says once in
//! which, and on which line of the program. With `MPI4TCH_TIMEOUT=<seconds>` it says so after that
//! time and ends the job with the exit code 124. Calls that look alike meet although they stand on
//! different lines; the last that did is named as well, as it may be where the ranks went apart.
//!
//! # Threads
//!
//! Which threads may call MPI follows from the [`ThreadLevel`] that was obtained, and a call from
//! one that may not is an [`Error::Thread`]. At [`ThreadLevel::Serialized`], what [`initialize`]
//! asks for, one thread at a time is in MPI, and a call that waits lets others in; at
//! [`ThreadLevel::Multiple`] they run side by side. Threads that make collective calls at the same
//! time need a communicator each. A backward pass calls MPI on the thread that libtorch runs it
//! on: for tensors in host memory, that of `backward`.

// The folders are layers, from the lowest: base, autograd, environment, communicator, call, engine,
// operations. A file uses what is in its own folder or below. The rest of the files stand above all.
mod autograd;
mod base;
mod call;
mod communicator;
mod engine;
mod environment;
pub mod guide;
mod operations;
pub mod testing;
mod universe;

pub use mpi_sys;
pub use tch;

pub use base::error::{Error, Result};
pub use base::op::Op;
pub use base::rank::Rank;
pub use base::tag::Tag;
pub use base::thread_level::ThreadLevel;
pub use engine::communicator::Communicator;
pub use engine::dummies::join_dummies;
pub use engine::request::{Request, Test, wait_all, wait_any, wait_some};
pub use engine::tape::{PassOptions, Tape};
pub use environment::datatype;
pub use environment::library::Library;
pub use environment::status::{PROC_NULL, Source, Status, TagMatch};
pub use operations::Counts;
#[cfg(feature = "rsmpi")]
pub use operations::rsmpi;
pub use universe::{Universe, initialize, initialize_with, run};

/// The README's code, compiled and run with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
