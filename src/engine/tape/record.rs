//! [`Record`]: the calls of a tape, and the nodes of the graph, through which the token is
//! threaded.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use tch::Tensor;

use super::calls::{Calls, Entry, Traffic};
use crate::autograd::{self, Backward, Metadata, Recording};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::engine::agreement::{Proposal, refuse};
use crate::engine::communicator::Communicator;
use crate::environment::datatype::{Class, Datatype};

/// The state of a tape: its tokens and its calls.
#[derive(Debug)]
pub(crate) struct Record {
    state: Mutex<State>,
    owner: Owner,
    /// Whether the tape has been dropped.
    is_closed: AtomicBool,
}

/// Whose calls a record orders.
#[derive(Debug)]
enum Owner {
    /// The calls of a tape that was made from this communicator.
    Tape(Communicator),
    /// The calls of a pullback of this tape.
    Pullback(Origin),
}

/// The tape that a call belongs to, and the tape's generation at the call.
type Origin = (Weak<Record>, u64);

/// A tape's backward pass that is being carried out.
#[derive(Debug)]
struct Running {
    site: Site,
    tape: Arc<Record>,
}

thread_local! {
    /// The backward passes of tapes on this thread, each within the one before it.
    static RUNNING: RefCell<Vec<Running>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) first_token: Tensor,
    pub(super) last_token: Tensor,
    pub(super) calls: Calls,
    /// How often the tape has started anew.
    generation: u64,
    /// The tape's backward pass, if one is running.
    pass: Option<PassState>,
}

/// How far a tape's backward pass has come.
#[derive(Debug)]
struct PassState {
    /// An error once the pass has skipped a call.
    outcome: Result<()>,
    /// libtorch's number for the pass, once it has begun.
    graph_task: Option<i32>,
}

/// How a backward pass may go through a call on a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// As the tape's own pass, before which the ranks have compared the calls.
    Own,
    /// As another pass: one that is nested in the tape's, or any after the tape was dropped.
    Nested,
    /// Not at all: the pass skips the call.
    LeftOut,
}

impl State {
    fn new(token: Tensor) -> Self {
        Self {
            first_token: token.shallow_clone(),
            last_token: token,
            calls: Calls::default(),
            generation: 0,
            pass: None,
        }
    }
}

impl Record {
    /// The record of a tape that is made from this communicator.
    pub(super) fn new(comm: &Communicator) -> Self {
        // Plain, as a communicator on the tape would hold the record: a cycle.
        Self::of(first_token(), Owner::Tape(comm.plain()))
    }

    /// The record for the calls of a pullback of the tape, which go on from this token.
    fn of_pullback(token: Tensor, tape: &Origin) -> Self {
        Self::of(token, Owner::Pullback(tape.clone()))
    }

    fn of(token: Tensor, owner: Owner) -> Self {
        Self { state: Mutex::new(State::new(token)), owner, is_closed: AtomicBool::new(false) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn last_token(&self) -> Tensor {
        self.state().last_token.shallow_clone()
    }

    /// The communicator that the tape was made from.
    pub(super) fn comm(&self) -> Option<&Communicator> {
        match &self.owner {
            Owner::Tape(comm) => Some(comm),
            Owner::Pullback(_) => None,
        }
    }

    /// Forgets what was recorded.
    pub(super) fn start_anew(&self) {
        let mut state = self.state();
        let anew = State {
            generation: state.generation + 1,
            pass: state.pass.take(),
            ..State::new(first_token())
        };
        let before = std::mem::replace(&mut *state, anew);
        drop(state);
        // Dropped without the lock: dropping the graph may drop nodes that use the tape.
        drop(before);
    }

    /// Takes all communicators off the tape, and forgets what was recorded.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        // Nothing is recorded any more, so no token is needed.
        let before = std::mem::replace(&mut *self.state(), State::new(Tensor::new()));
        drop(before);
    }

    /// Whether calls can be made on it: the tape has not been dropped.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        !self.is_closed.load(Ordering::Relaxed)
    }

    /// Runs a backward pass. Returns its outcome, and an error if calls were skipped in it.
    pub(super) fn pass<T>(
        self: &Arc<Self>,
        site: Site,
        run: impl FnOnce() -> T,
    ) -> (T, Result<()>) {
        // It may run within another pass of the tape.
        let pass = PassState { outcome: Ok(()), graph_task: None };
        let outer = self.state().pass.replace(pass);
        RUNNING.with_borrow_mut(|running| running.push(Running { site, tape: Arc::clone(self) }));
        let outcome = run();
        RUNNING.with_borrow_mut(Vec::pop);
        let own = std::mem::replace(&mut self.state().pass, outer);
        (outcome, own.map_or(Ok(()), |pass| pass.outcome))
    }

    /// The root of a backward pass: a node over the last token that the pass goes through before all
    /// calls of the tape. It notes which pass that is, as others may be nested in it.
    pub(super) fn root(
        self: &Arc<Self>,
        call: &'static str,
        last_token: &Tensor,
    ) -> Result<Tensor> {
        let root = autograd::alias(call, last_token)?;
        let record = Arc::downgrade(self);
        let _recording = Recording::on();
        autograd::add_node(call, [last_token], [&root], &[], move |mut given| {
            if let Some(record) = record.upgrade()
                && let Some(pass) = &mut record.state().pass
            {
                pass.graph_task = Some(autograd::graph_task());
            }
            Ok(vec![given.cotangents.pop()])
        })?;
        Ok(root)
    }

    /// Whether a backward pass may go through a call of the tape's that was recorded in this
    /// generation: a pass of the tape's may, and one nested in it, until the tape starts anew. The call
    /// is left out of a pass that may not.
    fn admit(&self, site: Site, generation: u64) -> Result<Admission> {
        if !self.is_open() {
            return Ok(Admission::Nested);
        }
        let (admission, is_outlived) = {
            let state = self.state();
            let admission = state.pass.as_ref().map(|pass| {
                let is_own = pass.graph_task == Some(autograd::graph_task());
                if is_own { Admission::Own } else { Admission::Nested }
            });
            (admission, state.generation != generation)
        };
        let error = match admission {
            Some(admission) if !is_outlived => return Ok(admission),
            _ if is_outlived => outlived(site),
            _ => foreign_pass(site),
        };
        self.leave_out(error).map(|()| Admission::LeftOut)
    }

    /// Notes the error of a call that is skipped. In a pass of this tape, or else of another tape,
    /// the error is returned after the pass, as other ranks rely on the calls that follow. In a
    /// pass of torch's own it is returned at once.
    fn leave_out(&self, error: Error) -> Result<()> {
        let innermost =
            RUNNING.with_borrow(|running| running.last().map(|pass| Arc::clone(&pass.tape)));
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

    /// How often the tape has started anew. Calls of an earlier generation are no longer on it.
    pub(crate) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Whether calls on the tape are recorded. In a pullback they are recorded if the token's
    /// cotangent requires grad.
    pub(crate) fn is_recording(&self) -> bool {
        Metadata::of(&self.state().last_token).requires_grad()
    }
}

/// A tensor without elements that requires grad.
fn first_token() -> Tensor {
    // A leaf requires grad under `no_grad` too.
    Tensor::zeros([0], (tch::Kind::Float, tch::Device::Cpu)).set_requires_grad(true)
}

impl Communicator {
    /// Whether a call on a tensor is to be recorded.
    #[inline]
    pub(crate) fn records(&self, x: &Metadata) -> bool {
        x.requires_grad()
            || self.record().is_some_and(|record| carries_gradient(x) && record.is_recording())
    }

    /// Whether calls are recorded on a tape.
    pub(crate) fn is_on_tape(&self) -> bool {
        self.record().is_some_and(|record| record.is_recording())
    }
}

pub(crate) fn carries_gradient(x: &Metadata) -> bool {
    let class = Datatype::of(x.scalar_type()).map(|datatype| datatype.class);
    matches!(class, Some(Class::Half | Class::Real | Class::Complex))
}

/// The arguments of a call's pullback.
pub(crate) struct Pulled {
    /// One cotangent for each output, without the token's.
    pub(crate) cotangents: Vec<Tensor>,
    saved: Result<Vec<Tensor>>,
}

impl Pulled {
    /// The cotangent of the only output.
    pub(crate) fn cotangent(&self) -> &Tensor {
        &self.cotangents[0]
    }

    /// The tensors saved with the node; an error if one was changed or is gone.
    pub(crate) fn take_saved(&mut self) -> Result<Vec<Tensor>> {
        std::mem::replace(&mut self.saved, Ok(Vec::new()))
    }

    /// The tensors saved with the node. A rank that has lost them tells the others that it refuses.
    pub(crate) fn saved(&mut self, site: Site, comm: &Communicator) -> Result<Vec<Tensor>> {
        self.take_saved().map_err(|error| refuse(site, comm, error, false))
    }

    /// As [`saved`](Self::saved), if the other ranks only start their call.
    pub(crate) fn saved_to_start(
        &mut self,
        site: Site,
        comm: &Communicator,
    ) -> Result<Vec<Tensor>> {
        self.take_saved().map_err(|error| Proposal::refuse(site, comm, error))
    }
}

/// Adds the node of a call from `inputs` to `outputs` to the graph, and the call to the
/// communicator's tape if it is on one. Returns the number of collective calls that the tape then
/// has of the communicator, or 0 without a tape.
///
/// The pullback gets the communicator for the backward pass, and returns a cotangent, or `None`,
/// for each input.
#[inline]
pub(crate) fn add_node<F>(
    site: Site,
    comm: &Communicator,
    traffic: Traffic,
    [inputs, outputs]: [&[&Tensor]; 2],
    saved: &[&Tensor],
    pullback: F,
) -> Result<usize>
where
    F: Fn(&Communicator, Pulled) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    let backward = comm.backward(site);
    let Some(record) = comm.record().filter(|record| record.is_recording()) else {
        let (inputs, outputs) = (inputs.iter().copied(), outputs.iter().copied());
        let is_message = matches!(traffic, Traffic::Messages { .. });
        autograd::add_node(site.call, inputs, outputs, saved, move |given| {
            if is_message {
                note_message_on_no_tape(site);
            }
            let Backward { cotangents, saved } = given;
            pullback(&backward, Pulled { cotangents, saved })
        })?;
        return Ok(0);
    };
    let mut state = record.state();
    let tape = match &record.owner {
        Owner::Tape(_) => (Arc::downgrade(record), state.generation),
        Owner::Pullback(tape) => tape.clone(),
    };
    let is_compared = comm.is_compared();
    let (token, _) = autograd::empty(site.call, &[0], TOKEN)?;
    let before = inputs.iter().copied().chain([&state.last_token]);
    let after = outputs.iter().copied().chain([&token]);
    let count = inputs.len();
    autograd::add_node(site.call, before, after, saved, move |given| {
        let record = tape.0.upgrade();
        let admission =
            record.map_or(Ok(Admission::Nested), |record| record.admit(site, tape.1))?;
        if admission == Admission::LeftOut {
            return Ok((0..=count).map(|_| None).collect());
        }
        let Backward { mut cotangents, saved } = given;
        let token = cotangents.pop().unwrap_or_else(|| unreachable!("the token is an output"));
        // The calls of the pullback are ordered after the cotangent of the token.
        let own = Arc::new(Record::of_pullback(token, &tape));
        let is_compared = is_compared && admission == Admission::Own;
        let comm = backward.recorded_on(Arc::clone(&own), is_compared);
        let gradients = pullback(&comm, Pulled { cotangents, saved });
        let token = own.last_token();
        // A closure of the pullback's may hold the communicator, and with it the record.
        own.close();
        let mut gradients = gradients?;
        gradients.push(Some(token));
        Ok(gradients)
    })?;
    state.last_token = token;
    let collectives = state.calls.push(comm, Entry { site, traffic });
    if let Owner::Tape(_) = record.owner {
        note_use(record);
    }
    Ok(collectives)
}

thread_local! {
    /// The tapes that calls are recorded on while [`tapes_used`] runs.
    static USED: RefCell<Option<Vec<Arc<Record>>>> = const { RefCell::new(None) };
}

/// Runs `f`, and returns its outcome and the tapes on which it recorded calls.
pub(crate) fn tapes_used<T>(f: impl FnOnce() -> T) -> (T, Vec<Arc<Record>>) {
    /// Restores the outer list on drop, after a panic too.
    struct Outer(Option<Vec<Arc<Record>>>);
    impl Drop for Outer {
        fn drop(&mut self) {
            let inner = USED.replace(self.0.take()).unwrap_or_default();
            inner.iter().for_each(note_use);
        }
    }
    let outer = Outer(USED.replace(Some(Vec::new())));
    let outcome = f();
    let used = USED.with_borrow(|used| used.clone()).unwrap_or_default();
    drop(outer);
    (outcome, used)
}

fn note_use(record: &Arc<Record>) {
    USED.with_borrow_mut(|used| {
        if let Some(used) = used
            && !used.iter().any(|other| Arc::ptr_eq(other, record))
        {
            used.push(Arc::clone(record));
        }
    });
}

/// The token's scalar type: `Float`.
const TOKEN: i32 = 6;

/// The error for a call that was recorded before the tape's last backward pass and is used after
/// it.
pub(crate) fn outlived(site: Site) -> Error {
    let message = format!(
        "called at {}, before the tape's last backward pass, which the other ranks have gone \
         through; keep the graph, or use its results before",
        site.at
    );
    Error::Argument { call: site.call, message }
}

/// Makes the backward pass of a tape an error if it goes through a message that is on no tape: the pass
/// may not reach the other end, and a gradient would lack its part.
fn note_message_on_no_tape(site: Site) {
    RUNNING.with_borrow(|running| {
        let Some(Running { site: pass_site, tape }) = running.last() else { return };
        let mut state = tape.state();
        if let Some(pass) = &mut state.pass
            && pass.graph_task == Some(autograd::graph_task())
            && pass.outcome.is_ok()
        {
            let message = format!(
                "called at {} on no tape, and reached by {pass_site}, which may not reach the other \
                 end of the message; put its communicator on the tape by `Tape::on`",
                site.at
            );
            pass.outcome = Err(Error::Argument { call: site.call, message });
        }
    });
}

/// The error for a call on a tape that is reached by a backward pass that is not the tape's.
fn foreign_pass(site: Site) -> Error {
    let pass = RUNNING.with_borrow(|running| {
        running.last().map_or_else(
            || "a backward pass that is not the tape's, as `Tensor::backward` makes it".to_owned(),
            |pass| format!("{} of another tape", pass.site),
        )
    });
    let message = format!(
        "called at {} on a tape, and reached by {pass}; go back by `backward` or `grad` of the tape \
         itself",
        site.at
    );
    Error::Argument { call: site.call, message }
}

#[cfg(test)]
mod tests;
