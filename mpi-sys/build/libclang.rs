//! libclang, with which bindgen reads `mpi.h`.

const HELP: &str = "\
bindgen needs libclang to read mpi.h. Install it
  - Debian, Ubuntu: `apt install libclang-dev`
  - Fedora: `dnf install clang-libs`
  - any system with Python: `pip install libclang`, and set LIBCLANG_PATH to the folder
    `clang/native` of that package
or set LIBCLANG_PATH to the folder that holds your libclang.so.";

/// Loads libclang for bindgen, which would panic if there is none.
pub fn load() -> Result<(), String> {
    for name in ["LIBCLANG_PATH", "LLVM_CONFIG_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    clang_sys::load().map_err(|reason| format!("mpi4tch-sys: {reason}\n{HELP}"))
}
