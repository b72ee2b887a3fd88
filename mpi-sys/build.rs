//! Finds the MPI of this machine and binds it, in three steps: `probe` says
//! which MPI, `shim` compiles what `mpi.h` has as macros only, and `bindings`
//! writes the Rust declarations.

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
#[path = "build/place.rs"]
mod place;
#[path = "build/probe.rs"]
mod probe;
#[path = "build/report.rs"]
mod report;
#[path = "build/shim.rs"]
mod shim;

fn main() {
    if let Err(reason) = build() {
        eprintln!("{reason}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    libclang::load()?;
    let mpi = probe::probe()?;
    shim::compile(&mpi);
    let headers = compiler::headers();
    let features = bindings::generate(&mpi, headers.as_deref());
    report::link(&mpi);
    report::describe(&mpi, &features, headers);
    Ok(())
}
