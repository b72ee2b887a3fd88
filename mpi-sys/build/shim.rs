//! Compiles `shim.c`: what `mpi.h` offers as macros only.

use crate::installation::Installation;

pub fn compile(mpi: &Installation) {
    for file in ["shim.h", "shim.c"] {
        println!("cargo::rerun-if-changed={file}");
    }
    cc::Build::new()
        .file("shim.c")
        .includes(&mpi.include_paths)
        // MPI_LB, MPI_UB and their like: the tables in shim.h decide.
        .flag_if_supported("-Wno-deprecated-declarations")
        .compile("mpi4tch_mpi_shim");
}
