//! Finds the MPI of this machine and binds it, in three steps: `probe` says
//! which MPI, `shim` compiles what `mpi.h` hides in macros, `bindings` writes
//! the Rust declarations.

#[path = "build/bindings.rs"]
mod bindings;
#[path = "build/launcher.rs"]
mod launcher;
#[path = "build/probe.rs"]
mod probe;
#[path = "build/report.rs"]
mod report;
#[path = "build/shim.rs"]
mod shim;

fn main() {
    let mpi = match probe::probe() {
        Ok(mpi) => mpi,
        Err(reason) => {
            eprintln!("{reason}");
            std::process::exit(1);
        }
    };
    shim::compile(&mpi);
    let features = bindings::generate(&mpi);
    report::link(&mpi);
    report::describe(&mpi, &features);
}
