//! Compiles `src/autograd/shim.cpp` against the libtorch that torch-sys found, and binds `wrapper.h`.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=wrapper.h");
    println!("cargo::rerun-if-changed=src/autograd/shim.cpp");
    let libtorch = Libtorch::find();
    libtorch.compile_shim();
    make_loadable(&libtorch.lib);
    pass_on_what_mpi_has();
    bind_wrapper();
}

/// The libtorch that torch-sys compiles and links against.
struct Libtorch {
    lib: PathBuf,
    include: PathBuf,
}

impl Libtorch {
    /// Follows torch-sys: its library folder comes as metadata, the headers are beside it or where
    /// `LIBTORCH_INCLUDE` says.
    fn find() -> Self {
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
        // Another libtorch in the same place has other classes.
        println!(
            "cargo::rerun-if-changed={}",
            include.join("torch/headeronly/version.h").display()
        );
        Self { lib, include: include.clone() }
    }

    fn compile_shim(&self) {
        println!("cargo::rerun-if-env-changed=LIBTORCH_CXX11_ABI");
        let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .file("src/autograd/shim.cpp")
            // System headers: their warnings are not ours to mend.
            .flag("-isystem")
            .flag(&self.include)
            .flag("-isystem")
            .flag(self.include.join("torch/csrc/api/include"))
            .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
            .define("GLOG_USE_GLOG_EXPORT", None)
            .warnings(true)
            .compile("mpi4tch_autograd");
    }
}

/// Lets programs find libtorch when they start, and an MPI that is in no folder of the loader's.
///
/// Our own tests and examples get their folders as rpath, which Cargo passes to no dependant. A
/// dependant's build script does so with `DEP_MPI4TCH_RPATH`, a list as in PATH. For what `cargo run`
/// and `cargo test` start there are links to the folders in `OUT_DIR`, and in that of mpi-sys: Cargo
/// adds search paths below the target folder to the loader's path.
fn make_loadable(libtorch: &Path) {
    let mpi = env::var_os("DEP_MPI4TCH_MPI_RPATH").map(PathBuf::from);
    let folders: Vec<PathBuf> = [libtorch.to_owned()].into_iter().chain(mpi).collect();
    for folder in &folders {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
    let list = env::join_paths(&folders)
        .unwrap_or_else(|error| panic!("{folders:?} cannot be searched by a loader: {error}"));
    println!("cargo::metadata=RPATH={}", Path::new(&list).display());
    println!("cargo::metadata=LIBTORCH_LIB={}", libtorch.display());
    let link = out_dir().join("libtorch");
    let _ = std::fs::remove_file(&link);
    if std::os::unix::fs::symlink(libtorch, &link).is_ok() {
        println!("cargo::rustc-link-search=native={}", link.display());
    }
}

/// Tells the sources whether this MPI has the functions with wide counts of MPI 4.
fn pass_on_what_mpi_has() {
    println!("cargo::rustc-check-cfg=cfg(large_count)");
    if env::var("DEP_MPI4TCH_MPI_LARGE_COUNT").is_ok_and(|has| has == "1" || has == "true") {
        println!("cargo::rustc-cfg=large_count");
    }
}

fn bind_wrapper() {
    let headers = env::var("DEP_MPI4TCH_MPI_COMPILER_HEADERS").ok().filter(|it| !it.is_empty());
    bindgen::Builder::default()
        .header("wrapper.h")
        // libclang from the Python registry has no headers of its own.
        .clang_args(headers.iter().flat_map(|folder| ["-idirafter", folder]))
        .allowlist_item("mpi4tch_.*")
        .rust_edition(bindgen::RustEdition::Edition2024)
        .layout_tests(false)
        .generate_comments(false)
        .generate()
        .expect("bindgen cannot read wrapper.h")
        .write_to_file(out_dir().join("wrapper.rs"))
        .expect("cannot write the bindings of wrapper.h");
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR"))
}
