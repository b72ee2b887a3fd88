//! Initializing MPI, and reading the settings from environment variables.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use parking_lot::{Mutex, RwLock};

use super::datatype::Handles;
use super::devices::{Reach, Transfer};
use super::library::{self, Library};
use super::threads::Threads;
use super::trace::{self, Timeline};
use super::watch::{Limits, Watch};
use super::{Environment, StartedCalls, flag, is_finalized, return_errors};
use crate::base::check::Check;
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
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
        }
        let settings = library::check_constants(&version).and_then(|()| {
            if owner {
                // MPI raises some errors of requests on these, not on our communicators: MPICH those
                // of receives, Open MPI those of nonblocking collectives.
                return_errors(mpi_sys::MPI_COMM_WORLD)?;
                return_errors(mpi_sys::MPI_COMM_SELF)?;
            }
            agreed_settings()
        });
        let settings = match settings {
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
        settings: Settings,
        started: Arc<dyn StartedCalls>,
    ) -> Result<Self> {
        let Settings { check, reach, watch, timeline } = settings;
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
            check,
            reach,
            main: std::thread::current().id(),
            calls: RwLock::new(()),
            finalized: AtomicBool::new(false),
            freed_at_end: Mutex::default(),
            started,
            queued: AtomicUsize::new(0),
            expected: AtomicUsize::new(0),
            // rsmpi has the world without asking this crate for it.
            is_shared: AtomicBool::new(!owner || cfg!(feature = "rsmpi")),
            watch,
            timeline,
            threads: Threads::new(),
            left: Mutex::default(),
            last_error: Mutex::default(),
            largest_tag: largest_tag()?,
        })
    }
}

/// What environment variables say.
struct Settings {
    check: Check,
    reach: Reach,
    watch: Arc<Watch>,
    timeline: Option<Arc<Timeline>>,
}

/// Reads the settings from environment variables: how much of their calls the ranks compare, which
/// is the most that any rank's variable says, the watch with this rank's limits, and the timeline,
/// which all ranks have if any rank's variable names a folder. An invalid value on one rank is an error
/// on all. Collective.
fn agreed_settings() -> Result<Settings> {
    let (mut rank, mut size) = (0, 0);
    // SAFETY: MPI is initialized; `rank` outlives the call.
    unsafe { checked!(MPI_Comm_rank(mpi_sys::MPI_COMM_WORLD, &mut rank)) }?;
    // SAFETY: as above.
    unsafe { checked!(MPI_Comm_size(mpi_sys::MPI_COMM_WORLD, &mut size)) }?;
    let limits = Limits::from_environment();
    let watch = limits.as_ref().ok().map(|&limits| Watch::start(limits, rank, size));
    let own = limits.and_then(|_| {
        let check = Check::from_environment()?;
        // SAFETY: MPI is initialized, and this thread may call it.
        let reach = unsafe { Reach::of(Transfer::from_environment()?) }?;
        Ok((check, reach, trace::folder_from_environment()?))
    });
    // The level of checks, the last rank that has an invalid value, and the last that has a folder.
    let mut most = match &own {
        Ok((level, _, folder)) => [*level as c_int, -1, folder.as_ref().map_or(-1, |_| rank)],
        Err(_) => [0, rank, -1],
    };
    let _watched = watch.as_ref().map(|watch| watch.enter(Site::new("initialize")));
    // SAFETY: three integers on every rank, combined in their place.
    unsafe {
        checked!(MPI_Allreduce(
            mpi_sys::MPI_IN_PLACE,
            most.as_mut_ptr().cast(),
            3,
            mpi_sys::MPI_INT,
            mpi_sys::MPI_MAX,
            mpi_sys::MPI_COMM_WORLD,
        ))
    }?;
    let (_, reach, folder) = own?;
    let [level, malformed, traced] = most;
    let (Some(watch), true) = (watch.clone(), malformed < 0) else {
        return Err(refused_on(malformed));
    };
    let levels = [Check::None, Check::Local, Check::Collective];
    let level = levels.into_iter().find(|&check| check as c_int == level);
    let timeline = match traced {
        ..0 => None,
        teller => Some(trace::open(folder, teller, (rank, size))?.map_err(refused_on)?),
    };
    Ok(Settings { check: level.unwrap_or(Check::Collective), reach, watch, timeline })
}

/// The error on other ranks than the one whose setting is invalid.
fn refused_on(rank: Rank) -> Error {
    Error::Mismatch { differences: format!("\n  refused: initialize: a setting on rank {rank}") }
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
