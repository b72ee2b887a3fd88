//! Compiles the C files: `shim.c`, which makes objects and functions of the macros of `mpi.h`, and
//! `devices.c`.

use std::path::{Path, PathBuf};

use crate::installation::Installation;
use crate::macros::Macros;

/// Writes `macros.h` to `out`, and compiles the shim for the header of this MPI. `includes`
/// are the folders of both.
pub fn compile(mpi: &Installation, includes: &[PathBuf], macros: &Macros, out: &Path) {
    for file in ["shim.h", "shim.c", "devices.c"] {
        println!("cargo::rerun-if-changed={file}");
    }
    // An MPI may be replaced in place.
    let headers = includes.iter().map(|folder| folder.join(mpi.header()));
    for header in headers.filter(|header| header.is_file()) {
        println!("cargo::rerun-if-changed={}", header.display());
    }
    std::fs::write(out.join("macros.h"), &macros.lines).expect("OUT_DIR is writable");
    let mut build = cc::Build::new();
    if mpi.abi.is_some() {
        build.define("MPI4TCH_ABI", None);
    }
    build
        .files(["shim.c", "devices.c"])
        .define("MPI4TCH_HEADER", Some(format!("<{}>", mpi.header()).as_str()))
        .includes(includes)
        // All names that mpi.h has are bound, even if an MPI deprecates them.
        .flag_if_supported("-Wno-deprecated-declarations")
        .compile("mpi4tch_mpi_shim");
}
