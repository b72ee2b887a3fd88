//! Tests which MPI the build script takes, and its error if it takes none. Runs its sources on
//! imitated installations in a temporary folder, which have all files that it looks at.

#[path = "../build/installation.rs"]
#[allow(dead_code, reason = "the build script has more uses for it")]
mod installation;
#[path = "../build/launcher.rs"]
mod launcher;
#[path = "../build/libclang.rs"]
mod libclang;
#[path = "../build/place.rs"]
mod place;
#[path = "../build/probe.rs"]
mod probe;

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use place::{Flags, parse};

/// What the programs and headers of an imitated MPI say of it.
struct Mpi {
    mpiexec: &'static str,
    header: &'static str,
}

const OPEN_MPI: Mpi = Mpi {
    mpiexec: "mpirun (Open MPI) 5.0.3",
    header: "#define OMPI_MAJOR_VERSION 5\n#define OMPI_MINOR_VERSION 0\n\
             #define OMPI_RELEASE_VERSION 3\n",
};
const MPICH: Mpi = Mpi {
    mpiexec: "HYDRA build details:\n    Version:                                 4.2.0",
    header: "#define MPICH_VERSION \"4.2.0\"\n",
};
const INTEL: Mpi = Mpi {
    mpiexec: "Intel(R) MPI Library for Linux* OS, Version 2021.8 Build 20260626 (id: b44796a)",
    header: "#define MPICH_VERSION \"3.4a2\"\n#define I_MPI_VERSION \"2021.8.0\"\n",
};

/// A folder that is removed in the end; its name has a space.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Scratch {
        let folder = env::temp_dir().join(format!("mpi4tch {test} {}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Scratch(folder)
    }

    /// Installs an MPI whose wrapper prints `show`, in which `{}` is its prefix.
    fn install(&self, name: &str, mpi: &Mpi, show: &str) -> PathBuf {
        let prefix = self.0.join(name);
        for folder in ["bin", "include", "lib"] {
            fs::create_dir_all(prefix.join(folder)).unwrap();
        }
        script(&prefix.join("bin/mpiexec"), mpi.mpiexec);
        script(&prefix.join("bin/mpicc"), &show.replace("{}", prefix.to_str().unwrap()));
        let header =
            "#define MPI_VERSION 4\n#define MPI_SUBVERSION 0\nint MPI_Init(int *, char ***);\n";
        fs::write(prefix.join("include/mpi.h"), format!("{}{header}", mpi.header)).unwrap();
        let source = self.0.join("library.c");
        fs::write(&source, "int MPI_Init(int *argc, char ***argv) { return 0; }\n").unwrap();
        let library = prefix.join("lib/libmpi.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-o"]).arg(library).arg(source);
        assert!(compiler.status().unwrap().success());
        prefix
    }

    /// Runs the probe with the programs of these prefixes first on PATH.
    fn probe(&self, prefixes: &[&Path], variables: &[(&str, &str)]) -> String {
        let bins = prefixes.iter().map(|prefix| prefix.join("bin"));
        let path: Vec<PathBuf> = bins.chain(["/usr/bin".into(), "/bin".into()]).collect();
        let rustc = Command::new("rustc").arg("-vV").output().unwrap().stdout;
        let rustc = String::from_utf8(rustc).unwrap();
        let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env_remove("MPI4TCH_MPI")
            .env_remove("MPICC")
            .env("PATH", env::join_paths(path).unwrap())
            // Hides the packages of this machine.
            .env("PKG_CONFIG_LIBDIR", &self.0)
            .envs([("TARGET", host), ("HOST", host), ("OPT_LEVEL", "0"), (CHILD, "1")])
            .env("OUT_DIR", &self.0)
            .env("LC_ALL", "C")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program that prints `text`.
fn script(file: &Path, text: &str) {
    fs::write(file, format!("#!/bin/sh\ncat <<'EOF'\n{text}\nEOF\n")).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The variable that tells a process to be the build script.
const CHILD: &str = "MPI4TCH_TEST_PROBE";

/// The process that other tests start: prints what the probe finds.
#[test]
fn child() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    match libclang::load().and_then(|()| probe::probe()) {
        Ok(mpi) => {
            let launcher = mpi.launcher.map_or("none".into(), |found| found.path);
            eprintln!("<{} {}: {}>", mpi.vendor, mpi.version, launcher.display());
        }
        Err(reason) => eprintln!("{reason}"),
    }
}

const PLAIN: &str = "gcc -I'{}/include' -L'{}/lib' -lmpi";
const QUOTED: &str = "gcc -I\"{}/include\" -L\"{}/lib/release\" -L\"{}/lib\" -Xlinker -rpath \
                      -Xlinker \"{}/lib\" -lmpi -lrt";
/// As printed by Intel MPI's wheel if `I_MPI_ROOT` is not set.
const UNRESOLVED: &str = "gcc -I\"I_MPI_SUBSTITUTE_INSTALLDIR/include\" \
                          -L\"I_MPI_SUBSTITUTE_INSTALLDIR/lib\" -lmpi";

#[track_caller]
fn assert_found(printed: &str, mpi: &str, prefix: &Path) {
    let expected = format!("<{mpi}: {}/bin/mpiexec>", prefix.display());
    assert!(printed.contains(&expected), "{expected} is not in:\n{printed}");
}

#[test]
fn words_are_split_as_in_a_shell() {
    let flags = |include: &[&str], lib: &[&str], libs: &[&str]| Flags {
        include_paths: include.iter().map(PathBuf::from).collect(),
        lib_paths: lib.iter().map(PathBuf::from).collect(),
        libs: libs.iter().map(|&library| library.to_owned()).collect(),
        bin: None,
    };
    let cases = [
        // Open MPI 4.1.4 and MPICH 4.0.2 of Debian, MPICH 5.0.2 and Intel MPI 2021.18 as wheels.
        (
            "gcc -I/usr/lib/openmpi/include -I/usr/lib/openmpi/include/openmpi -pthread \
             -L/usr/lib/openmpi/lib -lmpi\n",
            flags(
                &["/usr/lib/openmpi/include", "/usr/lib/openmpi/include/openmpi"],
                &["/usr/lib/openmpi/lib"],
                &["mpi"],
            ),
        ),
        (
            "gcc -Wl,-z,relro -I/usr/include/x86_64-linux-gnu/mpich -L/usr/lib/x86_64-linux-gnu \
             -lmpich\n",
            flags(
                &["/usr/include/x86_64-linux-gnu/mpich"],
                &["/usr/lib/x86_64-linux-gnu"],
                &["mpich"],
            ),
        ),
        (
            "cc -I/opt/mpich/include -L/opt/mpich/lib -Wl,-rpath -Wl,/opt/mpich/lib \
             -Wl,--enable-new-dtags -lmpi\n",
            flags(&["/opt/mpich/include"], &["/opt/mpich/lib"], &["mpi"]),
        ),
        (
            "gcc -I\"/opt/intel mpi/include\" -L\"/opt/intel mpi/lib/release\" \
             -L\"/opt/intel mpi/lib\" -Xlinker --enable-new-dtags -Xlinker -rpath -Xlinker \
             \"/opt/intel mpi/lib\" -lmpifort -lmpi -lrt -lpthread -Wl,-z,now -ldl\n",
            flags(
                &["/opt/intel mpi/include"],
                &["/opt/intel mpi/lib/release", "/opt/intel mpi/lib"],
                &["mpifort", "mpi", "rt", "pthread", "dl"],
            ),
        ),
        // Other ways to write a space, and a folder that is a word of its own.
        ("cc '-I/a b' -I/c\\ d -L \"/e f\" -l mpi", flags(&["/a b", "/c d"], &["/e f"], &["mpi"])),
    ];
    for (call, expected) in cases {
        assert_eq!(parse(call), Ok(expected), "{call}");
    }
    assert_eq!(parse("cc -I\"/a"), Err("a quote is not closed in: cc -I\"/a".to_owned()));
    assert_eq!(parse("cc -L"), Err("-L has no value in: cc -L".to_owned()));
}

#[test]
fn a_quoted_folder_with_a_space_is_found() {
    let scratch = Scratch::new("quoted");
    for (name, show) in [("plain", PLAIN), ("quoted", QUOTED)] {
        let intel = scratch.install(name, &INTEL, show);
        assert_found(&scratch.probe(&[&intel], &[]), "mpich 2021.8.0", &intel);
        let prefix = intel.to_str().unwrap();
        assert_found(&scratch.probe(&[], &[("MPI4TCH_MPI", prefix)]), "mpich 2021.8.0", &intel);
    }
}

#[test]
fn the_folders_beside_the_wrapper_serve_where_its_own_do_not() {
    let scratch = Scratch::new("beside");
    let intel = scratch.install("intel", &INTEL, UNRESOLVED);
    assert_found(&scratch.probe(&[&intel], &[]), "mpich 2021.8.0", &intel);
    let wrapper = intel.join("bin/mpicc");
    let variables = [("MPICC", wrapper.to_str().unwrap())];
    assert_found(&scratch.probe(&[], &variables), "mpich 2021.8.0", &intel);
}

#[test]
fn the_mpiexec_on_path_decides() {
    let scratch = Scratch::new("decides");
    let mpich = scratch.install("mpich", &MPICH, PLAIN);
    let open_mpi = scratch.install("openmpi", &OPEN_MPI, PLAIN);
    // Only the other is called mpicc, as where both are packages of Debian.
    fs::rename(open_mpi.join("bin/mpicc"), open_mpi.join("bin/mpicc.openmpi")).unwrap();
    assert_found(&scratch.probe(&[&open_mpi, &mpich], &[]), "openmpi 5.0.3", &open_mpi);
    assert_found(&scratch.probe(&[&mpich, &open_mpi], &[]), "mpich 4.2.0", &mpich);
    let variables = [("MPI4TCH_MPI", "openmpi")];
    assert_found(&scratch.probe(&[&mpich, &open_mpi], &variables), "openmpi 5.0.3", &open_mpi);
}

/// Another installed MPI, even of the same vendor, is not taken instead.
#[test]
fn an_mpiexec_whose_mpi_cannot_be_bound_is_an_error() {
    let scratch = Scratch::new("unbound");
    let mpich = scratch.install("mpich", &MPICH, PLAIN);
    let intel = scratch.install("intel", &INTEL, UNRESOLVED);
    fs::remove_file(intel.join("include/mpi.h")).unwrap();
    fs::rename(mpich.join("bin/mpicc"), mpich.join("bin/mpicc.mpich")).unwrap();
    let printed = scratch.probe(&[&intel, &mpich], &[]);
    let told = format!(
        "the mpiexec on PATH, {}/bin/mpiexec, belongs to Intel MPI 2021.8, which cannot be bound",
        intel.display()
    );
    assert!(printed.contains(&told), "{printed}");
    // The compiler's error, and the other MPI that was found.
    assert!(printed.contains("fatal error: mpi.h: No such file"), "{printed}");
    assert!(printed.contains("mpicc.mpich -show: mpich 4.2.0"), "{printed}");
    // The other MPI is taken if it is asked for.
    let variables = [("MPI4TCH_MPI", "mpich")];
    assert!(scratch.probe(&[&intel, &mpich], &variables).contains("<mpich 4.2.0: "));
}

#[test]
fn an_mpi_that_cannot_be_linked_is_an_error_at_once() {
    let scratch = Scratch::new("unlinked");
    let mpich = scratch.install("mpich", &MPICH, &format!("{PLAIN}_of_nowhere"));
    fs::remove_file(mpich.join("lib/libmpi.so")).unwrap();
    let printed = scratch.probe(&[&mpich], &[]);
    assert!(printed.contains("cannot find -lmpi_of_nowhere"), "{printed}");
    assert!(printed.contains("no library libmpi.so in "), "{printed}");
}

#[test]
fn a_setting_that_means_nothing_is_told() {
    let scratch = Scratch::new("setting");
    let folder = "the absolute path of a folder";
    for (value, why) in [
        ("./venv", "a relative path, which means another folder to each crate that is built"),
        ("/nowhere/at/all", "which is no folder"),
        ("intel", "which means nothing"),
    ] {
        let printed = scratch.probe(&[], &[("MPI4TCH_MPI", value)]);
        let told =
            format!("MPI4TCH_MPI is `{value}`, {why}; it may be `openmpi`, `mpich`, or {folder}");
        assert!(printed.contains(&told), "{printed}");
    }
}

#[test]
fn a_missing_libclang_is_told_with_its_packages() {
    let scratch = Scratch::new("libclang");
    let printed = scratch.probe(&[], &[("LIBCLANG_PATH", "/nowhere")]);
    for text in ["bindgen needs libclang", "libclang-dev", "clang-libs", "pip install libclang"] {
        assert!(printed.contains(text), "{printed}");
    }
    assert!(!printed.contains("panicked"), "{printed}");
}
