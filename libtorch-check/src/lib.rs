//! Empty: the build script of this crate is what it is for.
//!
//! torch-sys takes `LIBTORCH` as it is, and a wrong one fails after minutes, with errors of the C++
//! compiler. mpi4tch's own build script comes after that of torch-sys. This crate depends on
//! nothing, and mpi4tch-sys depends on it, so that its build script comes before.

#[cfg(test)]
#[path = "../check.rs"]
mod check;
