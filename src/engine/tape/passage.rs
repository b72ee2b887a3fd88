//! Which backward passes may go through the calls of a tape, and how.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tch::Tensor;

use super::Record;
use crate::autograd::{self, NumberedPass, Recording};
use crate::base::error::{Error, Result};
use crate::base::site::Site;

/// A tape's backward pass that is being carried out.
#[derive(Clone, Debug)]
struct Running {
    site: Site,
    tape: Arc<Record>,
}

/// The backward passes of tapes, by their numbers.
static RUNNING: Mutex<BTreeMap<u64, Running>> = Mutex::new(BTreeMap::new());

impl Running {
    /// The innermost pass of a tape that this pullback runs in. libtorch runs those of a device's tensors
    /// on a thread of the device.
    fn innermost() -> Option<Self> {
        RUNNING.lock().get(&NumberedPass::current()).cloned()
    }

    /// Carries the pass out.
    fn run<T>(self, run: impl FnOnce() -> T) -> T {
        /// Ends the pass, after a panic too.
        struct End(u64);
        impl Drop for End {
            fn drop(&mut self) {
                let over = RUNNING.lock().remove(&self.0);
                drop(over);
            }
        }
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = 1 + LAST.fetch_add(1, Ordering::Relaxed);
        RUNNING.lock().insert(number, self);
        let (_end, _pass) = (End(number), NumberedPass::enter(number));
        run()
    }
}

/// How far a tape's backward pass has come.
#[derive(Debug)]
pub(super) struct PassState {
    /// An error once the pass has skipped a call, or gone through a message on no tape.
    outcome: Result<()>,
    /// libtorch's number for the pass, once it has begun.
    graph_task: Option<i32>,
    /// libtorch's numbers for the passes, nested in it, of checkpoints that are run again, with the
    /// numbers of the runs.
    checkpoints: HashMap<i32, u64>,
}

/// How a backward pass may go through a call on a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// As the tape's own pass, before which the ranks have compared the calls.
    Own,
    /// As another pass: one that is nested in the tape's, or any after the tape was dropped.
    Nested,
    /// Not at all: the pass skips the call.
    LeftOut,
}

impl Record {
    /// Runs a backward pass. Returns its outcome, and an error if calls were skipped in it.
    pub(super) fn pass<T>(
        self: &Arc<Self>,
        site: Site,
        run: impl FnOnce() -> T,
    ) -> (T, Result<()>) {
        // It may run within another pass of the tape.
        let pass = PassState { outcome: Ok(()), graph_task: None, checkpoints: HashMap::new() };
        let outer = self.state().pass.replace(pass);
        let outcome = Running { site, tape: Arc::clone(self) }.run(run);
        let own = std::mem::replace(&mut self.state().pass, outer);
        (outcome, own.map_or(Ok(()), |pass| pass.outcome))
    }

    /// The root of a backward pass: a node over the last token that the pass goes through before all
    /// calls of the tape. It notes which pass that is, as others may be nested in it: that of a
    /// checkpoint with the number of its run.
    pub(super) fn root(
        self: &Arc<Self>,
        call: &'static str,
        last_token: &Tensor,
        checkpoint: Option<u64>,
    ) -> Result<Tensor> {
        let root = autograd::alias(call, last_token)?;
        let record = Arc::downgrade(self);
        let _recording = Recording::on();
        autograd::add_node(call, [last_token], [&root], &[], move |mut given| {
            if let Some(record) = record.upgrade()
                && let Some(pass) = &mut record.state().pass
            {
                let graph_task = autograd::graph_task();
                match checkpoint {
                    Some(run) => drop(pass.checkpoints.insert(graph_task, run)),
                    None => pass.graph_task = Some(graph_task),
                }
            }
            Ok(vec![given.cotangents.pop()])
        })?;
        Ok(root)
    }

    /// Whether a backward pass may go through a call of the tape's that was recorded in this
    /// generation, and in this run of a checkpoint: a pass of the tape's may, and one nested in it,
    /// until the tape starts anew. That of a checkpoint may go through the calls of its own run only.
    /// The call is left out of a pass that may not.
    pub(super) fn admit(&self, site: Site, generation: u64, run: Option<u64>) -> Result<Passage> {
        if !self.is_open() {
            return Ok(Passage::Nested);
        }
        let (passage, is_outlived) = {
            let state = self.state();
            let current = state
                .pass
                .as_ref()
                .and_then(|pass| pass.checkpoints.get(&autograd::graph_task()).copied());
            if current.is_some() && current != run {
                drop(state);
                return self.leave_out(captured(site)).map(|()| Passage::LeftOut);
            }
            let passage = state.pass.as_ref().map(|pass| {
                let is_own = pass.graph_task == Some(autograd::graph_task());
                if is_own { Passage::Own } else { Passage::Nested }
            });
            (passage, state.generation != generation)
        };
        let error = match passage {
            Some(passage) if !is_outlived => return Ok(passage),
            _ if is_outlived => outlived(site),
            _ => foreign_pass(site),
        };
        self.leave_out(error).map(|()| Passage::LeftOut)
    }

    /// Notes the error of a call that is skipped. In a pass of this tape, or else of another tape,
    /// the error is returned after the pass, as other ranks rely on the calls that follow. In a
    /// pass of torch's own it is returned at once.
    fn leave_out(&self, error: Error) -> Result<()> {
        let innermost = Running::innermost().map(|pass| pass.tape);
        for tape in std::iter::once(self).chain(innermost.as_deref()) {
            if let Some(pass) = &mut tape.state().pass {
                if pass.outcome.is_ok() {
                    pass.outcome = Err(error);
                }
                return Ok(());
            }
        }
        Err(error)
    }
}

/// The error for a call that was recorded before the tape's last backward pass and is used after
/// it.
pub(crate) fn outlived(site: Site) -> Error {
    let message = format!(
        "called at {}, before the tape's last backward pass, which ranks have gone through; \
         keep the graph, or use its results before",
        site.at
    );
    Error::Argument { call: site.call, message }
}

/// Makes the backward pass of a tape an error if it goes through a message that is on no tape: the pass
/// may not reach the other end, and a gradient would lack its part.
pub(super) fn note_message_on_no_tape(site: Site) {
    let Some(Running { site: pass_site, tape }) = Running::innermost() else { return };
    let mut state = tape.state();
    let graph_task = autograd::graph_task();
    if let Some(pass) = &mut state.pass
        // With tensors on devices the message may be reached before the root of the pass.
        && (pass.graph_task.is_none_or(|own| own == graph_task)
            || pass.checkpoints.contains_key(&graph_task))
        && pass.outcome.is_ok()
    {
        let message = format!(
            "called at {} on no tape, and reached by {pass_site}, which may not reach the other end \
             of the message; put its communicator on the tape by `Tape::on`",
            site.at
        );
        pass.outcome = Err(Error::Argument { call: site.call, message });
    }
}

/// The error for a call whose result a checkpoint uses without having it as an input.
fn captured(site: Site) -> Error {
    let message = format!(
        "called at {} outside of a checkpoint that uses its result; give the result to the checkpoint \
         as an input",
        site.at
    );
    Error::Argument { call: site.call, message }
}

/// The error for a call on a tape that is reached by a backward pass that is not the tape's.
fn foreign_pass(site: Site) -> Error {
    let pass = Running::innermost().map_or_else(
        || "a backward pass that is not the tape's, as `Tensor::backward` makes it".to_owned(),
        |pass| format!("{} of another tape", pass.site),
    );
    let message = format!(
        "called at {} on a tape, and reached by {pass}; go back by `backward` or `grad` of the tape \
         itself, or by `DataParallel::backward_on`",
        site.at
    );
    Error::Argument { call: site.call, message }
}

#[cfg(test)]
mod tests;
