//! Calls that were started: how their buffers are kept, and how they come to their end.
//!
//! MPI reads and writes a call's buffers until the call has ended, even if the request has been
//! dropped. So a list holds each call, with its buffers, from before its start; a [`Flight`] only
//! refers to its entry. If a flight is dropped, the call leaves the list when it has ended, or is
//! ended when MPI is finalized. If a flight is forgotten (`mem::forget`), the call stays in the
//! list.
//!
//! A collective call that the ranks are still agreeing on waits in the queue of its communicator.
//! Every wait and every start of this crate advances the heads of all queues
//! ([`StartedCalls::advance`]), so that a rank that waits on one communicator does not hold up the
//! ranks of another. The same goes on with receives that wait for their messages ([`expected`]), and
//! with calls that wait for a device ([`departures`]).

mod departures;
mod expected;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::base::way::Way;
use crate::call::{Launch, Made};
use crate::communicator::Identity;
use crate::engine::agreement::{Proposal, Turn};
use crate::engine::communicator::Communicator;
use crate::environment::status::Pattern;
use crate::environment::{StartedCalls, watch};
use departures::Departures;
use expected::Expected;

/// A call that was started.
pub(crate) struct Flight(Arc<StartedCall>);

/// When a call is handed to MPI.
pub(crate) enum Start {
    /// At once: it needs no turn.
    Now,
    /// At once: the ranks have agreed, and this is its turn.
    InTurn(Arc<Turn>),
    /// When the ranks have agreed and its turn has come.
    Agreed(Box<Proposal>),
}

impl Start {
    /// See [`Turn::seal`].
    pub(crate) fn seal(&self) -> u64 {
        match self {
            Self::Now => 0,
            Self::InTurn(turn) => turn.seal(),
            Self::Agreed(proposal) => proposal.seal(),
        }
    }
}

/// The entry of a call in the list, from before its start to its end.
struct StartedCall {
    site: Site,
    /// The communicator, which keeps the MPI contexts alive.
    comm: Communicator,
    /// Whether it is a receive, which can be cancelled.
    receives: bool,
    number: u64,
    /// Whether its flight has been dropped.
    dropped: AtomicBool,
    progress: Mutex<Progress>,
}

struct Progress {
    stage: Stage,
    /// Whether it was still under way when MPI was finalized.
    was_ended: bool,
}

enum Stage {
    /// The ranks are agreeing on the call. There is no `Launch` if this rank does not make it.
    Proposed(Box<Proposal>, Option<Launch>),
    /// The turn of the call has come, if it needs one. It is made when its buffers are ready.
    Granted(Launch, Option<Arc<Turn>>),
    UnderWay(Made),
    Failed(Error),
    /// The outcome has been taken, or there is none.
    Over,
}

/// How many calls of a queue, from its head, are being agreed on at the same time.
const WINDOW: usize = 8;

/// How long calls that were never waited for may take to end when MPI is finalized.
const PATIENCE: Duration = Duration::from_secs(2);

impl Flight {
    /// Starts a call, or queues it for its turn.
    pub(crate) fn start(
        site: Site,
        comm: &Communicator,
        launch: Launch,
        start: Start,
    ) -> Result<Self> {
        let (environment, flights) = (comm.environment(), comm.flights());
        let receives = launch.receives();
        let stage = match start {
            Start::Now => Stage::Granted(launch, None),
            Start::InTurn(turn) => Stage::Granted(launch, Some(turn)),
            Start::Agreed(proposal) => Stage::Proposed(proposal, Some(launch)),
        };
        let is_proposed = matches!(stage, Stage::Proposed(..));
        let call = flights.add(|number| StartedCall {
            site,
            comm: comm.plain(),
            receives,
            number,
            dropped: AtomicBool::new(false),
            progress: Mutex::new(Progress { stage, was_ended: false }),
        });
        let flight = Self(call);
        let _watched = environment.watch().enter(site);
        let _permission = environment.enter(site.call)?;
        // SAFETY: `enter` gave permission to call MPI.
        unsafe { flights.sweep() };
        if is_proposed {
            flights.queue(&flight.0);
        } else {
            flight.0.wait_if_it_must_depart();
            {
                let List { departures, expected, .. } = &mut *flights.list();
                // SAFETY: as above.
                unsafe { departures.add(&flight.0, expected) };
            }
            flight.0.progress().take_error()?;
        }
        // SAFETY: as above.
        unsafe { environment.advance() };
        Ok(flight)
    }

    pub(crate) fn site(&self) -> Site {
        self.0.site
    }

    /// Whether the call has ended. Advances the queues first.
    pub(crate) fn test(&self) -> Result<bool> {
        let environment = self.0.comm.environment();
        let _permission = environment.enter(self.0.site.call)?;
        // SAFETY: `enter` gave permission to call MPI.
        unsafe { environment.advance() };
        // SAFETY: as above.
        Ok(unsafe { self.look() })
    }

    /// Whether the call has ended.
    ///
    /// # Safety
    /// MPI can be called.
    pub(crate) unsafe fn look(&self) -> bool {
        // SAFETY: passed on to the caller.
        unsafe { self.0.progress().test() }
    }

    /// Waits at `site` for the end of the call, and returns what it left behind. Other threads can
    /// make calls meanwhile.
    pub(crate) fn landed(self, site: Site) -> Result<Made> {
        self.0.comm.environment().wait_until(site, || {
            // SAFETY: `wait` gives permission to call MPI.
            Ok(unsafe { self.look() })
        })?;
        let mut progress = self.0.progress();
        if progress.was_ended {
            return Err(Error::Finalized { call: site.call });
        }
        match std::mem::replace(&mut progress.stage, Stage::Over) {
            Stage::UnderWay(made) => Ok(made),
            Stage::Failed(error) => Err(error),
            Stage::Proposed(..) | Stage::Granted(..) | Stage::Over => {
                unreachable!("a flight lands once")
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let flights = self.0.comm.flights();
        if self.0.progress().has_ended() {
            self.0.note_error();
            flights.remove(self.0.number);
        } else {
            self.0.dropped.store(true, Ordering::Release);
            flights.list().orphans.push_back(Arc::clone(&self.0));
        }
    }
}

impl StartedCall {
    /// Keeps the error of a call that was never waited for, to report it when MPI is finalized.
    fn note_error(&self) {
        if let Stage::Failed(error) = &self.progress().stage {
            let line = format!("rank {}: {}, started there: {error}", self.comm.rank(), self.site);
            self.comm.environment().note_left(vec![line]);
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock()
    }
}

impl Progress {
    /// Whether it has not been handed to MPI.
    fn waits(&self) -> bool {
        matches!(self.stage, Stage::Proposed(..) | Stage::Granted(..))
    }

    fn has_ended(&self) -> bool {
        match &self.stage {
            Stage::Proposed(..) | Stage::Granted(..) => false,
            Stage::UnderWay(made) => made.has_ended(),
            Stage::Failed(_) | Stage::Over => true,
        }
    }

    /// Advances the agreement on the call, and launches the call when its turn has come and its buffers
    /// are ready.
    ///
    /// # Safety
    /// MPI can be called.
    unsafe fn advance(&mut self, call: &'static str) {
        if let Stage::Proposed(proposal, launch) = &mut self.stage {
            // SAFETY: passed on to the caller.
            let turn = match unsafe { proposal.poll() } {
                Ok(None) => return,
                Ok(Some(Ok(turn))) => turn,
                // This rank refused the call, and returned its error at the start.
                Ok(Some(Err(_))) | Err(_) if launch.is_none() => return self.stage = Stage::Over,
                Ok(Some(Err(error))) | Err(error) => return self.stage = Stage::Failed(error),
            };
            self.stage = match launch.take() {
                Some(launch) => Stage::Granted(launch, Some(Arc::new(turn))),
                None => {
                    // That this rank withdrew has been noted before.
                    turn.made();
                    Stage::Over
                }
            };
        }
        if self.is_ready(call) {
            // SAFETY: passed on to the caller.
            unsafe { self.launch(Made::new(Way::Polls)) };
        }
    }

    /// Whether the call can be handed to MPI: its turn has come, and no device is at work on its buffers
    /// any more.
    fn is_ready(&mut self, call: &'static str) -> bool {
        let Stage::Granted(launch, _) = &self.stage else { return false };
        launch.is_ready(call).unwrap_or_else(|error| {
            self.stage = Stage::Failed(error);
            false
        })
    }

    /// Hands the call to MPI.
    ///
    /// # Safety
    /// MPI can be called, and the call [is ready](Self::is_ready).
    unsafe fn launch(&mut self, mut made: Made) {
        let Stage::Granted(launch, turn) = std::mem::replace(&mut self.stage, Stage::Over) else {
            unreachable!("its turn has come")
        };
        // SAFETY: passed on to the caller; what is made is kept to the end, or forgotten.
        self.stage = match unsafe { launch.run(&mut made) } {
            Ok(()) => {
                turn.iter().for_each(|turn| turn.made());
                Stage::UnderWay(made)
            }
            // Parts of it may be under way, and go on.
            Err(error) => {
                turn.iter().for_each(|turn| turn.failed());
                std::mem::forget(made);
                Stage::Failed(error)
            }
        };
    }

    /// The error of a call that has failed, if it has.
    fn take_error(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Failed(error) => Err(error),
            other => {
                self.stage = other;
                Ok(())
            }
        }
    }

    /// Tests whether the call has ended, which it has, too, if it has failed.
    ///
    /// # Safety
    /// MPI can be called.
    unsafe fn test(&mut self) -> bool {
        match &mut self.stage {
            Stage::UnderWay(made) => {
                // SAFETY: passed on to the caller.
                let error = match unsafe { made.test() } {
                    Ok(has_ended) => return has_ended,
                    Err(error) => error,
                };
                // The error is that of the wait. Parts of the call may be under way, and go on.
                let failed = std::mem::replace(&mut self.stage, Stage::Failed(error));
                std::mem::forget(failed);
                true
            }
            Stage::Proposed(..) | Stage::Granted(..) => false,
            Stage::Failed(_) | Stage::Over => true,
        }
    }
}

/// The calls that were started, in that order.
#[derive(Default)]
pub(crate) struct Flights {
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    next: u64,
    calls: BTreeMap<u64, Arc<StartedCall>>,
    /// Calls whose flights have been dropped.
    orphans: VecDeque<Arc<StartedCall>>,
    /// Calls that the ranks are still agreeing on, by communicator.
    queues: BTreeMap<Identity, VecDeque<Arc<StartedCall>>>,
    departures: Departures,
    expected: Expected,
}

impl Flights {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock()
    }

    fn add(&self, call: impl FnOnce(u64) -> StartedCall) -> Arc<StartedCall> {
        let mut list = self.list();
        let number = list.next;
        let call = Arc::new(call(number));
        list.next += 1;
        list.calls.insert(number, Arc::clone(&call));
        call
    }

    fn remove(&self, number: u64) {
        self.list().calls.remove(&number);
    }

    fn queue(&self, call: &Arc<StartedCall>) {
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
        self.list().orphans.push_back(call);
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
