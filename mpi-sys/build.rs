//! Finds the MPI of this machine and binds it, in four steps: `probe` says
//! which MPI, `macros` reads what `mpi.h` has as macros only, `shim` compiles
//! that, and `bindings` writes the Rust declarations.

#[path = "build/bindings.rs"]
mod bindings;
#[path = "build/compiler.rs"]
mod compiler;
#[path = "build/installation.rs"]
mod installation;
#[path = "build/launcher.rs"]
mod launcher;
#[path = "build/libclang.rs"]
mod libclang;
#[path = "build/macros.rs"]
mod macros;
#[path = "build/place.rs"]
mod place;
#[path = "build/polish.rs"]
mod polish;
#[path = "build/probe.rs"]
mod probe;
#[path = "build/report.rs"]
mod report;
#[path = "build/shim.rs"]
mod shim;
#[path = "build/standard.rs"]
mod standard;

use std::path::PathBuf;

/// The header that is bound.
const HEADER: &str = "mpi.h";

fn main() {
    if let Err(reason) = build() {
        eprintln!("{reason}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    libclang::load()?;
    let mpi = probe::probe()?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let macros = macros::Macros::read(HEADER, &mpi.include_paths, &out)?;
    let includes = [&mpi.include_paths[..], std::slice::from_ref(&out)].concat();
    shim::compile(HEADER, &includes, &macros, &out);
    let headers = compiler::headers();
    let source = bindings::Source {
        header: HEADER,
        includes: &includes,
        compiler: headers.as_deref(),
        functions: &macros.functions,
    };
    let features = bindings::generate(&source, &out.join("bindings.rs"));
    report::link(&mpi);
    report::describe(&mpi, &features, headers);
    Ok(())
}
