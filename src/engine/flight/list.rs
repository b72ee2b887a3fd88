//! [`Flights`]: the list of the calls that were started, which are advanced together.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::StartedCall;
use super::departures::Departures;
use super::expected::Expected;
use super::progress::{Progress, Stage};
use crate::base::error::Result;
use crate::base::site::Site;
use crate::communicator::Identity;
use crate::engine::agreement::Proposal;
use crate::engine::communicator::Communicator;
use crate::environment::status::Pattern;
use crate::environment::{StartedCalls, watch};

/// How many calls of a queue, from its head, are being agreed on at the same time.
const WINDOW: usize = 8;

/// How long calls that were never waited for may take to end when MPI is finalized.
const PATIENCE: Duration = Duration::from_secs(2);

/// The calls that were started, in that order.
#[derive(Default)]
pub(crate) struct Flights {
    list: Mutex<List>,
}

#[derive(Default)]
pub(super) struct List {
    next: u64,
    calls: BTreeMap<u64, Arc<StartedCall>>,
    /// Calls whose flights have been dropped.
    orphans: VecDeque<Arc<StartedCall>>,
    /// Calls that the ranks are still agreeing on, by communicator.
    queues: BTreeMap<Identity, VecDeque<Arc<StartedCall>>>,
    pub(super) departures: Departures,
    pub(super) expected: Expected,
}

impl Flights {
    pub(super) fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock()
    }

    pub(super) fn add(&self, call: impl FnOnce(u64) -> StartedCall) -> Arc<StartedCall> {
        let mut list = self.list();
        let number = list.next;
        let call = Arc::new(call(number));
        list.next += 1;
        list.calls.insert(number, Arc::clone(&call));
        call
    }

    pub(super) fn remove(&self, number: u64) {
        self.list().calls.remove(&number);
    }

    /// Keeps a call whose flight has been dropped until it has ended.
    pub(super) fn leave(&self, call: &Arc<StartedCall>) {
        self.list().orphans.push_back(Arc::clone(call));
    }

    pub(super) fn queue(&self, call: &Arc<StartedCall>) {
        let mut list = self.list();
        list.queues.entry(call.comm.identity()).or_default().push_back(Arc::clone(call));
        call.comm.environment().note_queued();
    }

    /// Waits at `site` until no call on `comm` waits for a device: the order of what is handed to MPI is
    /// that of the program. To be called before a blocking call.
    #[inline]
    pub(crate) fn let_depart(&self, site: Site, comm: &Communicator) -> Result<()> {
        let (environment, identity) = (comm.environment(), comm.identity());
        if !environment.are_queued() || !self.list().departures.are_due(identity) {
            return Ok(());
        }
        environment.wait_until(site, || Ok(!self.list().departures.are_due(identity)))
    }

    /// Queues a proposal without a call: the agreement goes on, so that the other ranks learn that
    /// this one does not make the call.
    pub(crate) fn refuse(&self, proposal: Proposal) {
        let Some((site, comm)) = proposal.origin() else { return };
        let stage = Stage::Proposed(Box::new(proposal), None);
        let call = self.add(|number| StartedCall {
            site,
            comm,
            receives: false,
            number,
            dropped: AtomicBool::new(true),
            progress: Mutex::new(Progress { stage, was_ended: false }),
        });
        self.queue(&call);
        self.leave(&call);
    }

    /// Removes calls that have ended and whose flights were dropped. It stops at the second that is
    /// still under way, so that the cost of a start does not grow with their number.
    ///
    /// # Safety
    /// MPI can be called.
    pub(crate) unsafe fn sweep(&self) {
        let mut left = 2;
        while left != 0 {
            let Some(call) = self.list().orphans.pop_front() else { return };
            // SAFETY: passed on to the caller.
            if unsafe { call.progress().test() } {
                call.note_error();
                self.remove(call.number);
            } else {
                self.list().orphans.push_back(call);
                left -= 1;
            }
        }
    }
}

impl StartedCalls for Flights {
    /// Hands the calls to MPI on whose buffers no device is at work any more. Advances the first calls of
    /// each queue, and takes those off that have been handed to MPI. Then starts to receive messages that
    /// have come.
    unsafe fn advance(&self) {
        let List { queues, departures, expected, .. } = &mut *self.list();
        // SAFETY: passed on to the caller.
        unsafe { departures.advance(expected) };
        queues.retain(|_, queue| {
            let mut window = WINDOW.min(queue.len());
            while let Some(first) = queue.front() {
                let mut progress = first.progress();
                // SAFETY: passed on to the caller.
                unsafe { progress.advance(first.site.call) };
                if progress.waits() {
                    break;
                }
                drop(progress);
                first.comm.environment().note_unqueued();
                queue.pop_front();
                window = WINDOW.min(queue.len());
            }
            for call in queue.range(1.min(window)..window) {
                // SAFETY: passed on to the caller.
                unsafe { call.progress().advance(call.site.call) };
            }
            !queue.is_empty()
        });
        // SAFETY: passed on to the caller.
        unsafe { expected.advance() };
    }

    fn expects(&self, found: &Pattern) -> bool {
        self.list().expected.overlaps(found)
    }

    unsafe fn post(&self) {
        let List { departures, expected, .. } = &mut *self.list();
        // SAFETY: passed on to the caller.
        unsafe {
            departures.post(expected);
            expected.post();
        }
    }

    unsafe fn end(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.list().calls);
        let mut left: Vec<Arc<StartedCall>> = calls.into_values().collect();
        let is_left = |call: &Arc<StartedCall>| !call.progress().has_ended();
        // The error of a call that this rank refused has been returned already.
        let is_told =
            |call: &Arc<StartedCall>| matches!(call.progress().stage, Stage::Proposed(_, None));
        for call in left.iter().filter(|call| is_left(call)) {
            call.progress().was_ended = true;
        }
        // Messages that have come are received, and what has not come counts as left.
        // SAFETY: passed on to the caller.
        unsafe { self.post() };
        for call in left.iter().filter(|call| call.receives && is_left(call)) {
            // No receive can be waited for any more.
            if let Stage::UnderWay(made) = &mut call.progress().stage {
                // SAFETY: passed on to the caller.
                unsafe { made.cancel() };
            }
        }
        let start = Instant::now();
        // Reported at once, not after the wait: other ranks may be waiting for calls of this one.
        let missed = left.iter().filter(|call| is_left(call) && !is_told(call));
        for line in lines(missed, "was never waited for") {
            watch::say(&format!("mpi4tch: {line}\n"));
        }
        loop {
            // SAFETY: passed on to the caller.
            unsafe { self.advance() };
            left.retain(|call| {
                // SAFETY: as above.
                let has_ended = unsafe { call.progress().test() };
                if has_ended {
                    call.note_error();
                }
                !has_ended
            });
            if left.is_empty() {
                let rest = std::mem::take(&mut *self.list());
                drop(rest);
                return Vec::new();
            }
            if start.elapsed() > PATIENCE {
                break;
            }
            // What has not ended by now may never end; other ranks may need the processor.
            if start.elapsed() > Duration::from_millis(10) {
                std::thread::sleep(Duration::from_micros(100));
            } else {
                std::thread::yield_now();
            }
        }
        let what = "has no counterpart on other ranks, and does not end";
        let lines = lines(left.iter().filter(|call| !is_told(call)), what);
        // MPI may still write their buffers, which are leaked.
        std::mem::forget(left);
        std::mem::forget(std::mem::take(&mut *self.list()));
        lines
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = self.list();
        f.debug_list().entries(list.calls.values().map(|call| call.site.to_string())).finish()
    }
}

/// A line of text for each call; the same line only once.
fn lines<'c>(calls: impl Iterator<Item = &'c Arc<StartedCall>>, what: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for call in calls {
        let (rank, size) = (call.comm.rank(), call.comm.size());
        let line = format!("rank {rank} of {size}: {}, started there, {what}", call.site);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}
