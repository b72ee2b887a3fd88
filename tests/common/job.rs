//! Jobs of their own, for what a job does not survive: `mpiexec` runs this very program, of which
//! each rank carries out one test, the scenario's.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The variable that says which scenario a rank is to carry out.
const SCENARIO: &str = "MPI4TCH_TEST_SCENARIO";

/// How long a job may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How many jobs run at a time. Most of them wait for a timeout.
const JOBS: usize = 5;

/// How many more jobs may start now. A job that ends notifies one that waits.
static FREE: Mutex<usize> = Mutex::new(JOBS);
static ENDED: Condvar = Condvar::new();

/// One of the [`JOBS`].
struct Place;

impl Place {
    fn wait_for_one() -> Self {
        let mut free = FREE.lock();
        ENDED.wait_while(&mut free, |free| *free == 0);
        *free -= 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *FREE.lock() += 1;
        ENDED.notify_one();
    }
}

/// How a job ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    /// What the ranks wrote to stderr.
    pub printed: String,
}

/// Whether this process is a rank, which is to carry out this scenario.
pub fn is_rank_of(scenario: &str) -> bool {
    std::env::var(SCENARIO).is_ok_and(|name| name == scenario)
}

/// Runs the test `rank`, as the scenario of this name, on so many ranks and with these variables.
pub fn run(scenario: &str, ranks: usize, variables: &[(&str, &str)]) -> Outcome {
    let mut command = harness::mpiexec(ranks);
    command.arg(program());
    outcome(scenario, command.envs(variables.iter().copied()))
}

/// As [`run`], in a process that no launcher starts. A test that starts MPI does so here: MPI leaves
/// variables in its process, with which a launcher that another test starts would fail.
#[allow(dead_code, reason = "most tests with jobs have launchers")]
pub fn run_without_launcher(scenario: &str) -> Outcome {
    outcome(scenario, &mut Command::new(program()))
}

fn program() -> PathBuf {
    std::env::current_exe().expect("this program has a path")
}

fn outcome(scenario: &str, command: &mut Command) -> Outcome {
    let _place = Place::wait_for_one();
    command
        // On the main thread, with what it prints.
        .args(["--exact", "rank", "--nocapture", "--test-threads=1"])
        .env(SCENARIO, scenario)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let job = command.spawn().expect("mpiexec starts");
    let group = job.id();
    let (sender, ended) = mpsc::channel();
    let waiting = std::thread::spawn(move || sender.send(job.wait_with_output()));
    let Ok(output) = ended.recv_timeout(LIMIT) else {
        for signal in ["-TERM", "-KILL"] {
            let _ = Command::new("kill").args([signal, "--", &format!("-{group}")]).status();
            std::thread::sleep(Duration::from_secs(1));
        }
        let _ = waiting.join();
        let output = ended.recv().expect("a last word").expect("the output is read");
        panic!("{scenario} hangs; it printed:\n{}", String::from_utf8_lossy(&output.stderr));
    };
    let output = output.expect("the output is read");
    // MPICH's launcher may send all to stdout.
    let printed = [output.stderr, output.stdout].concat();
    Outcome { status: output.status, printed: String::from_utf8_lossy(&printed).into_owned() }
}

/// Checks each scenario on a thread of its own, so that as many jobs run as may.
#[allow(dead_code, reason = "some tests with jobs have one scenario")]
pub fn for_each<T: Send>(scenarios: impl IntoIterator<Item = T>, check: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for scenario in scenarios {
            let check = &check;
            scope.spawn(move || check(scenario));
        }
    });
}
