//! Runs bindgen on `shim.h`, which includes `mpi.h`.

use std::path::PathBuf;

use bindgen::callbacks::{IntKind, ParseCallbacks};

use crate::installation::Installation;
use crate::polish::polish;

/// The names to bind: those of the standard, of its profiling interface, of
/// vendors' extensions, and those of the shim.
const NAMES: &str = "(mpi4tch_)?P?MPIX?_.*";

/// The names of the standard's ABI: without the extensions of a library.
const STANDARD_NAMES: &str = "(mpi4tch_)?P?MPI_.*";

/// MPICH's enumerations, whose enumerators have names of the standard.
const ENUMS: &str = "MPIR_.*";

/// Constants to which the shim gives another type than they have in some `mpi.h`.
const RETYPED: &str = "MPI_DISPLACEMENT_CURRENT";

/// Integers whose size `shim.h` asserts, and the Rust type of that size.
pub const INTEGERS: [(&str, &str); 3] =
    [("MPI_Aint", "isize"), ("MPI_Count", "i64"), ("MPI_Offset", "i64")];

/// Opaque handles: pointers in one implementation, integers in another, and
/// types of their own in these bindings.
const HANDLES: &str =
    "MPI_(Comm|Datatype|Errhandler|File|Group|Info|Message|Op|Request|Session|Win)|MPIX_Stream";

/// Parts of MPI that a library may have although it claims an earlier standard,
/// each with a function that shows that the library has it.
const FEATURES: [(&str, &str); 4] = [
    ("large_count", "MPI_Allreduce_c"),
    ("persistent_collectives", "MPI_Allreduce_init"),
    ("partitioned", "MPI_Psend_init"),
    ("sessions", "MPI_Session_init"),
];

/// What to bind.
pub struct Source<'a> {
    pub mpi: &'a Installation,
    /// The folders of its header, and that of `macros.h`.
    pub includes: &'a [PathBuf],
    /// The compiler's own headers, if libclang may lack them.
    pub compiler: Option<&'a str>,
    /// The functions that the shim defines, as they are macros.
    pub functions: &'a [String],
}

/// The declarations in Rust.
pub fn generate(source: &Source<'_>) -> String {
    let includes = source.includes.iter().map(|path| format!("-I{}", path.display()));
    let integers = INTEGERS.map(|(name, rust)| format!("pub type {name} = {rust};"));
    let names = if source.mpi.abi.is_some() { STANDARD_NAMES } else { NAMES };
    let bindings = bindgen::Builder::default()
        .header("shim.h")
        .clang_arg(format!("-DMPI4TCH_HEADER=<{}>", source.mpi.header()))
        .clang_args(source.mpi.abi.iter().map(|_| "-DMPI4TCH_ABI"))
        .clang_args(includes)
        // Searched last, so that clang's own headers come first.
        .clang_args(source.compiler.iter().flat_map(|folder| ["-idirafter", folder]))
        .allowlist_function(names)
        .allowlist_type(names)
        .allowlist_var(names)
        .allowlist_type(ENUMS)
        .blocklist_function(source.functions.join("|"))
        .blocklist_var(RETYPED)
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
        // rustfmt may be missing, and the text would then be one line.
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()
        .unwrap_or_else(|error| panic!("mpi4tch-sys: bindgen cannot read mpi.h: {error}"));
    polish(&bindings.to_string())
}

/// Writes `bindings.rs`, which the library includes.
pub fn write(declarations: &str) {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join("bindings.rs"), declarations).expect("OUT_DIR is writable");
}

/// The optional features, and whether the library has each.
pub fn features(declarations: &str) -> Vec<(&'static str, bool)> {
    FEATURES
        .map(|(feature, function)| (feature, declarations.contains(&format!("fn {function}("))))
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
