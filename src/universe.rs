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

/// Starts MPI with [`ThreadLevel::Serialized`], which is what the autograd engine needs: it may
/// run the backward pass on a thread of its own.
///
/// Wraps `MPI_Init_thread`. Collective over all ranks of the program. Where MPI has been
/// initialized already, by this crate or by another, it is used as it is, and whoever initialized
/// it finalizes it; a further call gives a further [`Universe`] of the same kind.
///
/// # Errors
/// [`Error::Library`] if the MPI library that was loaded is another than the one that was compiled
/// against; [`Error::Launcher`] if several ranks were started by the launcher of another MPI, which
/// leaves each alone in its world; [`Error::Setting`] if a variable of the environment means nothing, and
/// [`Error::Mismatch`] if another rank's does; [`Error::Finalized`] after MPI has been finalized;
/// [`Error::Thread`] on another thread than the one that initialized MPI, which is to finalize it;
/// [`Error::Mpi`] if MPI fails.
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

/// Starts MPI and asks for a thread level; [`Library::thread_level`] tells which one was obtained:
/// where MPI has been initialized already, the one that it was initialized with.
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
    current.shared = Arc::downgrade(&shared);
    current.owner = shared.runtime.environment.is_owner().then_some(thread);
    shared.runtime.make_current();
    Ok(Universe { shared, not_send: PhantomData })
}

/// The universe that is alive, if any, and the thread that this crate initialized MPI on, if it did.
struct Current {
    shared: Weak<Shared>,
    owner: Option<ThreadId>,
}

static CURRENT: Mutex<Current> = Mutex::new(Current { shared: Weak::new(), owner: None });

/// MPI, from [`initialize`] to the drop of the last `Universe`, which finalizes what it
/// initialized.
///
/// Finalizing is collective: every rank must drop its universe, or call
/// [`finalize`](Self::finalize). So a `main` that returns an error, which Rust prints after all
/// else, may wait here for ranks that wait for this one; after some seconds it says so, with the
/// last error of this crate's. A program under [`run`] ends the job at once instead, as
/// [`Communicator::abort`] does. Communicators may outlive the universe, and are then of no use:
/// their calls return [`Error::Finalized`]. When a panic unwinds a universe while other ranks may be
/// waiting for this one, finalizing would wait for ever, so the job is aborted instead.
#[derive(Debug)]
#[must_use = "dropping the universe finalizes MPI"]
#[doc(alias = "MPI_Finalize")]
pub struct Universe {
    shared: Arc<Shared>,
    /// MPI is to be finalized by the thread that initialized it.
    not_send: PhantomData<*const ()>,
}

impl Universe {
    /// The communicator of all ranks: a duplicate of `MPI_COMM_WORLD`, with contexts of its own.
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
        // A universe stays on its thread, so nobody else has come first.
        Ok(self.shared.this.get_or_init(|| comm).clone())
    }

    /// Finalizes MPI, and tells what was left over, which a drop only prints.
    ///
    /// Wraps `MPI_Finalize`, if it was this crate that initialized MPI. Collective over all ranks. As
    /// long as there is another universe of this rank, from a further [`initialize`], it does
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Left`] if a message was never received here, or if a call that was started does not
    /// end, as it has no counterpart on other ranks: gradients may lack a part then. MPI is
    /// finalized all the same.
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
    #[must_use]
    pub fn library(&self) -> &Library {
        self.shared.runtime.environment.library()
    }
}

/// What all handles of one universe share.
#[derive(Debug)]
struct Shared {
    world: Communicator,
    /// Made when first asked for.
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
        // Where it fails, dropping the rest ends MPI.
        library::check_launcher(shared.world.size())?;
        Ok(shared)
    }

    /// Finalizes MPI, if it was this crate that initialized it. Returns a line for each thing that
    /// was left over.
    fn end(&self, site: Site) -> Vec<String> {
        let environment = &self.runtime.environment;
        if environment.is_owner() && self.world.size() > 1 {
            if std::thread::panicking() {
                self.world.abort(PANICKED);
            }
            // What fails here will fail again when MPI is finalized.
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

/// The exit code of a program that panicked, as Rust has it.
const PANICKED: i32 = 101;

/// Runs a program on a universe of its own: what a `main` is to do.
///
/// If the program returns an error or panics, this rank says so, with its number, and ends the job
/// on all ranks, as others may be waiting for it. At the end MPI is
/// [finalized](Universe::finalize).
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
            world.abort(1)
        }
        Err(_) => {
            watch::say(&format!("{rank} panicked\n"));
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
