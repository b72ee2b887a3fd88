//! The macros of `mpi.h` that bindgen cannot bind, as lines of C for `shim.h`.
//!
//! bindgen binds macros that expand to integers and texts. Handles, addresses and
//! pointers to functions are macros too, and expand to casts, such as
//! `((MPI_Comm)0x44000000)`: the cast says which type the constant has. So every
//! such macro of every `mpi.h` comes through, vendors' extensions included.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Macros whose expansion does not tell their type in some `mpi.h`: a number, or the name
/// of a function in Open MPI.
const TYPES: [(&str, &str); 13] = [
    ("MPI_DISPLACEMENT_CURRENT", "MPI_Offset"),
    ("MPI_COMM_DUP_FN", "MPI_Comm_copy_attr_function *"),
    ("MPI_COMM_NULL_COPY_FN", "MPI_Comm_copy_attr_function *"),
    ("MPI_COMM_NULL_DELETE_FN", "MPI_Comm_delete_attr_function *"),
    ("MPI_DUP_FN", "MPI_Copy_function *"),
    ("MPI_NULL_COPY_FN", "MPI_Copy_function *"),
    ("MPI_NULL_DELETE_FN", "MPI_Delete_function *"),
    ("MPI_TYPE_DUP_FN", "MPI_Type_copy_attr_function *"),
    ("MPI_TYPE_NULL_COPY_FN", "MPI_Type_copy_attr_function *"),
    ("MPI_TYPE_NULL_DELETE_FN", "MPI_Type_delete_attr_function *"),
    ("MPI_WIN_DUP_FN", "MPI_Win_copy_attr_function *"),
    ("MPI_WIN_NULL_COPY_FN", "MPI_Win_copy_attr_function *"),
    ("MPI_WIN_NULL_DELETE_FN", "MPI_Win_delete_attr_function *"),
];

/// Types whose constants bindgen evaluates.
const INTEGERS: [&str; 4] = ["int", "MPI_Aint", "MPI_Count", "MPI_Offset"];

/// The macros of a header.
pub struct Macros {
    /// The lines for `shim.h`.
    pub lines: String,
    /// The names of the functions among them.
    pub functions: Vec<String>,
}

impl Macros {
    /// Reads the macros of `header`. The files that the compiler needs for it are
    /// put into `out`.
    pub fn read(header: &str, includes: &[PathBuf], out: &Path) -> Result<Macros, String> {
        let compiler = Preprocessor { compiler: cc::Build::new(), header, includes, out };
        let names = compiler.macros()?;
        let mut macros = Macros { lines: String::new(), functions: Vec::new() };
        for (name, expansion) in compiler.expansions(&names)? {
            let known = TYPES.iter().find(|(other, _)| *other == name).map(|(_, kind)| *kind);
            if let Some(kind) = known.or_else(|| cast(&expansion)) {
                let list = if INTEGERS.contains(&kind) { "INTEGER" } else { "CONSTANT" };
                macros.lines += &format!("{list}({kind}, {name})\n");
            }
        }
        for name in names.iter().filter_map(|name| name.strip_suffix('(')) {
            if let Some(line) = function(name) {
                macros.lines += &line;
                macros.functions.push(name.to_owned());
            }
        }
        Ok(macros)
    }
}

/// The type to which an expansion casts, as in `((MPI_Comm) 0x44000000)`.
fn cast(expansion: &str) -> Option<&str> {
    let (kind, value) = expansion.trim_start_matches(['(', ' ']).split_once(')')?;
    let is_type = kind.starts_with(|first: char| first.is_ascii_alphabetic())
        && kind.chars().all(|c| c.is_ascii_alphanumeric() || "_ *".contains(c));
    let has_value = !value.trim_matches([')', ' ']).is_empty();
    (is_type && has_value).then_some(kind)
}

/// The line for a macro with arguments: arithmetic on addresses, or a conversion
/// between a handle and Fortran's integer.
fn function(name: &str) -> Option<String> {
    let (result, parameters, arguments) = match name.trim_start_matches('P') {
        "MPI_Aint_add" | "MPI_Aint_diff" => {
            ("MPI_Aint".to_owned(), "(MPI_Aint a, MPI_Aint b)".to_owned(), "(a, b)")
        }
        plain => {
            let (object, direction) = plain.strip_prefix("MPI_")?.rsplit_once('_')?;
            let handle = format!("MPI_{}", if object == "Type" { "Datatype" } else { object });
            match direction {
                "c2f" => ("MPI_Fint".to_owned(), format!("({handle} value)"), "(value)"),
                "f2c" => (handle, "(MPI_Fint value)".to_owned(), "(value)"),
                _ => return None,
            }
        }
    };
    Some(format!("FUNCTION({result}, {name}, {parameters}, {name}{arguments})\n"))
}

/// The C preprocessor, on a header of MPI.
pub struct Preprocessor<'a> {
    pub compiler: cc::Build,
    pub header: &'a str,
    pub includes: &'a [PathBuf],
    /// A folder for the files that it reads.
    pub out: &'a Path,
}

impl Preprocessor<'_> {
    /// The macros with names of MPI; those with arguments end in `(`.
    pub fn macros(&self) -> Result<BTreeSet<String>, String> {
        let text = self.run("", "-dM")?;
        let definitions = text.lines().filter_map(|line| line.strip_prefix("#define "));
        let names = definitions.map(|definition| {
            let end = definition.find(|c: char| !is_word(c)).unwrap_or(definition.len());
            let arguments = definition[end..].starts_with('(');
            definition[..end + usize::from(arguments)].to_owned()
        });
        Ok(names.filter(|name| is_of_mpi(name)).collect())
    }

    /// The macros without arguments, and their expansions.
    fn expansions(&self, names: &BTreeSet<String>) -> Result<Vec<(String, String)>, String> {
        const MARK: &str = "mpi4tch_expansion ";
        let plain = names.iter().filter(|name| !name.ends_with('('));
        let lines: Vec<_> = plain.map(|name| format!("{MARK}\"{name}\" {name}")).collect();
        let text = self.run(&lines.join("\n"), "-P")?;
        let lines = text.lines().filter_map(|line| line.strip_prefix(MARK));
        let pairs = lines.filter_map(|line| line.strip_prefix('"')?.split_once('"'));
        Ok(pairs.map(|(name, expansion)| (name.to_owned(), expansion.trim().to_owned())).collect())
    }

    /// What the preprocessor makes of the header, followed by `rest`: under `-P` the text
    /// that the compiler would see, and under `-dM` the definitions of macros.
    pub fn run(&self, rest: &str, flag: &str) -> Result<String, String> {
        let file = self.out.join("preprocess.c");
        let source = format!("#include <{}>\n{rest}\n", self.header);
        std::fs::write(&file, source).map_err(|error| error.to_string())?;
        let mut compiler = self.compiler.clone();
        compiler.cargo_metadata(false).cargo_warnings(false).file(file).includes(self.includes);
        compiler.flag(flag);
        let text = compiler.try_expand().map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Whether a name is one of MPI, of its profiling interface, or of an extension.
pub fn is_of_mpi(name: &str) -> bool {
    let name = name.strip_prefix('P').unwrap_or(name);
    name.starts_with("MPI_") || name.starts_with("MPIX_")
}
