//! The order of messages that are alike.
//!
//! MPI matches messages from one rank to another with the same tag in the order of their starts.
//! The same holds for their adjoints, which are started by the pullbacks of the waits, that is, in
//! the reverse order of the waits. But the program may wait for the messages in one order on the
//! sender and in another on the receiver. So before the wait for a message, or a blocking message,
//! is recorded, the waits for all messages like it that were started earlier are recorded, though
//! the program has not waited for them yet. On both ends the recorded waits are then in the order
//! of the starts.

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

/// The wait for a recorded operation, whose node is still to be added to the graph.
pub(super) struct Due {
    /// The number of the start among all starts of this process.
    number: u64,
    start: Site,
    comm: Communicator,
    traffic: Traffic,
    /// The tape's generation at the start.
    generation: Option<u64>,
    state: Mutex<State>,
}

struct State {
    /// The node to add; `None` once it has been added.
    node: Option<WaitNode>,
    /// The start's output.
    handle: Tensor,
    /// The tensor that MPI writes. For a message it is the result.
    written: Tensor,
    /// The result, if the wait was recorded before the program waited.
    early: Option<Tensor>,
}

/// The messages of this process whose waits are yet to be recorded.
static MESSAGES: LazyLock<Mutex<Queues<Key, Held>>> = LazyLock::new(Mutex::default);

/// Who holds the wait for a message.
#[derive(Clone)]
enum Held {
    /// Its request.
    ByRequest(Weak<Due>),
    /// The list itself: the request was dropped, and the message is on a tape.
    ByList(Arc<Due>),
}

impl Held {
    fn due(&self) -> Option<Arc<Due>> {
        match self {
            Self::ByRequest(due) => due.upgrade(),
            Self::ByList(due) => Some(Arc::clone(due)),
        }
    }
}

/// Records the waits for all messages on `comm` that are like those of `traffic`, the messages of a
/// blocking call. Calls of the backward pass need none: their order follows from the forward pass.
#[inline]
pub(crate) fn settle_messages(comm: &Communicator, traffic: &Traffic) -> Result<()> {
    match traffic {
        Traffic::Messages { .. } => settle_before(u64::MAX, comm, traffic),
        _ => Ok(()),
    }
}

/// Records the waits for all messages on a tape before its backward pass, so that messages that
/// were only started have their place in it.
pub(crate) fn settle_tape(tape: &Arc<Record>) -> Result<()> {
    record_waits(u64::MAX, &[Key::of_tape(tape)])
}

/// Records the waits for the messages like those of `traffic` that were started before `number`.
fn settle_before(number: u64, comm: &Communicator, traffic: &Traffic) -> Result<()> {
    if !comm.is_forward() {
        return Ok(());
    }
    record_waits(number, &Key::of_those_like(comm.lane(), traffic))
}

/// Records the waits for the messages with any of the keys that were started before `number`.
fn record_waits(number: u64, keys: &[Key]) -> Result<()> {
    // Recording a wait removes it from its queues, so each is found once.
    let before = MESSAGES.lock().before(number, keys);
    before.iter().filter_map(Held::due).try_for_each(|due| due.record_early())
}

/// Forgets the messages on a tape whose requests were dropped, as the tape is dropped too.
pub(crate) fn forget_tape(tape: &Arc<Record>) {
    let mut messages = MESSAGES.lock();
    let mut on_tape = messages.before(u64::MAX, &[Key::of_tape(tape)]);
    on_tape.retain(|held| matches!(held, Held::ByList(_)));
    for due in on_tape.iter().filter_map(Held::due) {
        messages.remove(due.number);
    }
    // Dropping them may drop communicators, and with these what else looks at the list.
    drop(messages);
    drop(on_tape);
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
            comm: comm.as_in_use(),
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
            let keys = Key::of_started(comm.lane(), &due.traffic, comm.record().as_ref());
            MESSAGES.lock().insert(number, keys, Held::ByRequest(Arc::downgrade(&due)));
        }
        due
    }

    /// Whether it is a message of the forward pass, whose place among others must be kept.
    fn has_place(&self) -> bool {
        self.comm.is_forward() && !self.traffic.is_collective()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn handle(&self) -> Tensor {
        self.state().handle.shallow_clone()
    }

    /// Changes the handle of the node to add, or the result if the node has been added.
    pub(super) fn update(&self, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<()> {
        match &mut *self.state() {
            State { node: Some(node), .. } => node.handle = f(&node.handle)?,
            State { early: Some(early), .. } => *early = f(early)?,
            _ => (),
        }
        Ok(())
    }

    /// Whether the tape has started anew since the start.
    fn is_outlived(&self) -> bool {
        let generation = self.comm.record().map(|record| record.generation());
        generation.is_some() && generation != self.generation
    }

    fn is_due(&self) -> bool {
        self.state().node.is_some()
    }

    /// Adds the node of the wait with the output `y`, and returns `y`; or returns the output of the
    /// node if it has been added. A pullback gives its communicator as `comm`.
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

    /// Takes the node, to be added now, and removes the message from its queues.
    fn take_node(&self, state: &mut State) -> Option<WaitNode> {
        if self.has_place() {
            MESSAGES.lock().remove(self.number);
        }
        state.node.take()
    }

    /// Adds the node of the wait before the program waits. Its output is the tensor that MPI
    /// writes.
    fn record_early(&self) -> Result<()> {
        let mut state = self.state();
        let node = self.take_node(&mut state).filter(|_| !self.is_outlived());
        let Some(node) = node else { return Ok(()) };
        // Detached: MPI's tensor may outlive the graph, and must not keep it.
        let y = state.written.f_detach()?;
        node.add(Site { call: "wait", ..self.start }, &self.comm, &y)?;
        state.early = Some(y);
        Ok(())
    }
}

/// The request's reference to its [`Due`]. A message whose request is dropped keeps its place in the
/// order: its wait is recorded on the drop, or, on a tape, before the backward pass.
pub(super) struct Owed(pub(super) Arc<Due>);

impl Drop for Owed {
    fn drop(&mut self) {
        let due = &self.0;
        if due.has_place() && due.is_due() {
            if due.comm.is_on_tape() {
                // As if the program waited at the end: a wait for a large message here could keep
                // the ranks waiting for each other in the backward pass.
                MESSAGES.lock().replace(due.number, Held::ByList(Arc::clone(due)));
                return;
            }
            // The request is gone, so an error cannot be returned.
            let _ = settle_before(due.number, &due.comm, &due.traffic);
            let _ = due.record_early();
        }
    }
}
