//! A guide to parallel autodiff, for those who know torch's autograd on one process.
//!
//! Further pages: how to build and run a program [on a cluster](cluster), what happens to tensors
//! [on GPUs and other devices](devices), and what to call here if you come
//! [from mpi4torch](from_mpi4torch) or [from PyTorch's distributed](from_torch_distributed).
//!
//! # Each rank has a graph of its own
//!
//! libtorch records a graph in each process. A call of this crate is a node of it, as `matmul` is,
//! but its data comes from other processes by MPI. So a program on p ranks has p graphs, and no
//! edge leads from one graph to another. Instead, nodes on different ranks belong together because
//! they make matching MPI calls:
//!
#![doc = include_str!("guide/pictures/message.svg")]
//!
//! In the forward pass, y arrives by a message. In the backward pass, libtorch goes through the
//! graph of rank 1 from ℓ₁ to the node of the receive, whose pullback sends ȳ back. On rank 0 the
//! pullback of the send receives ȳ. Each rank needs the other: both must run a backward pass, and
//! both passes must reach these nodes. All problems and remedies below are about that.
//!
//! # The adjoint of a communication
//!
//! Take the tensors of all ranks as one long vector. Then most communications are multiplications
//! by a matrix, of which each rank computes some rows, and the backward pass multiplies by the
//! transpose:
//!
//! ```text
//! broadcast from 0        its adjoint: reduce to 0      send 0 → 1     its adjoint: send 1 → 0
//! y₀   1 0 0   x₀         x̄₀   1 1 1   ȳ₀               y₁ = x₀        x̄₀ = ȳ₁
//! y₁ = 1 0 0 · x₁         x̄₁ = 0 0 0 · ȳ₁
//! y₂   1 0 0   x₂         x̄₂   0 0 0   ȳ₂
//! ```
//!
//! The adjoint of copying to many ranks is summing over them; the adjoint of sending from A to B is
//! sending from B to A. The transpose is a communication again, of the same volume, and can itself
//! be differentiated. A matrix F and its transpose F\* satisfy ⟨F x, y⟩ = ⟨x, F\* y⟩ for all x and
//! y, where both products are summed over all ranks. This identity also tests code of your own:
//!
//! ```
//! use mpi4tch::testing;
//! use tch::Kind;
//!
//! let universe = mpi4tch::initialize()?;
//! let world = universe.world();
//! let x = testing::random(&world, &[3], Kind::Double)?;
//! testing::assert_adjoint(&world, &x, |x| world.broadcast(&(x * 2.0), 0))?;
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! # What goes wrong
//!
//! ## The gradient is p times too large
//!
//! Each rank starts its backward pass with the cotangent 1 for its own loss. By linearity, the
//! p passes together differentiate the *sum* of the p losses, even if all of them are the same
//! number:
//!
//! ```text
//!          rank 0    rank 1    rank 2
//! loss     ℓ         ℓ         ℓ         the same number, all-reduced
//! seed     1         1         1         so 3·ℓ is differentiated
//! ```
//!
//! So divide a scalar that all ranks have in common, or differentiate it on one rank only. Better
//! still, differentiate the local shares that it was reduced from: the sum over the ranks is
//! implied, and the backward pass has one call less.
//!
//! ```
//! use mpi4tch::Op;
//! use tch::{Kind, Tensor};
//!
//! let universe = mpi4tch::initialize()?;
//! let world = universe.world();
//! let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
//! let share = x.square().sum(Kind::Double);
//! let total = world.all_reduce(&share, Op::Sum)?;
//!
//! let gradient = |loss: &Tensor| Tensor::f_run_backward(&[loss], &[&x], true, false);
//! let p = f64::from(world.size());
//! assert_eq!(gradient(&total)?[0].double_value(&[0]), p * 6.0);
//! assert_eq!(gradient(&(&total / p))?[0].double_value(&[0]), 6.0);
//! assert_eq!(gradient(&share)?[0].double_value(&[0]), 6.0);
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! By the same convention, a parameter of which all ranks have a copy is p variables. The gradient
//! of each copy is the derivative by this copy alone, and the gradient of the parameter is the sum
//! of these. With `let w = world.broadcast(&w, 0)?` before the parameter is used, there is only one
//! variable, that of rank 0, which receives the sum.
//!
//! All of this must be remembered at each loss and each parameter. A
//! [`Replicated`](crate::Replicated) tensor has it in its type: it is *one* variable on all ranks,
//! and so is its cotangent. One map leads from it to ordinary tensors, which vary from rank to rank,
//! and another leads back:
//!
//! ```text
//!                     forward                    backward
//!                     rank 0  rank 1  rank 2     rank 0  rank 1  rank 2
//! w                       one variable           v̄₀ + v̄₁ + v̄₂ on all ranks
//! w.vary()            v₀      v₁      v₂         v̄₀      v̄₁      v̄₂
//! local losses        ℓ₀      ℓ₁      ℓ₂         1       1       1
//! Replicated::sum     one loss: ℓ₀ + ℓ₁ + ℓ₂     1, counted once
//! ```
//!
//! Each map is the adjoint of the other: going back through the sum makes no call, as every rank has
//! the cotangent of the one loss, and going back through `vary` is the sum of all ranks'
//! contributions. So there is one call forward and one backward, and the gradient is right on all
//! ranks, whatever their number:
//!
//! ```
//! use mpi4tch::Replicated;
//! use tch::{Kind, Tensor};
//!
//! let universe = mpi4tch::initialize()?;
//! let world = universe.world();
//! let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
//! let w = Replicated::assume(&world, &w)?;
//! let share = w.vary()?.square().sum(Kind::Double) / f64::from(world.size());
//! let total = Replicated::sum(&world, &share)?;
//! let penalty = w.map(|w| w.square().sum(Kind::Double))?; // the same work on all ranks
//! let loss = Replicated::combine(&[&total, &penalty], |parts| parts[0] + parts[1])?;
//! loss.backward()?;
//! assert!(w.grad().allclose(&Tensor::from_slice(&[6.0 + 6.0]), 1e-12, 0.0, false));
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! [`tensor`](crate::Replicated::tensor) returns an ordinary tensor without a map, for looking at
//! it. A loss that is computed from that alone lacks the other ranks' contributions. `assume`, `map`
//! and `combine` are promises that the program keeps on all ranks; `MPI4TCH_CHECK=collective`, the
//! default in debug builds, checks them.
//!
//! ## The program hangs, or the gradient lacks a part: a dead branch
//!
//! libtorch visits only the nodes that the loss depends on. In one process, skipping a result that
//! is not used is harmless. In a parallel program another rank may wait for its adjoint:
//!
#![doc = include_str!("guide/pictures/dead_branch.svg")]
//!
//! There are four causes of such dead branches: a rank has no loss, an input on a rank does not
//! require grad, the control flow depends on the rank, or a message is sent and the program does
//! not use the tensor that [`send`](crate::Communicator::send) returns. A dead send need not even
//! hang: MPI may buffer a small message, here the cotangent, although no rank receives it. Then the
//! gradient lacks this cotangent, and the next backward pass may receive it in place of its own.
//!
//! One remedy by hand is to add the result to the loss with the weight zero:
//!
//! ```
//! # use mpi4tch::Op;
//! # use tch::{Kind, Tensor};
//! # let universe = mpi4tch::initialize()?;
//! # let world = universe.world();
//! let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
//! let y = world.all_reduce(&x, Op::Sum)?;
//! let loss = if world.rank() == 0 { y.square() } else { &y * 0.0 };
//! loss.sum(Kind::Double).f_backward()?;
//! assert_eq!(x.grad(), y.detach() * 2.0);
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! ## The program hangs, or sums up the wrong things: the order
//!
//! MPI matches collective calls by their order, and messages between two ranks with the same tag by
//! theirs. In the backward pass libtorch chooses the order of the calls: of the nodes whose
//! cotangents are complete it takes the newest. On the CPU, after a forward pass on one thread,
//! that is the reverse of the forward order, which is right. But no edge of the graph ensures it:
//!
#![doc = include_str!("guide/pictures/order.svg")]
//!
//! libtorch has a queue per device, and numbers the nodes of each thread separately. With several
//! devices or threads the order is a race, whose outcome may differ between ranks. The order of
//! whole backward passes is up to the program: two losses must be differentiated in the same order
//! on all ranks.
//!
//! # Dummies: the order by hand
//!
//! [`join_dummies`](crate::join_dummies)`(x, dummies)` is x, but depends on the dummies as well. In
//! the backward pass x receives its cotangent unchanged, and the dummies receive zeros. With these
//! edges a program can fix the order of calls and keep a branch reachable. Here is a ring, in which
//! each rank sends to the right, receives from the left, and waits for its send:
//!
//! ```
//! use tch::{Kind, Tensor};
//!
//! let universe = mpi4tch::initialize()?;
//! let world = universe.world();
//! let (rank, size) = (world.rank(), world.size());
//! let (left, right) = ((rank + size - 1) % size, (rank + 1) % size);
//!
//! let a = Tensor::from_slice(&[1.0 + f64::from(rank)]).set_requires_grad(true);
//! let request = world.isend(&a, right, 0)?;
//! let like = mpi4tch::join_dummies(&a.detach(), &[&request.dummy()])?; // the send, then
//! let b = world.recv(&like, left, 0)?;
//! let sent = request.join_dummies(&[&b]).wait()?; // the receive, then the wait, then
//! let sum = mpi4tch::join_dummies(&(&a + &b), &[&sent])?; // the loss
//! sum.sum(Kind::Double).f_backward()?;
//! assert_eq!(a.grad(), Tensor::from_slice(&[2.0]));
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
#![doc = include_str!("guide/pictures/dummies.svg")]
//!
//! Without dummies the gradient is 1, as no rank receives the cotangent that its right neighbour
//! sends back. If only some of them are forgotten, the ring may still work, because of the order
//! that libtorch happens to choose. To check such code, read it from the loss backwards: every call
//! must be reached, and only after the calls that followed it.
//!
//! # The tape: the order without dummies
//!
//! A [`Tape`](crate::Tape) is a communicator that records its calls. It threads a tensor without
//! elements, the token, through all calls that are made on it, so that each depends on the one
//! before:
//!
#![doc = include_str!("guide/pictures/tape.svg")]
//!
//! [`backward`](crate::Tape::backward) starts from the loss and from the last token. So it reaches
//! every call, once, and data dependence makes the order the reverse one. It is a collective call:
//! a rank without a loss gives `None`. Before the pass the ranks compare what they have recorded.
//! If it does not match, all of them get the same [`Error::Tape`](crate::Error::Tape), which names
//! rank, call and source line.
//!
//! ```
//! # use mpi4tch::Op;
//! # use tch::{Kind, Tensor};
//! # let universe = mpi4tch::initialize()?;
//! # let world = universe.world();
//! let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
//! let tape = world.tape();
//! let y = tape.all_reduce(&x, Op::Sum)?;
//! let loss = (world.rank() == 0).then(|| y.square().sum(Kind::Double));
//! tape.backward(loss.as_ref())?;
//! assert_eq!(x.grad(), y.detach() * 2.0);
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! Only calls on the tape are recorded on it. A call on the communicator itself has no such
//! guarantee. The objective is still the sum of all ranks' losses, to which `None` adds nothing.
//! Only the tape's own backward passes may go through calls on the tape: an optimizer's
//! `backward_step`, or `Tensor::backward`, is an error there. Call the tape's `backward`, then the
//! optimizer's `step`. If a pass starts from cotangents and not from a loss, use
//! [`vjp`](crate::Tape::vjp).
//!
//! ## Several communicators
//!
//! One tape serves a whole program. A communicator that is made from the tape, or from another one
//! that is on it, is on the tape too, and [`on`](crate::Tape::on) puts one on it that existed
//! before. The calls on all of them are one sequence. Here the ranks form a grid, each with one
//! element of a matrix A, and compute A x: x is broadcast along the columns, and summed along the
//! rows.
//!
//! ```
//! # use mpi4tch::Op;
//! # use tch::{Kind, Tensor};
//! # let universe = mpi4tch::initialize()?;
//! # let world = universe.world();
//! let (rank, columns) = (world.rank(), if world.size() % 2 == 0 { 2 } else { 1 });
//! let tape = world.tape();
//! let row = tape.split(Some(rank / columns), rank)?.expect("each rank has a color");
//! let column = tape.split(Some(rank % columns), rank)?.expect("each rank has a color");
//!
//! let a = Tensor::from_slice(&[1.0 + f64::from(rank)]);
//! let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
//! let product = &a * column.broadcast(&x, 0)?; // x of the first row of the grid
//! let y = row.reduce(&product, Op::Sum, 0)?; // in the first column of the grid
//! let loss = (row.rank() == 0).then(|| y.sum(Kind::Double));
//! tape.backward(loss.as_ref())?;
//! // The gradient of Σ y is the sum over each column of A, in the first row of the grid.
//! assert_eq!(x.grad(), column.reduce(&a, Op::Sum, 0)?);
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! # Requests: what overlaps forward overlaps backward
//!
//! A nonblocking call is two nodes, its start and its wait. The pullback of the wait *starts* the
//! adjoint, and the pullback of the start *waits* for it. Operations between start and wait are
//! newer than the start and older than the wait, so their pullbacks run in between, too:
//!
#![doc = include_str!("guide/pictures/overlap.svg")]
//!
//! ```
//! # use mpi4tch::Op;
//! # use tch::{Kind, Tensor};
//! # let universe = mpi4tch::initialize()?;
//! # let world = universe.world();
//! let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
//! let tape = world.tape();
//! let request = tape.iall_reduce(&x, Op::Sum)?;
//! let local = x.exp(); // while the sum is on its way
//! let sum = request.wait()?;
//! tape.backward(&(&sum + &local).sum(Kind::Double))?;
//! assert_eq!(x.grad(), local.detach() + f64::from(world.size()));
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! # Fields on grids of ranks
//!
//! A field on a mesh is cut into blocks, one for each rank of a grid.
//! [`cartesian`](crate::Communicator::cartesian) puts the ranks in a grid, of which each rank has its
//! [`coordinates`](crate::Cartesian::coordinates); [`block`](crate::Cartesian::block) says which cells
//! are whose, [`distribute`](crate::Cartesian::distribute) cuts a field that one rank has, and
//! [`collect`](crate::Cartesian::collect) joins it again. These two are each other's adjoint. Here is a
//! field of 5 × 7 cells on a grid of 2 × 2 ranks; the first blocks are longer by one:
//!
#![doc = include_str!("guide/pictures/grid.svg")]
//!
//! A stencil at the border of a block needs cells of other ranks.
//! [`halo_exchange`](crate::Cartesian::halo_exchange) surrounds the block with them. Rank 3 above
//! receives, with one cell before and after along both axes, on a grid that is not periodic, the
//! following. The corner is of a diagonal neighbour:
//!
#![doc = include_str!("guide/pictures/halo.svg")]
//!
//! In the backward pass the ghosts go home: each cell's cotangent is the sum over all ranks that
//! received a copy of it. A step of the heat equation, and the gradient of its result:
//!
//! ```
//! use mpi4tch::Halo;
//! use tch::{Device, Kind, Tensor};
//!
//! # let universe = mpi4tch::initialize()?;
//! let tape = universe.world().tape();
//! let grid = tape.cartesian(&[0, 0], &[true, true], false)?.expect("all ranks are in the grid");
//! let halos = [0, 1].map(|axis| Halo { axis, along: axis as usize, before: 1, after: 1 });
//!
//! let x = Tensor::ones([4, 3], (Kind::Double, Device::Cpu)).set_requires_grad(true);
//! let wide = grid.halo_exchange(&x, &halos)?;
//! let at = |i, j| wide.narrow(0, i, 4).narrow(1, j, 3);
//! let around = at(0, 1) + at(2, 1) + at(1, 0) + at(1, 2);
//! let y: Tensor = &x + 0.1 * (around - 4.0 * &x);
//! tape.backward(&y.sum(Kind::Double))?;
//! // Heat is conserved, so a cell's share of the sum is 1, wherever it is.
//! assert!(x.grad().allclose(&x.ones_like(), 1e-12, 0.0, false));
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! The work on cells within the block can go on while the ghosts are on their way:
//! [`ihalo_exchange`](crate::Cartesian::ihalo_exchange) starts the exchange and returns a request, and
//! the adjoint overlaps with the pullbacks of that work. Ranks whose neighbours form no grid make a
//! [`Graph`](crate::Graph), with [`neighbor_all_gather`](crate::Graph::neighbor_all_gather) and
//! [`neighbor_all_to_all`](crate::Graph::neighbor_all_to_all), which a grid has too.
//!
//! A solver need not be gone back through iteration by iteration: `examples/poisson.rs` adds its
//! solution as [one node](#a-node-of-your-own), whose pullback is a second solve on the grid.
//!
//! ## A time loop that does not fit in memory
//!
//! The graph of a loop saves what each step needs for its derivative, so its memory grows with the
//! number of steps. [`checkpoint_steps`](crate::Tape::checkpoint_steps) keeps some of the states only,
//! and runs the steps between them again in the backward pass, their communication included:
//!
//! ```
//! # use mpi4tch::{Communicator, Op};
//! # use tch::{Kind, Tensor};
//! # let universe = mpi4tch::initialize()?;
//! # let world = universe.world();
//! let tape = world.tape();
//! let comm = Communicator::clone(&tape); // a communicator on the tape, for the steps to hold
//! let x = Tensor::from_slice(&[0.5]).set_requires_grad(true);
//! let last = tape.checkpoint_steps(&[&x], 1000, 10, move |_, state| {
//!     let mean = comm.all_reduce(&state[0], Op::Mean)?;
//!     Ok(vec![&state[0] + 0.001 * (mean - &state[0].square())])
//! })?;
//! tape.backward(&last[0].sum(Kind::Double))?;
//! assert!(x.grad().defined());
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! With 10 states in memory, each of the 1000 steps runs 4.6 times on average.
//! [`checkpoint`](crate::Tape::checkpoint) does the same for one function, such as a layer. What
//! several ranks do together in such a function they must do in the same checkpoint, and it must do the
//! same each time: the ranks compare the calls of its first run before the backward pass, and those of
//! a later run with the first.
//!
//! # Second derivatives
//!
//! Pullbacks consist of the same operations, so they can be recorded and differentiated again: by
//! [`grad_with`](crate::Tape::grad_with) with `create_graph` in its
//! [`PassOptions`](crate::PassOptions). The second backward pass then goes through the calls of the
//! first one and through those of the forward pass. The tape orders all of them.
//!
#![doc = include_str!("guide/pictures/second_order.svg")]
//!
//! So the product of the second derivatives of L and a vector, of which each rank has its part v,
//! costs two backward passes. Here L is y³ and H·v is 6·y·Σ v:
//!
//! ```
//! # use mpi4tch::{Op, PassOptions};
//! # use tch::{Kind, Tensor};
//! # let universe = mpi4tch::initialize()?;
//! # let world = universe.world();
//! let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
//! let v = Tensor::from_slice(&[1.0 + f64::from(world.rank())]);
//! let tape = world.tape();
//! let y = tape.all_reduce(&x, Op::Sum)?;
//! let loss = (world.rank() == 0).then(|| (&y * &y * &y).sum(Kind::Double));
//! let options = PassOptions { create_graph: true, ..Default::default() };
//! let g = tape.grad_with(loss.as_ref(), &[&x], options)?.remove(0);
//! let product = tape.grad(&(g * &v).sum(Kind::Double), &[&x])?.remove(0);
//! assert_eq!(product, 6.0 * y.detach() * world.all_reduce(&v, Op::Sum)?);
//! # Ok::<(), mpi4tch::Error>(())
//! ```
//!
//! # When no tape is needed
//!
//! None is needed if every rank's backward pass reaches every call without one: if on each rank the
//! loss depends on each result, inputs require grad on all ranks or on none, and all tensors are on
//! the CPU, or all on one [device](devices). Data-parallel training is of this kind; `examples/linear_regression.rs` has two calls
//! of [`all_reduce`](crate::Communicator::all_reduce) and no tape. Code without derivatives needs
//! none either. Programs that send messages should use one: it costs two small exchanges per
//! backward pass.
//!
//! # A node of your own
//!
//! If you know a derivative better than libtorch, for instance that of the solution of an equation,
//! compute the result without grad and add a node with a pullback of your own, which may
//! communicate: see [`custom`](crate::Communicator::custom).
//!
//! # When it hangs, or when the result is wrong
//!
//! - The ranks agree on each collective call before they make it. Calls that do not match become an
//!   error on all ranks, also in the backward pass. `MPI4TCH_CHECK=collective`, the default in
//!   debug builds, also compares whether calls are recorded, and the kinds of messages. It cannot
//!   notice a rank that makes no call.
//! - `MPI4TCH_TIMEOUT=30` ends a program in which a call waits for longer than 30 seconds. Each
//!   rank prints the call that it is in, the source line, and how long it has waited. A call of the
//!   backward pass is marked as such, with the line of the forward call. A rank that prints nothing
//!   is in no call: look there for the dead branch. Without the variable, a rank that has waited
//!   for a minute prints the same once, and goes on waiting.
//! - `MPI4TCH_TRACE=<folder>` writes a [timeline](crate#timelines) of all ranks: where they wait for each
//!   other, and what the backward pass does.
//! - Use [`run`](crate::run): a rank whose program returns an error prints it and ends the job. If
//!   `main` itself returns the error, Rust prints it only after MPI has been finalized, which waits
//!   for the other ranks, and these may be waiting for this one.
//! - Run the program on one rank: an error that remains is not in the communication. Then run it on
//!   two ranks, and on three, as a wrong root or neighbour is often right on two.
//! - [`testing::gradcheck`](crate::testing::gradcheck) compares the gradient on all ranks with
//!   finite differences. It finds errors that do not hang: a tensor that was detached, or a part
//!   that one rank omits.

pub mod cluster;
pub mod devices;
pub mod from_mpi4torch;
pub mod from_torch_distributed;
