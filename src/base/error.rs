//! [`Error`], and the one place that turns an MPI status into a [`Result`].

use std::ffi::c_int;
use std::fmt;
use std::panic::Location;

use tch::Kind;

use crate::base::op::Op;
use crate::base::rank::Rank;

/// What every fallible call of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed: the call first, then what came and what was needed.
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
        /// What the library says of this failure beyond that; empty if it says no more.
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
        /// What the rank was to be: `root`.
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

    /// A message is not what it was to be received into.
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
        /// Where it was started.
        at: &'static Location<'static>,
    },

    /// The derivative of what was started needs its result, and nobody waited for it.
    #[error(
        "{call}: its derivative needs the result, but what was started at {at} was never waited for"
    )]
    Unreached {
        /// The operation.
        call: &'static str,
        /// Where it was started.
        at: &'static Location<'static>,
    },

    /// The ranks have recorded different calls on a tape. All of them get this error, and none has
    /// begun the backward pass.
    #[error("the ranks recorded different calls on the tape:{differences}")]
    Tape {
        /// The first calls that differ: each with its line, and its rank.
        differences: String,
    },

    /// The ranks disagree on a call. All of them get this error, and none has made the call.
    #[error("the ranks disagree on a call:{differences}")]
    Mismatch {
        /// A line for each argument that differs, with the ranks that have each value.
        differences: String,
    },

    /// A call that the ranks had agreed on failed on this rank, or was given up: other ranks may have
    /// made it. No further collective call can be made on the communicator.
    #[error(
        "{call}: an earlier call on this communicator failed on this rank after the ranks had agreed \
         on it, so their calls no longer match; make another communicator"
    )]
    OutOfStep {
        /// The operation.
        call: &'static str,
    },

    /// What ranks have started or sent was left over at MPI's end.
    #[error("finalize: {what}")]
    Left {
        /// A line for each message that nobody received and each call that did not end.
        what: String,
    },

    /// An environment variable has a value that means nothing.
    #[error("initialize: {name} is {value:?}; it may be {needed}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        needed: &'static str,
    },

    /// The tensor is sparse, quantized or nested.
    #[error("{call}: the tensor has no strided storage; a dense tensor is needed")]
    Layout {
        /// The operation.
        call: &'static str,
    },

    /// The tensor is not in host memory.
    #[error("{call}: the tensor is on device {device}; move it to the CPU first")]
    Device {
        /// The operation.
        call: &'static str,
        /// Where it is, as libtorch names it: `cuda:0`.
        device: String,
    },

    /// The ranks' data is too much for one exchange of the crate's own.
    #[error("{call}: the data of all ranks exceeds 2 GiB")]
    Exchange {
        /// The operation.
        call: &'static str,
    },

    /// MPI is not there yet.
    #[error("{call}: MPI has not been initialized; call mpi4tch::initialize first")]
    Uninitialized {
        /// The operation.
        call: &'static str,
    },

    /// MPI is not there any more.
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
        /// What would be allowed.
        needed: &'static str,
    },

    /// The MPI library that was loaded is not the one that was compiled against.
    #[error(
        "initialize: compiled against {compiled}, but {loaded} was loaded, and their ABIs differ; \
         rebuild with MPI4TCH_MPI set to the one that is loaded, or mend the library path"
    )]
    Library {
        /// What `mpi_sys` was compiled against.
        compiled: String,
        /// What `MPI_Get_library_version` says.
        loaded: String,
    },

    /// The launcher of another MPI started several ranks, each in a world of its own.
    #[error(
        "initialize: {variable} says that {launched} ranks were started, but each is alone in its \
         world: the launcher is not one of {vendor}, which the program is compiled for; start it \
         with {launcher}, or set MPI4TCH_ALLOW_SINGLETONS=1 if that is meant"
    )]
    Launcher {
        /// The variable by which the launcher counts the ranks.
        variable: &'static str,
        /// Its value.
        launched: i32,
        /// Whose MPI the program is compiled for.
        vendor: mpi_sys::Vendor,
        /// The launcher of that MPI: a path, or `mpiexec`.
        launcher: &'static str,
    },

    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] tch::TchError),

    /// libtorch refused, below tch.
    #[error("{call}: {message}")]
    Autograd {
        /// The operation.
        call: &'static str,
        /// libtorch's text.
        message: String,
    },
}

/// As `Display`: it is what a `main` that returns its error prints.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Turns what `call` returned into a `Result`.
#[inline]
pub(crate) fn check(call: &'static str, code: c_int) -> Result<()> {
    if code == mpi_sys::MPI_SUCCESS { Ok(()) } else { Err(failure(call, code)) }
}

#[cold]
fn failure(call: &'static str, code: c_int) -> Error {
    if !can_explain() {
        let message = format!("error code {code}, while MPI is not initialized");
        return Error::Mpi { call, class: "MPI_ERR_OTHER", message, detail: String::new() };
    }
    let mut class = code;
    // SAFETY: MPI_Error_class takes any code that an MPI function returned; `class` outlives it.
    unsafe { mpi_sys::MPI_Error_class(code, &mut class) };
    let name = class_name(class);
    let text = error_string(class);
    let detail = detail(&error_string(code), &text);
    // Open MPI puts the name of the class before the text.
    let text = text.strip_prefix(name).map_or(text.as_str(), |rest| rest.trim_start_matches(": "));
    let mut message = uncapitalized(text);
    if class == mpi_sys::MPI_ERR_TRUNCATE {
        message.push_str("; MPI4TCH_CHECK=collective tells what differs between the ranks");
    }
    Error::Mpi { call, class: name, message, detail }
}

/// What the library's text for a code says beyond its text for the code's class.
///
/// MPICH's is the text for the class and then a line for each function that failed, from MPI's
/// own down to where the cause is: `MPIR_Get_contextid(491)...: Too many communicators`. What is
/// left of it is what these functions say, without those that only tell that they failed.
fn detail(text: &str, class: &str) -> String {
    let text = text.strip_prefix(class).unwrap_or(text);
    let text = text.strip_prefix(", error stack:").unwrap_or(text);
    let said = text.lines().map(|line| match line.split_once(": ") {
        Some((place, said)) if place.trim_end_matches('.').ends_with(')') => said.trim(),
        _ => line.trim(),
    });
    let is_place =
        |said: &str| said.ends_with(':') && said.trim_end_matches(['.', ':']).ends_with(')');
    let says_more = |said: &&str| !said.is_empty() && !said.ends_with(" failed") && !is_place(said);
    said.filter(says_more).map(uncapitalized).collect::<Vec<_>>().join("; ")
}

/// MPICH begins its texts with a capital. A name of capitals keeps it.
fn uncapitalized(text: &str) -> String {
    let mut letters = text.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), second) if !second.is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

/// What is put after a text that may be all there is to say.
fn after_colon(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

/// Before its start and after its end, MPI aborts a program that asks what an error means.
fn can_explain() -> bool {
    let (mut initialized, mut finalized) = (0, 0);
    // SAFETY: both functions may be called at any time, and write one int.
    unsafe {
        mpi_sys::MPI_Initialized(&mut initialized);
        mpi_sys::MPI_Finalized(&mut finalized);
    }
    initialized != 0 && finalized == 0
}

fn error_string(code: c_int) -> String {
    let mut text = vec![0_u8; mpi_sys::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: `text` has the MPI_MAX_ERROR_STRING bytes that MPI may write.
    unsafe { mpi_sys::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    text.truncate(usize::try_from(length).unwrap_or(0));
    String::from_utf8_lossy(&text).into_owned()
}

macro_rules! class_names {
    ($($name:ident)*) => {
        fn class_name(class: c_int) -> &'static str {
            match class {
                $(c if c == mpi_sys::$name => stringify!($name),)*
                _ => "MPI_ERR_UNKNOWN",
            }
        }
    };
}

class_names! {
    MPI_ERR_BUFFER MPI_ERR_COUNT MPI_ERR_TYPE MPI_ERR_TAG MPI_ERR_COMM MPI_ERR_RANK
    MPI_ERR_REQUEST MPI_ERR_ROOT MPI_ERR_GROUP MPI_ERR_OP MPI_ERR_TOPOLOGY MPI_ERR_DIMS
    MPI_ERR_ARG MPI_ERR_TRUNCATE MPI_ERR_OTHER MPI_ERR_INTERN MPI_ERR_IN_STATUS
    MPI_ERR_PENDING MPI_ERR_NO_MEM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_the_call_then_what_came_and_what_was_needed() {
        let early = check("MPI_Init_thread", 1).unwrap_err().to_string();
        assert!(early.ends_with("error code 1, while MPI is not initialized (MPI_ERR_OTHER)"));
        // The only unit test that starts MPI.
        let _universe = crate::initialize().unwrap();
        let cases = [
            (
                check("MPI_Allreduce", mpi_sys::MPI_ERR_COMM).unwrap_err(),
                "MPI_Allreduce failed: invalid communicator (MPI_ERR_COMM)",
            ),
            (
                Error::OpKind { call: "all_reduce", op: Op::Max, kind: Kind::ComplexFloat },
                "all_reduce: Op::Max is not defined for kind ComplexFloat",
            ),
            (
                Error::NoAdjoint { call: "all_reduce", op: Op::LogicalAnd },
                "all_reduce: Op::LogicalAnd has no adjoint; detach the input first",
            ),
            (Error::Finalized { call: "all_reduce" }, "all_reduce: MPI has been finalized"),
            (
                Error::Mpi {
                    call: "MPI_Comm_dup",
                    class: "MPI_ERR_OTHER",
                    message: "other MPI error".to_owned(),
                    detail: "too many communicators".to_owned(),
                },
                "MPI_Comm_dup failed: other MPI error (MPI_ERR_OTHER): too many communicators",
            ),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn details_are_what_the_library_says_beyond_the_class() {
        let class = "Other MPI error";
        let text = "Other MPI error, error stack:\n\
                    internal_Comm_dup(82)................: MPI_Comm_dup(comm=0x84000005, \
                    newcomm=0x7ffd2b) failed\n\
                    MPIR_Comm_dup_impl(599)..............: \n\
                    MPIR_Get_contextid_sparse_group(498).: Too many communicators (0/2048 free on \
                    this process; ignore_id=0)";
        let said = "too many communicators (0/2048 free on this process; ignore_id=0)";
        assert_eq!(detail(text, class), said);
        let text = "Other MPI error, error stack:\nMPI_Recv(200): MPI_Recv(count=1) failed\n\
                    MPIDI_recv(24)......:\nfirst(1): Out of memory: 8 bytes\nlast(2)..: Try again\n";
        assert_eq!(detail(text, class), "out of memory: 8 bytes; try again");
        for text in [class, "", "MPI_ERR_COMM: invalid communicator"] {
            assert_eq!(detail(text, text), "");
        }
        // A text of another form is told as it is.
        assert_eq!(detail("The job is out of ports", class), "the job is out of ports");
    }
}
