//! Differentiable MPI for the crate [`tch`](https://github.com/LaurentMazare/tch-rs): every MPI call on
//! a tensor is a node of libtorch's own autograd graph, so a program that runs on many ranks can simply
//! be differentiated.
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
//! If derivatives across ranks are new to you, start with the [guide]. It has pages on
//! [clusters](guide::cluster) and on [GPUs](guide::devices), and for users of
//! [mpi4torch](guide::from_mpi4torch) and of [PyTorch's distributed](guide::from_torch_distributed). A [`Tape`] ensures that all
//! ranks go back through the same communication, on one communicator or on several. Modules that
//! Python has scripted can communicate too, see [`torchscript`].
//!
//! # One model on all ranks
//!
//! A parameter that all ranks share is one variable, and has one gradient; a loss that all ranks
//! share counts once. [`Replicated`] says so in the type of the tensor. Here each rank has a share
//! of the data:
//!
//! ```
//! use mpi4tch::Replicated;
//! use tch::{Kind, Tensor};
//!
//! let universe = mpi4tch::initialize()?;
//! let world = universe.world();
//! let data = Tensor::from_slice(&[1.0 + f64::from(world.rank())]);
//!
//! let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
//! let w = Replicated::assume(&world, &w)?; // the same on all ranks
//! let local_loss = (w.vary()? * &data).square().sum(Kind::Double);
//! let loss = Replicated::sum(&world, &local_loss)?; // one MPI_Allreduce
//! loss.backward()?; // one MPI_Allreduce
//! # let squares = Replicated::sum(&world, &data.square())?;
//! assert_eq!(w.grad(), 6.0 * squares.tensor()); // on all ranks
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! What to take when:
//!
//! | the program | take | the objective |
//! | --- | --- | --- |
//! | has some tensors that all ranks share, such as parameters and losses, and others of which each rank has its own | [`Replicated`] | the one loss that all ranks share |
//! | trains a model, all of whose parameters all ranks share, on batches of each rank's own | [`DataParallel`] | the mean of all ranks' losses; gradients are averaged in few large calls, beside the backward pass |
//! | distributes its tensors over the ranks: domains, pipelines, solvers, messages | the [operations](#operations) of [`Communicator`], on a [`Tape`] | the sum of all ranks' losses; every rank's copy of a tensor is a variable of its own |
//!
//! They can be used together: a replicated tensor [varies](Replicated::vary) to an ordinary one of
//! each rank, and the [sum](Replicated::sum) of ordinary ones is replicated.
//!
//! # Operations
//!
//! All are methods of [`Communicator`]; those between neighbours are of a [`Graph`], and those of fields
//! of a grid of ranks, a [`Cartesian`], which is a graph too. These are collective over the ranks: every
//! rank must call them, in the same order.
//!
//! | method | MPI | adjoint | kinds |
//! | --- | --- | --- | --- |
//! | [`all_reduce`](Communicator::all_reduce), [`all_reduce_`](Communicator::all_reduce_), [`iall_reduce`](Communicator::iall_reduce) | `MPI_Allreduce` | `all_reduce` | [by op](Op#kinds) |
//! | [`reduce`](Communicator::reduce), [`reduce_`](Communicator::reduce_), [`ireduce`](Communicator::ireduce) | `MPI_Reduce` | `broadcast` | [by op](Op#kinds) |
//! | [`broadcast`](Communicator::broadcast), [`broadcast_`](Communicator::broadcast_), [`ibroadcast`](Communicator::ibroadcast) | `MPI_Bcast` | `reduce` | [all](datatype) |
//! | [`gather`](Communicator::gather), [`igather`](Communicator::igather) | `MPI_Gather(v)` | `scatter` | [all](datatype) |
//! | [`scatter`](Communicator::scatter), [`iscatter`](Communicator::iscatter) | `MPI_Scatter(v)` | `gather` | [all](datatype) |
//! | [`all_gather`](Communicator::all_gather), [`iall_gather`](Communicator::iall_gather) | `MPI_Allgather(v)` | `reduce_scatter` | [all](datatype) |
//! | [`reduce_scatter`](Communicator::reduce_scatter), [`ireduce_scatter`](Communicator::ireduce_scatter) | `MPI_Reduce_scatter(_block)`; a `Sum` of large blocks `MPI_Alltoallv` | `all_gather` | [by op](Op#kinds) |
//! | [`all_to_all`](Communicator::all_to_all), [`iall_to_all`](Communicator::iall_to_all) | `MPI_Alltoall(v)` | `all_to_all` | [all](datatype) |
//! | [`all_to_all_v`](Communicator::all_to_all_v), [`iall_to_all_v`](Communicator::iall_to_all_v) | `MPI_Alltoallv` | `all_to_all_v` | [all](datatype) |
//! | [`scan`](Communicator::scan), [`exscan`](Communicator::exscan), [`iscan`](Communicator::iscan), [`iexscan`](Communicator::iexscan) | `MPI_Scan`, `MPI_Exscan` | the same with reversed ranks | [by op](Op#kinds) |
//! | [`max_loc`](Communicator::max_loc), [`min_loc`](Communicator::min_loc) | `MPI_Allreduce` | the owning rank gets the sum | [of `Max`](Op#kinds) |
//! | [`neighbor_all_gather`](Graph::neighbor_all_gather), [`ineighbor_all_gather`](Graph::ineighbor_all_gather) | messages, as `MPI_Neighbor_allgather(v)` | blocks go back and are added | [all](datatype) |
//! | [`neighbor_all_to_all`](Graph::neighbor_all_to_all), [`ineighbor_all_to_all`](Graph::ineighbor_all_to_all) | messages, as `MPI_Neighbor_alltoall(v)` | the same along reversed edges | [all](datatype) |
//! | [`halo_exchange`](Cartesian::halo_exchange), [`ihalo_exchange`](Cartesian::ihalo_exchange) | messages, as `MPI_Neighbor_alltoallw` | ghosts go home and are added | [all](datatype) |
//! | [`distribute`](Cartesian::distribute) | `MPI_Scatterv` | `collect` | [all](datatype) |
//! | [`collect`](Cartesian::collect) | `MPI_Gatherv` | `distribute` | [all](datatype) |
//! | [`barrier`](Communicator::barrier), [`ibarrier`](Communicator::ibarrier) | `MPI_Barrier` | a barrier, on a [`Tape`] | – |
//! | [`custom`](Communicator::custom) | none | a pullback of your own, which may communicate | all that carry gradients |
//!
//! These are between two ranks:
//!
//! | method | MPI | adjoint | kinds |
//! | --- | --- | --- | --- |
//! | [`send`](Communicator::send), [`isend`](Communicator::isend) | `MPI_Send` | `recv` | [all](datatype) |
//! | [`recv`](Communicator::recv), [`recv_with_status`](Communicator::recv_with_status), [`irecv`](Communicator::irecv) | `MPI_Recv` | `send` | [all](datatype) |
//! | [`sendrecv`](Communicator::sendrecv) | `MPI_Sendrecv` | `sendrecv` in the other direction | [all](datatype) |
//! | [`probe`](Communicator::probe) | `MPI_Probe` | – | – |
//!
//! These lead from and to [`Replicated`] tensors, and are methods of that type:
//!
//! | method | MPI | adjoint | kinds |
//! | --- | --- | --- | --- |
//! | [`vary`](Replicated::vary), [`ivary`](Replicated::ivary) | none | `MPI_Allreduce` | [all](datatype) |
//! | [`shard`](Replicated::shard), [`ishard`](Replicated::ishard) | none | `MPI_Allgather(v)` | [all](datatype) |
//! | [`sum`](Replicated::sum), [`mean`](Replicated::mean), [`isum`](Replicated::isum), [`imean`](Replicated::imean) | `MPI_Allreduce` | no call | [by op](Op#kinds) |
//! | [`concat`](Replicated::concat), [`iconcat`](Replicated::iconcat) | `MPI_Allgather(v)` | no call | [all](datatype) |
//! | [`broadcast`](Replicated::broadcast), [`ibroadcast`](Replicated::ibroadcast) | `MPI_Bcast` | no call | [all](datatype) |
//! | [`assume`](Replicated::assume), [`map`](Replicated::map), [`combine`](Replicated::combine) | none | no call | [all](datatype) |
//!
//! These carry out a backward pass. All are collective over the communicator that the tape was made
//! from:
//!
//! | method | result |
//! | --- | --- |
//! | [`Tape::backward`], [`Tape::backward_with`] | adds to the gradients of the leaves |
//! | [`Tape::grad`], [`Tape::grad_with`] | returns the gradients of given inputs |
//! | [`Tape::vjp`] | returns the gradients of given inputs, from given cotangents of outputs |
//! | [`Replicated::backward`] | adds to the gradients of the leaves; without a tape too |
//!
//! [`Tape::checkpoint`] and [`Tape::checkpoint_steps`] save memory: a function, or the steps of a loop,
//! keep no graph, and run again in the backward pass, with their communication.
//!
//! A method whose name begins with an `i` only starts the operation. It returns a [`Request`], to
//! be waited for alone, or with others by [`wait_all`], [`wait_any`] and [`wait_some`]. In the
//! backward pass the pullback of the wait starts the adjoint, and the pullback of the start waits
//! for it.
//!
//! [`Universe::world`] and [`Universe::self_comm`] are communicators, and
//! [`duplicate`](Communicator::duplicate), [`split`](Communicator::split) and
//! [`split_shared`](Communicator::split_shared) make further ones, [`create`](Communicator::create)
//! makes one of a [`Group`], [`cartesian`](Communicator::cartesian) puts the ranks in a grid, and
//! [`graph`](Communicator::graph) gives them neighbours. A communicator that is made from one on a
//! [`Tape`] is on the tape too; [`Tape::on`] puts one on it that existed before.
//! [`from_raw`](Communicator::from_raw), [`from_fortran`](Communicator::from_fortran), and, with
//! the feature `rsmpi`, conversions from the crate `mpi` duplicate communicators of
//! [other](#other-crates) libraries.
//!
//! The adjoint of each linear operation is one exchange of the same volume. Tensors may have any
//! layout. Results are contiguous and share no storage with the arguments; only the result of a
//! send is the tensor that was sent, and `vary` and `shard` of a replicated tensor share its memory. A
//! method whose name ends with an underscore changes its argument in place, by torch's rules. If blocks
//! may differ from rank to rank, their sizes travel first, in one small message (two for
//! `all_to_all_v`). They do not if the call is given the sizes of all ranks: by a slice in place of an
//! `i64`, see [`Counts`], or by the variants `…_with_counts`.
//!
//! # Adjoints
//!
//! The objective is L = Σ ℓ_r, the sum of all ranks' losses. Every rank's copy of a tensor is a
//! variable of its own, with the cotangent ȳ_r = ∂L/∂y_r. If only one rank has a loss, the losses
//! of the others are zero, and they still take part in the backward pass.
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
//! | all_to_all_v | x̄ = all_to_all_v(ȳ), counts sent and counts received exchanged |
//! | scan `Sum` | x̄_r = Σ ȳ_s over all s ≥ r: a scan on a communicator with reversed ranks |
//! | exscan `Sum` | x̄_r = Σ ȳ_s over all s > r: likewise; the result on rank 0 is a constant |
//! | max_loc, min_loc | Σ ȳ_r for the owning rank, the lowest on ties; zeros for the others |
//! | any, with `Mean` | that of `Sum`, divided by the number of ranks |
//! | all_reduce `Max`, `Min` | m_s is 1 where x_s = y, and 0 elsewhere; k = Σ m_s; x̄_s = (m_s / k) · Σ ȳ_r, both sums in one call |
//! | all_reduce `Prod` | x̄_s = conj(E_s) · Σ ȳ_r, with E_s the product of the other ranks' factors |
//! | reduce, reduce_scatter with `Max`, `Min`, `Prod` | as all_reduce |
//! | send from A to B | B sends ȳ to A, where it is added |
//! | recv on B from A | x̄ = send of ȳ to A; with wildcards, A and the tag are those of the message received |
//! | sendrecv | sendrecv of ȳ with source and destination exchanged |
//! | scan, exscan with `Max`, `Min`, `Prod` | as for reductions over the ranks that are combined, by an all_gather |
//!
//! A scalar that is all-reduced and then used as the loss on every rank counts once per rank: its
//! gradient is [`size`](Communicator::size) times too large. Divide it, as above, or use
//! [`Replicated::sum`].
//!
//! A [`Replicated`] tensor is one variable on all ranks. Its cotangent is one too, the same on all
//! ranks, and their product counts once:
//!
//! | map | adjoint |
//! | --- | --- |
//! | vary: replicated to varying | x̄ = Σ ȳ_r |
//! | sum: varying to replicated | x̄_r = ȳ; for mean, ȳ / p |
//! | shard: replicated to blocks | x̄ = the blocks of ȳ joined |
//! | concat: blocks to replicated | x̄_r = the rank's own block of ȳ |
//! | broadcast: varying to replicated | x̄ = ȳ on root, zeros off root |
//!
//! # Communication in the backward pass
//!
//! The backward pass communicates too, and each rank has a graph of its own: libtorch goes back
//! through the operations that this rank's loss depends on, newest first. So every rank must go
//! back through the same calls, with the same `create_graph`. A [`Tape`] ensures the same calls,
//! whatever the losses depend on. Without one:
//!
//! - An input that requires grad on one rank must require grad on all. If the tensor sent requires
//!   grad, the `like` of the receive must require grad too.
//! - A rank without a loss of its own needs one that is zero: `(&y * 0.0).sum(kind).backward()`.
//! - Calls that the loss does not depend on must be joined to it by [`join_dummies`].
//! - For second derivatives, cotangents must depend on variables on all ranks or on none. The zeros
//!   that a dummy gets as its cotangent depend on variables if the cotangent of the tensor that it
//!   is joined to does. A tape has no such rule.
//!
//! # Errors
//!
//! Errors are returned, not panics. An error or a panic in a pullback comes out of `f_backward` as
//! an `Err`. Common to all operations are:
//!
//! - [`Error::Kind`], [`Error::Layout`], [`Error::Device`] if MPI cannot take the tensor: it must
//!   be dense, of a kind in the table of [`datatype`], and in the memory of the host or of a
//!   [device](guide::devices) that libtorch can copy from while the host goes on;
//! - [`Error::Argument`] if torch cannot make a tensor of the result's shape;
//! - [`Error::Mismatch`] if the ranks disagree on the call, see below;
//! - [`Error::Mpi`] if MPI fails; [`Error::Torch`] or [`Error::Autograd`] if libtorch does;
//! - [`Error::Finalized`] after the universe's end, [`Error::Thread`] on a thread that may not call
//!   MPI.
//!
//! # Checks across ranks
//!
//! If ranks made different calls, they might wait for each other for ever, receive wrong data, or,
//! with some MPIs, write beyond their buffers. So the ranks agree on each collective call before it
//! is made: on the operation, its op, kind, root, axis, counts and shape. If these differ, all
//! ranks get the same [`Error::Mismatch`], which names the ranks and the differences, and the
//! communicator can still be used. A call that is only started is agreed on while it is under way,
//! and the error comes from its wait. It matches the blocking form of the same operation on other
//! ranks.
//!
//! The agreement takes ⌈log₂ p⌉ rounds, in each of which a rank sends and receives one small
//! message: 0.5 to 0.8 µs on 2 ranks of one machine, and about 1 µs with its bookkeeping. On a
//! [`Tape`], the adjoint of a linear operation that was started in the forward pass needs no
//! agreement, because [`Tape::backward`] has compared what the ranks recorded.
//!
//! The environment variable `MPI4TCH_CHECK` sets what is compared:
//!
//! | `MPI4TCH_CHECK` | |
//! | --- | --- |
//! | `collective` | As `local`, and whether calls are recorded. Messages between two ranks carry their kind, which the receiver checks. Tensors that the program says are the same on all ranks, by [`Replicated::assume`], `map` or `combine`, are compared. The default in debug builds. |
//! | `local` | The arguments above. For `Max`, `Min` and `Prod` also whether the call is recorded, as they make other MPI calls if it is. Of messages, only the length is checked. The default in release builds. |
//! | `none` | Nothing, except in calls that exchange sizes or make communicators. **Memory safety across ranks is then up to the program**: with some MPIs, a call whose sizes differ between ranks writes beyond its buffers. |
//!
//! If the ranks' environments differ, the strictest setting holds on all ranks.
//!
//! # Waiting for what does not come
//!
//! A rank that has waited in one call for a minute, or for `MPI4TCH_NOTICE=<seconds>`, prints the
//! call and its line of the program, once. With `MPI4TCH_TIMEOUT=<seconds>` it prints them after
//! that time and ends the job with the exit code 124, under [`srun`](guide::cluster#slurm) mostly with
//! another. Calls with equal arguments match even if they are on different lines of the program. The
//! last that did so is printed too, as the ranks may have diverged there.
//!
//! # Timelines
//!
//! With `MPI4TCH_TRACE=<folder>` the program writes `timeline.json` to the folder when MPI is finalized:
//! what each rank did, and when, to be opened with [Perfetto](https://ui.perfetto.dev) or
//! `chrome://tracing`. The folder is made if it is missing. It is enough if one rank has the variable.
//!
//! Each rank has a line for each of its threads. On it are the calls, and in them the waits for other
//! ranks. A started call is at its start and at its wait, and has a line of its own between the two.
//! Arrows lead from the start of a send to the end of the receive that took the message, and from a call
//! to its adjoint. The clocks of the ranks are compared with that of rank 0 at the start and at the end;
//! how far they may still be off is written beside the rank's name.
//!
//! Until then each rank writes its events to a file of its own, `timeline.rank<N>.json`, a few times per
//! second. If the program ends otherwise, by [`Communicator::abort`], `MPI4TCH_TIMEOUT` or a crash, these
//! files are left, but for the last moment, and for calls that had not ended. They can be opened too, but
//! their clocks are not aligned, and they have no arrows. Two programs at the same time need two folders.
//!
//! Calls are also spans of the crate [`tracing`](https://docs.rs/tracing), named `call`, at the level
//! `DEBUG`, for any subscriber that the program has; the file does not need one. They have these fields. In
//! the file, `pass` is the category of a slice, `call` its name, with an `i` before it if `started`, and the
//! others are its arguments:
//!
//! | field | |
//! | --- | --- |
//! | `call`, `started`, `pass` | the method; whether it was only started; `forward`, `backward`, `pullback` (of a [custom](Communicator::custom) node) or `checkpoint` (that is run again) |
//! | `number`, `adjoint_of` | the call's number among this rank's calls; that of the call whose adjoint it is |
//! | `line`, `communicator` | the line of the program; the communicator: two numbers that its ranks have in common, and the call that made it |
//! | `bytes`, `kind` | the size of the larger of the tensors that it reads and writes; their kind |
//! | `to`, `from`, `tag`, `root` | the rank that a message goes to, the one that it came from, its tag; the root |
//! | `tape` | the call's number among those on its [`Tape`] |
//! | `waited_us` | how long it has waited for other ranks, in microseconds. What MPI waits for in a blocking function is not counted. |
//!
//! While nobody listens, a call costs two loads and a few branches more.
//!
//! # Threads
//!
//! The [`ThreadLevel`] that was obtained decides which threads may call MPI; a call from another
//! thread is an [`Error::Thread`]. At [`ThreadLevel::Serialized`], which [`initialize`] asks for,
//! one thread at a time is in MPI, and a call that waits lets others make theirs. At
//! [`ThreadLevel::Multiple`] threads call MPI concurrently. Threads that make collective calls at
//! the same time need a communicator each. A backward pass calls MPI on the thread that libtorch
//! runs it on: for tensors in host memory, the thread that called `backward`.
//!
//! # Other crates
//!
//! The crates `tch` and `mpi_sys` are re-exported, in the versions that this crate is compiled with.
//! `mpi_sys`, of the package `mpi4tch-sys`, is raw MPI, for calls that this crate lacks. Make them on the
//! handle that [`Communicator::as_raw`] returns; a program that waits in such a call takes the handle
//! before it does, as is said there.
//!
//! ```
//! use mpi4tch::mpi_sys;
//!
//! let universe = mpi4tch::initialize()?;
//! let (mut version, mut subversion) = (0, 0);
//! // SAFETY: MPI writes to the two numbers, which outlive the call.
//! unsafe { mpi_sys::MPI_Get_version(&mut version, &mut subversion) };
//! assert_eq!((version, subversion), universe.library().standard());
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! | feature | |
//! | --- | --- |
//! | `abi` | programs are compiled for the ABI of the MPI standard, and run with every MPI that has it; not with `rsmpi`. See [`mpi_sys`] |
//! | `rsmpi` | the module `rsmpi`: conversions from and to the communicators of rsmpi, the [crate `mpi`](https://docs.rs/mpi). `cargo doc --features rsmpi` shows it; docs.rs, which has no MPI, does not |

// docs.rs, which builds with a nightly compiler, says which items need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(all(feature = "abi", feature = "rsmpi"))]
compile_error!(
    "the crate mpi binds the library's own ABI, so the feature `rsmpi` cannot be used with `abi`, \
     which binds that of the MPI standard"
);

// The folders are layers, from the lowest: base, autograd, environment, communicator, call, engine,
// operations, replicated, data_parallel, torchscript. A file uses its own folder and those below it.
// The files next to this one are above all.
mod autograd;
mod base;
mod call;
mod communicator;
mod data_parallel;
mod engine;
mod environment;
pub mod guide;
mod operations;
mod replicated;
pub mod testing;
pub mod torchscript;
mod universe;

pub use mpi_sys;
pub use tch;

pub use base::error::{Error, Result};
pub use base::op::Op;
pub use base::rank::Rank;
pub use base::tag::Tag;
pub use base::thread_level::ThreadLevel;
pub use data_parallel::{DataParallel, DataParallelOptions};
pub use engine::communicator::Communicator;
pub use engine::dummies::join_dummies;
pub use engine::request::{Request, Test, wait_all, wait_any, wait_some};
pub use engine::tape::{PassOptions, Tape};
pub use environment::datatype;
pub use environment::library::Library;
pub use environment::status::{PROC_NULL, Source, Status, TagMatch};
#[cfg(feature = "rsmpi")]
pub use operations::rsmpi;
pub use operations::{Cartesian, Counts, Graph, Group, Halo};
pub use replicated::{Replicated, ReplicatedRequest};
pub use universe::{Universe, initialize, initialize_with, run};

/// The README's code, compiled and run with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
