//! [`Library`]: which MPI library is loaded, and whether it and the launcher are of the vendor that
//! the program was compiled for.

use crate::base::error::{Error, Result};
use crate::base::thread_level::ThreadLevel;
use crate::environment::error_code::checked;

/// The MPI library in use.
///
/// # Examples
/// ```
/// let universe = mpi4tch::initialize()?;
/// let library = universe.library();
/// let (version, subversion) = library.standard();
/// println!("{}, which implements MPI {version}.{subversion}", library.vendor());
/// assert!(library.version().contains("MPI"));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Library {
    version: String,
    standard: (i32, i32),
    thread_level: ThreadLevel,
}

impl Library {
    pub(super) fn query(version: String, thread_level: ThreadLevel) -> Result<Self> {
        let mut standard = (0, 0);
        // SAFETY: both numbers outlive the call.
        unsafe { checked!(MPI_Get_version(&mut standard.0, &mut standard.1)) }?;
        Ok(Self { version, standard, thread_level })
    }

    /// The vendor of the MPI that the program was compiled for. A library that is known to be
    /// another vendor's is an error of [`initialize`](crate::initialize). With the feature `abi` the
    /// vendor of the library that was loaded.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::mpi_sys::Vendor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let library = universe.library();
    /// assert_eq!(library.vendor(), Vendor::of_library(library.version()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    pub fn vendor(&self) -> mpi_sys::Vendor {
        mpi_sys::loaded_vendor()
    }

    /// The library's own text on its version, of one or more lines.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let text = universe.library().version();
    /// assert!(text.contains("MPI"));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Get_library_version")]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The version of the MPI standard that the library implements: `(3, 1)`.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// assert!(universe.library().standard() >= (3, 0));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Get_version")]
    pub fn standard(&self) -> (i32, i32) {
        self.standard
    }

    /// The thread level that MPI provides.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::ThreadLevel;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// assert!(universe.library().thread_level() >= ThreadLevel::Serialized);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Query_thread")]
    pub fn thread_level(&self) -> ThreadLevel {
        self.thread_level
    }
}

/// The version text of the library that is loaded; an error if it is known to be of another vendor
/// than the one that the program was compiled for, or to have another version of the standard's ABI.
pub(super) fn version() -> Result<String> {
    let version = library_version()?;
    let has_abi = mpi_sys::abi_versions().is_none_or(|[compiled, loaded]| compiled.0 == loaded.0);
    if has_abi && mpi_sys::is_compiled_for(&version) {
        return Ok(version);
    }
    Err(Error::Library { compiled: compiled(), loaded: version })
}

/// An error if the library that is loaded has other constants than MPI 5.0, although it states the
/// version of its ABI. To be called once MPI is initialized.
pub(super) fn check_constants(version: &str) -> Result<()> {
    if mpi_sys::has_standard_constants() {
        return Ok(());
    }
    let loaded = format!("{version}, with the constants of a draft of that ABI,");
    Err(Error::Library { compiled: compiled(), loaded })
}

/// What the program was compiled for.
fn compiled() -> String {
    format!("{} ({})", mpi_sys::VENDOR, mpi_sys::LIBRARY_VERSION)
}

fn library_version() -> Result<String> {
    let mut text = vec![0_u8; mpi_sys::MPI_MAX_LIBRARY_VERSION_STRING as usize];
    let mut length = 0;
    // SAFETY: `text` has the bytes that MPI may write; the call is allowed at any time.
    unsafe { checked!(MPI_Get_library_version(text.as_mut_ptr().cast(), &mut length)) }?;
    text.truncate(usize::try_from(length).unwrap_or(0));
    Ok(String::from_utf8_lossy(&text).trim_end_matches(['\0', '\n']).to_owned())
}

/// The launcher of the library that is loaded: where that need not be the one that the program was
/// compiled with, it is not known.
fn launcher() -> &'static str {
    match mpi_sys::VENDOR {
        mpi_sys::Vendor::StandardAbi => "its mpiexec",
        _ => mpi_sys::MPIEXEC,
    }
}

/// The environment variable that allows each rank to be alone in its world.
const ALLOW_SINGLETONS: &str = "MPI4TCH_ALLOW_SINGLETONS";

/// Refuses a world of one rank in a job of several ranks. The launcher of another MPI starts each
/// rank in a world of its own, and the results of the program are wrong.
///
/// # Errors
/// `Error::Launcher` in such a world, unless `MPI4TCH_ALLOW_SINGLETONS` is 1; `Error::Setting` if
/// it is neither 0 nor 1. In larger worlds, where all ranks would have to agree on it, the variable
/// is not read.
pub(crate) fn check_launcher(size: i32) -> Result<()> {
    // Set by Open MPI, by MPICH and its derivatives, and by Slurm for a job step.
    const VARIABLES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];
    if size > 1 {
        return Ok(());
    }
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    let launched = |variable| Some((variable, number(variable).filter(|&launched| launched > 1)?));
    let Some((variable, launched)) = VARIABLES.into_iter().find_map(launched) else {
        return Ok(());
    };
    match std::env::var_os(ALLOW_SINGLETONS) {
        Some(value) if value == "1" => Ok(()),
        Some(value) if value != "0" && !value.is_empty() => Err(Error::Setting {
            name: ALLOW_SINGLETONS,
            value: value.to_string_lossy().into_owned(),
            needed: "0 or 1",
        }),
        _ => Err(Error::Launcher {
            variable,
            launched,
            vendor: mpi_sys::loaded_vendor(),
            launcher: launcher(),
        }),
    }
}
