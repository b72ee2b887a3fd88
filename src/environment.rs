//! MPI's start and end: [`initialize`] and the [`Universe`].

mod access;
mod library;
mod wait;

use std::ffi::c_int;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::ThreadId;
use std::time::Instant;

use parking_lot::Mutex;

use crate::base::check::Check;
use crate::base::error::{Error, Result, check};
use crate::base::site::Site;
use crate::base::thread_level::ThreadLevel;
use crate::communicator::{Communicator, return_errors};
use crate::runtime::Runtime;
use crate::watch::{self, Limits, Watch};

use access::flag;
pub(crate) use access::{Environment, FreedAtEnd, Handles, StartedCalls};
pub use library::Library;

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
pub fn initialize_with(level: ThreadLevel) -> Result<Universe> {
    let mut current = CURRENT.lock();
    let thread = std::thread::current().id();
    if current.owner.is_some_and(|owner| owner != thread) {
        if flag("MPI_Finalized", mpi_sys::MPI_Finalized)? {
            return Err(Error::Finalized { call: "initialize" });
        }
        let needed = "call from the thread that initialized MPI, as that is to finalize it";
        return Err(Error::Thread { call: "initialize", level, needed });
    }
    if let Some(shared) = current.shared.upgrade() {
        return Ok(Universe { shared, not_send: PhantomData });
    }
    let shared = Arc::new(Shared::start(level)?);
    current.shared = Arc::downgrade(&shared);
    current.owner = shared.owner.then_some(thread);
    shared.runtime.make_current();
    Ok(Universe { shared, not_send: PhantomData })
}

/// The universe that is alive, if any, and the thread that this crate initialized MPI on, if it did.
struct Current {
    shared: Weak<Shared>,
    owner: Option<ThreadId>,
}

static CURRENT: Mutex<Current> = Mutex::new(Current { shared: Weak::new(), owner: None });

pub(crate) fn is_finalized() -> Result<bool> {
    flag("MPI_Finalized", mpi_sys::MPI_Finalized)
}

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
    pub fn self_comm(&self) -> Result<Communicator> {
        if let Some(comm) = self.shared.this.get() {
            return Ok(comm.clone());
        }
        let runtime = &self.shared.runtime;
        let adopt = || Communicator::adopt(mpi_sys::MPI_COMM_SELF, runtime);
        let comm = runtime.environment.call(Site::new("self_comm"), adopt)?;
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
        &self.shared.library
    }
}

/// What all handles of one universe share.
#[derive(Debug)]
struct Shared {
    world: Communicator,
    /// Made when first asked for.
    this: OnceLock<Communicator>,
    runtime: Runtime,
    library: Library,
    /// Whether it was this crate that initialized MPI.
    owner: bool,
}

impl Shared {
    fn start(level: ThreadLevel) -> Result<Self> {
        let version = library::version()?;
        if flag("MPI_Finalized", mpi_sys::MPI_Finalized)? {
            return Err(Error::Finalized { call: "initialize" });
        }
        let owner = !flag("MPI_Initialized", mpi_sys::MPI_Initialized)?;
        if owner {
            let mut provided = 0;
            // SAFETY: MPI is not initialized yet; null for argc and argv is allowed since MPI-2.
            let code = unsafe {
                mpi_sys::MPI_Init_thread(
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    level.to_mpi(),
                    &mut provided,
                )
            };
            check("MPI_Init_thread", code)?;
            // Errors of requests are those of none of our communicators: of receives in MPICH, of
            // started collectives in Open MPI.
            return_errors(mpi_sys::MPI_COMM_WORLD)?;
            return_errors(mpi_sys::MPI_COMM_SELF)?;
        }
        let settings = match agreed_settings() {
            Ok(settings) => settings,
            Err(error) => {
                if owner {
                    // All ranks are here, so the program can end in order.
                    // SAFETY: MPI was initialized above, by this thread.
                    unsafe { mpi_sys::MPI_Finalize() };
                }
                return Err(error);
            }
        };
        let runtime = Runtime::create(settings)?;
        let environment = &runtime.environment;
        let library = Library::query(version, environment.level())?;
        let world = {
            let adopt = || Communicator::adopt(mpi_sys::MPI_COMM_WORLD, &runtime);
            environment.call(Site::new("initialize"), adopt)?
        };
        if !owner {
            environment.close_at_finalize()?;
        }
        let shared = Self { world, this: OnceLock::new(), runtime, library, owner };
        // Where it fails, dropping the rest ends MPI.
        library::check_launcher(shared.world.size())?;
        Ok(shared)
    }
}

/// What the environment says: what the ranks compare of their calls, which is the most that any rank's
/// says; and how long this rank may wait. Collective.
fn agreed_settings() -> Result<(Check, Arc<Watch>)> {
    let (mut rank, mut size) = (0, 0);
    // SAFETY: MPI is initialized; `rank` outlives the call.
    check("MPI_Comm_rank", unsafe { mpi_sys::MPI_Comm_rank(mpi_sys::MPI_COMM_WORLD, &mut rank) })?;
    // SAFETY: as above.
    check("MPI_Comm_size", unsafe { mpi_sys::MPI_Comm_size(mpi_sys::MPI_COMM_WORLD, &mut size) })?;
    let limits = Limits::from_environment();
    let watch = limits.as_ref().ok().map(|&limits| Watch::start(limits, rank, size));
    let own = limits.and_then(|_| Check::from_environment());
    // The level, and the last of the ranks whose values mean nothing.
    let mut most = match &own {
        Ok(level) => [*level as c_int, -1],
        Err(_) => [0, rank],
    };
    let _watched = watch.as_ref().map(|watch| watch.enter(Site::new("initialize")));
    // SAFETY: two integers on every rank, combined in their place.
    check("MPI_Allreduce", unsafe {
        mpi_sys::MPI_Allreduce(
            mpi_sys::MPI_IN_PLACE,
            most.as_mut_ptr().cast(),
            2,
            mpi_sys::MPI_INT,
            mpi_sys::MPI_MAX,
            mpi_sys::MPI_COMM_WORLD,
        )
    })?;
    own?;
    let [level, malformed] = most;
    let (Some(watch), true) = (watch.clone(), malformed < 0) else {
        let differences = format!("\n  refused: initialize: a setting on rank {malformed}");
        return Err(Error::Mismatch { differences });
    };
    let levels = [Check::None, Check::Local, Check::Collective];
    let level = levels.into_iter().find(|&check| check as c_int == level);
    Ok((level.unwrap_or(Check::Collective), watch))
}

impl Shared {
    /// Finalizes MPI, if it was this crate that initialized it. Returns a line for each thing that
    /// was left over.
    fn end(&self, site: Site) -> Vec<String> {
        if !self.owner {
            return self.runtime.environment.close(site, || ());
        }
        if self.world.size() > 1 {
            if std::thread::panicking() {
                // SAFETY: MPI is initialized; the call does not return.
                unsafe { mpi_sys::MPI_Abort(mpi_sys::MPI_COMM_WORLD, PANICKED) };
            }
            // What fails here will fail again when MPI is finalized.
            let _ = self.meet(site);
        }
        // SAFETY: MPI is initialized, and this is the thread that did it: a universe is not Send,
        // and `initialize` gives none to another thread. No call of this crate is under way, and
        // none follows.
        self.runtime.environment.close(site, || unsafe {
            mpi_sys::MPI_Finalize();
        })
    }

    /// Waits until every rank of the program is here, and says so if that takes long. Collective over
    /// all of them.
    ///
    /// By MPI's own communicator: on this crate's, ranks may have started different calls.
    fn meet(&self, site: Site) -> Result<()> {
        let environment = &*self.runtime.environment;
        let mut request = mpi_sys::MPI_REQUEST_NULL;
        environment.call(site, || {
            // SAFETY: MPI is there, as `call` gives leave.
            check("MPI_Ibarrier", unsafe {
                mpi_sys::MPI_Ibarrier(mpi_sys::MPI_COMM_WORLD, &mut request)
            })
        })?;
        let mut patience = Some((Instant::now(), environment.watch().patience()));
        environment.wait(site, || {
            let mut done = 0;
            // SAFETY: the request is the barrier's, and `done` outlives the call.
            check("MPI_Test", unsafe {
                mpi_sys::MPI_Test(&mut request, &mut done, mpi_sys::MPI_STATUS_IGNORE)
            })?;
            if let Some((start, longest)) = patience
                && done == 0
                && start.elapsed() > longest
            {
                patience = None;
                let last = environment.last_error();
                let last = last.map_or(String::new(), |e| format!(" Its last error was: {e}"));
                watch::say(&format!(
                    "mpi4tch: rank {} has dropped its universe and waits for ranks that have not. \
                     If it returned an error, they may be waiting for it in a call.{last}\n",
                    self.world.rank()
                ));
            }
            Ok((done != 0).then_some(()))
        })
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
