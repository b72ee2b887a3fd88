//! The watch reports calls that wait for too long, and with `MPI4TCH_TIMEOUT` ends the job.
//!
//! Each rank watches its own calls, on a thread that never calls MPI. The thread looks at the list
//! of calls periodically. A call that has waited for `MPI4TCH_NOTICE` seconds, or for a minute, is
//! reported once. With `MPI4TCH_TIMEOUT`, a rank that has waited for that time reports its calls,
//! leaves the other ranks a moment to report theirs, and exits; the launcher then ends the job, which
//! those that start ranks of MPICH and Intel MPI must be asked to do.

use std::ffi::OsString;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::site::Site;

/// The exit code of a job that the watch ends, as that of `timeout(1)`.
const EXIT_CODE: i32 = 124;

/// How long the ranks have to report what they wait for, before the first ends the job.
const GRACE: Duration = Duration::from_secs(1);

/// The time that the launcher has to forward what this rank printed: MPICH's drops it when the job is
/// aborted.
pub(crate) const FORWARDING: Duration = Duration::from_millis(200);

/// How many seconds a call may wait before it is reported, if `MPI4TCH_NOTICE` is not set.
const NOTICE: f64 = 60.0;

/// How long calls may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Before they are reported.
    notice: Duration,
    /// Before the job is ended.
    timeout: Option<Duration>,
}

impl Limits {
    /// Reads `MPI4TCH_NOTICE` and `MPI4TCH_TIMEOUT`.
    pub(crate) fn from_environment() -> Result<Self> {
        let notice = Duration::from_secs_f64(NOTICE);
        let notice =
            seconds("MPI4TCH_NOTICE", std::env::var_os("MPI4TCH_NOTICE"))?.unwrap_or(notice);
        let timeout = seconds("MPI4TCH_TIMEOUT", std::env::var_os("MPI4TCH_TIMEOUT"))?;
        Ok(Self { notice, timeout })
    }

    /// The time between two looks at the calls.
    fn pause(&self) -> Duration {
        let shortest = self.timeout.map_or(self.notice, |timeout| timeout.min(self.notice));
        (shortest / 10).clamp(Duration::from_millis(1), Duration::from_secs(1))
    }
}

fn seconds(name: &'static str, value: Option<OsString>) -> Result<Option<Duration>> {
    let Some(value) = value else { return Ok(None) };
    let seconds = value.to_str().and_then(|text| text.parse().ok()).filter(|&s: &f64| s > 0.0);
    match seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(duration) => Ok(Some(duration)),
        None => {
            let (value, needed) =
                (value.to_string_lossy().into_owned(), "a number of seconds above 0");
            Err(Error::Setting { name, value, needed })
        }
    }
}

/// The calls that this rank waits in.
#[derive(Debug)]
pub(crate) struct Watch {
    limits: Limits,
    rank: Rank,
    size: Rank,
    /// How many calls have been numbered.
    made: AtomicU64,
    waits: Mutex<Waits>,
    /// The last call on which the ranks agreed although it stood on different lines of the program.
    lines: Mutex<Option<Site>>,
}

#[derive(Debug, Default)]
struct Waits {
    next_key: u64,
    list: Vec<Wait>,
}

#[derive(Debug)]
struct Wait {
    key: u64,
    site: Site,
    /// When the watch first saw it. The call itself does not read the clock, to cost less.
    seen: Option<Instant>,
    is_named: bool,
}

/// Keeps a call in the list of those that are watched, until it is dropped.
#[must_use]
pub(crate) struct Watched<'a> {
    watch: &'a Watch,
    key: u64,
}

impl Watch {
    /// Starts the thread that watches, which ends when the watch has been dropped.
    pub(crate) fn start(limits: Limits, rank: Rank, size: Rank) -> Arc<Self> {
        let (made, waits, lines) = (AtomicU64::new(0), Mutex::default(), Mutex::default());
        let watch = Arc::new(Self { limits, rank, size, made, waits, lines });
        let watched = Arc::downgrade(&watch);
        let thread = std::thread::Builder::new().name("mpi4tch watch".to_owned());
        if let Err(error) = thread.spawn(move || look(&watched)) {
            say(&format!("mpi4tch: waits are not watched, as no thread can be started: {error}\n"));
        }
        watch
    }

    /// How long to wait for other ranks at the end before that is reported: less than
    /// `MPI4TCH_TIMEOUT`, if it is set.
    pub(crate) fn patience(&self) -> Duration {
        let longest = Duration::from_secs(5);
        self.limits.timeout.map_or(longest, |timeout| longest.min(timeout / 2))
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock()
    }

    /// The number of the next call.
    #[inline]
    pub(crate) fn count_call(&self) -> u64 {
        self.made.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Watches a call until the guard is dropped.
    #[inline]
    pub(crate) fn enter(&self, site: Site) -> Watched<'_> {
        let number = if site.number == 0 { self.count_call() } else { site.number };
        let site = Site { number, ..site };
        let mut waits = self.waits();
        let key = waits.next_key;
        waits.next_key += 1;
        waits.list.push(Wait { key, site, seen: None, is_named: false });
        Watched { watch: self, key }
    }

    /// Notes a call on which the ranks agreed although it stood on different lines of the program.
    pub(crate) fn note_lines(&self, site: Site) {
        *self.lines.lock() = Some(site);
    }

    /// The last call on which the ranks agreed although it stood on different lines.
    pub(crate) fn last_lines(&self) -> Option<String> {
        let lines = self.lines.lock();
        lines.map(|site| site.to_string())
    }

    /// Looks how long the calls have waited. Returns a report if one has waited for too long, and
    /// whether the job must end.
    fn look(&self) -> Option<(String, bool)> {
        let now = Instant::now();
        let mut waits = self.waits();
        let (mut longest, mut is_new) = (Duration::ZERO, false);
        for wait in &mut waits.list {
            let waited = now.duration_since(*wait.seen.get_or_insert(now));
            longest = longest.max(waited);
            if waited >= self.limits.notice && !wait.is_named {
                (wait.is_named, is_new) = (true, true);
            }
        }
        let ends = self.limits.timeout.is_some_and(|timeout| longest >= timeout);
        if !ends && !is_new {
            return None;
        }
        let mut text = String::new();
        for Wait { site, seen, .. } in &waits.list {
            let waited = seen.map_or(0.0, |seen| now.duration_since(seen).as_secs_f64());
            text += &format!(
                "mpi4tch: rank {} of {} has waited {waited:.1} s in {site}, its call {}\n",
                self.rank, self.size, site.number
            );
        }
        if let Some(last) = self.last_lines() {
            text += &format!(
                "mpi4tch: rank {} made its last call that stood on another line elsewhere in {last}\n",
                self.rank
            );
        }
        if !ends && self.limits.timeout.is_none() {
            text += "mpi4tch: it waits on; MPI4TCH_TIMEOUT=<seconds> would end the job\n";
        }
        Some((text, ends))
    }
}

impl Drop for Watched<'_> {
    #[inline]
    fn drop(&mut self) {
        let list = &mut self.watch.waits().list;
        // Calls are mostly nested, so that the last one to begin is the first to end.
        if let Some(place) = list.iter().rposition(|wait| wait.key == self.key) {
            list.remove(place);
        }
    }
}

/// Looks at the calls periodically, until the watch has been dropped.
fn look(watched: &Weak<Watch>) {
    loop {
        let Some(watch) = watched.upgrade() else { return };
        if let Some((text, ends)) = watch.look() {
            if ends {
                // Ends the job also if writing the report blocks, as nobody reads it.
                std::thread::spawn(|| {
                    std::thread::sleep(3 * GRACE);
                    exit();
                });
            }
            say(&text);
            if ends {
                std::thread::sleep(GRACE);
                say(&format!(
                    "mpi4tch: rank {} ends the job: MPI4TCH_TIMEOUT is {} s; ranks that have said \
                     nothing are in no call\n",
                    watch.rank,
                    watch.limits.timeout.unwrap_or_default().as_secs_f64()
                ));
                std::thread::sleep(FORWARDING);
                exit();
            }
        }
        let pause = watch.limits.pause();
        drop(watch);
        std::thread::sleep(pause);
    }
}

/// Ends the process, and with it the job. This thread may not call MPI, so MPI is neither finalized nor
/// aborted.
fn exit() {
    ask_launcher_to_abort();
    // SAFETY: ends the process without running any of its code.
    unsafe { libc::_exit(EXIT_CODE) };
}

/// Asks the launcher of MPICH or Intel MPI to end the job, as `MPI_Abort` does. If a rank only exits,
/// MPICH's own launcher ends the ranks on the same host, and waits for those on other hosts; Slurm's waits
/// for all, unless it was given `--kill-on-bad-exit=1`.
///
/// The rank and the launcher are joined by a socket, whose number is in `PMI_FD`. A launcher that gets the
/// message of another protocol takes it for an error, which ends the job, too, or ignores it, as Slurm's
/// does. The launchers of other libraries need no message. With PMIx there is none that this thread could
/// send, and Slurm goes on if the rank was alone on its node: the guide names the option.
fn ask_launcher_to_abort() {
    if mpi_sys::loaded_vendor() != mpi_sys::Vendor::Mpich {
        return;
    }
    let socket = std::env::var("PMI_FD").ok().and_then(|number| number.parse().ok());
    let Some(socket) = socket else { return };
    let message = abort_message(has_loaded_pmi2());
    // Unlike `write`, this fails if MPI has closed the socket and a file has been given its number. It
    // does not wait if the launcher does not read.
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the message has that many bytes.
    unsafe { libc::send(socket, message.as_ptr().cast(), message.len(), flags) };
}

/// Whether this process has loaded Slurm's library for PMI-2, as Intel MPI does by `I_MPI_PMI_LIBRARY`.
/// MPICH 4.0.2 without it speaks PMI-1, also under `srun --mpi=pmi2`; one that is configured to speak PMI-2
/// by itself was not tried. The list of the kernel is read, because asking the dynamic linker would wait for
/// a thread that is inside it.
fn has_loaded_pmi2() -> bool {
    std::fs::read("/proc/self/maps")
        .is_ok_and(|maps| String::from_utf8_lossy(&maps).contains("/libpmi2.so"))
}

/// The message by which PMI-1 or PMI-2 ends a job. That of PMI-2 begins with its length in six characters,
/// and has no exit code.
fn abort_message(is_pmi2: bool) -> String {
    if is_pmi2 {
        let command = "cmd=abort;isworld=TRUE;msg=MPI4TCH_TIMEOUT;";
        format!("{:6}{command}", command.len())
    } else {
        format!("cmd=abort exitcode={EXIT_CODE}\n")
    }
}

/// Writes to standard error: in one call, so that lines of several ranks do not mix, and without
/// Rust's lock, which the program may hold. Errors are ignored, as they could not be reported.
pub(crate) fn say(text: &str) {
    // SAFETY: the text has that many bytes.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_message_of_pmi2_begins_with_its_length() {
        let message = super::abort_message(true);
        let (length, command) = message.split_at(6);
        assert_eq!(length.trim_start().parse(), Ok(command.len()), "{message}");
        assert!(command.starts_with("cmd=abort;isworld=TRUE;"), "{message}");
    }
}
