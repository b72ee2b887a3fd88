//! The runs of checkpoints on a tape: the first, without a graph, and those in the backward pass.
//!
//! The first run notes its calls among those of the tape, for the comparison before the backward pass.
//! When the checkpoint is run again, the communicators of the tape use another record, whose token
//! belongs to that run. Each run also notes its calls with their arguments, which must be the same
//! again, and what the wildcards of its messages matched, so that they match the same again.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::calls::Label;
use super::record::Record;
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::communicator::{Handle, Identity};
use crate::engine::communicator::Communicator;
use crate::environment::status::{Envelope, Source, TagMatch};

/// The runs on a record.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// Whether there is any run, or a record in use instead of this one.
    is_busy: AtomicBool,
    /// How many of the runs are first ones.
    first: AtomicUsize,
    /// The records of checkpoints that are run again, each within the one before.
    again: Mutex<Vec<Arc<Record>>>,
    /// The runs on this record, each within the one before.
    running: Mutex<Vec<Run>>,
}

/// A run that is not finished.
#[derive(Debug)]
struct Run {
    noted: Noted,
    /// The notes of the first run, by step, and the step, if this is another.
    first: Option<(Arc<Vec<Noted>>, usize)>,
}

/// What is noted of a run.
#[derive(Debug, Default)]
pub(super) struct Noted {
    /// The calls, shared with other runs where they are the same: small pieces of memory that stay would
    /// keep the allocator from using the memory of the tensors between them again.
    calls: Arc<Vec<NotedCall>>,
    /// A hash of the arguments that are known before the next call.
    ahead: u64,
    /// The communicators that were made.
    made: Vec<Identity>,
    /// The receives and probes with wildcards.
    wildcards: Vec<Envelope>,
}

/// A call on a tape in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NotedCall {
    call: &'static str,
    at: &'static Location<'static>,
    /// A hash of its arguments.
    arguments: u64,
}

impl fmt::Display for NotedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.call, self.at)
    }
}

/// The numbers of the runs that have not ended, on all threads.
static ACTIVE: Mutex<Vec<u64>> = Mutex::new(Vec::new());

thread_local! {
    /// The numbers of the runs on this thread, each within the one before.
    static RUNS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    /// How many checkpoints are run again on this thread, each within the one before.
    static AGAIN: Cell<usize> = const { Cell::new(0) };
}

impl Record {
    /// This record, or that of the checkpoint that is run again.
    #[inline]
    pub(crate) fn in_use(self: &Arc<Self>) -> Arc<Self> {
        let again = self.runs.is_busy.load(Ordering::Relaxed).then(|| self.runs.again.lock());
        let again = again.and_then(|again| again.last().cloned());
        again.unwrap_or_else(|| Arc::clone(self))
    }

    /// Whether calls on this record are those of a checkpoint that is run again.
    #[inline]
    pub(crate) fn is_run_again(&self) -> bool {
        self.run().is_some()
            || (self.runs.is_busy.load(Ordering::Relaxed) && !self.runs.again.lock().is_empty())
    }

    /// Whether a checkpoint runs on this record for the first time.
    #[inline]
    pub(super) fn is_first_run(&self) -> bool {
        self.runs.first.load(Ordering::Relaxed) != 0
    }

    /// Whether a checkpoint of the tape is running.
    pub(super) fn is_running(&self) -> bool {
        self.is_first_run() || self.is_run_again()
    }

    fn update_busy(&self) {
        let is_busy = !self.runs.running.lock().is_empty() || !self.runs.again.lock().is_empty();
        self.runs.is_busy.store(is_busy, Ordering::Relaxed);
    }

    /// Whether calls are noted.
    #[inline]
    fn notes(&self) -> bool {
        self.runs.is_busy.load(Ordering::Relaxed) || self.run().is_some()
    }

    /// Notes a call in the runs that are going on.
    #[inline]
    pub(crate) fn note_call(
        self: &Arc<Self>,
        call: &'static str,
        at: &'static Location<'static>,
        on: Identity,
    ) {
        if self.notes() {
            for run in &mut *self.in_use().runs.running.lock() {
                run.noted.add(call, at, on);
            }
        }
    }

    /// Notes arguments of the last call: those that `arguments` hashes.
    #[inline]
    pub(crate) fn note_arguments(self: &Arc<Self>, arguments: impl FnOnce(&mut DefaultHasher)) {
        if !self.notes() {
            return;
        }
        let mut hasher = DefaultHasher::new();
        arguments(&mut hasher);
        let arguments = hasher.finish();
        for run in &mut *self.in_use().runs.running.lock() {
            if let Some(call) = Arc::make_mut(&mut run.noted.calls).last_mut() {
                call.arguments = hash(&(call.arguments, arguments));
            }
        }
    }

    /// Notes a communicator that was made.
    pub(crate) fn note_made(self: &Arc<Self>, identity: Identity) {
        if self.notes() {
            for run in &mut *self.in_use().runs.running.lock() {
                run.noted.made.push(identity);
            }
        }
    }

    /// Notes that a checkpoint needs a context of this communicator when it is run again.
    #[inline]
    pub(crate) fn note_context(&self, handle: &Handle) {
        if self.is_first_run() && handle.of_checkpoints().is_none() {
            let contexts = &mut self.state().contexts;
            if !contexts.contains(&handle.identity()) {
                contexts.push(handle.identity());
            }
        }
    }

    /// The envelope of a message that is received, for a call with these arguments. When a checkpoint
    /// is run again, the wildcards are what they matched in the first run.
    fn envelope(self: &Arc<Self>, source: Source, tag: TagMatch) -> Result<Envelope> {
        let mut envelope = Envelope::new(source, tag);
        if self.notes() {
            for run in &mut *self.in_use().runs.running.lock() {
                run.noted.ahead = hash(&(run.noted.ahead, source, tag));
            }
        }
        if source != Source::Any && tag != TagMatch::Any {
            return Ok(envelope);
        }
        for run in &mut *self.in_use().runs.running.lock() {
            if let Some((first, i)) = &run.first {
                let known = first[*i].wildcards.get(run.noted.wildcards.len());
                let (source, tag) = known.and_then(Envelope::known).ok_or_else(|| {
                    let message =
                        "a receive with a wildcard in a checkpoint matched nothing in the \
                                   first run, as it was not made or never waited for"
                            .to_owned();
                    Error::Argument { call: "recv", message }
                })?;
                envelope = Envelope::new(source.into(), tag.into());
            }
            run.noted.wildcards.push(envelope.clone());
        }
        Ok(envelope)
    }

    /// Runs a checkpoint, or a step of it, for the first time. Returns what is noted of it. The calls
    /// count among those of the tape.
    pub(super) fn run_first<T>(
        self: &Arc<Self>,
        label: Label,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Noted)> {
        /// Ends the run, after a panic too.
        struct End<'r>(&'r Record, Option<usize>);
        impl End<'_> {
            fn end(&mut self) -> Noted {
                let Some(place) = self.1.take() else { return Noted::default() };
                let run = self.0.runs.running.lock().pop();
                self.0.runs.first.fetch_sub(1, Ordering::Relaxed);
                self.0.update_busy();
                self.0.state().calls.leave(place);
                run.map(|run| run.noted).unwrap_or_default()
            }
        }
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.end();
            }
        }
        self.runs.first.fetch_add(1, Ordering::Relaxed);
        self.runs.running.lock().push(Run { noted: Noted::default(), first: None });
        self.update_busy();
        let place = self.state().calls.enter(label);
        let (_active, mut end) = (Active::new(), End(self, Some(place)));
        let y = f()?;
        Ok((y, end.end()))
    }

    /// Runs a checkpoint of this tape, or a step of it, again: the tape's communicators use `record`.
    pub(super) fn run_again<T>(
        &self,
        site: Site,
        record: &Arc<Self>,
        (first, i): (&Arc<Vec<Noted>>, usize),
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        /// Ends the run, after a panic too.
        struct End<'r>(&'r Record, &'r Record);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.runs.again.lock().pop();
                self.0.update_busy();
                self.1.runs.running.lock().pop();
                self.1.update_busy();
                AGAIN.set(AGAIN.get() - 1);
            }
        }
        let run = Run { noted: Noted::default(), first: Some((Arc::clone(first), i)) };
        record.runs.running.lock().push(run);
        record.update_busy();
        self.runs.again.lock().push(Arc::clone(record));
        self.update_busy();
        AGAIN.set(AGAIN.get() + 1);
        let (_active, _end) = (Active::new(), End(self, record));
        let y = f()?;
        let (running, first) = (record.runs.running.lock(), &first[i]);
        match running.last() {
            Some(Run { noted, .. }) => noted.check_like(site, first).map(|()| y),
            None => Ok(y),
        }
    }

    /// Leaves the first runs until the result is dropped, for the wait for a call that was started
    /// before them.
    pub(crate) fn outside_first_runs(self: &Arc<Self>) -> Outside {
        let runs = self.runs.first.swap(0, Ordering::Relaxed);
        let place = self.state().calls.leave(0);
        Outside { record: Arc::clone(self), runs, place }
    }
}

/// See [`Record::outside_first_runs`].
pub(crate) struct Outside {
    record: Arc<Record>,
    runs: usize,
    place: usize,
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.record.runs.first.store(self.runs, Ordering::Relaxed);
        self.record.state().calls.leave(self.place);
    }
}

/// A run, until it is dropped.
struct Active(u64);

impl Active {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        ACTIVE.lock().push(number);
        RUNS.with_borrow_mut(|runs| runs.push(number));
        Self(number)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE.lock().retain(|number| *number != self.0);
        RUNS.with_borrow_mut(|runs| runs.retain(|number| *number != self.0));
    }
}

/// The run of a checkpoint that a call on this thread belongs to, if there is one.
pub(crate) fn current_run() -> Option<u64> {
    RUNS.with_borrow(|runs| runs.last().copied())
}

/// Refuses the wait for a call that was started in a run of a checkpoint that has ended: its result has
/// no graph there, and no part in the gradient.
pub(crate) fn refuse_after_run(start: Site, run: Option<u64>) -> Result<()> {
    if run.is_none_or(|run| ACTIVE.lock().contains(&run)) {
        return Ok(());
    }
    let message = format!(
        "started at {} in a checkpoint that has ended; wait for it there, and return its result as an \
         output",
        start.at
    );
    Err(Error::Argument { call: start.call, message })
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Noted {
    fn add(&mut self, call: &'static str, at: &'static Location<'static>, on: Identity) {
        // A communicator that was made in the run is another one in each run.
        let place = self.made.iter().position(|made| *made == on);
        let arguments = hash(&(self.ahead, place, place.is_none().then_some(on)));
        self.ahead = 0;
        Arc::make_mut(&mut self.calls).push(NotedCall { call, at, arguments });
    }

    /// What is needed of it after the run, of which another one has ended before.
    pub(super) fn finished(mut self, last: Option<&Self>) -> Self {
        self.made = Vec::new();
        if let Some(last) = last.filter(|last| last.calls == self.calls) {
            self.calls = Arc::clone(&last.calls);
        }
        self
    }

    /// Refuses other calls than those of the first run.
    fn check_like(&self, site: Site, first: &Self) -> Result<()> {
        let is_like = |(now, before): (&NotedCall, &NotedCall)| {
            (now.call, now.arguments) == (before.call, before.arguments)
        };
        let (count, count_before) = (self.calls.len(), first.calls.len());
        let same = self.calls.iter().zip(&*first.calls).take_while(|&pair| is_like(pair)).count();
        let number = same + 1;
        let difference = match (self.calls.get(same), first.calls.get(same)) {
            (None, None) => return Ok(()),
            (Some(now), Some(before)) if now.call == before.call => {
                format!("call {number}, {now}, has other arguments or is on another communicator")
            }
            (Some(now), Some(before)) => format!("call {number} is {now}, and was {before}"),
            (Some(now), None) => {
                let before = calls_text(count_before);
                format!("call {number}, {now}, is one more than the {before} of the first run")
            }
            (None, Some(before)) => {
                format!("{}, without call {number}, {before}", calls_text(count))
            }
        };
        let message = format!(
            "in the backward pass the function made other calls than in its first run: {difference}"
        );
        Err(Error::Argument { call: site.call, message })
    }
}

fn calls_text(count: usize) -> String {
    if count == 1 { "1 call".to_owned() } else { format!("{count} calls") }
}

impl Communicator {
    /// The envelope of a message to receive: see [`Record::envelope`].
    pub(crate) fn envelope(
        &self,
        source: impl Into<Source>,
        tag: impl Into<TagMatch>,
    ) -> Result<Envelope> {
        let (source, tag) = (source.into(), tag.into());
        match self.tape_record() {
            Some(record) => record.envelope(source, tag),
            None => Ok(Envelope::new(source, tag)),
        }
    }
}

/// Refuses a recorded call that the backward pass of a checkpoint that is run again would lose.
pub(super) fn refuse_in_checkpoint(site: Site, place: &str) -> Result<()> {
    if AGAIN.get() == 0 { Ok(()) } else { refuse(site, place) }
}

/// Refuses a message on no tape in a checkpoint. It would be sent again in the backward pass, among
/// the messages of the program.
#[inline]
pub(crate) fn refuse_message_on_no_tape(site: Site, comm: &Communicator) -> Result<()> {
    if comm.is_forward() && comm.record().is_none() && current_run().is_some() {
        return refuse(site, "on no tape");
    }
    Ok(())
}

fn refuse(site: Site, place: &str) -> Result<()> {
    let message = format!(
        "called at {} {place}, in a checkpoint; put its communicator on the checkpoint's tape",
        site.at
    );
    Err(Error::Argument { call: site.call, message })
}
