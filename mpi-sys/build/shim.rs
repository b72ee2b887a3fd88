//! Compiles `shim.c`, which makes objects and functions of the macros of `mpi.h`.

use crate::installation::Installation;

pub fn compile(mpi: &Installation) {
    for file in ["shim.h", "shim.c"] {
        println!("cargo::rerun-if-changed={file}");
    }
    cc::Build::new()
        .file("shim.c")
        .includes(&mpi.include_paths)
        // shim.h decides which names are bound, even if an MPI deprecates them.
        .flag_if_supported("-Wno-deprecated-declarations")
        .compile("mpi4tch_mpi_shim");
}
