//! Checks `LIBTORCH` before anything is compiled against it.

mod check;

fn main() {
    println!("cargo::rerun-if-changed=check.rs");
    let variable = |name: &str| {
        println!("cargo::rerun-if-env-changed={name}");
        std::env::var_os(name)
    };
    if let Err(reason) = check::check(variable) {
        eprintln!("mpi4tch: {reason}");
        std::process::exit(1);
    }
}
