//! MPI's start, and what the environment's variables say of it.

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
    /// Starts MPI, or finds it started. Collective over all ranks of the program.
    ///
    /// `started` are the calls that will be started.
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
            watch,
            has_threads: AtomicBool::new(false),
            left: Mutex::default(),
            last_error: Mutex::default(),
            largest_tag: largest_tag()?,
        })
    }
}

/// What the environment says: what the ranks compare of their calls, which is the most that any rank's
/// says; and how long this rank may wait. Collective.
fn agreed_settings() -> Result<(Check, Arc<Watch>)> {
    let (mut rank, mut size) = (0, 0);
    // SAFETY: MPI is initialized; `rank` outlives the call.
    unsafe { checked!(MPI_Comm_rank(mpi_sys::MPI_COMM_WORLD, &mut rank)) }?;
    // SAFETY: as above.
    unsafe { checked!(MPI_Comm_size(mpi_sys::MPI_COMM_WORLD, &mut size)) }?;
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
    // What every MPI allows (MPI 3.1, section 8.1.2).
    Ok(value.copied().unwrap_or(32767))
}
