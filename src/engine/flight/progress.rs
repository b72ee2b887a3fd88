//! [`Progress`]: how far a call that was started has come, and its steps.

use std::sync::Arc;

use crate::base::error::{Error, Result};
use crate::base::way::Way;
use crate::call::{Launch, Made};
use crate::engine::agreement::{Proposal, Turn};

/// How far a call has come.
pub(super) struct Progress {
    pub(super) stage: Stage,
    /// Whether it was still under way when MPI was finalized.
    pub(super) was_ended: bool,
}

pub(super) enum Stage {
    /// The ranks are agreeing on the call. There is no `Launch` if this rank does not make it.
    Proposed(Box<Proposal>, Option<Launch>),
    /// The turn of the call has come, if it needs one. It is made when its buffers are ready.
    Granted(Launch, Option<Arc<Turn>>),
    UnderWay(Made),
    Failed(Error),
    /// The outcome has been taken, or there is none.
    Over,
}

impl Progress {
    /// Whether it has not been handed to MPI.
    pub(super) fn waits(&self) -> bool {
        matches!(self.stage, Stage::Proposed(..) | Stage::Granted(..))
    }

    pub(super) fn has_ended(&self) -> bool {
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
    pub(super) unsafe fn advance(&mut self, call: &'static str) {
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
    pub(super) fn is_ready(&mut self, call: &'static str) -> bool {
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
    pub(super) unsafe fn launch(&mut self, mut made: Made) {
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
    pub(super) fn take_error(&mut self) -> Result<()> {
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
    pub(super) unsafe fn test(&mut self) -> bool {
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
