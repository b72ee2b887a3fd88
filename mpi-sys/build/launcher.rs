//! [`Launcher`]: an `mpiexec`. Tells which MPI it belongs to, and finds the one
//! that belongs to an MPI.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::installation::{Installation, Vendor};

/// A program that starts the ranks of an MPI job.
#[derive(Clone, Debug)]
pub struct Launcher {
    pub path: PathBuf,
    pub vendor: Vendor,
    /// The name of the implementation, for messages.
    pub name: &'static str,
    /// As in `4.1.4`; empty if the program does not say.
    pub version: String,
}

impl Launcher {
    /// Asks the program at `path` for its implementation and version.
    pub fn identify(path: &Path) -> Option<Launcher> {
        let output = Command::new(path).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (vendor, name) = if text.contains("Open MPI") || text.contains("OpenRTE") {
            (Vendor::OpenMpi, "Open MPI")
        } else if text.contains("Intel(R) MPI") {
            (Vendor::Mpich, "Intel MPI")
        } else if text.contains("HYDRA") {
            (Vendor::Mpich, "MPICH")
        } else {
            (Vendor::Other, "an unknown MPI")
        };
        let version = text
            .lines()
            .take(3)
            .flat_map(str::split_whitespace)
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
            .unwrap_or_default();
        Some(Launcher { path: path.to_path_buf(), vendor, name, version: version.to_owned() })
    }

    /// Whether it belongs to `mpi`: both are of one vendor, and state the same
    /// version, or `4.1` and `4.1.4`, or lie in the same folder.
    pub fn starts(&self, mpi: &Installation) -> bool {
        let extends = |long: &str, short: &str| {
            let rest = long.strip_prefix(short).filter(|_| !short.is_empty());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let same_version =
            extends(&self.version, &mpi.version) || extends(&mpi.version, &self.version);
        let folder = self.path.parent().and_then(|bin| bin.canonicalize().ok());
        let bin = mpi.bin.as_ref().and_then(|bin| bin.canonicalize().ok());
        self.vendor == mpi.vendor && (same_version || (folder.is_some() && folder == bin))
    }

    /// The first `mpiexec` on PATH, which a user gets.
    pub fn on_path() -> Option<Launcher> {
        Launcher::identify(&find_on_path("mpiexec")?)
    }

    /// The launcher of programs linked with `mpi`: the first in the folder of
    /// its programs or on PATH that belongs to it, else the first of its vendor.
    pub fn of(mpi: &Installation) -> Option<Launcher> {
        let found: Vec<Launcher> = names(mpi.vendor)
            .iter()
            .flat_map(|name| {
                let own = mpi.bin.iter().map(|bin| bin.join(name));
                own.chain(find_on_path(name)).collect::<Vec<_>>()
            })
            .filter(|path| path.is_file())
            .filter_map(|path| Launcher::identify(&path))
            .filter(|launcher| launcher.vendor == mpi.vendor)
            .collect();
        let same = found.iter().find(|launcher| launcher.starts(mpi));
        same.or(found.first()).cloned()
    }
}

fn names(vendor: Vendor) -> &'static [&'static str] {
    match vendor {
        Vendor::OpenMpi => &["mpiexec", "mpiexec.openmpi", "mpirun", "mpirun.openmpi"],
        Vendor::Mpich => &["mpiexec", "mpiexec.mpich", "mpiexec.hydra", "mpirun.mpich"],
        Vendor::Other => &["mpiexec", "mpirun"],
    }
}

/// The first file called `name` in the folders of PATH. The build script runs
/// again if PATH changes.
pub fn find_on_path(name: &str) -> Option<PathBuf> {
    println!("cargo::rerun-if-env-changed=PATH");
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}
