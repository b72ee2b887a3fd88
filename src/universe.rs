//! MPI's start and end: [`initialize`] and the [`Universe`].

use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::ThreadId;

use parking_lot::Mutex;

use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::base::thread_level::ThreadLevel;
use crate::engine::communicator::Communicator;
use crate::engine::runtime::Runtime;
use crate::environment::library::{self, Library};
use crate::environment::{is_finalized, watch};
use crate::torchscript;

/// Starts MPI with [`ThreadLevel::Serialized`], which the autograd engine needs: it may run the
/// backward pass on a thread of its own.
///
/// Wraps `MPI_Init_thread`. Collective over all ranks of the program. If another library has
/// initialized MPI already, this crate uses it as it is, and leaves it to that library to finalize
/// it. If a [`Universe`] exists already, the call returns another handle of it.
///
/// # Errors
/// [`Error::Library`] if the MPI library that was loaded is not the one that the crate was compiled
/// against; [`Error::Launcher`] if several ranks were started by the launcher of another MPI, so
/// that each is alone in its world; [`Error::Setting`] if an environment variable has an invalid
/// value, and then [`Error::Mismatch`] on the other ranks; [`Error::Finalized`] after MPI has been
/// finalized; [`Error::Thread`] on another thread than the one that initialized MPI, which must
/// finalize it; [`Error::Mpi`] if MPI fails.
///
/// # Examples
/// ```
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// println!("rank {} of {}", world.rank(), world.size());
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[doc(alias = "MPI_Init")]
#[doc(alias = "MPI_Init_thread")]
#[track_caller]
pub fn initialize() -> Result<Universe> {
    initialize_with(ThreadLevel::Serialized)
}

/// Starts MPI and asks for a thread level. [`Library::thread_level`] returns the level that was
/// obtained. If MPI has been initialized already, it keeps the level that it was initialized with.
///
/// See [`initialize`].
///
/// # Errors
/// As for [`initialize`].
///
/// # Examples
/// ```
/// use mpi4tch::ThreadLevel;
///
/// let universe = mpi4tch::initialize_with(ThreadLevel::Multiple)?;
/// println!("{:?}", universe.library().thread_level());
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[doc(alias = "MPI_Init_thread")]
#[track_caller]
pub fn initialize_with(level: ThreadLevel) -> Result<Universe> {
    let mut current = CURRENT.lock();
    let thread = std::thread::current().id();
    if current.owner.is_some_and(|owner| owner != thread) {
        if is_finalized()? {
            return Err(Error::Finalized { call: "initialize" });
        }
        let needed = "call from the thread that initialized MPI, as that is to finalize it";
        return Err(Error::Thread { call: "initialize", level, needed });
    }
    if let Some(shared) = current.shared.upgrade() {
        return Ok(Universe { shared, not_send: PhantomData });
    }
    let shared = Arc::new(Shared::start(Site::new("initialize"), level)?);
    torchscript::begin(&shared.world)?;
    current.shared = Arc::downgrade(&shared);
    current.owner = shared.runtime.environment.is_owner().then_some(thread);
    shared.runtime.make_current();
    Ok(Universe { shared, not_send: PhantomData })
}

/// The current universe, if there is one, and the thread on which this crate initialized MPI, if it
/// did.
struct Current {
    shared: Weak<Shared>,
    owner: Option<ThreadId>,
}

static CURRENT: Mutex<Current> = Mutex::new(Current { shared: Weak::new(), owner: None });

/// A handle to MPI. Dropping the last `Universe` finalizes MPI, if this crate initialized it.
///
/// - Finalizing is collective: every rank must drop its universe, or call
///   [`finalize`](Self::finalize).
/// - If `main` returns an error, Rust drops the universe before it prints the error, and the drop may
///   wait for ranks that wait for this one. After some seconds the rank prints that it waits, with the
///   last error of this crate. A program under [`run`] ends the job at once instead, as
///   [`Communicator::abort`] does.
/// - If a universe is dropped by a panic, the job is aborted, because finalizing would wait for ever if
///   other ranks wait for this one.
/// - Communicators may outlive the universe, but their calls then return [`Error::Finalized`].
///
/// # Examples
/// ```
/// use mpi4tch::Error;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// world.barrier()?;
/// drop(universe); // finalizes MPI
/// assert!(matches!(world.barrier(), Err(Error::Finalized { .. })));
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping the universe finalizes MPI"]
#[doc(alias = "MPI_Finalize")]
pub struct Universe {
    shared: Arc<Shared>,
    /// Not `Send`: MPI must be finalized by the thread that initialized it.
    not_send: PhantomData<*const ()>,
}

impl Universe {
    /// The communicator of all ranks: a duplicate of `MPI_COMM_WORLD`, with contexts of its own.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// assert!((0..world.size()).contains(&world.rank()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_COMM_WORLD")]
    pub fn world(&self) -> Communicator {
        self.shared.world.clone()
    }

    /// The communicator of this rank alone: a duplicate of `MPI_COMM_SELF`, with contexts of its
    /// own.
    ///
    /// Local.
    ///
    /// # Errors
    /// [`Error::Mpi`] if MPI fails.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let this = universe.self_comm()?;
    /// assert_eq!((this.rank(), this.size()), (0, 1));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_COMM_SELF")]
    #[track_caller]
    pub fn self_comm(&self) -> Result<Communicator> {
        if let Some(comm) = self.shared.this.get() {
            return Ok(comm.clone());
        }
        let (site, own) = (Site::new("self_comm"), mpi_sys::MPI_COMM_SELF);
        let comm = Communicator::duplicate_of(site, own, &self.shared.runtime)?;
        // A universe stays on its thread, so no other thread has set it meanwhile.
        Ok(self.shared.this.get_or_init(|| comm).clone())
    }

    /// Finalizes MPI, and returns an error for what was left over; a drop only prints it.
    ///
    /// Wraps `MPI_Finalize`, if this crate initialized MPI. Collective over all ranks. It does
    /// nothing if this rank has another handle of the universe, from a further [`initialize`].
    ///
    /// # Errors
    /// [`Error::Left`] if this rank never received a message, or if a call that was started does
    /// not end because it has no counterpart on other ranks. Gradients may then lack a part. MPI is
    /// finalized in spite of the error.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// universe.world().barrier()?;
    /// universe.finalize()?;
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Finalize")]
    #[track_caller]
    pub fn finalize(self) -> Result<()> {
        let Some(shared) = Arc::into_inner(self.shared) else { return Ok(()) };
        let left = shared.end(Site::new("finalize"));
        if left.is_empty() { Ok(()) } else { Err(Error::Left { what: left.join("\n") }) }
    }

    /// The MPI library in use.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// println!("{}", universe.library().version());
    /// assert!(universe.library().standard() >= (3, 0));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    pub fn library(&self) -> &Library {
        self.shared.runtime.environment.library()
    }
}

/// The state that all handles of the universe share.
#[derive(Debug)]
struct Shared {
    world: Communicator,
    /// The communicator of this rank alone, made on first use.
    this: OnceLock<Communicator>,
    runtime: Runtime,
}

impl Shared {
    fn start(site: Site, level: ThreadLevel) -> Result<Self> {
        let runtime = Runtime::start(level)?;
        let environment = &runtime.environment;
        let world = Communicator::duplicate_of(site, mpi_sys::MPI_COMM_WORLD, &runtime)?;
        if !environment.is_owner() {
            environment.close_at_finalize()?;
        }
        let shared = Self { world, this: OnceLock::new(), runtime };
        // If it fails, dropping `shared` finalizes MPI.
        library::check_launcher(shared.world.size())?;
        Ok(shared)
    }

    /// Finalizes MPI, if this crate initialized it. Returns a line for each message or call that
    /// was left over.
    fn end(&self, site: Site) -> Vec<String> {
        torchscript::end(&self.world);
        let environment = &self.runtime.environment;
        if environment.is_owner() && self.world.size() > 1 {
            if std::thread::panicking() {
                self.world.abort(PANICKED);
            }
            // An error here would come again when MPI is finalized.
            let _ = environment.meet(site, self.world.rank());
        }
        environment.finalize(site)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for line in self.end(Site::new("finalize")) {
            watch::say(&format!("mpi4tch: {line}\n"));
        }
    }
}

/// Rust's exit code of a program that panicked.
const PANICKED: i32 = 101;

/// Initializes MPI, runs a program, and finalizes MPI. It is meant to be all that `main` does.
///
/// If the program returns an error or panics, this rank prints its rank and the error, and ends the
/// job on all ranks, as others may be waiting for it. Otherwise MPI is
/// [finalized](Universe::finalize), and an error of that is printed too.
///
/// Wraps `MPI_Init_thread`, `MPI_Finalize` and `MPI_Abort`. Collective over all ranks.
///
/// # Examples
/// ```
/// use std::process::ExitCode;
///
/// use mpi4tch::Universe;
/// use tch::Tensor;
///
/// fn program(universe: &Universe) -> mpi4tch::Result<()> {
///     let world = universe.world();
///     println!("{}", world.broadcast(&Tensor::from_slice(&[world.rank()]), 0)?);
///     Ok(())
/// }
///
/// fn main() -> ExitCode {
///     mpi4tch::run(program)
/// }
/// ```
#[doc(alias = "MPI_Init")]
#[doc(alias = "MPI_Finalize")]
#[doc(alias = "MPI_Abort")]
#[must_use = "it is for main to return"]
#[track_caller]
pub fn run<E: fmt::Display>(program: fn(&Universe) -> std::result::Result<(), E>) -> ExitCode {
    let universe = match initialize() {
        Ok(universe) => universe,
        Err(error) => {
            watch::say(&format!("mpi4tch: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    let world = universe.world();
    let rank = format!("mpi4tch: rank {} of {}", world.rank(), world.size());
    match catch_unwind(AssertUnwindSafe(|| program(&universe))) {
        Ok(Ok(())) => match universe.finalize() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                watch::say(&format!("{rank}: {error}\n"));
                ExitCode::FAILURE
            }
        },
        Ok(Err(error)) => {
            watch::say(&format!("{rank}: {error}\n"));
            std::thread::sleep(watch::FORWARDING);
            world.abort(1)
        }
        Err(_) => {
            watch::say(&format!("{rank} panicked\n"));
            std::thread::sleep(watch::FORWARDING);
            world.abort(PANICKED)
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use crate::base::error::Error;
    use crate::base::op::Op;
    use crate::environment::error_code::check;

    #[test]
    fn texts_name_the_call_then_what_came_and_what_was_needed() {
        let early = check("MPI_Init_thread", 1).unwrap_err().to_string();
        assert!(early.ends_with("error code 1, while MPI is not initialized (MPI_ERR_OTHER)"));
        // The only unit test that starts MPI.
        let _universe = super::initialize().unwrap();
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
}
