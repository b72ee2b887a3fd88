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
    /// Version of the standard's ABI, as in `1.0`, if that is bound.
    pub abi: Option<String>,
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

/// The same for the ABI of the standard.
const ABI_PROGRAM: &str = "\
#include <mpi_abi.h>
#ifdef MPI4TCH_IDENTIFY
mpi4tch_standard MPI_VERSION . MPI_SUBVERSION
mpi4tch_abi MPI_ABI_VERSION . MPI_ABI_SUBVERSION
#endif
/* Drafts, as that of Intel MPI 2021.19, state the same version. */
_Static_assert(MPI_SEEK_SET == 403, \"mpi_abi.h is of a draft, not of MPI 5.0\");
int main(void) { return MPI_Init(0, 0); }
";

/// The library that has the ABI of the standard, as MPI 5.0 names it.
const ABI_LIBRARY: &str = "mpi_abi";

impl Installation {
    /// Asks the compiler for the vendor and versions that `mpi.h` states, and
    /// whether a program can be linked. With the feature `abi` the same for
    /// `mpi_abi.h`.
    pub fn identify(flags: Flags) -> Result<Installation, String> {
        let program = Program::write("identify", PROGRAM)?;
        let stated = program.preprocess(&flags)?;
        let (vendor, version) = [Vendor::OpenMpi, Vendor::Mpich]
            .into_iter()
            .find_map(|vendor| Some((vendor, value(&stated, &format!("mpi4tch_{vendor}"))?)))
            .unwrap_or((Vendor::Other, String::new()));
        program.link(&flags)?;
        let mpi = Installation {
            vendor,
            version,
            standard: standard(&stated)?,
            abi: None,
            include_paths: flags.include_paths,
            lib_paths: flags.lib_paths,
            libs: flags.libs,
            bin: flags.bin,
            launcher: None,
        };
        // Cargo sets the variable for build scripts of a crate with the feature.
        if env::var_os("CARGO_FEATURE_ABI").is_some() { mpi.with_standard_abi() } else { Ok(mpi) }
    }

    /// The header that is bound.
    pub fn header(&self) -> &'static str {
        if self.abi.is_some() { "mpi_abi.h" } else { "mpi.h" }
    }

    /// That of the declarations in `stored.rs`, which belong to no library.
    pub fn stored() -> Installation {
        Installation {
            vendor: Vendor::Other,
            version: String::new(),
            standard: (5, 0),
            abi: Some("1.0".to_owned()),
            include_paths: Vec::new(),
            lib_paths: Vec::new(),
            libs: Vec::new(),
            bin: None,
            launcher: None,
        }
    }

    /// The same installation, to be bound by the ABI of the standard.
    fn with_standard_abi(self) -> Result<Installation, String> {
        let flags = Flags {
            include_paths: self.include_paths.clone(),
            lib_paths: self.lib_paths.clone(),
            libs: vec![ABI_LIBRARY.to_owned()],
            bin: self.bin.clone(),
        };
        let lacks = |reason: String| {
            format!(
                "{} {} lacks the ABI of the MPI standard, which the feature `abi` needs: {reason}",
                self.vendor, self.version
            )
        };
        let program = Program::write("identify_abi", ABI_PROGRAM)?;
        let stated = program.preprocess(&flags).map_err(lacks)?;
        program.link(&flags).map_err(lacks)?;
        Ok(Installation {
            standard: standard(&stated)?,
            abi: Some(value(&stated, "mpi4tch_abi").ok_or("mpi_abi.h states no MPI_ABI_VERSION")?),
            libs: flags.libs,
            ..self
        })
    }
}

/// A C program that is compiled to learn about an MPI.
struct Program {
    source: PathBuf,
}

impl Program {
    fn write(name: &str, text: &str) -> Result<Program, String> {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let source = out.join(name).with_extension("c");
        std::fs::write(&source, text).map_err(|error| error.to_string())?;
        Ok(Program { source })
    }

    /// The preprocessed text, with the lines that are for these build steps.
    fn preprocess(&self, flags: &Flags) -> Result<String, String> {
        let includes = flags.include_paths.iter().map(|folder| joined("-I", folder));
        run(compiler()?.args(includes).args(["-DMPI4TCH_IDENTIFY", "-E"]).arg(&self.source))
    }

    fn link(&self, flags: &Flags) -> Result<(), String> {
        let mut link = compiler()?;
        link.args(flags.include_paths.iter().map(|folder| joined("-I", folder)));
        link.arg(&self.source).arg("-o").arg(self.source.with_extension(""));
        link.args(flags.lib_paths.iter().map(|folder| joined("-L", folder)));
        link.args(flags.libs.iter().map(|library| format!("-l{library}")));
        run(&mut link).map(drop)
    }
}

/// What follows `key` on its line of a preprocessed text, as in `4.1.4`.
fn value(preprocessed: &str, key: &str) -> Option<String> {
    let line = preprocessed.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.replace([' ', '"'], ""))
}

/// The version of the standard that a header states.
fn standard(preprocessed: &str) -> Result<(u32, u32), String> {
    value(preprocessed, "mpi4tch_standard")
        .as_deref()
        .and_then(|standard| standard.split_once('.'))
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| "mpi.h states no MPI_VERSION".to_owned())
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
    // Without the environment, which the compiler's own `Debug` shows too.
    let program = compiler.get_program();
    let call = std::iter::once(program).chain(compiler.get_args()).map(|word| format!("{word:?}"));
    let call = call.collect::<Vec<_>>().join(" ");
    let output = compiler.output().map_err(|error| format!("cannot run {call}: {error}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{call} failed:\n{}", errors.trim_end()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
