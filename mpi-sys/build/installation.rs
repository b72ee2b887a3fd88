//! [`Installation`]: an MPI that was found, as the C compiler sees it.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::launcher::Launcher;
use crate::place::Flags;

/// The vendor whose ABI an MPI has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    OpenMpi,
    Mpich,
    Other,
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Vendor::OpenMpi => "openmpi",
            Vendor::Mpich => "mpich",
            Vendor::Other => "other",
        })
    }
}

/// An MPI that programs can be compiled and linked with.
#[derive(Clone, Debug)]
pub struct Installation {
    pub vendor: Vendor,
    /// Version of the library, as in `4.1.4`; empty if the vendor is unknown.
    pub version: String,
    /// Version of the MPI standard, as in `(3, 1)`.
    pub standard: (u32, u32),
    pub include_paths: Vec<PathBuf>,
    pub lib_paths: Vec<PathBuf>,
    pub libs: Vec<String>,
    /// The folder of its programs, if the place names it.
    pub bin: Option<PathBuf>,
    pub launcher: Option<Launcher>,
}

/// A program to compile and link. Its preprocessed text states the vendor and
/// versions of `mpi.h`, in lines that begin with `mpi4tch_`.
const PROGRAM: &str = "\
#include <mpi.h>
#ifdef MPI4TCH_IDENTIFY
mpi4tch_standard MPI_VERSION . MPI_SUBVERSION
#if defined(OMPI_MAJOR_VERSION)
mpi4tch_openmpi OMPI_MAJOR_VERSION . OMPI_MINOR_VERSION . OMPI_RELEASE_VERSION
#elif defined(I_MPI_VERSION)
mpi4tch_mpich I_MPI_VERSION
#elif defined(MPICH_VERSION)
mpi4tch_mpich MPICH_VERSION
#endif
#endif
int main(void) { return MPI_Init(0, 0); }
";

impl Installation {
    /// Asks the compiler for the vendor and versions that `mpi.h` states, and
    /// whether a program can be linked.
    pub fn identify(flags: Flags) -> Result<Installation, String> {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let source = out.join("identify.c");
        std::fs::write(&source, PROGRAM).map_err(|error| error.to_string())?;
        let includes = flags.include_paths.iter().map(|folder| joined("-I", folder));

        let mut preprocess = compiler()?;
        preprocess.args(includes.clone()).args(["-DMPI4TCH_IDENTIFY", "-E"]).arg(&source);
        let expanded = run(&mut preprocess)?;
        let stated = |key: &str| {
            let line = expanded.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.replace([' ', '"'], ""))
        };
        let standard = stated("mpi4tch_standard").ok_or("mpi.h states no MPI_VERSION")?;
        let standard = standard
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
            .ok_or("mpi.h states no MPI_VERSION")?;
        let (vendor, version) = [Vendor::OpenMpi, Vendor::Mpich]
            .into_iter()
            .find_map(|vendor| Some((vendor, stated(&format!("mpi4tch_{vendor}"))?)))
            .unwrap_or((Vendor::Other, String::new()));

        let mut link = compiler()?;
        link.args(includes).arg(&source).arg("-o").arg(out.join("identify"));
        link.args(flags.lib_paths.iter().map(|folder| joined("-L", folder)));
        link.args(flags.libs.iter().map(|library| format!("-l{library}")));
        run(&mut link)?;

        Ok(Installation {
            vendor,
            version,
            standard,
            include_paths: flags.include_paths,
            lib_paths: flags.lib_paths,
            libs: flags.libs,
            bin: flags.bin,
            launcher: None,
        })
    }
}

fn compiler() -> Result<Command, String> {
    let compiler = cc::Build::new().cargo_metadata(false).try_get_compiler();
    compiler.map(|compiler| compiler.to_command()).map_err(|error| error.to_string())
}

fn joined(option: &str, folder: &Path) -> OsString {
    let mut joined = OsString::from(option);
    joined.push(folder);
    joined
}

/// What the compiler prints, or its error text if it fails.
fn run(compiler: &mut Command) -> Result<String, String> {
    let output = compiler.output().map_err(|error| format!("cannot run {compiler:?}: {error}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{compiler:?} failed:\n{}", errors.trim_end()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
