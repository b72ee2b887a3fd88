//! What a newcomer's first commands do: `make demo` and `scripts/setup.sh`.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

/// Runs the set-up with these variables, in a cache of its own; it installs nothing.
fn setup(test: &str, variables: &[(&str, &str)]) -> Output {
    setup_with(test, &[], variables)
}

fn setup_with(test: &str, options: &[&str], variables: &[(&str, &str)]) -> Output {
    let cache = env::temp_dir().join(format!("mpi4tch-setup-{test}-{}", std::process::id()));
    let mut command = Command::new(Path::new(FOLDER).join("scripts/setup.sh"));
    command.args(options);
    // There is a libtorch, an MPI and a libclang.
    command.env("LIBTORCH_USE_PYTORCH", "1").env("MPI4TCH_MPI", "openmpi");
    command.env("LIBCLANG_PATH", "/nowhere").env("MPI4TCH_NO_APT", "1");
    command.env("MPI4TCH_CACHE", &cache).env_remove("BINDGEN_EXTRA_CLANG_ARGS");
    for (name, value) in variables {
        match *value {
            "" => command.env_remove(name),
            value => command.env(name, value),
        };
    }
    let output = command.output().unwrap();
    let _ = fs::remove_dir_all(cache);
    output
}

#[track_caller]
fn assert_refused(output: &Output, told: &str) {
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && printed.contains(told), "{told} is not in:\n{printed}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn a_wrong_libtorch_is_told_before_anything_is_built() {
    let folder = env::temp_dir().join(format!("mpi4tch-libtorch-{}", std::process::id()));
    let libtorch = folder.to_str().unwrap();
    let set = |libtorch| setup("libtorch", &[("LIBTORCH_USE_PYTORCH", ""), ("LIBTORCH", libtorch)]);
    for missing in [libtorch, "libtorch"] {
        let told = format!("LIBTORCH is '{missing}', which is not the absolute path of a folder");
        assert_refused(&set(missing), &told);
    }
    let header = folder.join("include/torch/headeronly/version.h");
    fs::create_dir_all(header.parent().unwrap()).unwrap();
    let told = format!("LIBTORCH is '{libtorch}', which is no libtorch that states its version");
    assert_refused(&set(libtorch), &told);
    let version = |minor| {
        let part = |name, number| format!("#define TORCH_VERSION_{name} {number}\n");
        fs::write(&header, part("MAJOR", 2) + &part("MINOR", minor) + &part("PATCH", 1)).unwrap();
    };
    version(4);
    let told = format!("LIBTORCH is '{libtorch}', which is libtorch 2.4.1; libtorch 2.");
    assert_refused(&set(libtorch), &told);
    let variables = [
        ("LIBTORCH_USE_PYTORCH", ""),
        ("LIBTORCH", libtorch),
        ("LIBTORCH_BYPASS_VERSION_CHECK", "1"),
    ];
    let output = setup("libtorch", &variables);
    assert!(output.status.success(), "{output:?}");
    // With --cuda it must have a part for CUDA.
    let told = format!("LIBTORCH is '{libtorch}', which has no lib/libtorch_cuda.so");
    assert_refused(&setup_with("libtorch", &["--cuda"], &variables), &told);
    fs::create_dir(folder.join("lib")).unwrap();
    fs::write(folder.join("lib/libtorch_cuda.so"), "").unwrap();
    let output = setup_with("libtorch", &["--cuda"], &variables);
    assert!(output.status.success(), "{output:?}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_relative_mpi_is_told() {
    let output = setup("mpi", &[("MPI4TCH_MPI", "./venv")]);
    let told =
        "MPI4TCH_MPI is './venv'; it may be openmpi, mpich, or the absolute path of a folder";
    assert_refused(&output, told);
}

/// For the bindgen of the crate mpi, too, where there is no clang.
#[test]
fn libclang_gets_the_headers_of_the_compiler() {
    let path = env::var_os("PATH").unwrap();
    let has_clang = env::split_paths(&path).any(|folder| folder.join("clang").exists());
    let output = setup("headers", &[]);
    assert!(output.status.success(), "{output:?}");
    let exports = String::from_utf8(output.stdout).unwrap();
    let arguments =
        exports.lines().find_map(|line| line.strip_prefix("export BINDGEN_EXTRA_CLANG_ARGS=-I"));
    match arguments {
        Some(folder) => assert!(Path::new(folder).join("stddef.h").exists(), "{exports}"),
        None => assert!(has_clang, "{exports}"),
    }
    // What the user has set stays.
    let output = setup("headers-set", &[("BINDGEN_EXTRA_CLANG_ARGS", "-I/usr/include")]);
    assert!(!String::from_utf8(output.stdout).unwrap().contains("BINDGEN_EXTRA_CLANG_ARGS"));
}

/// `make` without the set-up, and without what another `make` passes on that runs these tests.
fn make(arguments: &[&str]) -> Command {
    let mut command = Command::new("make");
    command.current_dir(FOLDER).arg("setup=true").args(arguments);
    for name in ["MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "ALL", "ARGS", "RANKS", "EXAMPLE"] {
        command.env_remove(name);
    }
    command
}

/// What `make test` with these arguments calls cargo with: for each MPI its name, the rank counts,
/// and whether messages are to be large.
fn calls(arguments: &[&str], ranks: Option<&str>) -> Vec<String> {
    let folder = format!("mpi4tch-calls-{}-{}", arguments.len(), std::process::id());
    let folder = env::temp_dir().join(folder);
    fs::create_dir_all(&folder).unwrap();
    let program = "#!/bin/sh\n[ $1 = test ] || exit 0\n\
                   echo \"call $MPI4TCH_MPI $MPI4TCH_TEST_RANKS ${MPI4TCH_TEST_LARGE:-0} $*\"\n\
                   echo 'test result: ok. 1 passed; 0 failed'\n";
    fs::write(folder.join("cargo"), program).unwrap();
    fs::set_permissions(folder.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = env::var_os("PATH").unwrap();
    let path = env::join_paths([folder.clone()].into_iter().chain(env::split_paths(&path)));
    let mut command = make(&["test"]);
    command.args(arguments);
    command.env("PATH", path.unwrap()).env("MPI4TCH_TEST_MPIS", "openmpi:mpich:/opt/mpi");
    for name in
        ["MPI4TCH_TEST_RANKS", "MPI4TCH_TEST_ALL", "MPI4TCH_TEST_LARGE", "MPI4TCH_TEST_TIMEOUT"]
    {
        command.env_remove(name);
    }
    command.envs(ranks.map(|ranks| ("MPI4TCH_TEST_RANKS", ranks)));
    let output = command.output().unwrap();
    fs::remove_dir_all(folder).unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let calls: Vec<_> = printed.lines().filter_map(|line| line.strip_prefix("call ")).collect();
    let sum = format!("{} passed, 0 failed", calls.len());
    assert!(output.status.success() && printed.contains(&sum), "{printed}");
    calls.into_iter().map(str::to_owned).collect()
}

/// Checks that a call of cargo, which begins like that, leaves out the tests that hardly depend on the MPI.
#[track_caller]
fn selects_those_of_mpi(call: &str, start: &str, all: bool) {
    let selected = call.strip_prefix(start).unwrap_or_else(|| panic!("{call}"));
    assert!(selected.starts_with(" --lib --test agreement --test all_reduce "), "{call}");
    for (name, is_selected) in [
        ("tape", true),
        ("ring", true),
        ("timeout", all),
        ("setup", false),
        ("readme", false),
        ("linear_regression", false),
    ] {
        let names = selected.split(" --test ").any(|selected| selected == name);
        assert_eq!(names, is_selected, "{name}: {call}");
    }
}

#[test]
fn a_newcomer_tests_on_few_ranks_and_ci_on_all() {
    let cargo = "test --workspace --features mpi4tch/rsmpi --no-fail-fast";
    let few = calls(&[], None);
    let expected = ["openmpi 1,3 0", "mpich 2,4 0", "/opt/mpi 2,4 0"];
    let expected = expected.map(|call| format!("{call} {cargo}"));
    assert_eq!(few[0], expected[0]);
    for (call, expected) in few.iter().zip(&expected).skip(1) {
        selects_those_of_mpi(call, expected, false);
    }
    assert_eq!(few.len(), expected.len());
    let expected = ["openmpi", "mpich", "/opt/mpi"];
    let expected = expected.map(|mpi| format!("{mpi} 1,2,3,4,5,7 1 {cargo}"));
    let all = calls(&["ALL=1"], None);
    assert_eq!(all[0], expected[0]);
    assert!(all[1].starts_with(&format!("openmpi 3 0 {cargo} --test=collectives ")), "{}", all[1]);
    for (call, expected) in all[2..].iter().zip(&expected[1..]) {
        selects_those_of_mpi(call, expected, true);
    }
    assert_eq!(all.len(), expected.len() + 1);
    let selected = calls(&["ALL=1", "ARGS=--test tape"], None);
    assert_eq!(selected, expected.map(|call| format!("{call} --test tape")));
    let chosen = calls(&[], Some("5"));
    assert!(chosen.iter().all(|call| call.contains(" 5 0 test")), "{chosen:?}");
}

/// Wherever cargo puts it: the target folder of these tests is named by another variable than
/// `CARGO_TARGET_DIR`.
#[test]
fn the_demo_runs_what_cargo_has_built() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut command = make(&["EXAMPLE=isend_recv_wait", "RANKS=2", "demo"]);
    command.env_remove("CARGO_TARGET_DIR").env("CARGO_BUILD_TARGET_DIR", target);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("rank 1"), "{printed}");
}
