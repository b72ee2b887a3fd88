//! [`Error`]: why a call failed.

use std::fmt;
use std::panic::Location;

use tch::Kind;

use crate::base::op::Op;
use crate::base::rank::Rank;

/// The result of every fallible call of this crate.
///
/// # Examples
/// ```
/// use mpi4tch::{Communicator, Op, Result};
/// use tch::Tensor;
///
/// fn mean(comm: &Communicator, x: &Tensor) -> Result<Tensor> {
///     comm.all_reduce(x, Op::Mean)
/// }
///
/// let universe = mpi4tch::initialize()?;
/// let x = Tensor::from_slice(&[1.5]);
/// assert_eq!(mean(&universe.world(), &x)?, x);
/// # Ok::<(), mpi4tch::Error>(())
/// ```
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed. The text of an error names the call first, then what came and what was needed.
///
/// # Examples
/// ```
/// use mpi4tch::Error;
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let error = world.broadcast(&Tensor::from_slice(&[1.0]), -1).unwrap_err();
/// assert!(matches!(error, Error::Rank { role: "root", rank: -1, .. }));
/// let text = format!("broadcast: root -1 is out of range for {} ranks", world.size());
/// assert_eq!(error.to_string(), text);
/// # Ok::<(), Error>(())
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An MPI function returned an error code.
    #[error("{call} failed: {message} ({class}){}", after_colon(.detail))]
    Mpi {
        /// The MPI function.
        call: &'static str,
        /// The error class as the MPI standard names it: `MPI_ERR_COMM`.
        class: &'static str,
        /// The library's text for the class.
        message: String,
        /// What the library says of this failure beyond its text for the class; may be empty.
        detail: String,
    },

    /// The tensor is undefined.
    #[error("{call}: the tensor is undefined, like a gradient that was never computed")]
    Undefined {
        /// The operation.
        call: &'static str,
    },

    /// The tensor's kind has no MPI datatype.
    #[error("{call}: kind {kind} has no MPI datatype")]
    Kind {
        /// The operation.
        call: &'static str,
        /// The tensor's kind, as libtorch names it.
        kind: String,
    },

    /// The op is not defined for the tensor's kind.
    #[error("{call}: Op::{op:?} is not defined for kind {kind:?}")]
    OpKind {
        /// The operation.
        call: &'static str,
        /// The op asked for.
        op: Op,
        /// The tensor's kind.
        kind: Kind,
    },

    /// The op is not differentiable, and the input requires grad.
    #[error("{call}: Op::{op:?} has no adjoint; detach the input first")]
    NoAdjoint {
        /// The operation.
        call: &'static str,
        /// The op asked for.
        op: Op,
    },

    /// The op is not defined for this operation.
    #[error("{call}: Op::{op:?} is not defined; {reason}")]
    Op {
        /// The operation.
        call: &'static str,
        /// The op asked for.
        op: Op,
        /// Why.
        reason: &'static str,
    },

    /// The tensor has no such axis.
    #[error("{call}: axis {axis} is out of range for a tensor of shape {shape:?}")]
    Axis {
        /// The operation.
        call: &'static str,
        /// The axis asked for.
        axis: i64,
        /// The tensor's shape.
        shape: Vec<i64>,
    },

    /// The communicator has no such rank.
    #[error("{call}: {role} {rank} is out of range for {size} ranks")]
    Rank {
        /// The operation.
        call: &'static str,
        /// The argument that the rank was given for: `root`.
        role: &'static str,
        /// The rank asked for.
        rank: Rank,
        /// The size of the communicator.
        size: Rank,
    },

    /// The counts do not fit the tensor or the ranks.
    #[error("{call}: {message}")]
    Counts {
        /// The operation.
        call: &'static str,
        /// What came and what was needed.
        message: String,
    },

    /// An argument has a value that the call cannot take.
    #[error("{call}: {message}")]
    Argument {
        /// The operation.
        call: &'static str,
        /// What came and what was needed.
        message: String,
    },

    /// A message does not match the tensor that it was to be received into.
    #[error("{call}: {message}")]
    Message {
        /// The operation.
        call: &'static str,
        /// What came and what was needed.
        message: String,
    },

    /// A tensor was changed in place while MPI was reading it.
    #[error("{call}: the tensor was changed in place between the start, at {at}, and the wait")]
    InFlight {
        /// The operation.
        call: &'static str,
        /// The line that started the call.
        at: &'static Location<'static>,
    },

    /// The derivative of a started call needs its result, but the program never waited for it.
    #[error(
        "{call}: its derivative needs the result, but what was started at {at} was never waited for"
    )]
    Unreached {
        /// The operation.
        call: &'static str,
        /// The line that started the call.
        at: &'static Location<'static>,
    },

    /// The ranks have recorded different calls on a tape. All of them get this error, and none has
    /// begun the backward pass.
    #[error("the ranks recorded different calls on the tape:{differences}")]
    Tape {
        /// The first calls that differ, each with its rank and its line in the program.
        differences: String,
    },

    /// The ranks disagree on a call. All of them get this error, and none has made the call.
    #[error("the ranks disagree on a call:{differences}")]
    Mismatch {
        /// A line for each argument that differs, with the ranks that have each value.
        differences: String,
    },

    /// A call that the ranks had agreed on failed or was given up on this rank, while other ranks
    /// may have made it. No further collective call can be made on the communicator.
    #[error(
        "{call}: an earlier call on this communicator failed on this rank after the ranks had agreed \
         on it, so their calls no longer match; make another communicator"
    )]
    OutOfStep {
        /// The operation.
        call: &'static str,
    },

    /// Started calls or messages were left over when MPI was finalized.
    #[error("finalize: {what}")]
    Left {
        /// A line for each message that no rank received, and for each started call that did not
        /// end, or that failed and was never waited for.
        what: String,
    },

    /// An environment variable has a value that is not allowed.
    #[error("initialize: {name} is {value:?}; it may be {needed}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// The values that are allowed.
        needed: &'static str,
    },

    /// The tensor is sparse, quantized or nested.
    #[error("{call}: the tensor has no strided storage; a dense tensor is needed")]
    Layout {
        /// The operation.
        call: &'static str,
    },

    /// The tensor is neither in host memory nor on a device from which it can be copied there.
    #[error("{call}: the tensor is on device {device}, whose tensors cannot be copied to MPI")]
    Device {
        /// The operation.
        call: &'static str,
        /// The tensor's device, as libtorch names it: `meta`.
        device: String,
    },

    /// The data that the ranks exchange for the crate's own use is too large for one MPI call.
    #[error("{call}: the data of all ranks exceeds 2 GiB")]
    Exchange {
        /// The operation.
        call: &'static str,
    },

    /// MPI has not been initialized.
    #[error("{call}: MPI has not been initialized; call mpi4tch::initialize first")]
    Uninitialized {
        /// The operation.
        call: &'static str,
    },

    /// MPI has been finalized.
    #[error("{call}: MPI has been finalized")]
    Finalized {
        /// The operation.
        call: &'static str,
    },

    /// The call came from a thread that may not call MPI.
    #[error(
        "{call}: called from a thread that may not call MPI (thread level {level:?}); {needed}"
    )]
    Thread {
        /// The operation.
        call: &'static str,
        /// The thread level that MPI was initialized with.
        level: crate::base::thread_level::ThreadLevel,
        /// What the caller may do instead.
        needed: &'static str,
    },

    /// The MPI library loaded at run time is of another vendor than the one compiled against.
    #[error(
        "initialize: compiled against {compiled}, but {loaded} was loaded, and their ABIs differ; \
         rebuild with MPI4TCH_MPI set to the one that is loaded, or mend the library path"
    )]
    Library {
        /// The vendor and version that `mpi_sys` was compiled against.
        compiled: String,
        /// The text that `MPI_Get_library_version` returns.
        loaded: String,
    },

    /// The launcher of another MPI started several ranks, each in a world of its own.
    #[error(
        "initialize: {variable} says that {launched} ranks were started, but each is alone in its \
         world: the launcher is not one of {vendor}, which the program is compiled for; start it \
         with {launcher}, or set MPI4TCH_ALLOW_SINGLETONS=1 if that is meant"
    )]
    Launcher {
        /// The environment variable in which the launcher states the number of ranks.
        variable: &'static str,
        /// Its value.
        launched: i32,
        /// The vendor of the MPI that the program is compiled for.
        vendor: mpi_sys::Vendor,
        /// The launcher of that MPI: a path, or `mpiexec`.
        launcher: &'static str,
    },

    /// A function of tch failed.
    #[error(transparent)]
    Torch(#[from] tch::TchError),

    /// A function of libtorch that this crate calls directly, not through tch, failed.
    #[error("{call}: {message}")]
    Autograd {
        /// The operation.
        call: &'static str,
        /// libtorch's error text.
        message: String,
    },
}

/// The same text as `Display`, since Rust prints the `Debug` form of an error that `main` returns.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `: detail`, or nothing if `detail` is empty.
fn after_colon(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}
