//! Runs the tests of a file under `mpiexec`, once per rank count.
//!
//! A test file that uses it has `harness = false` in Cargo.toml and ends in
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     harness::run(start, harness::tests![ring, sum])
//! }
//! # fn start() -> (World, i32, i32) { (World, 0, 1) }
//! # struct World;
//! # fn ring(_: &World) {}
//! # fn sum(_: &World) -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
//! ```
//!
//! where `start` initialises MPI and returns what the tests work with, the rank
//! and the number of ranks. `cargo test` starts the file as usual; that process
//! makes no MPI calls but starts *jobs*, `mpiexec -n N <itself>`, whose ranks
//! connect to its socket and carry out the tests it names. A test passes if it
//! passes on every rank.
//!
//! One job serves all tests of a rank count. A test that fails, hangs or dies
//! takes its job along, and the next one gets a new job. What a failing test
//! printed is shown, `--nocapture` shows all.
//!
//! | Variable | Meaning |
//! |---|---|
//! | `MPI4TCH_TEST_RANKS` | the rank counts; `1,2,3,4,5,7` unless set |
//! | `MPI4TCH_TEST_TIMEOUT` | seconds that a test, or the start or end of a job, may take; 60 unless set |
//! | `MPI4TCH_MPIEXEC` | the launcher, with options; the one that belongs to the linked MPI unless set |

mod job;
mod launch;
mod message;
mod output;
mod patience;
mod process;
mod rank;
mod runner;
mod settings;

pub use launch::mpiexec;

use std::fmt::Display;
use std::process::ExitCode;

/// A test: a name, and what every rank runs.
pub struct Test<C> {
    name: String,
    body: Box<Body<C>>,
}

type Body<C> = dyn Fn(&C) -> Result<(), String>;

impl<C> Test<C> {
    /// A test that fails where `body` panics or returns an error.
    pub fn new<R: Outcome>(name: impl Into<String>, body: impl Fn(&C) -> R + 'static) -> Test<C> {
        Test { name: name.into(), body: Box::new(move |context| body(context).into_result()) }
    }
}

/// What a test may return: nothing, or a `Result`.
pub trait Outcome {
    /// The reason of the failure, if it is one.
    ///
    /// # Errors
    /// The text of the error that the test returned.
    fn into_result(self) -> Result<(), String>;
}

impl Outcome for () {
    fn into_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: Display> Outcome for Result<(), E> {
    fn into_result(self) -> Result<(), String> {
        self.map_err(|error| format!(": the test returned the error: {error}"))
    }
}

/// The functions as tests of the same names.
#[macro_export]
macro_rules! tests {
    ($($body:path),* $(,)?) => {
        vec![$($crate::Test::new(stringify!($body), $body)),*]
    };
}

/// Whether this process is a rank of a job, rather than the one that starts jobs.
pub fn is_rank() -> bool {
    std::env::var_os(launch::FOLDER).is_some()
}

/// The `main` of a test file: runs the tests that the command line selects.
///
/// `start` runs on each rank, before any test; it returns the context that is
/// handed to the tests, the rank, and the number of ranks. The context is
/// dropped when the job ends, and should finalize MPI then.
pub fn run<C>(start: impl FnOnce() -> (C, i32, i32), tests: Vec<Test<C>>) -> ExitCode {
    match std::env::var_os(launch::FOLDER) {
        Some(folder) => rank::serve(folder.as_ref(), start, &tests),
        None => runner::run(tests.into_iter().map(|test| test.name).collect()),
    }
}
