//! [`Departures`]: started calls whose turn has come, but on whose buffers a device is still at work.
//!
//! They are handed to MPI in the order of their starts, which MPI's matching of messages depends on. So
//! a call waits for those before it on the same communicator, even if its own buffers are ready. A
//! device does its work whatever other ranks do, so no call waits for another rank here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::StartedCall;
use super::expected::Expected;
use super::progress::Stage;
use crate::base::check::Check;
use crate::base::way::Way;
use crate::call::Made;
use crate::communicator::Identity;

#[derive(Default)]
pub(super) struct Departures(BTreeMap<Identity, VecDeque<Arc<StartedCall>>>);

impl Departures {
    /// Whether calls on the communicator wait.
    pub(super) fn are_due(&self, comm: Identity) -> bool {
        self.0.contains_key(&comm)
    }

    /// Hands the call to MPI, or lets it wait.
    ///
    /// # Safety
    /// MPI can be called.
    pub(super) unsafe fn add(&mut self, call: &Arc<StartedCall>, expected: &mut Expected) {
        let (comm, environment) = (call.comm.identity(), call.comm.environment());
        // SAFETY: passed on to the caller.
        if !self.are_due(comm) && unsafe { depart(call, expected) } {
            return;
        }
        self.0.entry(comm).or_default().push_back(Arc::clone(call));
        environment.note_queued();
        // Another thread may have shared MPI since.
        if environment.is_shared() {
            // SAFETY: passed on to the caller.
            unsafe { self.post(expected) };
        }
    }

    /// Hands those to MPI whose buffers are ready.
    ///
    /// # Safety
    /// MPI can be called.
    pub(super) unsafe fn advance(&mut self, expected: &mut Expected) {
        self.0.retain(|_, queue| {
            while let Some(first) = queue.front() {
                // SAFETY: passed on to the caller.
                if !unsafe { depart(first, expected) } {
                    break;
                }
                first.comm.environment().note_unqueued();
                queue.pop_front();
            }
            !queue.is_empty()
        });
    }

    /// Waits for the devices, and hands all calls to MPI.
    ///
    /// # Safety
    /// MPI can be called.
    pub(super) unsafe fn post(&mut self, expected: &mut Expected) {
        for call in self.0.values().flatten() {
            call.wait_until_ready();
        }
        // SAFETY: passed on to the caller.
        unsafe { self.advance(expected) };
    }
}

impl StartedCall {
    /// Waits for the device if this rank may wait inside MPI before the call has departed: in a call of
    /// the program's own, or in one that the ranks have not agreed on.
    pub(super) fn wait_if_it_must_depart(&self) {
        let environment = self.comm.environment();
        if environment.is_shared() || environment.check() == Check::None {
            self.wait_until_ready();
        }
    }

    fn wait_until_ready(&self) {
        let mut progress = self.progress();
        if let Stage::Granted(launch, _) = &progress.stage
            && let Err(error) = launch.wait_until_ready(self.site.call)
        {
            progress.stage = Stage::Failed(error);
        }
    }
}

/// Hands the call to MPI if its buffers are ready. Returns whether it waits no longer.
///
/// # Safety
/// MPI can be called.
unsafe fn depart(call: &Arc<StartedCall>, expected: &mut Expected) -> bool {
    let environment = call.comm.environment();
    let mut progress = call.progress();
    if !progress.is_ready(call.site.call) {
        return !progress.waits();
    }
    let Stage::Granted(launch, _) = &progress.stage else { unreachable!("it is ready") };
    // SAFETY: passed on to the caller.
    let awaited = unsafe { expected.awaited(environment, launch) };
    let made = if awaited.is_some() { Made::probing() } else { Made::new(Way::Polls) };
    // SAFETY: passed on to the caller.
    unsafe { progress.launch(made) };
    let is_under_way = matches!(progress.stage, Stage::UnderWay(_));
    drop(progress);
    if let Some(pattern) = awaited.filter(|_| is_under_way) {
        expected.add(pattern, call);
        // Another thread may have shared MPI since.
        if environment.is_shared() {
            // SAFETY: passed on to the caller.
            unsafe { expected.post() };
        }
    }
    true
}
