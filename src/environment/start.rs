//! Initializing MPI, and reading the settings from environment variables.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use parking_lot::{Mutex, RwLock};

use super::datatype::Handles;
use super::library::{self, Library};
use super::watch::{Limits, Watch};
use super::{Environment, StartedCalls, flag, is_finalized, return_errors};
use crate::base::check::Check;
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::base::tag::Tag;
use crate::base::thread_level::ThreadLevel;
use crate::environment::error_code::checked;

impl Environment {
    /// Initializes MPI if it is not initialized yet, and makes the environment. Collective over all
    /// ranks of the program. `started` is the list that calls will be added to.
    pub(crate) fn start(level: ThreadLevel, started: Arc<dyn StartedCalls>) -> Result<Self> {
        let version = library::version()?;
        if is_finalized()? {
            return Err(Error::Finalized { call: "initialize" });
        }
        let owner = !flag("MPI_Initialized", mpi_sys::MPI_Initialized)?;
        if owner {
            let mut provided = 0;
            // SAFETY: MPI is not initialized yet; null for argc and argv is allowed since MPI-2.
            unsafe {
                checked!(MPI_Init_thread(
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    level.to_mpi(),
                    &mut provided,
                ))
            }?;
            // MPI raises some errors of requests on these, not on our communicators: MPICH those of
            // receives, Open MPI those of nonblocking collectives.
            return_errors(mpi_sys::MPI_COMM_WORLD)?;
            return_errors(mpi_sys::MPI_COMM_SELF)?;
        }
        let settings = match agreed_settings() {
            Ok(settings) => settings,
            Err(error) => {
                if owner {
                    // All ranks get an error here, so all can finalize MPI.
                    // SAFETY: MPI was initialized above, by this thread.
                    unsafe { mpi_sys::MPI_Finalize() };
                }
                return Err(error);
            }
        };
        Self::create(version, owner, settings, started)
    }

    fn create(
        version: String,
        owner: bool,
        settings: (Check, Arc<Watch>),
        started: Arc<dyn StartedCalls>,
    ) -> Result<Self> {
        let (check_level, watch) = settings;
        let mut level = 0;
        // SAFETY: MPI is initialized; `level` outlives the call.
        unsafe { checked!(MPI_Query_thread(&mut level)) }?;
        let level = ThreadLevel::from_mpi(level);
        if level < ThreadLevel::Serialized
            && !flag("MPI_Is_thread_main", mpi_sys::MPI_Is_thread_main)?
        {
            let needed = "initialize on the main thread";
            return Err(Error::Thread { call: "initialize", level, needed });
        }
        Ok(Self {
            handles: Handles::create()?,
            library: Library::query(version, level)?,
            owner,
            level,
            check: check_level,
            main: std::thread::current().id(),
            calls: RwLock::new(()),
            finalized: AtomicBool::new(false),
            freed_at_end: Mutex::default(),
            started,
            queued: AtomicUsize::new(0),
            expected: AtomicUsize::new(0),
            is_shared: AtomicBool::new(!owner),
            watch,
            has_threads: AtomicBool::new(false),
            left: Mutex::default(),
            last_error: Mutex::default(),
            largest_tag: largest_tag()?,
        })
    }
}

/// Reads the settings from environment variables: how much of their calls the ranks compare, which
/// is the most that any rank's variable says, and the watch with this rank's limits. An invalid
/// value on one rank is an error on all. Collective.
fn agreed_settings() -> Result<(Check, Arc<Watch>)> {
    let (mut rank, mut size) = (0, 0);
    // SAFETY: MPI is initialized; `rank` outlives the call.
    unsafe { checked!(MPI_Comm_rank(mpi_sys::MPI_COMM_WORLD, &mut rank)) }?;
    // SAFETY: as above.
    unsafe { checked!(MPI_Comm_size(mpi_sys::MPI_COMM_WORLD, &mut size)) }?;
    let limits = Limits::from_environment();
    let watch = limits.as_ref().ok().map(|&limits| Watch::start(limits, rank, size));
    let own = limits.and_then(|_| Check::from_environment());
    // The level of checks, and the last rank that has an invalid value.
    let mut most = match &own {
        Ok(level) => [*level as c_int, -1],
        Err(_) => [0, rank],
    };
    let _watched = watch.as_ref().map(|watch| watch.enter(Site::new("initialize")));
    // SAFETY: two integers on every rank, combined in their place.
    unsafe {
        checked!(MPI_Allreduce(
            mpi_sys::MPI_IN_PLACE,
            most.as_mut_ptr().cast(),
            2,
            mpi_sys::MPI_INT,
            mpi_sys::MPI_MAX,
            mpi_sys::MPI_COMM_WORLD,
        ))
    }?;
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

/// `MPI_TAG_UB`.
fn largest_tag() -> Result<Tag> {
    let (mut value, mut found) = (std::ptr::null_mut::<c_int>(), 0);
    // SAFETY: the value of this attribute is a pointer to an int; both outlive the call.
    unsafe {
        checked!(MPI_Comm_get_attr(
            mpi_sys::MPI_COMM_WORLD,
            mpi_sys::MPI_TAG_UB,
            (&raw mut value).cast(),
            &mut found,
        ))
    }?;
    // SAFETY: where it was found, MPI has pointed the value at an int of its own.
    let value = unsafe { value.as_ref() }.filter(|_| found != 0);
    // The least value that the standard allows (MPI 3.1, section 8.1.2).
    Ok(value.copied().unwrap_or(32767))
}
