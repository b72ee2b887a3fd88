//! `MPI4TCH_TIMEOUT`: ends a job in which ranks wait for what does not come.
//!
//! Each rank watches itself, on a thread that calls no MPI: it knows which call it is in and since
//! when. One that has waited for too long says so, leaves the other ranks a moment to say the same,
//! and exits; the launcher then ends the job.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::communicator::Rank;
use crate::error::{Error, Result};
use crate::site::Site;

/// What a job that was ended returns, as of `timeout(1)`.
const EXIT_CODE: i32 = 124;

/// How long the ranks have to say what they wait for, before the first ends the job.
const GRACE: Duration = Duration::from_secs(1);

/// The calls that this rank waits in.
#[derive(Debug)]
pub(crate) struct Watch {
    timeout: Duration,
    rank: Rank,
    size: Rank,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    made: u64,
    next_key: u64,
    waiting: BTreeMap<u64, (Site, Instant)>,
}

/// A call, for as long as it takes.
#[must_use]
pub(crate) struct Waiting<'a> {
    watch: &'a Watch,
    key: u64,
}

/// The seconds that `MPI4TCH_TIMEOUT` says, if it is set.
pub(crate) fn timeout() -> Result<Option<Duration>> {
    let Some(value) = std::env::var_os("MPI4TCH_TIMEOUT") else { return Ok(None) };
    // What is not UTF-8 becomes a text that means nothing.
    let value = value.to_string_lossy().into_owned();
    let seconds = value.parse().ok().filter(|&seconds: &f64| seconds > 0.0);
    match seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(timeout) => Ok(Some(timeout)),
        None => {
            let needed = "a number of seconds above 0";
            Err(Error::Setting { name: "MPI4TCH_TIMEOUT", value, needed })
        }
    }
}

impl Watch {
    /// Starts to watch, until the watch is dropped.
    pub(crate) fn start(timeout: Duration, rank: Rank, size: Rank) -> Arc<Self> {
        let watch = Arc::new(Self { timeout, rank, size, calls: Mutex::default() });
        let watched = Arc::downgrade(&watch);
        let thread = std::thread::Builder::new().name("mpi4tch watch".to_owned());
        if let Err(error) = thread.spawn(move || look(&watched)) {
            eprintln!(
                "mpi4tch: MPI4TCH_TIMEOUT has no effect, as no thread can be started: {error}"
            );
        }
        watch
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count_call(&self) -> u64 {
        let mut calls = self.calls();
        calls.made += 1;
        calls.made
    }

    /// Watches a call, which is counted if it is not yet.
    pub(crate) fn enter(&self, site: Site) -> Waiting<'_> {
        let site = Site { number: Some(site.number.unwrap_or_else(|| self.count_call())), ..site };
        let mut calls = self.calls();
        let key = calls.next_key;
        calls.next_key += 1;
        calls.waiting.insert(key, (site, Instant::now()));
        Waiting { watch: self, key }
    }

    /// What to say of the calls, if one takes too long.
    fn overdue(&self) -> Option<String> {
        let calls = self.calls();
        let longest = calls.waiting.values().map(|(_, start)| start.elapsed()).max()?;
        if longest < self.timeout {
            return None;
        }
        let lines = calls.waiting.values().map(|(site, start)| {
            format!(
                "mpi4tch: rank {} of {} has waited {:.1} s in {site}, its call {}\n",
                self.rank,
                self.size,
                start.elapsed().as_secs_f64(),
                site.number.unwrap_or(0),
            )
        });
        Some(lines.collect())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.watch.calls().waiting.remove(&self.key);
    }
}

/// Looks at a watch until it is gone.
fn look(watched: &Weak<Watch>) {
    loop {
        let Some(watch) = watched.upgrade() else { return };
        if let Some(text) = watch.overdue() {
            eprint!("{text}");
            std::thread::sleep(GRACE);
            let last = format!(
                "mpi4tch: rank {} ends the job: MPI4TCH_TIMEOUT is {} s; ranks that have said \
                 nothing are in no call\n",
                watch.rank,
                watch.timeout.as_secs_f64()
            );
            eprint!("{last}");
            // MPI cannot be called here, nor can what it left be cleaned up.
            // SAFETY: ends the process without running anything of it.
            unsafe { libc::_exit(EXIT_CODE) };
        }
        let pause =
            (watch.timeout / 10).clamp(Duration::from_millis(1), Duration::from_millis(200));
        drop(watch);
        std::thread::sleep(pause);
    }
}
