//! Changes to the text that bindgen writes, where bindgen cannot make it alike for
//! all implementations, and its documentation.

use std::collections::{HashMap, HashSet};

use crate::bindings::INTEGERS;
use crate::macros::is_of_mpi;
use crate::standard::{self, Entry};

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
/// - A status that is another name of an implementation's struct becomes that struct,
///   so that its fields are documented under the name of the standard.
/// - Each item of MPI gets a line of documentation; the other items, which are an
///   implementation's own, are hidden from it.
pub fn polish(bindings: &str) -> String {
    let bindings = name_status(bindings);
    let lines: Vec<_> = bindings.lines().flat_map(rename).map(adapt).collect();
    let documentation = Documentation::of(lines.iter().filter_map(|line| declared(line)));
    let mut text = String::new();
    for line in &lines {
        let indent = &line[..line.len() - line.trim_start().len()];
        if let Some(name) = declared(line) {
            text += &format!("{indent}{}\n", documentation.attribute(name));
        }
        text += &format!("{line}\n");
    }
    text
}

/// Gives the struct behind `pub type MPI_Status = …;` that name.
fn name_status(bindings: &str) -> String {
    let alias = bindings.lines().find(|line| line.starts_with("pub type MPI_Status = "));
    let Some(alias) = alias else { return bindings.to_owned() };
    let name = alias.trim_start_matches("pub type MPI_Status = ").trim_end_matches(';');
    bindings.replace(alias, "").replace(name, "MPI_Status")
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

/// What the documentation says of each name.
struct Documentation<'a> {
    bound: HashSet<&'a str>,
    standard: HashMap<&'static str, Entry>,
}

impl<'a> Documentation<'a> {
    fn of(bound: impl Iterator<Item = &'a str>) -> Documentation<'a> {
        Documentation { bound: bound.collect(), standard: standard::names() }
    }

    /// The attribute for the item of this name.
    fn attribute(&self, name: &str) -> String {
        if is_of_mpi(name) {
            format!("#[doc = {:?}]", self.text(name))
        } else {
            "#[doc(hidden)]".to_owned()
        }
    }

    fn text(&self, name: &str) -> String {
        let Some(entry) = self.standard.get(name) else {
            return match name.strip_prefix('P') {
                Some(plain) => format!(
                    "{}, under the name by which a tool that replaces it calls it.",
                    self.link(plain)
                ),
                None => "Not of the MPI standard: an extension, or a name of an earlier version."
                    .to_owned(),
            };
        };
        let text = match name.strip_suffix("_c") {
            Some(small) if entry.description.is_empty() => {
                format!("{}, with counts of type {}.", self.link(small), self.link("MPI_Count"))
            }
            _ => {
                // Every second part is a name between backticks.
                let parts = entry.description.split('`').enumerate();
                let parts = parts.map(|(i, part)| match i % 2 {
                    0 => part.to_owned(),
                    _ => self.link(part),
                });
                parts.collect()
            }
        };
        match entry.since {
            (3, 1) => text,
            (major, minor) => format!("{text}\n\nSince MPI {major}.{minor}."),
        }
    }

    /// A name as code, and as a link if this MPI has it.
    fn link(&self, name: &str) -> String {
        if self.bound.contains(name) { format!("[`{name}`]") } else { format!("`{name}`") }
    }
}
