//! [`Expected`]: started receives that wait for their messages, and are handed to MPI when these have
//! come.
//!
//! Why they wait is told in `call/message.rs`. MPI gives a message to the receive that was started
//! first among those that take it. The same is done here: a message that several of the receives take
//! is left for the first of them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::StartedCall;
use super::progress::Stage;
use crate::base::check::Check;
use crate::call::Launch;
use crate::environment::Environment;
use crate::environment::status::Pattern;

/// How many patterns are probed for in each wait. Receives of further ones are handed to MPI at once,
/// so that the cost of a wait does not grow with their number.
const MOST: usize = 16;

#[derive(Default)]
pub(super) struct Expected {
    lanes: Vec<Lane>,
    count: usize,
}

/// The receives that take the same messages, in the order of their starts. There is at least one.
struct Lane {
    pattern: Pattern,
    calls: VecDeque<Arc<StartedCall>>,
}

impl Lane {
    fn first(&self) -> u64 {
        self.calls.front().map_or(u64::MAX, |call| call.number)
    }
}

impl Expected {
    /// The messages that a receive is to wait for before it is handed to MPI; `None` if it is handed to
    /// MPI at once.
    ///
    /// # Safety
    /// MPI can be called.
    pub(super) unsafe fn awaited(
        &mut self,
        environment: &Environment,
        launch: &Launch,
    ) -> Option<Pattern> {
        let (pattern, is_worth_probing) = launch.pattern()?;
        let has_room = self.has_room_for(&pattern);
        // It must not come before one that was started earlier and takes the same messages.
        let is_later = self.overlaps(&pattern);
        if is_later && !has_room {
            // SAFETY: passed on to the caller.
            unsafe { self.post() };
            return None;
        }
        let may_wait = !environment.is_shared() && environment.check() != Check::None;
        (is_later || may_wait && is_worth_probing && has_room).then_some(pattern)
    }

    /// Whether one of the receives takes some message that the pattern takes.
    pub(super) fn overlaps(&self, pattern: &Pattern) -> bool {
        self.lanes.iter().any(|lane| lane.pattern.overlaps(pattern))
    }

    /// Whether there is room for a receive of this pattern.
    fn has_room_for(&self, pattern: &Pattern) -> bool {
        self.lanes.len() < MOST || self.lanes.iter().any(|lane| lane.pattern == *pattern)
    }

    pub(super) fn add(&mut self, pattern: Pattern, call: &Arc<StartedCall>) {
        self.count += 1;
        call.comm.environment().note_expected(self.count);
        let call = Arc::clone(call);
        match self.lanes.iter_mut().find(|lane| lane.pattern == pattern) {
            Some(lane) => lane.calls.push_back(call),
            None => self.lanes.push(Lane { pattern, calls: VecDeque::from([call]) }),
        }
    }

    /// Starts to receive the messages that have come.
    ///
    /// # Safety
    /// MPI can be called.
    pub(super) unsafe fn advance(&mut self) {
        for place in 0..self.lanes.len() {
            // SAFETY: passed on to the caller.
            while unsafe { self.receives(place) } {
                self.remove_first(place);
            }
        }
        self.lanes.retain(|lane| !lane.calls.is_empty());
    }

    fn remove_first(&mut self, place: usize) {
        if let Some(call) = self.lanes[place].calls.pop_front() {
            self.count -= 1;
            call.comm.environment().note_expected(self.count);
        }
    }

    /// Whether the first receive of a lane waits no longer.
    ///
    /// # Safety
    /// MPI can be called.
    unsafe fn receives(&self, place: usize) -> bool {
        let lane = &self.lanes[place];
        let Some(call) = lane.calls.front() else { return false };
        let before = |pattern: &Pattern| {
            self.lanes
                .iter()
                .any(|other| other.first() < call.number && other.pattern.overlaps(pattern))
        };
        let is_free = |found: &Pattern| !before(found);
        let others = before(&lane.pattern);
        let mut progress = call.progress();
        let Stage::UnderWay(made) = &mut progress.stage else { return true };
        // SAFETY: passed on to the caller.
        match unsafe { made.probe(others.then_some(&is_free)) } {
            Ok(has_come) => has_come,
            Err(error) => {
                progress.stage = Stage::Failed(error);
                true
            }
        }
    }

    /// Hands all receives to MPI, in the order of their starts.
    ///
    /// # Safety
    /// MPI can be called.
    pub(super) unsafe fn post(&mut self) {
        let lanes = std::mem::take(&mut self.lanes);
        let mut calls: Vec<_> = lanes.into_iter().flat_map(|lane| lane.calls).collect();
        calls.sort_by_key(|call| call.number);
        self.count = 0;
        for call in calls {
            call.comm.environment().note_expected(0);
            let mut progress = call.progress();
            if let Stage::UnderWay(made) = &mut progress.stage
                // SAFETY: passed on to the caller.
                && let Err(error) = unsafe { made.post() }
            {
                progress.stage = Stage::Failed(error);
            }
        }
    }
}
