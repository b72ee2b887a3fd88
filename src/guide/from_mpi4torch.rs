//! For users of [mpi4torch](https://pypi.org/project/mpi4torch/): its calls, and what to call here.
//!
//! Both libraries record MPI calls in the graph of libtorch, and both differentiate the *sum* of all
//! ranks' losses. A program can be translated line by line, dummies included, and computes the same
//! gradients. After that, most programs become shorter: a [`Tape`](crate::Tape) makes the dummies
//! unnecessary. This page is about mpi4torch 0.1.3, the newest release when it was written.
//!
//! # The same program
//!
//! Least squares with data on all ranks, and a ring of messages, in Python:
//!
//! ```python
#![doc = include_str!("from_mpi4torch/program.py")]
//! ```
//!
//! And in Rust, where the ring stands a second time, on a tape:
//!
//! ```
#![doc = include_str!("from_mpi4torch/program.rs")]
//! ```
//!
//! `mpiexec -n 3 python program.py` and `mpiexec -n 3 target/debug/program` print the same, in any
//! order of the ranks:
//!
//! ```text
//! rank 0: loss 35.0, gradient 44.0
//! rank 1: loss 35.0, gradient 44.0
//! rank 2: loss 35.0, gradient 44.0
//! rank 0: sum 4.0, gradient 14.0
//! rank 1: sum 3.0, gradient 16.0
//! rank 2: sum 5.0, gradient 18.0
//! ```
//!
//! # Call by call
//!
//! | mpi4torch | here | what is different |
//! | --- | --- | --- |
//! | `import mpi4torch` | [`run`](crate::run) or [`initialize`](crate::initialize) | MPI is started by a call, and finalized at the end of `run`, or when the [`Universe`](crate::Universe) is dropped |
//! | `COMM_WORLD` | [`universe.world()`](crate::Universe::world) | a duplicate of `MPI_COMM_WORLD`: its messages cannot meet those of other libraries |
//! | `comm_from_mpi4py(comm)` | [`from_fortran(handle)`](crate::Communicator::from_fortran) | `comm.py2f()` in Python is the handle. In Rust alone there is [`split`](crate::Communicator::split), [`create`](crate::Communicator::create) and others; [`from_raw`](crate::Communicator::from_raw) takes an `MPI_Comm`, and the feature `rsmpi` converts communicators of the crate `mpi`. Each duplicates the communicator |
//! | `comm.rank`, `comm.size` | [`rank()`](crate::Communicator::rank), [`size()`](crate::Communicator::size) | |
//! | `Allreduce(x, op)` | [`all_reduce(&x, op)`](crate::Communicator::all_reduce) | `Max`, `Min`, `Prod` and `Mean` have derivatives too |
//! | `Reduce_(x, op, root)` | [`reduce(&x, op, root)`](crate::Communicator::reduce), or [`reduce_`](crate::Communicator::reduce_) | see [in place](#in-place); off the root the result is zeros, in both |
//! | `Bcast_(x, root)` | [`broadcast(&x, root)`](crate::Communicator::broadcast), or [`broadcast_`](crate::Communicator::broadcast_) | see [in place](#in-place) |
//! | `Gather(x, axis, root)` | [`gather(&x, axis, root)`](crate::Communicator::gather) | off the root, the result has the extent 0 along the axis, in both |
//! | `Allgather(x, axis)` | [`all_gather(&x, axis)`](crate::Communicator::all_gather) | the gradient is right on more than two ranks, see [below](#what-computes-something-else) |
//! | `Scatter(x, axis, n, root)` | [`scatter(&x, axis, n, root)`](crate::Communicator::scatter) | a list of all ranks' counts in place of `n` saves a message |
//! | `Alltoall(x, gatheraxis, scatteraxis, n)` | [`all_to_all(&x, gather_axis, scatter_axis, n)`](crate::Communicator::all_to_all) | one MPI call; [`all_to_all_v`](crate::Communicator::all_to_all_v) for a matrix of counts |
//! | `Send(x, dest, tag)` | [`send(&x, dest, tag)`](crate::Communicator::send) | as there, the result must be used, or the call be on a tape |
//! | `Recv(buffer, source, tag)` | [`recv(&like, source, tag)`](crate::Communicator::recv) | `like` gives shape and kind and is not written. `Source::Any` and `TagMatch::Any` are allowed, and the gradient goes to the rank that the message came from |
//! | `Isend`, `Irecv` | [`isend`](crate::Communicator::isend), [`irecv`](crate::Communicator::irecv) | every collective call can be started, too: [`iall_reduce`](crate::Communicator::iall_reduce) and so on |
//! | `Wait(handle)` | [`request.wait()`](crate::Request::wait) | the wait consumes the request: a second one does not compile. Also [`test`](crate::Request::test), [`wait_all`](crate::wait_all), [`wait_any`](crate::wait_any), [`wait_some`](crate::wait_some) |
//! | `handle.dummy` | [`request.dummy()`](crate::Request::dummy) | |
//! | `JoinDummies(x, [d])` | [`join_dummies(&x, &[&d])`](crate::join_dummies) | no reference cycle: the graph is freed with its last tensor |
//! | `JoinDummiesHandle(handle, [d])` | [`request.join_dummies(&[&d])`](crate::Request::join_dummies) | |
//! | `MPI_SUM`, `MPI_PROD`, `MPI_MAX`, `MPI_MIN` | [`Op::Sum`](crate::Op), `Op::Prod`, `Op::Max`, `Op::Min` | `MPI_SUM` then `/ size` is `Op::Mean` |
//! | `MPI_LAND`, `MPI_LOR`, `MPI_LXOR`, `MPI_BAND`, `MPI_BOR`, `MPI_BXOR` | `Op::LogicalAnd`, `LogicalOr`, `LogicalXor`, `BitwiseAnd`, `BitwiseOr`, `BitwiseXor` | with a tensor that requires grad, the call itself is an error |
//! | `MPI_MAXLOC`, `MPI_MINLOC` | [`max_loc(&x)`](crate::Communicator::max_loc), [`min_loc(&x)`](crate::Communicator::min_loc) | methods, which return the values and the ranks that have them |
//! | `deactivate_cuda_aware_mpi_support()` | `MPI4TCH_DEVICE=staged` | a variable of the environment; tensors on GPUs are sent [either way](super::devices) |
//!
//! # What is different
//!
//! ## Order and dead branches
//!
//! In mpi4torch the program itself makes sure that the backward pass reaches each call, in an order
//! that ends. Here it may do so with the same dummies. On a [`Tape`](crate::Tape) it need not: each
//! call depends on the one before, and [`Tape::backward`](crate::Tape::backward) goes back through all
//! of them on all ranks, whether the loss depends on them or not. If the ranks recorded calls that do
//! not match, all get an error that names the lines, before the pass begins. The
//! [guide](crate::guide#dummies-the-order-by-hand) has the ring above step by step.
//!
//! ## In place
//!
//! `Bcast_` and `Reduce_` change the memory of their argument, a leaf's too, and return a tensor that
//! shares it; the argument's version counter does not tell autograd of the change.
//! [`broadcast`](crate::Communicator::broadcast) and [`reduce`](crate::Communicator::reduce) return a new
//! tensor. In place are [`broadcast_`](crate::Communicator::broadcast_),
//! [`reduce_`](crate::Communicator::reduce_) and
//! [`all_reduce_`](crate::Communicator::all_reduce_), by torch's rules: `x` itself becomes the result,
//! a leaf that requires grad is refused, and so is a backward pass that needs the old values.
//!
//! ```
//! use tch::{Kind, Tensor};
//!
//! let universe = mpi4tch::initialize()?;
//! let world = universe.world();
//! let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
//! let mut copy = &w * 1.0; // w itself is a leaf
//! world.broadcast_(&mut copy, 0)?;
//! copy.sum(Kind::Double).f_backward()?;
//! // The adjoint is a sum over the ranks, which the root receives.
//! let expected = if world.rank() == 0 { f64::from(world.size()) } else { 0.0 };
//! assert_eq!(w.grad(), Tensor::from_slice(&[expected]));
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! ## Errors and hangs
//!
//! MPI's errors end an mpi4torch program. Here every call returns a [`Result`](crate::Result), and an
//! error in the backward pass comes out of it as an `Err`. The ranks agree on each collective call
//! before they make it, so that calls which do not match are an [error](crate::Error::Mismatch) on all
//! ranks, and no hang. For what remains there is `MPI4TCH_TIMEOUT`: see
//! [a program that hangs](super::cluster#a-program-that-hangs).
//!
//! ## What computes something else
//!
//! A program may depend on these without knowing it:
//!
//! - The gradient of `Allgather` is wrong on more than two ranks in mpi4torch 0.1.3, if the ranks use
//!   the result differently. With `y = comm.Allgather(x, 0)` and the loss `(y * (rank + 1)).sum()` on 3
//!   ranks it is 5, where the sum of the ranks' weights, 6, is right.
//! - Cotangents travel on a communicator of their own here. In mpi4torch they are messages on the same
//!   communicator with a tag that is greater by 10, which a tag of the program may equal.
//! - There, tensors of `Half`, `BFloat16`, `Bool` and complex kinds are refused. Here all
//!   [kinds](crate::datatype) are sent, of any layout and with any number of elements.
//!
//! ## What is new
//!
//! [`Replicated`](crate::Replicated) tensors, by which a loss that all ranks share counts once without
//! a division; [`DataParallel`](crate::DataParallel); `scan`, `exscan` and `reduce_scatter`; grids, halo
//! exchanges and graphs of ranks; derivatives of higher order, and
//! [checkpoints](crate::Tape::checkpoint). The [operations](crate#operations) are listed on the first
//! page.
