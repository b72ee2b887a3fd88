//! The timeline of a program: with `MPI4TCH_TRACE=folder`, what each rank did and when, in the format
//! that chrome://tracing and Perfetto show.
//!
//! Each rank writes its events to a file of its own in the folder, a few times per second, so that
//! they are there if the program crashes. In the end the clocks of the ranks are aligned ([`clock`]),
//! and rank 0 writes all events to one file, `timeline.json` ([`merge`]). The events come from the
//! same places as the spans of the crate `tracing`, but the file needs no subscriber of that crate's.
//!
//! While nobody listens, a call costs a few comparisons: see [`Environment::is_traced`].

mod clock;
mod event;
mod merge;
mod setting;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mpi_sys::MPI_Comm;
use parking_lot::Mutex;
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};

use super::{Environment, watch};
use crate::base::rank::Rank;
use crate::base::site::Site;
use clock::Offset;
pub(crate) use event::{Details, Event, Group, Interval, Stream};
pub(super) use setting::{folder_from_environment, open};

/// How often events are written to the rank's file.
const PERIOD: Duration = Duration::from_millis(300);

/// How long to wait for another thread that writes.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many events are kept before they are written: a few megabytes.
const MOST: usize = 1 << 14;

/// The events of this rank.
pub(crate) struct Timeline {
    /// The time zero of this rank's events.
    start: Instant,
    rank: Rank,
    size: Rank,
    folder: PathBuf,
    /// A duplicate of `MPI_COMM_WORLD`, for the messages that align the clocks and collect the events.
    context: MPI_Comm,
    /// How far this rank's clock was off in the beginning.
    first: Offset,
    events: Mutex<Vec<Event>>,
    /// The rank's own file. Locked before `events`.
    file: Mutex<File>,
    /// Whether no more events are kept: the file cannot be written, or the timeline is complete.
    is_closed: AtomicBool,
}

impl Timeline {
    /// The time on this rank's clock.
    pub(crate) fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    pub(crate) fn at(&self, instant: Instant) -> u64 {
        nanoseconds(instant.duration_since(self.start))
    }

    pub(crate) fn record(&self, event: Event) {
        if self.is_closed.load(Ordering::Relaxed) {
            return;
        }
        let mut events = self.events.lock();
        events.push(event);
        if events.len() >= MOST {
            drop(events);
            self.flush();
        }
    }

    /// Writes the events so far to the rank's file. An error is printed, and ends the recording. If
    /// another thread is held up in writing, this one is not.
    pub(crate) fn flush(&self) {
        let Some(mut file) = self.file.try_lock_for(PATIENCE) else { return };
        let events = std::mem::take(&mut *self.events.lock());
        let lines = events.iter().flat_map(|event| event.lines(self.rank));
        let text: String = lines.map(|line| line.text() + ",\n").collect();
        if let Err(error) = file.write_all(text.as_bytes())
            && !self.is_closed.swap(true, Ordering::Relaxed)
        {
            let path = self.path();
            watch::say(&format!("mpi4tch: cannot write {}: {error}\n", path.display()));
        }
    }

    /// The rank's own file.
    fn path(&self) -> PathBuf {
        self.folder.join(file_name(self.rank))
    }

    /// Starts the thread that writes the events periodically, which ends when the timeline has been
    /// dropped.
    fn start_writing(self: &Arc<Self>) {
        let timeline = Arc::downgrade(self);
        let write = move || {
            while let Some(timeline) = timeline.upgrade() {
                timeline.flush();
                drop(timeline);
                std::thread::sleep(PERIOD);
            }
        };
        let thread = std::thread::Builder::new().name("mpi4tch trace".to_owned());
        // Without the thread, events are written when there are many, and in the end.
        let _ = thread.spawn(write);
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// The name of a rank's own file.
fn file_name(rank: Rank) -> String {
    format!("timeline.rank{rank}.json")
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

thread_local! {
    /// This thread's number in the timeline.
    static THREAD: u32 = {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
    /// How long this thread has waited for other ranks while it was traced, in nanoseconds.
    static WAITED: Cell<u64> = const { Cell::new(0) };
    /// How many traced calls this thread is in.
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

/// This thread's number in the timeline.
pub(crate) fn thread() -> u32 {
    THREAD.with(|number| *number)
}

/// How long this thread has waited for other ranks while it was traced.
pub(crate) fn waited() -> Duration {
    Duration::from_nanos(WAITED.get())
}

/// Notes that this thread is in a traced call, until it is dropped. The waits in it are parts of it.
pub(crate) struct InCall(());

impl InCall {
    pub(crate) fn enter() -> Self {
        CALLS.set(CALLS.get() + 1);
        Self(())
    }
}

impl Drop for InCall {
    fn drop(&mut self) {
        CALLS.set(CALLS.get() - 1);
    }
}

impl Environment {
    /// Whether anybody listens: the timeline, or a subscriber of the crate `tracing`.
    #[inline]
    pub(crate) fn is_traced(&self) -> bool {
        // Two loads. The second is of the number in which that crate keeps the highest level that a
        // subscriber wants, which is 0 if there is none.
        self.timeline.is_some()
            || (LevelFilter::DEBUG <= STATIC_MAX_LEVEL
                && LevelFilter::DEBUG <= LevelFilter::current()
                && tracing::span_enabled!(target: "mpi4tch", tracing::Level::DEBUG))
    }

    /// The timeline, if there is one.
    pub(crate) fn timeline(&self) -> Option<&Arc<Timeline>> {
        self.timeline.as_ref()
    }

    /// Writes the events so far to this rank's file, before the process ends without finalizing MPI.
    pub(crate) fn flush_timeline(&self) {
        if let Some(timeline) = &self.timeline {
            timeline.flush();
        }
    }

    /// Notes that this thread waits for other ranks in the call at `site`, until the guard is dropped.
    #[inline]
    pub(super) fn note_wait(&self, site: Site) -> Option<Waiting<'_>> {
        self.is_traced().then(|| Waiting { environment: self, site, begin: Instant::now() })
    }
}

/// A wait that is traced.
#[must_use]
pub(super) struct Waiting<'e> {
    environment: &'e Environment,
    site: Site,
    begin: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let end = Instant::now();
        WAITED.set(WAITED.get() + nanoseconds(end.duration_since(self.begin)));
        if let Some(timeline) = self.environment.timeline() {
            let at = Interval { begin: timeline.at(self.begin), end: timeline.at(end) };
            let is_part = CALLS.get() != 0;
            timeline.record(Event::Wait { at, thread: thread(), site: self.site, is_part });
        }
    }
}
