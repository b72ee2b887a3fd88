//! The libtorch that torch-sys compiles and links against, for this crate and for that in
//! `tests/stand_in`.

use std::env;
use std::path::{Path, PathBuf};

/// The libtorch that torch-sys compiles and links against.
pub struct Libtorch {
    pub lib: PathBuf,
    include: PathBuf,
}

impl Libtorch {
    /// torch-sys passes its library folder as metadata. The headers are in the first of
    /// `LIBTORCH_INCLUDE`, the folder above the libraries, and `LIBTORCH` that has them in
    /// `include`.
    pub fn find() -> Self {
        let lib = PathBuf::from(
            env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys did not say where libtorch is"),
        );
        println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
        println!("cargo::rerun-if-env-changed=LIBTORCH");
        let named = |name| env::var_os(name).map(PathBuf::from);
        let roots = [named("LIBTORCH_INCLUDE"), Some(lib.join("..")), named("LIBTORCH")];
        let folders: Vec<PathBuf> =
            roots.into_iter().flatten().map(|root| root.join("include")).collect();
        let header = Path::new("torch/csrc/autograd/function.h");
        let Some(include) = folders.iter().find(|folder| folder.join(header).exists()) else {
            panic!(
                "libtorch's headers are in none of {folders:?}: set LIBTORCH, or LIBTORCH_INCLUDE, \
                 to an installation that has them"
            );
        };
        // Compile again if libtorch is replaced in place: another version has other classes.
        println!(
            "cargo::rerun-if-changed={}",
            include.join("torch/headeronly/version.h").display()
        );
        Self { lib, include: include.clone() }
    }

    /// A compiler for C++ that uses it.
    pub fn compiler(&self) -> cc::Build {
        println!("cargo::rerun-if-env-changed=LIBTORCH_CXX11_ABI");
        let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
        let mut compiler = cc::Build::new();
        compiler
            .cpp(true)
            .std("c++17")
            // As system headers, whose warnings the compiler does not report.
            .flag("-isystem")
            .flag(&self.include)
            .flag("-isystem")
            .flag(self.include.join("torch/csrc/api/include"))
            .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
            .define("GLOG_USE_GLOG_EXPORT", None)
            .warnings(true);
        compiler
    }
}
