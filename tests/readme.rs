//! The README's commands for a program of one's own: as printed, with the README's program, its
//! `build.rs` and its dependencies.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use mpi4tch::mpi_sys::MPIEXEC;

const README: &str = include_str!("../README.md");
const MANIFEST: &str = include_str!("../Cargo.toml");

/// The README's code blocks whose first line is this fence.
fn blocks(fence: &str) -> Vec<&'static str> {
    let fence = format!("\n```{fence}\n");
    README.split(&fence).skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

/// The one block of the section "As a library" that has this line's beginning.
fn commands_with(beginning: &str) -> &'static str {
    let (_, section) = README.split_once("## As a library").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut blocks = blocks("sh").into_iter().filter(|block| section.contains(block));
    blocks.find(|block| block.lines().any(|line| line.starts_with(beginning))).unwrap()
}

/// A crate that depends on this one, in a folder of its own that is kept for the next time. It
/// shares the compiled dependencies with these tests.
fn dependant() -> PathBuf {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let target = temporary.parent().unwrap();
    let folder = temporary.join("my-program");
    fs::create_dir_all(folder.join("src")).unwrap();
    let ours = env!("CARGO_MANIFEST_DIR");
    let dependencies = blocks("toml")[0].replace("/path/to/mpi4tch", ours);
    // Not one of this workspace, below which it lies, but built like one.
    let (_, profiles) = MANIFEST.split_once("\n[profile").unwrap();
    let package = "[package]\nname = \"my-program\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    let manifest = format!("[workspace]\n{package}{dependencies}\n[profile{profiles}");
    fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    fs::copy(Path::new(ours).join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
    fs::write(folder.join("src/main.rs"), blocks("rust")[0]).unwrap();
    fs::write(folder.join("build.rs"), blocks("rust,no_run")[0]).unwrap();
    let _ = fs::remove_file(folder.join("target"));
    symlink(target, folder.join("target")).unwrap();
    folder
}

/// The commands for the MPI of these tests, and PATH as of a user who has it first there.
fn commands_and_path() -> (String, OsString) {
    let path = env::var_os("PATH").unwrap();
    let launcher = Path::new(MPIEXEC);
    match launcher.file_name().unwrap().to_str().unwrap().strip_prefix("mpiexec.") {
        // As on Debian, where several MPIs share a folder.
        Some(name) => (commands_with("mpiexec.mpich").replace("mpich", name), path),
        None => {
            let bin = launcher.parent().unwrap().to_owned();
            let path = env::join_paths([bin].into_iter().chain(env::split_paths(&path)));
            (commands_with("mpiexec -n").to_owned(), path.unwrap())
        }
    }
}

/// Runs commands in a shell as a user's, but for what a desktop with few cores needs, or a user who
/// is root; returns what is printed.
fn run(commands: &str, folder: &Path, variables: &[(&str, &OsStr)]) -> String {
    let mut shell = Command::new("bash");
    shell.args(["-euc", commands]).current_dir(folder);
    for (name, value) in harness::mpiexec(2).get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    for name in ["LD_LIBRARY_PATH", "MPI4TCH_MPI", "MPICC"] {
        shell.env_remove(name);
    }
    shell.env("CARGO_TARGET_DIR", folder.join("target").canonicalize().unwrap());
    shell.env("CARGO_NET_OFFLINE", "true").envs(variables.iter().copied());
    let output = shell.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{commands}\n{stdout}\n{stderr}");
    stdout
}

/// The dependant is one.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn the_commands_for_a_program_of_ones_own_work_as_printed() {
    let _turn = TURN.lock();
    let folder = dependant();
    let (commands, path) = commands_and_path();
    let line = "export LIBTORCH=/path/to/libtorch";
    assert!(commands.contains(line), "{commands}");
    // Where LIBTORCH is not set, torch-sys finds libtorch by other variables.
    let commands = match env::var("LIBTORCH") {
        Ok(libtorch) => commands.replace("/path/to/libtorch", &libtorch),
        Err(_) => commands.replace(line, ""),
    };
    let printed = run(&commands, &folder, &[("PATH", &path)]);
    for rank in 0..2 {
        assert!(printed.contains(&format!("rank {rank}: [6.]")), "{commands}\n{printed}");
    }
}

/// A folder with this MPI, as another that lies where the loader does not look; `None` if this one
/// has no compiler wrapper beside its launcher.
fn prefix() -> Option<PathBuf> {
    let launcher = Path::new(MPIEXEC);
    let wrapper = launcher.file_name()?.to_str()?.replace("mpiexec", "mpicc");
    let show = Command::new(launcher.with_file_name(wrapper)).arg("-show").output().ok()?.stdout;
    let show = String::from_utf8(show).unwrap();
    let word = |option| show.split_whitespace().find_map(|word| word.strip_prefix(option));
    let (lib, name) = (Path::new(word("-L")?), word("-l")?);
    let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mpi in a prefix");
    let _ = fs::remove_dir_all(&prefix);
    fs::create_dir_all(prefix.join("bin")).unwrap();
    fs::create_dir_all(prefix.join("lib")).unwrap();
    // By its name for the linker, and by those that the loader asks for.
    let linked = format!("lib{name}.so");
    let library = lib.join(&linked).canonicalize().unwrap();
    // Where it is a script for the linker, as in Python's packages, it names the library itself, and
    // the copy would include itself without end. Such an MPI is in a prefix already.
    if !fs::read(&library).unwrap().starts_with(b"\x7fELF") {
        return None;
    }
    fs::copy(&library, prefix.join("lib").join(&linked)).unwrap();
    for file in fs::read_dir(library.parent().unwrap()).unwrap() {
        let name = file.unwrap().file_name();
        if name.to_string_lossy().starts_with(&format!("{linked}.")) {
            symlink(&linked, prefix.join("lib").join(name)).unwrap();
        }
    }
    let quoted = format!("-L'{}'", prefix.join("lib").display());
    let show = show.replace(&format!("-L{}", lib.display()), &quoted);
    let script = prefix.join("bin/mpicc");
    fs::write(&script, format!("#!/bin/sh\ncat <<'EOF'\n{show}EOF\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    symlink(launcher, prefix.join("bin/mpiexec")).unwrap();
    Some(prefix)
}

#[test]
fn a_program_of_ones_own_finds_an_mpi_in_a_prefix() {
    let _turn = TURN.lock();
    let Some(prefix) = prefix() else { return };
    let variables = [("MPI4TCH_MPI", prefix.as_os_str())];
    let printed = run("cargo build; ldd target/debug/my-program", &dependant(), &variables);
    assert!(!printed.contains("not found"), "{printed}");
    let lib = format!("=> {}/lib/libmpi", prefix.display());
    assert!(printed.contains(&lib), "{lib} is not in:\n{printed}");
}
