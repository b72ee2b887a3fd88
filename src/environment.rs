//! MPI's start and end: [`initialize`] and the [`Universe`].

mod access;
mod library;

use std::ffi::c_int;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::ThreadId;

use crate::agreement::Check;
use crate::communicator::{Communicator, return_errors};
use crate::error::{Error, Result, check};
use crate::watch::{self, Watch};

pub use access::ThreadLevel;
use access::flag;
pub(crate) use access::{Environment, Handles};
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
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
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
    *ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner) =
        Arc::downgrade(&shared.environment);
    Ok(Universe { shared, not_send: PhantomData })
}

/// The universe that is alive, if any, and the thread that this crate initialized MPI on, if it did.
struct Current {
    shared: Weak<Shared>,
    owner: Option<ThreadId>,
}

static CURRENT: Mutex<Current> = Mutex::new(Current { shared: Weak::new(), owner: None });

/// Its environment, which communicators keep alive beyond its end. Whoever takes this does not
/// become the one that finalizes MPI.
static ENVIRONMENT: Mutex<Weak<Environment>> = Mutex::new(Weak::new());

/// The environment of the universe, for calls that start from none.
pub(crate) fn current(call: &'static str) -> Result<Arc<Environment>> {
    let environment = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    if let Some(environment) = environment {
        return Ok(environment);
    }
    let finalized = flag("MPI_Finalized", mpi_sys::MPI_Finalized)?;
    Err(if finalized { Error::Finalized { call } } else { Error::Uninitialized { call } })
}

/// MPI, from [`initialize`] to the drop of the last `Universe`, which finalizes what it
/// initialized.
///
/// Finalizing is collective: every rank must drop its universe. So a `main` that returns an error,
/// which Rust prints after all else, may wait here for ranks that wait for this one; after some
/// seconds it says so, with the last error of this crate's. To end the job at once instead, call
/// [`Communicator::abort`]. Communicators may outlive it, and
/// are then of no use: their calls return [`Error::Finalized`]. When a panic unwinds a universe
/// while other ranks may be waiting for this one, finalizing would wait for ever, so the job is
/// aborted instead.
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
        let _guard = self.shared.environment.enter("self_comm")?;
        if let Some(comm) = self.shared.this.get() {
            return Ok(comm.clone());
        }
        let comm = Communicator::adopt(mpi_sys::MPI_COMM_SELF, &self.shared.environment)?;
        // A universe stays on its thread, so nobody else has come first.
        Ok(self.shared.this.get_or_init(|| comm).clone())
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
    environment: Arc<Environment>,
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
        let environment = Arc::new(Environment::create(settings)?);
        let library = Library::query(version, environment.level())?;
        let world = {
            let _guard = environment.enter("initialize")?;
            Communicator::adopt(mpi_sys::MPI_COMM_WORLD, &environment)?
        };
        if !owner {
            environment.close_at_finalize()?;
        }
        let shared = Self { world, this: OnceLock::new(), environment, library, owner };
        // Where it fails, dropping the rest ends MPI.
        library::check_launcher(shared.world.size())?;
        Ok(shared)
    }
}

/// What the environment says: whether the ranks compare their calls, if any rank's says so, as all
/// must or none; and how long this rank may wait. Collective.
fn agreed_settings() -> Result<(Check, Option<Arc<Watch>>)> {
    let (mut rank, mut size) = (0, 0);
    // SAFETY: MPI is initialized; `rank` outlives the call.
    check("MPI_Comm_rank", unsafe { mpi_sys::MPI_Comm_rank(mpi_sys::MPI_COMM_WORLD, &mut rank) })?;
    // SAFETY: as above.
    check("MPI_Comm_size", unsafe { mpi_sys::MPI_Comm_size(mpi_sys::MPI_COMM_WORLD, &mut size) })?;
    let own = Check::from_environment().and_then(|check| Ok((check, watch::timeout()?)));
    // The level, and the last of the ranks whose values mean nothing.
    let mut most = match &own {
        Ok((level, _)) => [c_int::from(*level == Check::Collective), -1],
        Err(_) => [0, rank],
    };
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
    let (_, timeout) = own?;
    let level = match most {
        [_, malformed] if malformed >= 0 => {
            let differences = format!("\n  refused: initialize: a setting on rank {malformed}");
            return Err(Error::Mismatch { differences });
        }
        [1, _] => Check::Collective,
        _ => Check::Local,
    };
    Ok((level, timeout.map(|timeout| Watch::start(timeout, rank, size))))
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.owner {
            return self.environment.close(|| ());
        }
        if self.world.size() > 1 {
            if std::thread::panicking() {
                // SAFETY: MPI is initialized; the call does not return.
                unsafe { mpi_sys::MPI_Abort(mpi_sys::MPI_COMM_WORLD, 101) };
            }
            // What fails here will fail again when MPI is finalized.
            let _ = self.world.meet(self.environment.patience(), || {
                let last = self.environment.last_error();
                let last = last.map_or(String::new(), |e| format!(" Its last error was: {e}"));
                let line = format!(
                    "mpi4tch: rank {} has dropped its universe and waits for ranks that have not. \
                     If it returned an error, they may be waiting for it in a call.{last}\n",
                    self.world.rank()
                );
                // In one piece: other ranks may say the same.
                eprint!("{line}");
            });
        }
        // SAFETY: MPI is initialized, and this is the thread that did it: a universe is not Send,
        // and `initialize` gives none to another thread. No call of this crate is under way, and
        // none follows.
        self.environment.close(|| unsafe {
            mpi_sys::MPI_Finalize();
        });
    }
}
