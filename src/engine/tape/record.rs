//! [`Record`]: the calls of a tape, and the nodes of the graph, through which the token is
//! threaded.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use tch::Tensor;

use super::calls::{Calls, Traffic};
use super::passage::{PassState, Passage, note_message_on_no_tape};
use super::run::{Runs, refuse_in_checkpoint};
use crate::autograd::{self, Backward, Metadata};
use crate::base::error::Result;
use crate::base::site::Site;
use crate::communicator::Identity;
use crate::engine::agreement::{Proposal, refuse};
use crate::engine::communicator::Communicator;
use crate::environment::datatype::{Class, Datatype};

/// The state of a tape: its tokens and its calls.
#[derive(Debug)]
pub(crate) struct Record {
    state: Mutex<State>,
    owner: Owner,
    /// The checkpoints that are run on it.
    pub(super) runs: Runs,
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
    /// The calls of a checkpoint of this tape that is run again, with a number that no other run has.
    Checkpoint(Origin, u64),
}

/// The tape that a call belongs to, and the tape's generation at the call.
pub(super) type Origin = (Weak<Record>, u64);

#[derive(Debug)]
pub(super) struct State {
    pub(super) first_token: Tensor,
    pub(super) last_token: Tensor,
    pub(super) calls: Calls,
    /// The communicators that a checkpoint has used, and that have no context for it yet.
    pub(super) contexts: Vec<Identity>,
    /// How often the tape has started anew.
    pub(super) generation: u64,
    /// The tape's backward pass, if one is running.
    pub(super) pass: Option<PassState>,
}

impl State {
    fn new(token: Tensor) -> Self {
        Self {
            first_token: token.shallow_clone(),
            last_token: token,
            calls: Calls::default(),
            contexts: Vec::new(),
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

    /// The record for the calls of a checkpoint of the tape that is run again, from this token on.
    pub(super) fn of_checkpoint(token: Tensor, tape: Origin) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        Self::of(token, Owner::Checkpoint(tape, NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    fn of(token: Tensor, owner: Owner) -> Self {
        let (state, runs) = (Mutex::new(State::new(token)), Runs::default());
        Self { state, owner, runs, is_closed: AtomicBool::new(false) }
    }

    /// One of no tape and no pullback, for tests without MPI.
    #[cfg(test)]
    pub(super) fn without_mpi() -> Self {
        Self::of(first_token(), Owner::Pullback((Weak::new(), 0)))
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
            Owner::Pullback(_) | Owner::Checkpoint(..) => None,
        }
    }

    /// The tape, for calls that belong to it.
    pub(super) fn as_origin(self: &Arc<Self>) -> Origin {
        (Arc::downgrade(self), self.generation())
    }

    /// The number of the run, of a record for the calls of a checkpoint.
    pub(super) fn run(&self) -> Option<u64> {
        match self.owner {
            Owner::Checkpoint(_, run) => Some(run),
            _ => None,
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

    /// How often the tape has started anew. Calls of an earlier generation are no longer on it.
    pub(crate) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// How many calls it has.
    pub(crate) fn call_count(&self) -> usize {
        self.state().calls.count()
    }

    /// Whether calls on the tape are recorded. In a pullback they are recorded if the token's
    /// cotangent requires grad.
    pub(crate) fn is_recording(&self) -> bool {
        self.is_first_run() || Metadata::of(&self.state().last_token).requires_grad()
    }
}

/// A tensor without elements that requires grad.
pub(super) fn first_token() -> Tensor {
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

/// Adds a call that has no node to those of the tape, in the first run of a checkpoint.
pub(crate) fn note(site: Site, comm: &Communicator, traffic: Traffic) {
    if let Some(record) = comm.record().filter(|record| record.is_first_run()) {
        record.state().calls.push(comm, site, traffic);
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
    if let Owner::Tape(_) = record.owner {
        note_use(&record);
    }
    let mut state = record.state();
    // The first run of a checkpoint has no graph.
    if record.is_first_run() {
        return Ok(state.calls.push(comm, site, traffic));
    }
    let tape = match &record.owner {
        Owner::Tape(_) => (Arc::downgrade(&record), state.generation),
        Owner::Pullback(tape) | Owner::Checkpoint(tape, _) => tape.clone(),
    };
    if let Owner::Tape(_) = record.owner {
        refuse_in_checkpoint(site, "on another tape")?;
    }
    let run = record.run();
    let is_compared = comm.is_compared() && run.is_none();
    let (token, _) = autograd::empty(site.call, &[0], TOKEN)?;
    let before = inputs.iter().copied().chain([&state.last_token]);
    let after = outputs.iter().copied().chain([&token]);
    let count = inputs.len();
    autograd::add_node(site.call, before, after, saved, move |given| {
        let record = tape.0.upgrade();
        let passage =
            record.map_or(Ok(Passage::Nested), |record| record.admit(site, tape.1, run))?;
        if passage == Passage::LeftOut {
            return Ok((0..=count).map(|_| None).collect());
        }
        let Backward { mut cotangents, saved } = given;
        let token = cotangents.pop().unwrap_or_else(|| unreachable!("the token is an output"));
        // The calls of the pullback are ordered after the cotangent of the token.
        let own = Arc::new(Record::of_pullback(token, &tape));
        let is_compared = is_compared && passage == Passage::Own;
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
    Ok(state.calls.push(comm, site, traffic))
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
