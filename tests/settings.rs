//! What the environment says of each rank: a value that means nothing on one rank is an error on
//! all, and the ranks compare their calls if any of them is told to.

use std::env;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output};

use mpi4tch::Op;
use tch::{Device, Kind, Tensor};

/// The variable's name and its value on each rank, separated by commas.
const SETTINGS: &str = "MPI4TCH_TEST_SETTINGS";

/// Stands for a value that is not UTF-8, which does not pass every launcher.
const NOT_UTF_8: &str = "not UTF-8";

/// What the jobs of the other tests run: says what became of the settings.
#[test]
fn rank() {
    let Ok(settings) = env::var(SETTINGS) else { return };
    let mut settings = settings.split(',');
    let name = settings.next().unwrap();
    let rank = env::var("OMPI_COMM_WORLD_RANK").or_else(|_| env::var("PMI_RANK")).unwrap();
    match settings.nth(rank.parse().unwrap()).unwrap() {
        // SAFETY: this process has no thread that reads the environment.
        "" => unsafe { env::remove_var(name) },
        // SAFETY: likewise.
        NOT_UTF_8 => unsafe { env::set_var(name, OsStr::from_bytes(b"local\xff")) },
        // SAFETY: likewise.
        value => unsafe { env::set_var(name, value) },
    }
    let outcome = mpi4tch::initialize().map(|universe| {
        let world = universe.world();
        let x = Tensor::ones([1], (Kind::Float, Device::Cpu));
        let differs = world.all_reduce(&x.set_requires_grad(world.rank() == 0), Op::Sum);
        if differs.is_err() { "compares" } else { "does not compare" }
    });
    let outcome = outcome.map_or_else(|error| error.to_string().replace('\n', ""), str::to_owned);
    println!("<rank {rank}: {outcome}>");
}

/// What the ranks of a job say.
fn said(settings: &str) -> [String; 3] {
    let mut command: Command = harness::mpiexec(3);
    command.arg(env::current_exe().unwrap());
    command.args(["--exact", "rank", "--nocapture"]);
    // Ranks that do not agree would wait for each other.
    command.env(SETTINGS, settings).env("MPI4TCH_TIMEOUT", "30");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{stdout}{}", String::from_utf8_lossy(&stderr));
    [0, 1, 2].map(|rank| {
        let (_, text) = stdout.split_once(&format!("<rank {rank}: ")).expect(&stdout);
        text.split_once('>').unwrap().0.to_owned()
    })
}

#[test]
fn a_value_that_means_nothing_is_an_error_on_all_ranks() {
    let told = "the ranks disagree on a call:  refused: initialize: a setting on rank 1";
    let check = "initialize: MPI4TCH_CHECK is \"maybe\"; it may be none, local or collective";
    assert_eq!(said("MPI4TCH_CHECK,local,maybe,collective"), [told, check, told]);
    let timeout = "initialize: MPI4TCH_TIMEOUT is \"-1\"; it may be a number of seconds above 0";
    assert_eq!(said("MPI4TCH_TIMEOUT,60,-1,"), [told, timeout, told]);
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_on_all_ranks() {
    let needed = "the path of a folder, there or to be made, in which files can be written";
    // Below a file, and a file itself: the others could write theirs, and remove what they have written.
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("settings");
    let good = folder.to_str().unwrap();
    let file = env::current_exe().unwrap();
    let file = file.to_str().unwrap();
    let below = format!("{file}/folder");
    for bad in [file, &below] {
        let told =
            "the ranks disagree on a call:  refused: initialize: a setting on rank 1".to_owned();
        let own = format!("initialize: MPI4TCH_TRACE is \"{bad}\"; it may be {needed}");
        let expected = [told.clone(), own.clone(), told];
        assert_eq!(said(&format!("MPI4TCH_TRACE,{good},{bad},{good}")), expected);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        // A rank without the variable is given the folder of one that has it.
        assert_eq!(said(&format!("MPI4TCH_TRACE,,{bad},")), [0; 3].map(|_| own.clone()));
    }
}

#[test]
fn a_value_that_is_not_utf_8_is_an_error_on_all_ranks() {
    let told = "the ranks disagree on a call:  refused: initialize: a setting on rank 1";
    let check =
        "initialize: MPI4TCH_CHECK is \"local\u{fffd}\"; it may be none, local or collective";
    assert_eq!(said(&format!("MPI4TCH_CHECK,local,{NOT_UTF_8},local")), [told, check, told]);
    let timeout =
        "initialize: MPI4TCH_TIMEOUT is \"local\u{fffd}\"; it may be a number of seconds above 0";
    assert_eq!(said(&format!("MPI4TCH_TIMEOUT,,{NOT_UTF_8},")), [told, timeout, told]);
}

#[test]
fn the_ranks_compare_their_calls_if_any_is_told_to() {
    assert_eq!(said("MPI4TCH_CHECK,local,local,collective"), ["compares"; 3]);
    assert_eq!(said("MPI4TCH_CHECK,local,local,local"), ["does not compare"; 3]);
    let default = if cfg!(debug_assertions) { "compares" } else { "does not compare" };
    assert_eq!(said("MPI4TCH_CHECK,,,"), [default; 3]);
}
