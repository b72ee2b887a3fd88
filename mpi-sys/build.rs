//! Finds the MPI of this machine and binds it, in four steps: `probe` says
//! which MPI, `macros` reads what `mpi.h` has as macros only, `shim` compiles
//! that, and `bindings` writes the Rust declarations. With the feature `doc-only`
//! no MPI is looked for, and the declarations are those of `stored.rs`.

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

use std::env;
use std::fs;
use std::path::PathBuf;

use installation::Installation;

fn main() {
    if let Err(reason) = build() {
        eprintln!("{reason}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let headers = compiler::headers();
    if env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() {
        println!("cargo::rerun-if-changed=stored.rs");
        let declarations = fs::read_to_string("stored.rs").map_err(|error| error.to_string())?;
        bindings::write(&declarations);
        report::describe(&Installation::stored(), &bindings::features(&declarations), headers);
        return Ok(());
    }
    libclang::load()?;
    let mpi = probe::probe()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let macros = macros::Macros::read(mpi.header(), &mpi.include_paths, &out)?;
    let includes = [&mpi.include_paths[..], std::slice::from_ref(&out)].concat();
    shim::compile(&mpi, &includes, &macros, &out);
    let source = bindings::Source {
        mpi: &mpi,
        includes: &includes,
        compiler: headers.as_deref(),
        functions: &macros.functions,
    };
    let declarations = bindings::generate(&source);
    bindings::write(&declarations);
    report::link(&mpi);
    report::describe(&mpi, &bindings::features(&declarations), headers);
    Ok(())
}
