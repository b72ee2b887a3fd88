//! [`Departures`]: started calls whose turn has come, but on whose buffers a device is still at work.
//!
//! They are handed to MPI in the order of their starts, which MPI's matching of messages depends on. So
//! a call waits for those before it on the same communicator, even if its own buffers are ready. A
//! device does its work whatever other ranks do, so no call waits for another rank here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::expected::Expected;
use super::{Stage, StartedCall};
use crate::base::check::Check;
use crate::base::error::{Error, Result};
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
    pub(super) unsafe fn add(
        &mut self,
        call: &Arc<StartedCall>,
        expected: &mut Expected,
    ) -> Result<()> {
        let (comm, environment) = (call.comm.identity(), call.comm.environment());
        if !self.are_due(comm) && call.is_ready()? {
            // SAFETY: passed on to the caller.
            return unsafe { depart(call, expected) };
        }
        self.0.entry(comm).or_default().push_back(Arc::clone(call));
        environment.note_queued();
        // Another thread may have shared MPI since.
        if environment.is_shared() {
            // SAFETY: passed on to the caller.
            unsafe { self.post(expected) };
        }
        Ok(())
    }

    /// Hands those to MPI whose buffers are ready.
    ///
    /// # Safety
    /// MPI can be called.
    pub(super) unsafe fn advance(&mut self, expected: &mut Expected) {
        self.0.retain(|_, queue| {
            while let Some(first) = queue.front() {
                let departed = match first.is_ready() {
                    Ok(false) => break,
                    // SAFETY: passed on to the caller.
                    Ok(true) => unsafe { depart(first, expected) },
                    Err(error) => Err(error),
                };
                if let Err(error) = departed {
                    first.fail(error);
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
            if let Err(error) = call.wait_until_ready() {
                call.fail(error);
            }
        }
        // SAFETY: passed on to the caller.
        unsafe { self.advance(expected) };
    }
}

impl StartedCall {
    /// Waits for the device if this rank may wait inside MPI before the call has departed: in a call of
    /// the program's own, or in one that the ranks have not agreed on.
    pub(super) fn wait_if_it_must_depart(&self) -> Result<()> {
        let environment = self.comm.environment();
        if environment.is_shared() || environment.check() == Check::None {
            return self.wait_until_ready();
        }
        Ok(())
    }

    /// Gives up a call that has not departed.
    pub(super) fn give_up(&self) {
        let stage = &mut self.progress().stage;
        if matches!(stage, Stage::Granted(..)) {
            *stage = Stage::Over;
        }
    }

    /// Whether a device is not at work on the buffers any more.
    fn is_ready(&self) -> Result<bool> {
        match &self.progress().stage {
            Stage::Granted(launch, _) => launch.is_ready(self.site.call),
            _ => Ok(true),
        }
    }

    fn wait_until_ready(&self) -> Result<()> {
        match &self.progress().stage {
            Stage::Granted(launch, _) => launch.wait_until_ready(self.site.call),
            _ => Ok(()),
        }
    }

    fn fail(&self, error: Error) {
        let before = std::mem::replace(&mut self.progress().stage, Stage::Failed(error));
        if let Stage::UnderWay(made) = before {
            // Parts of it may be under way, and go on.
            std::mem::forget(made);
        }
    }
}

/// Hands a call to MPI whose turn has come, and whose buffers are ready.
///
/// # Safety
/// MPI can be called.
unsafe fn depart(call: &Arc<StartedCall>, expected: &mut Expected) -> Result<()> {
    let environment = call.comm.environment();
    let awaited = {
        let mut progress = call.progress();
        let (launch, turn) = match std::mem::replace(&mut progress.stage, Stage::Over) {
            Stage::Granted(launch, turn) => (launch, turn),
            other => {
                progress.stage = other;
                return Ok(());
            }
        };
        // SAFETY: passed on to the caller.
        let awaited = unsafe { expected.awaited(environment, &launch) };
        let made = if awaited.is_some() { Made::probing() } else { Made::new(Way::Polls) };
        progress.stage = Stage::UnderWay(made);
        let Stage::UnderWay(made) = &mut progress.stage else { unreachable!("it was just made") };
        // SAFETY: passed on to the caller; the buffers are ready, and the list keeps `made` to the end.
        unsafe { launch.run(made) }?;
        if let Some(turn) = turn {
            turn.made();
        }
        awaited
    };
    if let Some(pattern) = awaited {
        expected.add(pattern, call);
        // Another thread may have shared MPI since.
        if environment.is_shared() {
            // SAFETY: passed on to the caller.
            unsafe { expected.post() };
        }
    }
    Ok(())
}
