//! What this MPI's `mpi.h` declares, and what of it is bound.

use std::collections::{BTreeSet, HashSet};
use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::macros::{Preprocessor, is_of_mpi};

/// The names of MPI in two texts.
pub struct Header {
    /// In `mpi.h`, and in what it includes.
    pub declared: BTreeSet<String>,
    /// In the bindings.
    pub bound: BTreeSet<String>,
    /// Whether this is Intel's MPI, which is an MPICH to `VENDOR`.
    pub is_intel: bool,
    upper: HashSet<String>,
}

impl Header {
    pub fn read() -> Header {
        let declared = declared("mpi.h").unwrap();
        let is_intel = includes().iter().any(|folder| {
            let text = std::fs::read_to_string(folder.join("mpi.h")).unwrap_or_default();
            text.contains("I_MPI_VERSION")
        });
        let bindings = include_str!(concat!(env!("OUT_DIR"), "/bindings.rs"));
        let bound = bindings.lines().filter_map(item).filter(|name| is_of_mpi(name));
        let upper = declared.iter().map(|name| name.to_uppercase()).collect();
        Header { declared, bound: bound.map(str::to_owned).collect(), is_intel, upper }
    }

    /// Whether `mpi.h` declares this name, but for small and capital letters, and not in
    /// capital letters only.
    pub fn declares_in_any_case(&self, name: &str) -> bool {
        self.upper.contains(name) && !self.declared.contains(name)
    }
}

/// The names of MPI that a header declares.
pub fn declared(header: &str) -> Result<BTreeSet<String>, String> {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let out = env::temp_dir().join(format!("mpi4tch-names-{}-{call}", std::process::id()));
    std::fs::create_dir_all(&out).map_err(|error| error.to_string())?;
    let includes = includes();
    let preprocessor =
        Preprocessor { compiler: compiler(), header, includes: &includes, out: &out };
    let texts = preprocessor
        .macros()
        .and_then(|macros| preprocessor.run("", "-P").map(|text| (macros, text)));
    std::fs::remove_dir_all(&out).map_err(|error| error.to_string())?;
    let (macros, text) = texts?;
    let macros = macros.iter().map(|name| name.trim_end_matches('('));
    Ok(words(&text).chain(macros).map(str::to_owned).collect())
}

/// The folders of MPI's headers.
pub fn includes() -> Vec<PathBuf> {
    env::split_paths(env!("MPI4TCH_MPI_INCLUDE")).collect()
}

/// The C compiler, with what cargo tells a build script of it.
fn compiler() -> cc::Build {
    let rustc = Command::new("rustc").arg("-vV").output().unwrap().stdout;
    let rustc = String::from_utf8(rustc).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let mut compiler = cc::Build::new();
    compiler.target(host).host(host).opt_level(0);
    compiler
}

/// The names of MPI in a text of C.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| is_of_mpi(word))
}

/// The item or field that a line of the bindings declares.
fn item(line: &str) -> Option<&str> {
    let item = line.trim_start().strip_prefix("pub ")?;
    let words = ["const ", "fn ", "safe static ", "static mut ", "static ", "struct ", "type "];
    let item = words.iter().find_map(|word| item.strip_prefix(word)).unwrap_or(item);
    item.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()
}
