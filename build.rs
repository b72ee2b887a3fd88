//! Compiles the C++ of `src/autograd` against the libtorch that torch-sys found, and binds
//! `wrapper.h`.

#[path = "build/libtorch.rs"]
mod libtorch;

use std::env;
use std::path::{Path, PathBuf};

use libtorch::Libtorch;

const SHIM: [&str; 4] = ["shim.cpp", "device.cpp", "memory.cpp", "dispatcher.cpp"];

fn main() {
    println!("cargo::rerun-if-changed=wrapper.h");
    pass_on_what_mpi_has();
    bind_wrapper();
    // The documentation is made where there may be no libtorch.
    if env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() {
        return;
    }
    for file in SHIM.iter().chain(&["memory.h", "border.h"]) {
        println!("cargo::rerun-if-changed=src/autograd/{file}");
    }
    let libtorch = Libtorch::find();
    libtorch
        .compiler()
        .files(SHIM.map(|file| format!("src/autograd/{file}")))
        .compile("mpi4tch_autograd");
    make_loadable(&libtorch.lib);
}

/// Lets programs find libtorch when they start, and MPI if it is not in a folder that the loader
/// searches.
///
/// This crate's tests and examples get the folders as rpath. Cargo does not pass an rpath on to
/// dependants, but their build scripts can set it from `DEP_MPI4TCH_RPATH`, a list as in PATH.
/// Programs that `cargo run` and `cargo test` start need none: Cargo adds library search paths
/// below the target folder to the loader's path, so `OUT_DIR` has a link to libtorch's folder, and
/// that of mpi-sys one to MPI's.
fn make_loadable(libtorch: &Path) {
    let mpi = env::var_os("DEP_MPI4TCH_MPI_RPATH").map(PathBuf::from);
    let folders: Vec<PathBuf> = [libtorch.to_owned()].into_iter().chain(mpi).collect();
    for folder in &folders {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
    // libtorch.so refers to libtorch's parts for GPUs. Nothing else does, so that the linker would leave
    // them out (https://github.com/LaurentMazare/tch-rs/issues/980).
    println!("cargo::rustc-link-arg=-Wl,--no-as-needed,-ltorch,--as-needed");
    let list = env::join_paths(&folders)
        .unwrap_or_else(|error| panic!("{folders:?} cannot be searched by a loader: {error}"));
    println!("cargo::metadata=RPATH={}", Path::new(&list).display());
    println!("cargo::metadata=LIBTORCH_LIB={}", libtorch.display());
    let link = out_dir().join("libtorch");
    let _ = std::fs::remove_file(&link);
    if std::os::unix::fs::symlink(libtorch, &link).is_ok() {
        println!("cargo::rustc-link-search=native={}", link.display());
    }
}

/// Sets the cfg `large_count` if this MPI has MPI 4's functions with large counts, as
/// `MPI_Bcast_c`.
fn pass_on_what_mpi_has() {
    println!("cargo::rustc-check-cfg=cfg(large_count)");
    if env::var("DEP_MPI4TCH_MPI_LARGE_COUNT").is_ok_and(|has| has == "1" || has == "true") {
        println!("cargo::rustc-cfg=large_count");
    }
}

fn bind_wrapper() {
    let headers = env::var("DEP_MPI4TCH_MPI_COMPILER_HEADERS").ok().filter(|it| !it.is_empty());
    bindgen::Builder::default()
        .header("wrapper.h")
        // The libclang package of the Python registry has no headers of its own.
        .clang_args(headers.iter().flat_map(|folder| ["-idirafter", folder]))
        .allowlist_item("mpi4tch_.*")
        .rust_edition(bindgen::RustEdition::Edition2024)
        .layout_tests(false)
        .prepend_enum_name(false)
        .generate_comments(false)
        .generate()
        .expect("bindgen cannot read wrapper.h")
        .write_to_file(out_dir().join("wrapper.rs"))
        .expect("cannot write the bindings of wrapper.h");
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR"))
}
