//! Tells cargo, this crate and its dependants what the build has found.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::installation::Installation;

/// Links the library, and lets programs find it at run time.
pub fn link(mpi: &Installation) {
    for folder in &mpi.lib_paths {
        println!("cargo::rustc-link-search=native={}", folder.display());
    }
    for library in &mpi.libs {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    if let Some(folder) = runtime_folder(mpi) {
        println!("cargo::metadata=rpath={}", folder.display());
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
        // `cargo run` and `cargo test` let the loader search those link paths
        // that lie in the target folder. So with a link there, the programs
        // and doctests of dependants start without an rpath of their own.
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        let link = out.join("lib");
        let _ = fs::remove_file(&link);
        if std::os::unix::fs::symlink(&folder, &link).is_ok() {
            println!("cargo::rustc-link-search=native={}", link.display());
        }
    }
}

/// The folder of the shared library; `None` if the loader searches it anyway.
fn runtime_folder(mpi: &Installation) -> Option<PathBuf> {
    let files = mpi.libs.iter().flat_map(|library| {
        let names = [format!("lib{library}.so"), format!("lib{library}.dylib")];
        let folders = mpi.lib_paths.iter();
        folders.flat_map(move |folder| names.clone().map(|name| folder.join(name)))
    });
    let library = files.filter_map(|file| fs::canonicalize(file).ok()).next()?;
    let folder = library.parent()?;
    (!is_default(folder)).then(|| folder.to_path_buf())
}

/// Whether the loader searches `folder` without being told.
fn is_default(folder: &Path) -> bool {
    let system = ["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"];
    let is_system = |folder: &Path| system.iter().any(|other| folder == Path::new(other));
    let is_multiarch = |folder: &Path| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        name.contains("-linux-gnu") && folder.parent().is_some_and(is_system)
    };
    is_system(folder) || is_multiarch(folder)
}

/// States vendor and versions as cfgs, constants of this crate, and `DEP_…`
/// variables of its dependants.
pub fn describe(mpi: &Installation, features: &[(&str, bool)], headers: Option<String>) {
    let (major, minor) = mpi.standard;
    let standard = format!("{major}.{minor}");
    let vendor = mpi.abi.as_ref().map_or(mpi.vendor.to_string(), |_| "abi".to_owned());
    let version = mpi.abi.as_ref().unwrap_or(&mpi.version);
    let launcher = mpi.launcher.as_ref().map(|found| &found.path);
    let launcher = launcher.map_or("mpiexec".to_owned(), |path| path.display().to_string());

    let cfgs = [
        ("open_mpi", vendor == "openmpi"),
        ("mpich", vendor == "mpich"),
        ("mpi_abi", mpi.abi.is_some()),
        ("mpi_4", mpi.standard >= (4, 0)),
        ("mpi_41", mpi.standard >= (4, 1)),
    ];
    for (name, value) in cfgs {
        cfg(name, value);
    }
    for (feature, there) in features {
        cfg(&format!("mpi_{feature}"), *there);
        println!("cargo::metadata={feature}={}", u8::from(*there));
    }

    let include = join(&mpi.include_paths);
    let env = [
        ("VENDOR", &vendor),
        ("VERSION", version),
        ("MPIEXEC", &launcher),
        // For a test, which reads mpi.h.
        ("INCLUDE", &include),
    ];
    for (name, value) in env {
        println!("cargo::rustc-env=MPI4TCH_MPI_{name}={value}");
    }

    let lib = join(&mpi.lib_paths);
    let metadata = [
        ("version", version.clone()),
        ("vendor", vendor),
        ("standard", standard),
        ("include", include),
        ("lib", lib),
        ("mpiexec", launcher),
        ("compiler_headers", headers.unwrap_or_default()),
    ];
    for (name, value) in metadata {
        println!("cargo::metadata={name}={value}");
    }
}

fn cfg(name: &str, value: bool) {
    println!("cargo::rustc-check-cfg=cfg({name})");
    if value {
        println!("cargo::rustc-cfg={name}");
    }
}

/// The folders, separated as in PATH.
fn join(folders: &[PathBuf]) -> String {
    let joined = env::join_paths(folders).unwrap_or_default();
    joined.to_string_lossy().into_owned()
}
