//! The order of messages that are alike.
//!
//! MPI matches messages of one rank to another with one tag in the order of their starts, and so it
//! does with their adjoints, which are started by the waits' pullbacks. The two ends may wait in
//! different orders, each with other calls in between. So before the wait for a message, or a
//! blocking one, is recorded, the waits for those like it that were started before are recorded
//! first, though they are yet to come: on both ends the waits are then in the order of the starts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tch::Tensor;

use super::nodes::WaitNode;
use crate::communicator::Communicator;
use crate::error::Result;
use crate::site::Site;
use crate::tape::{self, Record, Traffic};

/// The wait that a request owes the graph.
pub(super) struct Due {
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

/// The messages of a communicator that were started and are to be waited for, in that order.
#[derive(Default)]
pub(crate) struct Messages(Mutex<List>);

#[derive(Default)]
struct List {
    /// Those that have been waited for are still among them.
    started: VecDeque<Weak<Due>>,
    /// How many there may be before those are cleared away.
    most: usize,
}

impl Messages {
    /// Records the waits for the messages like these that were started before `own`.
    pub(crate) fn settle(&self, traffic: &Traffic) -> Result<()> {
        self.settle_before(traffic, None)
    }

    /// Records the waits for all messages on a tape, which is about to go back through them: what
    /// was only started is on its way back, too, while others are.
    pub(crate) fn settle_tape(&self, tape: &Arc<Record>) -> Result<()> {
        let on_tape = |due: &Due| due.comm.record().is_some_and(|other| Arc::ptr_eq(other, tape));
        self.due(None, on_tape).iter().try_for_each(|due| due.record_early())
    }

    fn settle_before(&self, traffic: &Traffic, own: Option<&Due>) -> Result<()> {
        let before = self.due(own, |other| other.traffic.is_like(traffic));
        before.iter().try_for_each(|due| due.record_early())
    }

    /// Those whose waits are to be recorded, started before `own`.
    fn due(&self, own: Option<&Due>, is_wanted: impl Fn(&Due) -> bool) -> Vec<Arc<Due>> {
        let mut list = self.list();
        // Most are waited for in the order of their starts: then this comes to its end at once.
        while list.started.front().is_some_and(|first| still_due(first).is_none()) {
            list.started.pop_front();
        }
        let is_own =
            |other: &Arc<Due>| own.is_some_and(|own| std::ptr::eq(own, &raw const **other));
        let due = list.started.iter().filter_map(still_due).take_while(|other| !is_own(other));
        due.filter(|other| is_wanted(other)).collect()
    }

    fn add(&self, due: &Arc<Due>) {
        let mut list = self.list();
        if list.started.len() >= list.most {
            list.started.retain(|other| still_due(other).is_some());
            list.most = 2 * list.started.len() + 16;
        }
        list.started.push_back(Arc::downgrade(due));
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn still_due(due: &Weak<Due>) -> Option<Arc<Due>> {
    due.upgrade().filter(|due| due.is_due())
}

impl Due {
    pub(super) fn new(
        start: Site,
        comm: &Communicator,
        traffic: Traffic,
        node: WaitNode,
        written: &Tensor,
    ) -> Arc<Self> {
        let due = Arc::new(Self {
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
        if let (Some(messages), false) = (comm.messages(), due.traffic.is_collective()) {
            messages.add(&due);
        }
        due
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.comm.record().map(|record| record.generation()) != self.generation
    }

    fn is_due(&self) -> bool {
        self.state().node.is_some()
    }

    /// Makes `y` the result of the wait, or returns what already is; in the backward pass, `comm` is
    /// that of the pullback.
    pub(super) fn record(
        &self,
        site: Site,
        comm: Option<&Communicator>,
        y: Tensor,
    ) -> Result<Tensor> {
        if let Some(messages) = self.comm.messages() {
            if self.is_outlived() {
                return Err(tape::outlived(self.start));
            }
            messages.settle_before(&self.traffic, Some(self))?;
        }
        let mut state = self.state();
        if let Some(node) = state.node.take() {
            node.record(site, comm.unwrap_or(&self.comm), &y)?;
        }
        Ok(state.early.take().unwrap_or(y))
    }

    /// Makes what will be written the result of the wait.
    fn record_early(&self) -> Result<()> {
        let mut state = self.state();
        let Some(node) = state.node.take().filter(|_| !self.is_outlived()) else { return Ok(()) };
        // A tensor of its own: what MPI writes to outlives the graph.
        let y = state.written.f_detach()?;
        node.record(Site { call: "wait", ..self.start }, &self.comm, &y)?;
        state.early = Some(y);
        Ok(())
    }
}

/// A request's hold on what it owes: a message that is dropped has its place in the order, too.
pub(super) struct Owed(pub(super) Arc<Due>);

impl Drop for Owed {
    fn drop(&mut self) {
        let due = &self.0;
        if let Some(messages) = due.comm.messages()
            && !due.traffic.is_collective()
            && due.is_due()
        {
            // Nobody is left to be told of an error.
            let _ =
                messages.settle_before(&due.traffic, Some(due)).and_then(|()| due.record_early());
        }
    }
}
