//! For users of PyTorch's `torch.distributed`: its calls, and what to call here.
//!
//! `torch.distributed` has communication that autograd does not see (`dist.all_reduce`), communication
//! that it does (`torch.distributed.nn.functional`, and functions whose name ends with `_autograd`), and
//! `DistributedDataParallel`. Here every operation on a tensor is of the second kind, and
//! [`DataParallel`](crate::DataParallel) is the third. The ranks are started and joined by MPI in place
//! of `torchrun`. This page is about PyTorch 2.11 with the backend `gloo`, and tensors in host memory.
//! Those [on GPUs](super::devices) need no other backend here, and no other calls.
//!
//! # The same program
//!
//! Calls with a derivative, one without, training steps, and messages, in Python:
//!
//! ```python
#![doc = include_str!("from_torch_distributed/program.py")]
//! ```
//!
//! And in Rust:
//!
//! ```
#![doc = include_str!("from_torch_distributed/program.rs")]
//! ```
//!
//! `torchrun --nproc-per-node 3 program.py` and `mpiexec -n 3 target/debug/program` print the same, in
//! any order of the ranks:
//!
//! ```text
//! rank 0: y 6.0, gradient 12.0
//! rank 0: exchanged [0.0, 10.0, 20.0]
//! rank 0: weight 1.295880
//! rank 0: received 3.0
//! rank 1: y 6.0, gradient 12.0
//! rank 1: exchanged [1.0, 11.0, 21.0]
//! rank 1: weight 1.295880
//! rank 1: received 1.0
//! rank 2: y 6.0, gradient 12.0
//! rank 2: exchanged [2.0, 12.0, 22.0]
//! rank 2: weight 1.295880
//! rank 2: received 2.0
//! ```
//!
//! # Call by call
//!
//! Start and groups:
//!
//! | `torch.distributed` | here | what is different |
//! | --- | --- | --- |
//! | `torchrun --nproc-per-node 3 program.py` | `mpiexec -n 3 program` | no `MASTER_ADDR`, no `RANK`: MPI's launcher connects the ranks. See [on a cluster](super::cluster) |
//! | `init_process_group("gloo")` | [`run`](crate::run) or [`initialize`](crate::initialize) | |
//! | `destroy_process_group()` | the end of `run`; [`finalize`](crate::Universe::finalize) | returns an error for messages that were left over |
//! | `get_rank(group)`, `get_world_size(group)` | [`rank()`](crate::Communicator::rank), [`size()`](crate::Communicator::size) | methods of the group, which is a [`Communicator`](crate::Communicator). All ranks in its calls are *its* ranks, where `dist` takes most of them as ranks of the world |
//! | `new_group(ranks)` | [`group()`](crate::Communicator::group)`.`[`include(&ranks)`](crate::Group::include), then [`create(&group)`](crate::Communicator::create) | all ranks of the communicator call it, in both; the others get `None` |
//! | `split_group`, `new_subgroups` | [`split(color, key)`](crate::Communicator::split), [`split_shared()`](crate::Communicator::split_shared) | |
//! | `init_device_mesh("cpu", (2, 4))` | [`cartesian(&[2, 4], &[false, false], false)`](crate::Communicator::cartesian) | see [meshes](#meshes) |
//! | `barrier()`, `monitored_barrier()` | [`barrier()`](crate::Communicator::barrier) | with `MPI4TCH_TIMEOUT` the ranks that wait are named; one that is not among them did not come |
//!
//! Operations. `fn` is `torch.distributed.nn.functional`. All take lists of tensors there, where here
//! one tensor is cut or joined along an axis:
//!
//! | `torch.distributed` | here | what is different |
//! | --- | --- | --- |
//! | `dist.all_reduce(x, op)` | [`all_reduce_(&mut x, op)`](crate::Communicator::all_reduce_) | differentiable, see [in place](#in-place) |
//! | `fn.all_reduce(x, op)` | [`all_reduce(&x, op)`](crate::Communicator::all_reduce) | the gradients of `MAX`, `MIN` and `PRODUCT` are right here, see [below](#what-computes-something-else) |
//! | `dist.reduce`, `fn.reduce(x, dst, op)` | [`reduce(&x, op, root)`](crate::Communicator::reduce) | off the root the result is zeros |
//! | `dist.broadcast(x, src)`, `fn.broadcast` | [`broadcast_(&mut x, root)`](crate::Communicator::broadcast_), [`broadcast(&x, root)`](crate::Communicator::broadcast) | in place, a leaf that requires grad is refused: use `no_grad`, or [`DataParallel`](crate::DataParallel) |
//! | `dist.all_gather(list, x)`, `all_gather_into_tensor`, `fn.all_gather(x)` | [`all_gather(&x, axis)`](crate::Communicator::all_gather) | one tensor, of which `chunk` makes a list. Blocks may differ from rank to rank |
//! | `dist.gather(x, list, dst)`, `fn.gather` | [`gather(&x, axis, root)`](crate::Communicator::gather) | |
//! | `dist.scatter(x, list, src)`, `fn.scatter` | [`scatter(&x, axis, count, root)`](crate::Communicator::scatter) | |
//! | `dist.reduce_scatter(y, list, op)`, `reduce_scatter_tensor`, `fn.reduce_scatter` | [`reduce_scatter(&x, axis, count, op)`](crate::Communicator::reduce_scatter) | |
//! | `dist.all_to_all(out, in)`, `fn.all_to_all` | [`all_to_all_v(&x, axis, &counts)`](crate::Communicator::all_to_all_v) | block i of x goes to rank i. A tensor that is cut along one axis, and is to be cut along another one, takes one call of [`all_to_all(&x, a, b, n)`](crate::Communicator::all_to_all), with a ≠ b |
//! | `dist.all_to_all_single(y, x, out_splits, in_splits)`, `fn.all_to_all_single` | [`all_to_all_v(&x, 0, &in_splits)`](crate::Communicator::all_to_all_v) | the sizes to receive travel, or are given to [`all_to_all_v_with_counts`](crate::Communicator::all_to_all_v_with_counts) |
//! | `dist.send(x, dst)`, `dist.recv(x, src)` | [`send(&x, dest, tag)`](crate::Communicator::send), [`recv(&like, source, tag)`](crate::Communicator::recv) | differentiable, see [messages](#messages); `src=None` is `Source::Any` |
//! | `dist.isend`, `dist.irecv` | [`isend`](crate::Communicator::isend), [`irecv`](crate::Communicator::irecv) | `irecv` returns a request, whose wait returns the tensor |
//! | `dist.batch_isend_irecv(ops)` | the same, then [`wait_all(requests)`](crate::wait_all) | no call of its own is needed |
//! | `async_op=True`, `work.wait()` | [`iall_reduce`](crate::Communicator::iall_reduce) and so on, [`Request::wait`](crate::Request::wait) | differentiable: the adjoint is in flight while the pullbacks run that stand between start and wait |
//! | `work.is_completed()` | [`Request::test`](crate::Request::test) | |
//! | `dist.all_gather_object` and other calls with objects | – | serialize to a tensor of `Uint8`, and use `all_gather` |
//! | `ReduceOp.SUM`, `PRODUCT`, `MAX`, `MIN`, `BAND`, `BOR`, `BXOR` | [`Op::Sum`](crate::Op), `Prod`, `Max`, `Min`, `BitwiseAnd`, `BitwiseOr`, `BitwiseXor` | |
//! | `ReduceOp.AVG` | `Op::Mean` | |
//!
//! Training:
//!
//! | PyTorch | here | what is different |
//! | --- | --- | --- |
//! | `DistributedDataParallel(model)` | [`DataParallel::new(&world, &store)`](crate::DataParallel::new) | takes the variables and not the model, which is called as before |
//! | `loss.backward()` | [`parallel.backward(&loss)`](crate::DataParallel::backward) | `loss.backward()` itself is an error: it would leave gradients that are not averaged |
//! | `with ddp.no_sync(): loss.backward()` | [`parallel.accumulate(&loss)`](crate::DataParallel::accumulate) | |
//! | `find_unused_parameters=True` | always | a parameter that no rank uses keeps its gradient |
//! | `with Join([ddp]):` for uneven inputs | `parallel.backward(None)` | a rank without a batch takes part; [`backward_weighted`](crate::DataParallel::backward_weighted) weighs the ranks by their samples |
//! | `bucket_cap_mb` | [`DataParallelOptions`](crate::DataParallelOptions) | 1 MiB by default, and not 25 |
//! | `register_comm_hook(bf16_compress_hook)` | `reduce_in: Some(Kind::BFloat16)` of the options | |
//! | `broadcast_buffers=True` | [`broadcast_`](crate::Communicator::broadcast_) of each buffer | buffers are made equal at the start only |
//! | `optimizer.step()` | the same | |
//! | `DistributedSampler(data)` | [below](#a-sampler) | |
//! | `ZeroRedundancyOptimizer`, FSDP | – | [`reduce_scatter`](crate::Communicator::reduce_scatter) and [`all_gather`](crate::Communicator::all_gather) are what they are made of |
//!
//! # What is different
//!
//! ## In place
//!
//! `dist.all_reduce(x)` changes the memory of x, of which autograd learns nothing: the backward pass
//! warns, continues as if x were as before, and each rank gets the gradient of a program without
//! communication. [`all_reduce_`](crate::Communicator::all_reduce_) is a node of the graph, as torch's
//! own functions in place are:
//!
//! ```
//! use mpi4tch::Op;
//! use tch::{Kind, Tensor};
//!
//! let universe = mpi4tch::initialize()?;
//! let world = universe.world();
//! let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
//! let mut x = &w * 2.0;
//! world.all_reduce_(&mut x, Op::Sum)?;
//! x.sum(Kind::Double).f_backward()?;
//! // With dist.all_reduce: 2, on any number of ranks.
//! assert_eq!(w.grad(), Tensor::from_slice(&[2.0 * f64::from(world.size())]));
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! ## Sums and means
//!
//! - Outside of `DataParallel` the objective is the *sum* of all ranks' losses, as in
//!   `torch.distributed.nn.functional`. A loss that all ranks have in common, because it was
//!   all-reduced, counts once per rank. Divide it by the number of ranks, as the program above does, or
//!   make it a [`Replicated`](crate::Replicated) one, which counts once by its type.
//! - In `DataParallel` gradients are the *mean* over the ranks, as in `DistributedDataParallel`. If each
//!   loss is the mean over a batch, and the batches are equally large, that is the gradient of the mean
//!   over all samples. If they are not, [`backward_weighted`](crate::DataParallel::backward_weighted)
//!   with the number of samples is.
//! - The loss to print is the mean of all ranks' losses: `world.all_reduce(&loss.detach(), Op::Mean)`.
//!
//! ## What computes something else
//!
//! - `fn.all_reduce(x, op=ReduceOp.MAX)` has a backward pass, but a wrong one: each rank gets the
//!   *largest cotangent*, whether it has the largest x or not. `MIN` and `PRODUCT` likewise combine
//!   cotangents by the op. Here the rank that has the largest x gets the sum of the cotangents, and ranks
//!   that share it share the sum; `Min` and `Prod` have their derivatives, too.
//! - An operation that a rank's loss does not depend on is skipped in that rank's backward pass, in both
//!   libraries, while other ranks may wait for it. A [`Tape`](crate::Tape) carries out all of them.
//!
//! ## Messages
//!
//! `dist.send` and `dist.recv` have no derivative. Here they have, but the backward pass must reach
//! both ends. That is what a tape is for:
//!
//! ```
//! use tch::{Kind, Tensor};
//!
//! let universe = mpi4tch::initialize()?;
//! let tape = universe.world().tape();
//! let (rank, size) = (tape.rank(), tape.size());
//! let x = Tensor::from_slice(&[1.0 + f64::from(rank)]).set_requires_grad(true);
//! let send = tape.isend(&x, (rank + 1) % size, 0)?;
//! let receive = tape.irecv(&x.zeros_like(), (rank + size - 1) % size, 0)?;
//! let received = mpi4tch::wait_all([send, receive])?.remove(1);
//! tape.backward(&(received * f64::from(rank + 1)).sum(Kind::Double))?;
//! // The weight that the right neighbour gives to what it has received.
//! assert_eq!(x.grad(), Tensor::from_slice(&[f64::from((rank + 1) % size + 1)]));
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! ## Calls that do not match
//!
//! With gloo, if the tensors of an `all_reduce` differ in shape or kind, one process aborts and the others
//! read "Connection reset by peer". A rank that does not come is an error after the timeout of the group,
//! 30 minutes. Here the ranks agree on each collective call before they make it, and all get the same
//! error, as with `TORCH_DISTRIBUTED_DEBUG=DETAIL` there; see [what is
//! compared](crate#checks-across-ranks). A rank that waits for a minute for another one prints where, and
//! with `MPI4TCH_TIMEOUT=<seconds>` the job ends then.
//!
//! ## A sampler
//!
//! `DistributedSampler` gives each rank every p-th sample of a permutation that all ranks have, different
//! in each epoch if `set_epoch` is called, and repeats some samples so that all ranks have equally many.
//! In tch:
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//!
//! /// This rank's samples in an epoch. No sample is repeated: the last ranks may have one fewer.
//! fn samples(rank: i64, size: i64, len: i64, epoch: i64) -> Tensor {
//!     tch::manual_seed(epoch); // on all ranks alike
//!     let order = Tensor::randperm(len, (Kind::Int64, Device::Cpu));
//!     order.slice(0, rank, len, size)
//! }
//!
//! assert_eq!(samples(1, 3, 11, 0).size1()?, 4);
//! assert_eq!(samples(2, 3, 11, 0).size1()?, 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A rank that has one batch fewer than others calls `parallel.backward(None)` for the last. `manual_seed`
//! sets the generator that dropout uses, too; set it again, differently on each rank, if that matters.
//!
//! ## Meshes
//!
//! A [`Cartesian`](crate::Cartesian) is a device mesh of ranks. [`sub`](crate::Cartesian::sub) makes
//! what `mesh["dp"]` is: the communicator of the ranks along an axis.
//!
//! ```
//! use mpi4tch::Op;
//! use tch::Tensor;
//!
//! let universe = mpi4tch::initialize()?;
//! let world = universe.world();
//! // mesh = init_device_mesh("cpu", (size, 1), mesh_dim_names=("dp", "tp"))
//! let mesh = world.cartesian(&[world.size(), 1], &[false, false], false)?;
//! let mesh = mesh.expect("all ranks are in the mesh");
//! let dp = mesh.sub(&[true, false])?; // mesh["dp"].get_group()
//! let tp = mesh.sub(&[false, true])?; // mesh["tp"].get_group()
//! assert_eq!((dp.size(), tp.size()), (world.size(), 1));
//! let rank = Tensor::from_slice(&[i64::from(world.rank())]);
//! assert_eq!(tp.all_reduce(&rank, Op::Sum)?, rank);
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! Distributed tensors have their counterpart in functions:
//! [`distribute`](crate::Cartesian::distribute) and [`collect`](crate::Cartesian::collect) cut a tensor
//! over a grid and join it again, and [`Replicated`](crate::Replicated) is a placement, in the type of
//! a tensor: `Replicate()`, which [`shard`](crate::Replicated::shard) turns into `Shard(axis)`,
//! [`concat`](crate::Replicated::concat) back, and [`sum`](crate::Replicated::sum) makes of `Partial()`.
//! `examples/tensor_parallel.rs` uses them.
