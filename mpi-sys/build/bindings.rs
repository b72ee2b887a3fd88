//! Runs bindgen on `shim.h`, which includes `mpi.h`.

use std::path::PathBuf;

use bindgen::callbacks::{IntKind, ParseCallbacks};

use crate::installation::Installation;

/// The names to bind: those of the standard, of its profiling interface, of
/// vendors' extensions, and those of the shim.
const NAMES: &str = "(mpi4tch_)?P?MPIX?_.*";

/// MPICH's enumerations, whose enumerators have names of the standard.
const ENUMS: &str = "MPIR_.*";

/// Names of functions in one `mpi.h`, of macros in another, or of both: those of
/// the shim are bound instead.
const MACRO_FUNCTIONS: &str = "MPI_[A-Za-z]+_(c2f|f2c)|MPI_Aint_(add|diff)";

/// Integers whose size `shim.h` asserts, and the Rust type of that size.
const INTEGERS: [(&str, &str); 3] =
    [("MPI_Aint", "isize"), ("MPI_Count", "i64"), ("MPI_Offset", "i64")];

/// Opaque handles: pointers in one implementation, integers in another, and
/// types of their own in these bindings.
const HANDLES: &str =
    "MPI_(Comm|Datatype|Errhandler|File|Group|Info|Message|Op|Request|Session|Win)";

/// Parts of MPI that a library may have although it claims an earlier standard,
/// each with a function that shows that the library has it.
const FEATURES: [(&str, &str); 4] = [
    ("large_count", "MPI_Allreduce_c"),
    ("persistent_collectives", "MPI_Allreduce_init"),
    ("partitioned", "MPI_Psend_init"),
    ("sessions", "MPI_Session_init"),
];

/// Writes `bindings.rs`. Returns the optional features, and whether the library
/// has each.
pub fn generate(mpi: &Installation, headers: Option<&str>) -> Vec<(&'static str, bool)> {
    let includes = mpi.include_paths.iter().map(|path| format!("-I{}", path.display()));
    let integers = INTEGERS.map(|(name, rust)| format!("pub type {name} = {rust};"));
    let bindings = bindgen::Builder::default()
        .header("shim.h")
        .clang_args(includes)
        // Searched last, so that clang's own headers come first.
        .clang_args(headers.iter().flat_map(|folder| ["-idirafter", folder]))
        .allowlist_function(NAMES)
        .allowlist_type(NAMES)
        .allowlist_var(NAMES)
        .allowlist_type(ENUMS)
        .blocklist_function(MACRO_FUNCTIONS)
        .blocklist_type(INTEGERS.map(|(name, _)| name).join("|"))
        .raw_line(integers.join("\n"))
        .new_type_alias(HANDLES)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .derive_eq(true)
        .derive_hash(true)
        .generate_comments(false)
        .layout_tests(false)
        .rust_target(bindgen::RustTarget::stable(85, 0).unwrap_or_default())
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(Macros))
        .generate()
        .unwrap_or_else(|error| panic!("mpi4tch-sys: bindgen cannot read mpi.h: {error}"));
    let bindings = polish(&bindings.to_string());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join("bindings.rs"), &bindings).expect("OUT_DIR is writable");
    FEATURES
        .map(|(feature, function)| (feature, bindings.contains(&format!("fn {function}("))))
        .to_vec()
}

/// Gives integer macros the type `int`.
#[derive(Debug)]
struct Macros;

impl ParseCallbacks for Macros {
    fn int_macro(&self, _name: &str, value: i64) -> Option<IntKind> {
        i32::try_from(value).ok().map(|_| IntKind::Int)
    }
}

/// Changes the generated text where bindgen cannot make it alike for all
/// implementations.
///
/// - The shim's items get the names of the standard.
/// - A constant that is a macro in one `mpi.h` is an enumerator in another, for
///   which clang chooses `unsigned`: both become `c_int`, the type that MPI's
///   functions take.
/// - A `const` object is initialised before any code runs and never changes,
///   so reading it is safe.
fn polish(bindings: &str) -> String {
    let lines = bindings.lines().map(|line| {
        let item = line.trim_start();
        if is_integer_constant(item) {
            let (name, rest) = line.split_once(": ").expect("a constant has a type");
            let (_, value) = rest.split_once(" = ").expect("a constant has a value");
            format!("{name}: ::std::os::raw::c_int = {value}")
        } else if item.starts_with("pub type ") && item.ends_with(" = ::std::os::raw::c_uint;") {
            line.replace("c_uint", "c_int")
        } else if item.starts_with("pub static MPI") {
            line.replacen("static", "safe static", 1)
        } else if item.starts_with("pub static mpi4tch_") {
            rename(&line.replacen("static", "safe static", 1))
        } else if item.starts_with("pub fn mpi4tch_") {
            rename(line)
        } else {
            line.replace("pub type mpi4tch_", "pub type ")
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Drops `mpi4tch_` from the item's name, but not from its symbol.
fn rename(line: &str) -> String {
    let start = line.find("mpi4tch_").expect("an item of the shim");
    let symbol = line[start..].split([':', '(']).next().unwrap_or_default();
    let renamed = line.replacen("mpi4tch_", "", 1);
    format!("    #[link_name = \"{symbol}\"]\n{renamed}")
}

/// `pub const MPI_X: T = 3;` with a value that an `int` holds.
fn is_integer_constant(line: &str) -> bool {
    let Some((_, value)) = line.strip_suffix(';').and_then(|line| line.split_once(" = ")) else {
        return false;
    };
    line.starts_with("pub const ") && value.parse::<i32>().is_ok()
}
