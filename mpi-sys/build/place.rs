//! Places where an MPI may be, and how to get from each the flags to compile
//! and link with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::launcher::find_on_path;

/// What a place says about how to compile and link with its MPI.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flags {
    pub include_paths: Vec<PathBuf>,
    pub lib_paths: Vec<PathBuf>,
    pub libs: Vec<String>,
    pub bin: Option<PathBuf>,
}

/// One place to look for MPI.
#[derive(Clone, Debug)]
pub enum Place {
    /// The pkg-config package of this name.
    PkgConfig(&'static str),
    /// The compiler wrapper of this name or path.
    Wrapper(PathBuf),
    /// The folders beside the `bin` that holds this wrapper: a wrapper may
    /// print flags that are wrong, as Intel MPI's does where `I_MPI_ROOT` is
    /// not set, or none at all.
    Beside(PathBuf),
    /// The folder that holds `include/mpi.h` and `lib/libmpi.so`.
    Prefix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::PkgConfig(name) => write!(f, "pkg-config {name}"),
            Place::Wrapper(path) => write!(f, "{} -show", path.display()),
            Place::Beside(path) => write!(f, "the folders beside {}", path.display()),
            Place::Prefix(path) => write!(f, "{}/include/mpi.h", path.display()),
        }
    }
}

impl Place {
    /// Asks the place for the flags; the error says why it has none.
    pub fn flags(&self) -> Result<Flags, String> {
        match self {
            Place::PkgConfig(name) => pkg_config(name),
            Place::Wrapper(path) => wrapper(path),
            Place::Beside(path) => beside(path),
            Place::Prefix(path) => prefix(path),
        }
    }
}

fn pkg_config(name: &str) -> Result<Flags, String> {
    let library =
        pkg_config::Config::new().cargo_metadata(false).probe(name).map_err(
            |error| match error {
                pkg_config::Error::Command { cause, .. } => {
                    format!("cannot run pkg-config ({cause})")
                }
                _ => "no such package".to_owned(),
            },
        )?;
    let get = |name_of| pkg_config::get_variable(name, name_of).ok();
    let mut lib_paths = library.link_paths.clone();
    // A folder that the linker searches anyway is left out by pkg-config.
    let libdir = get("libdir").map(PathBuf::from);
    lib_paths.extend(libdir.filter(|folder| !library.link_paths.contains(folder)));
    Ok(Flags {
        include_paths: library.include_paths,
        lib_paths,
        libs: library.libs,
        bin: get("prefix").map(|prefix| Path::new(&prefix).join("bin")),
    })
}

/// The flags of the compiler call that `mpicc -show` prints.
fn wrapper(path: &Path) -> Result<Flags, String> {
    let program = program(path)?;
    let output = Command::new(&program)
        .arg("-show")
        .output()
        .map_err(|error| format!("cannot run it ({error})"))?;
    if !output.status.success() {
        return Err(format!("it ended with {}", output.status));
    }
    let flags = parse(&String::from_utf8_lossy(&output.stdout))?;
    Ok(Flags { bin: program.parent().map(Path::to_path_buf), ..flags })
}

/// The file that is run as `path`: a bare name is looked up on PATH.
fn program(path: &Path) -> Result<PathBuf, String> {
    match path.components().count() {
        1 => find_on_path(&path.to_string_lossy()).ok_or("not on PATH".to_owned()),
        _ => Ok(path.to_path_buf()),
    }
}

/// The folders and libraries of a compiler call, whose words are quoted as in a
/// shell.
pub fn parse(call: &str) -> Result<Flags, String> {
    let words = shlex::split(call).ok_or_else(|| format!("a quote is not closed in: {call}"))?;
    let mut flags = Flags::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        for option in ["-I", "-L", "-l"] {
            let Some(value) = word.strip_prefix(option) else { continue };
            // `-I folder` is allowed, too.
            let value = if value.is_empty() { words.next().map_or("", |next| next) } else { value };
            if value.is_empty() {
                return Err(format!("{option} has no value in: {call}"));
            }
            match option {
                "-I" => flags.include_paths.push(value.into()),
                "-L" => flags.lib_paths.push(value.into()),
                _ => flags.libs.push(value.to_owned()),
            }
        }
    }
    Ok(flags)
}

fn beside(wrapper: &Path) -> Result<Flags, String> {
    let program = program(wrapper)?;
    let program = program.canonicalize().map_err(|error| error.to_string())?;
    prefix(program.parent().and_then(Path::parent).ok_or("it lies in no folder `bin`")?)
}

/// The folders of a prefix in which its library may be, and the library's names.
const LIB_FOLDERS: [&str; 4] = ["lib", "lib64", "lib/release", "lib64/release"];
const LIBRARIES: [&str; 2] = ["mpi", "mpich"];

fn prefix(path: &Path) -> Result<Flags, String> {
    if !path.join("include/mpi.h").is_file() {
        return Err(format!("no file {}/include/mpi.h", path.display()));
    }
    let holds = |folder: &Path, library: &str| {
        ["so", "dylib"].iter().any(|end| folder.join(format!("lib{library}.{end}")).is_file())
    };
    let (lib, library) = LIB_FOLDERS
        .iter()
        .flat_map(|folder| LIBRARIES.map(|library| (path.join(folder), library)))
        .find(|(folder, library)| holds(folder, library))
        .ok_or_else(|| format!("no library libmpi.so in {}/lib", path.display()))?;
    Ok(Flags {
        include_paths: vec![path.join("include")],
        lib_paths: vec![lib],
        libs: vec![library.to_owned()],
        bin: Some(path.join("bin")),
    })
}
