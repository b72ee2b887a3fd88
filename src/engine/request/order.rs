//! The order of messages that are alike.
//!
//! MPI matches messages of one rank to another with one tag in the order of their starts, and so it
//! does with their adjoints, which are started by the waits' pullbacks. The two ends may wait in
//! different orders, each with other calls in between. So before the wait for a message, or a
//! blocking one, is recorded, the waits for those like it that were started before are recorded
//! first, though they are yet to come: on both ends the waits are then in the order of the starts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::{Mutex, MutexGuard};
use tch::Tensor;

use super::alike::Key;
use super::nodes::WaitNode;
use super::queues::Queues;
use crate::base::error::Result;
use crate::base::site::Site;
use crate::engine::communicator::Communicator;
use crate::engine::tape::{self, Record, Traffic};

/// The wait that a request owes the graph.
pub(super) struct Due {
    /// Its place among all starts of this process.
    number: u64,
    start: Site,
    comm: Communicator,
    traffic: Traffic,
    /// Of the tape, at the start.
    generation: Option<u64>,
    state: Mutex<State>,
}

struct State {
    /// None once it has been recorded.
    node: Option<WaitNode>,
    /// The start's end of the graph.
    handle: Tensor,
    /// What will be written, in a message.
    written: Tensor,
    /// The result, where the wait for it was recorded before it came.
    early: Option<Tensor>,
}

/// The messages of this process whose waits are yet to be recorded.
static MESSAGES: LazyLock<Mutex<Queues<Key, Weak<Due>>>> = LazyLock::new(Mutex::default);

/// Records the waits for the messages on `comm` like these that were started before, if it is one for
/// calls of the forward pass: in the backward pass the order is that of the forward pass.
#[inline]
pub(crate) fn settle_messages(comm: &Communicator, traffic: &Traffic) -> Result<()> {
    match traffic {
        Traffic::Messages { .. } => settle_before(u64::MAX, comm, traffic),
        _ => Ok(()),
    }
}

/// Records the waits for all messages on a tape, which is about to go back through them: what was
/// only started is on its way back, too, while others are.
pub(crate) fn settle_tape(tape: &Arc<Record>) -> Result<()> {
    record_waits(u64::MAX, &[Key::of_tape(tape)])
}

/// Those like these on `comm` that were started before the start of this number.
fn settle_before(number: u64, comm: &Communicator, traffic: &Traffic) -> Result<()> {
    if !comm.is_forward() {
        return Ok(());
    }
    record_waits(number, &Key::of_those_like(comm.lane(), traffic))
}

/// Those in the queues of any of the keys that were started before the start of this number.
fn record_waits(number: u64, keys: &[Key]) -> Result<()> {
    // Recording one takes it out of its queues: each is looked at once.
    let before = MESSAGES.lock().before(number, keys);
    before.iter().filter_map(Weak::upgrade).try_for_each(|due| due.record_early())
}

impl Due {
    pub(super) fn new(
        start: Site,
        comm: &Communicator,
        traffic: Traffic,
        node: WaitNode,
        written: &Tensor,
    ) -> Arc<Self> {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let due = Arc::new(Self {
            number,
            start,
            comm: comm.clone(),
            traffic,
            generation: comm.record().map(|record| record.generation()),
            state: Mutex::new(State {
                handle: node.handle.shallow_clone(),
                written: written.shallow_clone(),
                node: Some(node),
                early: None,
            }),
        });
        if due.has_place() {
            let keys = Key::of_started(comm.lane(), &due.traffic, comm.record());
            MESSAGES.lock().insert(number, keys, Arc::downgrade(&due));
        }
        due
    }

    /// Whether it is a message whose order among others counts.
    fn has_place(&self) -> bool {
        self.comm.is_forward() && !self.traffic.is_collective()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn handle(&self) -> Tensor {
        self.state().handle.shallow_clone()
    }

    /// Changes the handle that the wait is recorded on.
    pub(super) fn update(&self, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<()> {
        match &mut *self.state() {
            State { node: Some(node), .. } => node.handle = f(&node.handle)?,
            State { early: Some(early), .. } => *early = f(early)?,
            _ => (),
        }
        Ok(())
    }

    /// Whether the tape has gone through the start already.
    fn is_outlived(&self) -> bool {
        let generation = self.comm.record().map(|record| record.generation());
        generation.is_some() && generation != self.generation
    }

    fn is_due(&self) -> bool {
        self.state().node.is_some()
    }

    /// Makes `y` the result of the wait, or returns what already is; in the backward pass, `comm` is
    /// that of the pullback.
    pub(super) fn result(
        &self,
        site: Site,
        comm: Option<&Communicator>,
        y: Tensor,
    ) -> Result<Tensor> {
        if self.comm.is_forward() {
            if self.is_outlived() {
                return Err(tape::outlived(self.start));
            }
            settle_before(self.number, &self.comm, &self.traffic)?;
        }
        let mut state = self.state();
        if let Some(node) = self.take_node(&mut state) {
            node.add(site, comm.unwrap_or(&self.comm), &y)?;
        }
        Ok(state.early.take().unwrap_or(y))
    }

    /// The node, which is to be recorded now: the wait is not due any more.
    fn take_node(&self, state: &mut State) -> Option<WaitNode> {
        if self.has_place() {
            MESSAGES.lock().remove(self.number);
        }
        state.node.take()
    }

    /// Makes what will be written the result of the wait.
    fn record_early(&self) -> Result<()> {
        let mut state = self.state();
        let node = self.take_node(&mut state).filter(|_| !self.is_outlived());
        let Some(node) = node else { return Ok(()) };
        // A tensor of its own: what MPI writes to outlives the graph.
        let y = state.written.f_detach()?;
        node.add(Site { call: "wait", ..self.start }, &self.comm, &y)?;
        state.early = Some(y);
        Ok(())
    }
}

/// A request's hold on what it owes: a message that is dropped has its place in the order, too.
pub(super) struct Owed(pub(super) Arc<Due>);

impl Drop for Owed {
    fn drop(&mut self) {
        let due = &self.0;
        if due.has_place() && due.is_due() {
            // Nobody is left to be told of an error.
            let _ = settle_before(due.number, &due.comm, &due.traffic);
            let _ = due.record_early();
        }
    }
}
