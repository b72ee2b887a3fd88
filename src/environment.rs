//! MPI's start and end: [`initialize`] and the [`Universe`].

use std::ffi::c_int;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use mpi_sys::MPI_Datatype;

use crate::agreement::Check;
use crate::communicator::{Communicator, Node};
use crate::error::{Error, Result, check};
use crate::reduction::OwnOps;

/// Starts MPI with [`ThreadLevel::Serialized`], which is what the autograd engine needs: it may
/// run the backward pass on a thread of its own.
///
/// Wraps `MPI_Init_thread`. Collective over all ranks of the program. Where MPI has been
/// initialized already, by this crate or by another, it is used as it is, and whoever initialized
/// it finalizes it; a further call gives a further [`Universe`] of the same kind.
///
/// # Errors
/// [`Error::Library`] if the MPI library that was loaded is another than the one that was compiled
/// against; [`Error::Setting`] if a variable of the environment means nothing, and
/// [`Error::Mismatch`] if another rank's does; [`Error::Finalized`] after MPI has been finalized;
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

/// Starts MPI and asks for a thread level; [`Library::thread_level`] tells which one was obtained.
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
    if let Some(shared) = current.upgrade() {
        return Ok(Universe { shared, not_send: PhantomData });
    }
    let shared = Arc::new(Shared::start(level)?);
    *current = Arc::downgrade(&shared);
    *ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner) =
        Arc::downgrade(&shared.environment);
    Ok(Universe { shared, not_send: PhantomData })
}

/// The universe that is alive, if any.
static CURRENT: Mutex<Weak<Shared>> = Mutex::new(Weak::new());

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
/// Finalizing is collective: every rank must drop its universe. Communicators may outlive it, and
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
        let version = library_version()?;
        if !mpi_sys::is_compiled_for(&version) {
            let compiled = format!("{} ({})", mpi_sys::VENDOR, mpi_sys::LIBRARY_VERSION);
            return Err(Error::Library { compiled, loaded: version });
        }
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
        }
        let check = match agreed_check() {
            Ok(check) => check,
            Err(error) => {
                if owner {
                    // All ranks are here, so the program can end in order.
                    // SAFETY: MPI was initialized above, by this thread.
                    unsafe { mpi_sys::MPI_Finalize() };
                }
                return Err(error);
            }
        };
        let environment = Arc::new(Environment::create(check)?);
        let library = Library::query(version, environment.level)?;
        let world = {
            let _guard = environment.enter("initialize")?;
            Communicator::adopt(mpi_sys::MPI_COMM_WORLD, &environment)?
        };
        warn_of_wrong_launcher(world.size());
        Ok(Self { world, this: OnceLock::new(), environment, library, owner })
    }
}

/// What `MPI4TCH_CHECK` says on any rank: the ranks must all compare a call, or none. Collective.
fn agreed_check() -> Result<Check> {
    let mut rank = 0;
    // SAFETY: MPI is initialized; `rank` outlives the call.
    check("MPI_Comm_rank", unsafe { mpi_sys::MPI_Comm_rank(mpi_sys::MPI_COMM_WORLD, &mut rank) })?;
    let own = Check::from_environment();
    // The level, and the last of the ranks whose value means nothing.
    let mut most = match &own {
        Ok(level) => [c_int::from(*level == Check::Collective), -1],
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
    own?;
    match most {
        [_, malformed] if malformed >= 0 => Err(Error::Mismatch {
            differences: format!("\n  refused: initialize: MPI4TCH_CHECK on rank {malformed}"),
        }),
        [1, _] => Ok(Check::Collective),
        _ => Ok(Check::Local),
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.owner && std::thread::panicking() && self.world.size() > 1 {
            // SAFETY: MPI is initialized; the call does not return.
            unsafe { mpi_sys::MPI_Abort(mpi_sys::MPI_COMM_WORLD, 101) };
        }
        self.environment.close();
        if self.owner {
            // SAFETY: MPI is initialized, and this is the thread that did it: a universe is not
            // Send. After `close`, no call of this crate reaches MPI.
            unsafe { mpi_sys::MPI_Finalize() };
        }
    }
}

/// What every communicator refers to: whether MPI may be called, and by whom, and the handles
/// that were made at the start.
#[derive(Debug)]
pub(crate) struct Environment {
    handles: Handles,
    level: ThreadLevel,
    check: Check,
    /// Locked during each call below [`ThreadLevel::Multiple`].
    calls: Mutex<()>,
    finalized: AtomicBool,
    /// The communicators that were made from none of this crate's, in order of creation.
    roots: Mutex<Vec<Arc<Node>>>,
}

/// Handles that MPI has not, but makes.
#[derive(Debug)]
pub(crate) struct Handles {
    /// The datatype of the 16-bit floating-point kinds.
    pub(crate) two_bytes: MPI_Datatype,
    pub(crate) ops: OwnOps,
}

impl Environment {
    fn create(check_level: Check) -> Result<Self> {
        let mut level = 0;
        // SAFETY: MPI is initialized; `level` outlives the call.
        check("MPI_Query_thread", unsafe { mpi_sys::MPI_Query_thread(&mut level) })?;
        let mut two_bytes = mpi_sys::MPI_DATATYPE_NULL;
        // SAFETY: MPI is initialized; `two_bytes` outlives the call.
        check("MPI_Type_contiguous", unsafe {
            mpi_sys::MPI_Type_contiguous(2, mpi_sys::MPI_BYTE, &mut two_bytes)
        })?;
        // SAFETY: a datatype that was just made.
        check("MPI_Type_commit", unsafe { mpi_sys::MPI_Type_commit(&mut two_bytes) })?;
        Ok(Self {
            handles: Handles { two_bytes, ops: OwnOps::create()? },
            level: ThreadLevel::from_mpi(level),
            check: check_level,
            calls: Mutex::new(()),
            finalized: AtomicBool::new(false),
            roots: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn handles(&self) -> &Handles {
        &self.handles
    }

    /// Which calls the ranks compare before they make them.
    #[inline]
    pub(crate) fn check(&self) -> Check {
        self.check
    }

    /// Leave to call MPI, for as long as the guard lives.
    #[inline]
    pub(crate) fn enter(&self, call: &'static str) -> Result<Option<MutexGuard<'_, ()>>> {
        let guard = match self.level {
            ThreadLevel::Multiple => None,
            // A panic between two MPI calls leaves nothing half done.
            ThreadLevel::Serialized => {
                Some(self.calls.lock().unwrap_or_else(PoisonError::into_inner))
            }
            ThreadLevel::Single | ThreadLevel::Funneled => {
                self.require_main_thread(call)?;
                None
            }
        };
        // The lock, or being the thread that sets it, orders this read.
        if self.finalized.load(Ordering::Acquire) {
            return Err(Error::Finalized { call });
        }
        Ok(guard)
    }

    fn require_main_thread(&self, call: &'static str) -> Result<()> {
        if !self.finalized.load(Ordering::Acquire)
            && !flag("MPI_Is_thread_main", mpi_sys::MPI_Is_thread_main)?
        {
            let needed = "call from the main thread, or initialize with ThreadLevel::Serialized";
            return Err(Error::Thread { call, level: self.level, needed });
        }
        Ok(())
    }

    /// Takes a communicator over, to free it at the end.
    pub(crate) fn keep(&self, root: &Arc<Node>) {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(root));
    }

    /// Frees what was made; from then on [`enter`](Self::enter) refuses.
    fn close(&self) {
        let _guard = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        self.finalized.store(true, Ordering::Release);
        let finalized = flag("MPI_Finalized", mpi_sys::MPI_Finalized).unwrap_or(true);
        if finalized {
            // Whoever initialized MPI has finalized it under us; nothing may be freed any more.
            return;
        }
        let roots = std::mem::take(&mut *self.roots.lock().unwrap_or_else(PoisonError::into_inner));
        for root in roots {
            // SAFETY: MPI is there, and no call of this crate reaches it any more; all ranks free
            // what is left.
            unsafe { root.free() };
        }
        for mut op in self.handles.ops.handles() {
            // SAFETY: an op that this crate made, freed once; no call uses it any more.
            let _ = unsafe { mpi_sys::MPI_Op_free(&mut op) };
        }
        let mut two_bytes = self.handles.two_bytes;
        // SAFETY: a datatype that this crate made, freed once; no call uses it any more.
        let _ = unsafe { mpi_sys::MPI_Type_free(&mut two_bytes) };
    }
}

/// Which threads may call MPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ThreadLevel {
    /// The program has one thread.
    #[doc(alias = "MPI_THREAD_SINGLE")]
    Single,
    /// Only the main thread calls MPI; a call from another is an [`Error::Thread`].
    #[doc(alias = "MPI_THREAD_FUNNELED")]
    Funneled,
    /// Any thread calls MPI, one at a time: calls of this crate wait for each other.
    #[doc(alias = "MPI_THREAD_SERIALIZED")]
    Serialized,
    /// Any thread calls MPI at any time.
    #[doc(alias = "MPI_THREAD_MULTIPLE")]
    Multiple,
}

impl ThreadLevel {
    fn to_mpi(self) -> c_int {
        match self {
            Self::Single => mpi_sys::MPI_THREAD_SINGLE,
            Self::Funneled => mpi_sys::MPI_THREAD_FUNNELED,
            Self::Serialized => mpi_sys::MPI_THREAD_SERIALIZED,
            Self::Multiple => mpi_sys::MPI_THREAD_MULTIPLE,
        }
    }

    fn from_mpi(level: c_int) -> Self {
        match level {
            l if l == mpi_sys::MPI_THREAD_MULTIPLE => Self::Multiple,
            l if l == mpi_sys::MPI_THREAD_SERIALIZED => Self::Serialized,
            l if l == mpi_sys::MPI_THREAD_FUNNELED => Self::Funneled,
            _ => Self::Single,
        }
    }
}

/// The MPI library in use.
#[derive(Clone, Debug)]
pub struct Library {
    version: String,
    standard: (i32, i32),
    thread_level: ThreadLevel,
}

impl Library {
    fn query(version: String, thread_level: ThreadLevel) -> Result<Self> {
        let mut standard = (0, 0);
        // SAFETY: both numbers outlive the call.
        check("MPI_Get_version", unsafe {
            mpi_sys::MPI_Get_version(&mut standard.0, &mut standard.1)
        })?;
        Ok(Self { version, standard, thread_level })
    }

    /// Who made it, as compiled against and as loaded: the two agree.
    #[must_use]
    pub fn vendor(&self) -> mpi_sys::Vendor {
        mpi_sys::VENDOR
    }

    /// What the library says of itself, in full.
    #[must_use]
    #[doc(alias = "MPI_Get_library_version")]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The MPI standard that it follows: `(3, 1)`.
    #[must_use]
    #[doc(alias = "MPI_Get_version")]
    pub fn standard(&self) -> (i32, i32) {
        self.standard
    }

    /// The thread level obtained.
    #[must_use]
    #[doc(alias = "MPI_Query_thread")]
    pub fn thread_level(&self) -> ThreadLevel {
        self.thread_level
    }
}

fn library_version() -> Result<String> {
    let mut text = vec![0_u8; mpi_sys::MPI_MAX_LIBRARY_VERSION_STRING as usize];
    let mut length = 0;
    // SAFETY: `text` has the bytes that MPI may write; the call is allowed at any time.
    check("MPI_Get_library_version", unsafe {
        mpi_sys::MPI_Get_library_version(text.as_mut_ptr().cast(), &mut length)
    })?;
    text.truncate(usize::try_from(length).unwrap_or(0));
    Ok(String::from_utf8_lossy(&text).trim_end_matches(['\0', '\n']).to_owned())
}

fn flag(call: &'static str, query: unsafe extern "C" fn(*mut c_int) -> c_int) -> Result<bool> {
    let mut flag = 0;
    // SAFETY: the queries passed here write one int.
    check(call, unsafe { query(&mut flag) })?;
    Ok(flag != 0)
}

/// A program that was started by another implementation's launcher runs as many worlds of one
/// rank each, and would go on without a word.
fn warn_of_wrong_launcher(size: i32) {
    // (size, rank) as set by Open MPI, by MPICH and its kin, and by Slurm for one step.
    const VARIABLES: [(&str, &str); 3] = [
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("PMI_SIZE", "PMI_RANK"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ];
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    for (size_variable, rank_variable) in VARIABLES {
        let Some(launched) = number(size_variable).filter(|&n| n > 1 && size == 1) else {
            continue;
        };
        if number(rank_variable).unwrap_or(0) == 0 {
            eprintln!(
                "mpi4tch: warning: {size_variable} says that {launched} ranks were started, but \
                 each is alone in its world. This program uses {}; start it with {}.",
                mpi_sys::VENDOR,
                mpi_sys::MPIEXEC
            );
        }
        return;
    }
}
