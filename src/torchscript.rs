//! The operations for TorchScript and C++: modules that were scripted in Python call them, load by
//! [`CModule`](tch::CModule), and train.
//!
//! [`initialize`](crate::initialize) registers them with libtorch's dispatcher, in the namespace
//! `mpi4tch`. Each has the name, the parameters and the derivative of the method of
//! [`Communicator`].
//!
//! # A module from Python
//!
//! Python needs the schemas of the operations that a module calls, and neither MPI nor this crate:
//!
//! ```python
//! from typing import Optional
//!
//! import torch
//!
//! library = torch.library.Library("mpi4tch", "FRAGMENT")
//! for schema in (
//!     "broadcast(Tensor x, int root, int? communicator=None) -> Tensor",
//!     "all_reduce(Tensor x, str op, int? communicator=None) -> Tensor",
//!     "size(int? communicator=None) -> int",
//! ):
//!     library.define(schema, alias_analysis="CONSERVATIVE")
//!
//!
//! class Regression(torch.nn.Module):
//!     """The mean over all ranks of their squared errors, with rank 0's parameters."""
//!
//!     def __init__(self):
//!         super().__init__()
//!         self.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.double))
//!         self.bias = torch.nn.Parameter(torch.zeros(1, dtype=torch.double))
//!
//!     def forward(self, x: torch.Tensor, y: torch.Tensor, communicator: Optional[int] = None):
//!         weight = torch.ops.mpi4tch.broadcast(self.weight, 0, communicator)
//!         bias = torch.ops.mpi4tch.broadcast(self.bias, 0, communicator)
//!         error = (x @ weight + bias - y).square().mean()
//!         ranks = torch.ops.mpi4tch.size(communicator)
//!         # Every rank has the sum as its loss, so it counts once per rank.
//!         return torch.ops.mpi4tch.all_reduce(error, "mean", communicator) / ranks
//!
//!
//! torch.jit.script(Regression()).save("regression.pt")
//! ```
//!
//! With `alias_analysis="CONSERVATIVE"`, TorchScript takes a call to have effects of its own. Without
//! it, a schema says that the operation is a pure function: TorchScript drops a call whose result is
//! not used, and makes one of several that have equal arguments, so that messages are not sent or
//! received. In a Rust program this crate's own schemas count, which are conservative; the argument is
//! for what Python optimizes before it saves a module, as `torch.jit.freeze` does.
//!
//! The program initializes MPI before it loads the module:
//!
//! ```
//! use tch::nn::{self, OptimizerConfig};
//! use tch::{Device, Kind, Tensor, TrainableCModule};
//!
//! # std::env::set_current_dir("tests/torchscript")?;
//! let universe = mpi4tch::initialize()?;
//! let store = nn::VarStore::new(Device::Cpu);
//! let regression = TrainableCModule::load("regression.pt", store.root())?;
//! let mut optimizer = nn::Sgd::default().build(&store, 0.1)?;
//!
//! let x = Tensor::from_slice(&[0.0, 1.0, 2.0, 1.0, 0.0, 3.0]).view([3, 2]);
//! let y = Tensor::from_slice(&[2.0, 4.0, 7.0]);
//! let mut losses = Vec::new();
//! for _ in 0..50 {
//!     let loss = regression.forward_ts(&[&x, &y])?;
//!     optimizer.backward_step(&loss);
//!     losses.push(loss.double_value(&[]));
//! }
//! assert!(losses[49] < 0.1 * losses[0], "{losses:?}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A module in which all ranks have the same parameters, and whose loss does not communicate, can be
//! trained by [`DataParallel`](crate::DataParallel) as any other; otherwise use
//! [`backward_on`](crate::DataParallel::backward_on), with the handle of its tape.
//!
//! # Communicators
//!
//! Calls without a communicator are on the [world](crate::Universe::world). Others take the number of
//! a [`Handle`], which [`Communicator::script_handle`] returns. As a [`Tape`](crate::Tape)
//! dereferences to a communicator, it has handles too, and calls by them are recorded on it:
//!
//! ```
//! # use tch::{IValue, Tensor, TrainableCModule, nn};
//! # let universe = mpi4tch::initialize()?;
//! # let world = universe.world();
//! # let store = nn::VarStore::new(tch::Device::Cpu);
//! # let regression = TrainableCModule::load("tests/torchscript/regression.pt", store.root())?;
//! # let x = Tensor::from_slice(&[0.0, 1.0, 2.0, 1.0]).view([2, 2]);
//! # let y = Tensor::from_slice(&[2.0, 4.0]);
//! let tape = world.tape();
//! let handle = tape.script_handle()?;
//! let arguments = [IValue::Tensor(x), IValue::Tensor(y), IValue::from(&handle)];
//! if let IValue::Tensor(loss) = regression.forward_is(&arguments)? {
//!     tape.backward(&loss)?;
//! }
//! assert_eq!(store.variables()["bias"].grad().size(), [1]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Operations
//!
//! [`schemas`] returns this list:
//!
//! ```text
//! all_reduce(Tensor x, str op, int? communicator=None) -> Tensor
//! reduce(Tensor x, str op, int root, int? communicator=None) -> Tensor
//! broadcast(Tensor x, int root, int? communicator=None) -> Tensor
//! gather(Tensor x, int axis, int root, int? communicator=None) -> Tensor
//! gather_with_counts(Tensor x, int axis, int[] counts, int root, int? communicator=None) -> Tensor
//! scatter(Tensor x, int axis, int counts, int root, int? communicator=None) -> Tensor
//! scatter.list(Tensor x, int axis, int[] counts, int root, int? communicator=None) -> Tensor
//! all_gather(Tensor x, int axis, int? communicator=None) -> Tensor
//! all_gather_with_counts(Tensor x, int axis, int[] counts, int? communicator=None) -> Tensor
//! reduce_scatter(Tensor x, int axis, int counts, str op, int? communicator=None) -> Tensor
//! reduce_scatter.list(Tensor x, int axis, int[] counts, str op, int? communicator=None) -> Tensor
//! all_to_all(Tensor x, int gather_axis, int scatter_axis, int counts, int? communicator=None) -> Tensor
//! all_to_all.list(Tensor x, int gather_axis, int scatter_axis, int[] counts, int? communicator=None) -> Tensor
//! all_to_all_with_counts(Tensor x, int gather_axis, int[] gather_counts, int scatter_axis, int[] scatter_counts, int? communicator=None) -> Tensor
//! all_to_all_v(Tensor x, int axis, int[] send, int? communicator=None) -> Tensor
//! all_to_all_v_with_counts(Tensor x, int axis, int[] send, int[] receive, int? communicator=None) -> Tensor
//! scan(Tensor x, str op, int? communicator=None) -> Tensor
//! exscan(Tensor x, str op, int? communicator=None) -> Tensor
//! max_loc(Tensor x, int? communicator=None) -> (Tensor, Tensor)
//! min_loc(Tensor x, int? communicator=None) -> (Tensor, Tensor)
//! barrier(int? communicator=None) -> ()
//! send(Tensor x, int dest, int tag, int? communicator=None) -> Tensor
//! recv(Tensor like, int? source, int? tag, int? communicator=None) -> Tensor
//! sendrecv(Tensor x, int dest, Tensor like, int? source, int tag, int? communicator=None) -> Tensor
//! iall_reduce(Tensor x, str op, int? communicator=None) -> int
//! ireduce(Tensor x, str op, int root, int? communicator=None) -> int
//! ibroadcast(Tensor x, int root, int? communicator=None) -> int
//! igather(Tensor x, int axis, int root, int? communicator=None) -> int
//! igather_with_counts(Tensor x, int axis, int[] counts, int root, int? communicator=None) -> int
//! iscatter(Tensor x, int axis, int counts, int root, int? communicator=None) -> int
//! iscatter.list(Tensor x, int axis, int[] counts, int root, int? communicator=None) -> int
//! iall_gather(Tensor x, int axis, int? communicator=None) -> int
//! iall_gather_with_counts(Tensor x, int axis, int[] counts, int? communicator=None) -> int
//! ireduce_scatter(Tensor x, int axis, int counts, str op, int? communicator=None) -> int
//! ireduce_scatter.list(Tensor x, int axis, int[] counts, str op, int? communicator=None) -> int
//! iall_to_all(Tensor x, int gather_axis, int scatter_axis, int counts, int? communicator=None) -> int
//! iall_to_all.list(Tensor x, int gather_axis, int scatter_axis, int[] counts, int? communicator=None) -> int
//! iall_to_all_with_counts(Tensor x, int gather_axis, int[] gather_counts, int scatter_axis, int[] scatter_counts, int? communicator=None) -> int
//! iall_to_all_v(Tensor x, int axis, int[] send, int? communicator=None) -> int
//! iall_to_all_v_with_counts(Tensor x, int axis, int[] send, int[] receive, int? communicator=None) -> int
//! iscan(Tensor x, str op, int? communicator=None) -> int
//! iexscan(Tensor x, str op, int? communicator=None) -> int
//! ibarrier(int? communicator=None) -> int
//! isend(Tensor x, int dest, int tag, int? communicator=None) -> int
//! irecv(Tensor like, int? source, int? tag, int? communicator=None) -> int
//! wait(int request) -> Tensor
//! drop_request(int request) -> ()
//! rank(int? communicator=None) -> int
//! size(int? communicator=None) -> int
//! proc_null() -> int
//! join_dummies(Tensor x, Tensor[] dummies) -> Tensor
//! ```
//!
//! - `op` is `"sum"`, `"prod"`, `"max"`, `"min"`, `"mean"`, `"logical_and"`, `"logical_or"`,
//!   `"logical_xor"`, `"bitwise_and"`, `"bitwise_or"` or `"bitwise_xor"`: see [`Op`](crate::Op).
//! - `counts` are an integer or a list: see [`Counts`](crate::Counts).
//! - A `source` or `tag` that is `None` is any. `proc_null` returns [`PROC_NULL`](crate::PROC_NULL).
//! - An operation whose name begins with an `i` is started, and returns the number of its
//!   [`Request`](crate::Request), for `wait` on the same rank. Both calls have their nodes in the
//!   graph: the pullback of `wait` starts the adjoint. `drop_request` gives up a request that is not to
//!   be waited for, as a drop in Rust does.
//!
//! Operations in place, and those of a grid or graph of ranks, are not among them.
//!
//! # What differs from Rust
//!
//! - An error is an exception with the text of the [`Error`], to which TorchScript adds the lines of
//!   the module that called. tch returns it as `TchError::Torch`, so its variant is lost.
//! - The name of an op, and the number of a communicator or request, are looked up before the ranks
//!   agree on the call. If they are wrong on one rank only, the others wait for it.
//! - Timeouts, timelines and errors that compare ranks name a line of this crate instead of the line
//!   of the program, which libtorch does not pass on. All operations are reported at the same line, so
//!   that lines do not tell the calls of scripts apart.
//! - After the end of the universe a call that communicates is an error, "MPI has been finalized".
//!   Requests that were not waited for by then are dropped.
//! - Modes of torch hold as elsewhere: nothing is recorded under `no_grad` and in inference mode.
//!   Autocast leaves these operations and their arguments as they are. A tensor without data, on the
//!   device `meta` or a fake one, is an error, so `torch.compile` and `torch.export` cannot trace a
//!   call. `torch.jit.trace` can, where the operation returns tensors; calls of operations that return
//!   numbers must be scripted.
//! - `torch.jit.fork` may run a call on another thread: see [threads](crate#threads).
//! - If several copies of this crate are in a program, in libraries that were loaded at run time, the
//!   first to be initialized carries out all operations. If other code has implemented one of them
//!   before, as Python's `torch.library` can, this crate carries out none.
//!
//! # From C++
//!
//! ```cpp
//! #include <ATen/core/dispatch/Dispatcher.h>
//!
//! at::Tensor all_reduce(const at::Tensor &x, std::optional<int64_t> communicator) {
//!   static const auto op =
//!       c10::Dispatcher::singleton()
//!           .findSchemaOrThrow("mpi4tch::all_reduce", "")
//!           .typed<at::Tensor(const at::Tensor &, c10::string_view, std::optional<int64_t>)>();
//!   return op.call(x, "sum", communicator);
//! }
//! ```
//!
//! Python finds them in `torch.ops.mpi4tch`, if the program is a Python extension that uses PyTorch's
//! libtorch.

mod operations;
mod registry;
mod values;

use std::sync::atomic::{AtomicBool, Ordering};

use tch::IValue;

use crate::autograd;
use crate::base::error::{Error, Result};
use crate::engine::communicator::Communicator;

/// The schemas of all operations, for Python's `torch.library`.
///
/// # Examples
/// ```
/// let schemas = mpi4tch::torchscript::schemas();
/// let all_reduce = "all_reduce(Tensor x, str op, int? communicator=None) -> Tensor";
/// assert!(schemas.contains(&all_reduce));
/// ```
#[must_use]
pub fn schemas() -> Vec<&'static str> {
    operations::ALL.iter().map(|operation| operation.schema.as_str()).collect()
}

/// The number by which TorchScript and C++ name a communicator, until it is dropped.
///
/// Made by [`Communicator::script_handle`]. The number is this rank's own: other ranks may have
/// another for the same communicator. No number is given twice. A handle keeps its communicator, but
/// not the tape that the communicator is on.
///
/// # Examples
/// ```
/// use tch::IValue;
///
/// let universe = mpi4tch::initialize()?;
/// let handle = universe.world().duplicate()?.script_handle()?;
/// // An argument for a module's `communicator: Optional[int]`.
/// assert_eq!(IValue::from(&handle), IValue::Int(handle.number()));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the number is valid until the handle is dropped"]
pub struct Handle {
    number: i64,
}

impl Handle {
    /// The number, for the argument `communicator` of an operation.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let handle = universe.world().script_handle()?;
    /// println!("torch.ops.mpi4tch.size({})", handle.number());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    pub fn number(&self) -> i64 {
        self.number
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        registry::remove_communicator(self.number);
    }
}

impl From<&Handle> for IValue {
    fn from(handle: &Handle) -> Self {
        Self::Int(handle.number)
    }
}

impl Communicator {
    /// Returns a handle by which TorchScript and C++ call operations on this communicator.
    ///
    /// Local.
    ///
    /// # Errors
    /// [`Error::Argument`] if other code carries out operations of these names, such as another copy
    /// of this crate in a library that was loaded at run time: it does not know this copy's
    /// communicators.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let (first, second) = (world.script_handle()?, world.script_handle()?);
    /// assert_ne!(first.number(), second.number());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    ///
    /// A module that takes one is in [`torchscript`](crate::torchscript#communicators).
    pub fn script_handle(&self) -> Result<Handle> {
        if !ARE_OURS.load(Ordering::Relaxed) {
            let message = "other code in this program carries out the operations of TorchScript, \
                           and does not know this communicator";
            return Err(Error::Argument { call: "script_handle", message: message.to_owned() });
        }
        Ok(Handle { number: registry::add_communicator(self.clone()) })
    }
}

/// Whether this copy of the crate carries out the operations.
static ARE_OURS: AtomicBool = AtomicBool::new(false);

/// Registers the operations, and makes this their world.
pub(crate) fn begin(world: &Communicator) -> Result<()> {
    if !ARE_OURS.load(Ordering::Relaxed) {
        ARE_OURS.store(autograd::register(&operations::ALL)?, Ordering::Relaxed);
    }
    registry::set_world(world);
    Ok(())
}

/// To be called at the end of the universe with this world: from then on, the operations return
/// errors.
pub(crate) fn end(world: &Communicator) {
    registry::clear(world);
}
