//! The side of the test process: the list of trials, and the job they share.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::job::Job;
use crate::settings::Settings;

/// The name of the trial that ends a job and looks at its exit status.
const FINALIZE: &str = "finalize";

/// Runs the tests that the command line selects, on every rank count.
pub fn run(names: Vec<String>) -> ExitCode {
    if let Some(name) = repeated(&names) {
        eprintln!("two tests have the name {name}, of which the ranks would run one only");
        return ExitCode::FAILURE;
    }
    let mut arguments = Arguments::from_args();
    // The trials share a job, and jobs share the cores.
    arguments.test_threads = Some(1);
    let settings = match Settings::from_environment(arguments.nocapture) {
        Ok(settings) => settings,
        Err(reason) => {
            eprintln!("{reason}");
            return ExitCode::FAILURE;
        }
    };
    let runner = Arc::new(Mutex::new(Runner::new(settings.clone())));
    let mut trials = Vec::new();
    for &ranks in &settings.rank_counts {
        for name in names.iter().map(String::as_str).chain([FINALIZE]) {
            let trial = if ranks == 1 {
                format!("{name}::1_rank")
            } else {
                format!("{name}::{ranks}_ranks")
            };
            let name = name.to_owned();
            let runner = Arc::clone(&runner);
            trials.push(Trial::test(trial, move || {
                let mut runner = runner.lock().unwrap_or_else(PoisonError::into_inner);
                let outcome = match name.as_str() {
                    FINALIZE => runner.finalize(ranks),
                    _ => runner.test(&name, ranks),
                };
                outcome.map_err(Failed::from)
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // A job is left where the command line selects no `finalize`.
    let left = runner.lock().unwrap_or_else(PoisonError::into_inner).end();
    if let Err(reason) = left {
        eprintln!("{reason}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// A name that occurs twice; the trial that ends a job has one, too.
fn repeated(names: &[String]) -> Option<&str> {
    let mut seen = HashSet::from([FINALIZE]);
    names.iter().map(String::as_str).find(|&name| !seen.insert(name))
}

/// The job that runs, if one does.
struct Runner {
    settings: Settings,
    job: Option<Job>,
    /// Why jobs of these sizes do not start: another try would only take time.
    broken: HashMap<usize, String>,
}

impl Runner {
    fn new(settings: Settings) -> Runner {
        Runner { settings, job: None, broken: HashMap::new() }
    }

    /// Runs a test on a job of `ranks` ranks; a failure ends the job.
    fn test(&mut self, name: &str, ranks: usize) -> Result<(), String> {
        let outcome = self.job(ranks)?.run(name);
        if outcome.is_err() {
            self.job = None;
        }
        outcome
    }

    /// Ends the job of `ranks` ranks; starts one first if there is none, so
    /// that this works as a test on its own.
    fn finalize(&mut self, ranks: usize) -> Result<(), String> {
        self.job(ranks)?;
        self.end()
    }

    fn end(&mut self) -> Result<(), String> {
        self.job.take().map_or(Ok(()), Job::finish)
    }

    /// The job of `ranks` ranks, started if it does not run.
    fn job(&mut self, ranks: usize) -> Result<&mut Job, String> {
        if let Some(reason) = self.broken.get(&ranks) {
            return Err(reason.clone());
        }
        if self.job.as_ref().is_some_and(|job| job.ranks() != ranks) {
            self.end()?;
        }
        let job = match self.job.take() {
            Some(job) => job,
            None => Job::start(ranks, &self.settings).inspect_err(|reason| {
                self.broken.insert(ranks, reason.clone());
            })?,
        };
        Ok(self.job.insert(job))
    }
}
