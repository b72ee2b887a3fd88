//! This crate is empty. Its build script checks `LIBTORCH`.
//!
//! torch-sys does not check `LIBTORCH`, and a wrong one fails after minutes, with errors of the C++
//! compiler. mpi4tch's own build script runs only after that of torch-sys. That of this crate runs
//! before it, as this crate depends on nothing and mpi4tch-sys depends on it.

#[cfg(test)]
#[path = "../check.rs"]
mod check;
