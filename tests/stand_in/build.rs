//! Compiles the C++ of `src` against the libtorch that torch-sys found.

#[path = "../../build/libtorch.rs"]
mod libtorch;

use libtorch::Libtorch;

const FILES: [&str; 8] =
    ["allocators", "arena", "border", "copies", "hooks", "operations", "queue", "streams"];

fn main() {
    println!("cargo::rerun-if-changed=src");
    let libtorch = Libtorch::find();
    libtorch
        .compiler()
        // gcc 12 reports such writes in libtorch's headers when it optimizes; there are none.
        .flag_if_supported("-Wno-stringop-overflow")
        .files(FILES.map(|name| format!("src/{name}.cpp")))
        .compile("mpi4tch_stand_in");
    // For this crate's own tests.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", libtorch.lib.display());
}
