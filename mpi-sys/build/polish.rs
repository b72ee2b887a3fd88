//! Changes to the text that bindgen writes, where bindgen cannot make it alike for
//! all implementations.

use crate::bindings::INTEGERS;

/// The beginnings of the lines that declare an item.
const ITEMS: [&str; 7] = [
    "pub const ",
    "pub fn ",
    "pub safe static ",
    "pub static mut ",
    "pub static ",
    "pub struct ",
    "pub type ",
];

/// Changes the generated text:
///
/// - The shim's items get the names of the standard.
/// - A constant that is a macro in one `mpi.h` is an enumerator in another, for
///   which clang chooses `unsigned`: both become `c_int`, the type that MPI's
///   functions take.
/// - A `const` object is initialised before any code runs and never changes,
///   so reading it is safe.
pub fn polish(bindings: &str) -> String {
    let lines: Vec<_> = bindings.lines().flat_map(rename).map(adapt).collect();
    lines.join("\n")
}

/// The name of the item that a line declares.
pub fn declared(line: &str) -> Option<&str> {
    let item = line.trim_start();
    let rest = ITEMS.iter().find_map(|start| item.strip_prefix(start))?;
    rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()
}

/// Drops `mpi4tch_` from the item's name, but not from its symbol.
fn rename(line: &str) -> Vec<String> {
    let Some(symbol) = declared(line).filter(|name| name.starts_with("mpi4tch_")) else {
        return vec![line.to_owned()];
    };
    let renamed = line.replacen("mpi4tch_", "", 1);
    let is_linked = line.contains("pub fn ") || line.contains("pub static ");
    let attribute = is_linked.then(|| format!("    #[link_name = \"{symbol}\"]"));
    attribute.into_iter().chain([renamed]).collect()
}

fn adapt(line: String) -> String {
    let item = line.trim_start();
    if is_int(item) {
        let (name, rest) = line.split_once(": ").expect("a constant has a type");
        let (_, value) = rest.split_once(" = ").expect("a constant has a value");
        format!("{name}: ::std::os::raw::c_int = {value}")
    } else if item.starts_with("pub type ") && item.ends_with(" = ::std::os::raw::c_uint;") {
        line.replace("c_uint", "c_int")
    } else if item.starts_with("pub static MPI") {
        line.replacen("pub static", "pub safe static", 1)
    } else {
        line
    }
}

/// `pub const MPI_X: T = 3;` with a value that an `int` holds, unless T is one of
/// MPI's own integers.
fn is_int(item: &str) -> bool {
    let Some((start, value)) = item.strip_suffix(';').and_then(|item| item.split_once(" = "))
    else {
        return false;
    };
    let is_own = INTEGERS.iter().any(|(name, _)| start.ends_with(&format!(": {name}")));
    item.starts_with("pub const ") && value.parse::<i32>().is_ok() && !is_own
}
