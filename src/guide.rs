//! A guide to parallel autodiff, for those who know torch's autograd on one process.
//!
//! # Each rank has a graph of its own
//!
//! libtorch records the graph of its own process. A call of this crate is a node of it, as `matmul`
//! is; but what lies behind that node is not another node, it is MPI. So a program on p ranks has
//! p graphs, and no edge leads from one to another. Instead, two nodes on two ranks belong together
//! because they make matching MPI calls:
//!
//! ```text
//!            rank 0                     rank 1
//! forward    a ──▸ [send] · · · y · · ▸ [recv] ──▸ y ──▸ ℓ₁
//! backward   ā ◂── [recv] ◂ · · ȳ · · · [send] ◂── ȳ ◂── 1
//! ```
//!
//! Forward, y comes by a message. Backward, libtorch walks the graph of rank 1 from ℓ₁ to the node
//! of the receive, whose pullback sends ȳ back. On rank 0 the pullback of the send receives it.
//! Neither can do without the other: both ranks must run a backward pass, and both passes must come
//! to these nodes. All that can go wrong, and all the remedies below, are about that.
//!
//! # The adjoint of a communication
//!
//! Take the tensors of all ranks as one long vector. Then most communications are matrices, of
//! which each rank computes some rows, and the backward pass multiplies by the transpose:
//!
//! ```text
//! broadcast from 0        its adjoint: reduce to 0      send 0 → 1     its adjoint: send 1 → 0
//! y₀   1 0 0   x₀         x̄₀   1 1 1   ȳ₀               y₁ = x₀        x̄₀ = ȳ₁
//! y₁ = 1 0 0 · x₁         x̄₁ = 0 0 0 · ȳ₁
//! y₂   1 0 0   x₂         x̄₂   0 0 0   ȳ₂
//! ```
//!
//! What was copied to many is added up from many; what went from here to there comes from there to
//! here. The transpose is a communication again, of the same volume, and it too can be
//! differentiated. A matrix F and its transpose F\* satisfy ⟨F x, y⟩ = ⟨x, F\* y⟩ for all x and y,
//! where both products are summed over all ranks. That is how to test code of your own:
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
//! p passes together differentiate the *sum* of the p losses, whatever each rank means by its own:
//!
//! ```text
//!          rank 0    rank 1    rank 2
//! loss     ℓ         ℓ         ℓ         the same number, all-reduced
//! seed     1         1         1         so 3·ℓ is differentiated
//! ```
//!
//! A scalar that all ranks have in common is therefore to be divided, or to be differentiated on
//! one rank. Better still is to differentiate what it was reduced from: the sum over the ranks is
//! there already, and the backward pass has one call less.
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
//! The same convention makes p variables of a parameter that all ranks have a copy of: the gradient
//! of each copy is that by its own rank's use of it. The gradient of the parameter is the sum of
//! them. It comes by itself where the program says that the copies are one: with
//! `let w = world.broadcast(&w, 0)?` before it is used, rank 0 receives the sum.
//!
//! ## The program hangs, or the gradient lacks a part: a dead branch
//!
//! libtorch visits what the loss depends on, and nothing else. On one process, a result that nobody
//! uses costs nothing. Here, another rank waits for it:
//!
//! ```text
//!            rank 0                     rank 1
//! forward    y = all_reduce(x)          y = all_reduce(x)
//!            loss = y²                  does not use y
//! backward   all_reduce: waits …        nothing to do: goes on, and ends
//! ```
//!
//! A rank without a loss has such a branch, a rank on which an input does not require grad, and a
//! program whose branches depend on the rank. So has every send, unless the program goes on with
//! the tensor that [`send`](crate::Communicator::send) returns. A dead send need not even hang: MPI
//! may take a small message, here the cotangent, before anybody receives it. Then the gradient
//! lacks it, and the next backward pass may receive it in place of its own.
//!
//! By hand, a branch is brought back to life by giving it a part in the loss, with the weight zero:
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
//! MPI matches collective calls by their order, and so it does with messages between two ranks that
//! have the same tag. In the backward pass it is libtorch that makes the calls, in an order of its
//! own: of the nodes whose cotangents are complete it takes the newest. On the CPU, and with a
//! forward pass on one thread, that is the forward order reversed, which suits. But nothing in the
//! graph says so:
//!
//! ```text
//! u ──▸ [all_reduce] ──▸ p ──▸ on the CPU ────┐
//!                                             ├──▸ loss       which of the two is ready first?
//! v ──▸ [all_reduce] ──▸ q ──▸ on a GPU ──────┘
//! ```
//!
//! The nodes of each device have a queue of their own, and those that another thread has made are
//! numbered on their own. Then it is a race, which may end differently on each rank. And the order
//! of whole backward passes is up to the program: two losses must be taken in turn, the same on
//! each rank.
//!
//! # Dummies: the order by hand
//!
//! [`join_dummies`](crate::join_dummies)`(x, dummies)` is x, but depends on the dummies as well. In
//! the backward pass x receives its cotangent unchanged, and the dummies receive zeros. So both the
//! order and the life of a branch can be written into the graph. This is a ring, in which each rank
//! sends to the right, receives from the left, and waits for its send:
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
//! ```text
//! forward    isend ──▸ recv ──▸ wait ──▸ loss
//! backward   wait  ◂── send ◂── irecv ◂── 1
//! ```
//!
//! Without dummies the gradient is 1, as no rank receives what its right neighbour sends back. With
//! some of them forgotten, the ring may go on to work by libtorch's habit alone. Read such code from
//! the loss backwards: each call must be met, after those that followed it.
//!
//! # The tape: the order by itself
//!
//! A [`Tape`](crate::Tape) is a communicator that remembers. It threads a tensor without elements,
//! the token, through all calls that are made on it, so that each depends on the one before:
//!
//! ```text
//! token ══▸ [isend] ══▸ [recv] ══▸ [wait] ══▸ token
//!             ▲           │
//!             a           └─▸ b ──▸ a + b ──▸ loss
//! ```
//!
//! [`backward`](crate::Tape::backward) starts from both ends, the loss and the token. So every call
//! is met, once, and in the reverse order, by data dependence. It is a collective call: a rank
//! without a loss makes it with `None`. Before they start, the ranks compare what they have
//! recorded. Where that does not fit together, all of them get the same
//! [`Error::Tape`](crate::Error::Tape), which names rank, call and source line.
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
//! Only what is called on the tape is on the tape. A call on the communicator itself takes its
//! chance, like any other node. And the tape does not divide: the objective is still the sum of all
//! ranks' losses, to which `None` adds nothing. What is on the tape is gone back through by the tape
//! only: an optimizer's `backward_step`, or `Tensor::backward`, is an error there. Call the tape's
//! `backward`, then the optimizer's `step`.
//!
//! # Requests: what overlaps forward overlaps backward
//!
//! A nonblocking call is two nodes, its start and its wait. The pullback of the wait *starts* the
//! adjoint, and the pullback of the start *waits* for it. What was computed between them is newer
//! than the start and older than the wait, so its pullbacks run in between, too:
//!
//! ```text
//! forward    [start F ]──▸ local work            ──▸[wait for F ]
//!                     └─────── F in flight ────────┘
//! backward   [wait for F*]◂── its pullbacks      ◂──[start F*]
//!                     └─────── F* in flight ───────┘
//! ```
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
//! # Second derivatives
//!
//! Pullbacks are made of the same operations, so they can be recorded and differentiated again, by
//! [`grad_with`](crate::Tape::grad_with) and its last argument, `create_graph`. There is then more
//! to be met: the second backward pass goes through the calls of the first one and through those of
//! the forward pass. The tape goes on and orders them all.
//!
//! ```text
//! forward    token ══▸ [all_reduce] ══▸ token        y = Σ x
//! first      token ◂══ [all_reduce] ◂══ token        g = ∂L/∂x
//! second     goes back through both                  H·v = ∂(Σ g·v)/∂x
//! ```
//!
//! So the second derivatives of L, multiplied by a vector of which each rank has its part v, cost
//! two backward passes. Here L is y³ and H·v is 6·y·Σ v:
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
//! None is needed where every rank's backward pass comes to every call by itself: where each result
//! has its part in a loss on each rank, inputs require grad on all ranks or on none, and all of it
//! is on the CPU. Data-parallel training is of this kind; `examples/linear_regression.rs` has two
//! calls of [`all_reduce`](crate::Communicator::all_reduce) and no tape. Code without derivatives
//! needs none either. Where messages are sent, take one: it costs one small message per backward
//! pass.
//!
//! # When it hangs, or when the result is wrong
//!
//! - The ranks agree on each collective call before they make it. Calls that do not match become an
//!   error on all ranks, also in the backward pass. `MPI4TCH_CHECK=collective`, the default in debug
//!   builds, also compares whether calls are recorded, and what messages hold. A rank that makes no
//!   call is beyond its reach.
//! - `MPI4TCH_TIMEOUT=30` ends a program in which a call waits for longer than 30 seconds. Each
//!   rank says which call it is in, where that is in the source, and for how long it has waited; in
//!   the backward pass, which is named, the line is that of the forward call. A rank that says
//!   nothing is in no call: there is the branch that died. Without it, a rank that has waited for a
//!   minute says so, and waits on.
//! - Let [`run`](crate::run) run the program: a rank whose program returns an error prints it and ends
//!   the job. From a `main` that returns an error Rust prints it after all else, while the end waits
//!   for the other ranks, which may be waiting for this one.
//! - Run it on one rank: what is wrong there is not the communication. Then on two, and on three,
//!   as many a wrong root or neighbour is right on two.
//! - [`testing::gradcheck`](crate::testing::gradcheck) compares the gradient on all ranks with
//!   finite differences. It finds what does not hang: a part that was detached, or that one rank
//!   leaves out.
