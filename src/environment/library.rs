//! [`Library`]: which MPI it is, and whether it is the one that the program was made for.

use super::ThreadLevel;
use crate::error::{Error, Result, check};

/// The MPI library in use.
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

/// What the library that is loaded says of itself, if it is the one that was compiled against.
pub(super) fn version() -> Result<String> {
    let version = library_version()?;
    if mpi_sys::is_compiled_for(&version) {
        return Ok(version);
    }
    let compiled = format!("{} ({})", mpi_sys::VENDOR, mpi_sys::LIBRARY_VERSION);
    Err(Error::Library { compiled, loaded: version })
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

/// A program that was started by another implementation's launcher runs as many worlds of one
/// rank each, and would go on without a word.
pub(super) fn warn_of_wrong_launcher(size: i32) {
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
