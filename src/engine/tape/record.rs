//! What a tape records, and how the token is threaded through a node of the graph.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use tch::Tensor;

use super::comparison::{Entry, Traffic};
use crate::autograd::{self, Backward, View};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::communicator::Communicator;
use crate::engine::agreement::{Proposal, refuse};
use crate::environment::datatype::{Class, Datatype};

/// What a tape has recorded.
#[derive(Debug)]
pub(crate) struct Record {
    thread: Mutex<Thread>,
    /// Where this orders what a pullback of a tape does: that tape, as it was then.
    tape: Option<Origin>,
}

/// The tape that a call belongs to, and how often that had started anew.
type Origin = (Weak<Record>, u64);

/// A tape's backward pass that is being carried out.
#[derive(Debug)]
struct Running {
    site: Site,
    tape: Arc<Record>,
}

thread_local! {
    /// Those of this thread, each within the one before.
    static RUNNING: RefCell<Vec<Running>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(super) struct Thread {
    /// The first token.
    pub(super) leaf: Tensor,
    /// The last one.
    pub(super) token: Tensor,
    pub(super) calls: Vec<Entry>,
    /// How many of them are of all ranks.
    pub(super) collectives: usize,
    /// How often the tape has started anew.
    pub(super) generation: u64,
    /// In a backward pass of the tape's: an error once it has left something out.
    pass: Option<Result<()>>,
}

impl Thread {
    pub(super) fn new(token: Tensor) -> Self {
        Self {
            leaf: token.shallow_clone(),
            token,
            calls: Vec::new(),
            collectives: 0,
            generation: 0,
            pass: None,
        }
    }
}

impl Record {
    pub(super) fn new(token: Tensor) -> Self {
        Self { thread: Mutex::new(Thread::new(token)), tape: None }
    }

    /// For what a pullback of the tape does, which goes on from this token.
    fn passing(token: Tensor, tape: &Origin) -> Self {
        Self { tape: Some(tape.clone()), ..Self::new(token) }
    }

    pub(super) fn thread(&self) -> MutexGuard<'_, Thread> {
        self.thread.lock()
    }

    pub(super) fn token(&self) -> Tensor {
        self.thread().token.shallow_clone()
    }

    /// Forgets what was recorded.
    pub(super) fn start_anew(&self) {
        let mut thread = self.thread();
        let (generation, pass) = (thread.generation + 1, thread.pass.take());
        let anew = Thread { generation, pass, ..Thread::new(first_token()) };
        let before = std::mem::replace(&mut *thread, anew);
        drop(thread);
        // With its graph, which may hold what looks at the tape.
        drop(before);
    }

    /// Runs a backward pass. Returns its outcome, and an error if something was left out of it.
    pub(super) fn pass<T>(
        self: &Arc<Self>,
        site: Site,
        run: impl FnOnce() -> T,
    ) -> (T, Result<()>) {
        // It may be within another one.
        let outer = self.thread().pass.replace(Ok(()));
        RUNNING.with_borrow_mut(|running| running.push(Running { site, tape: Arc::clone(self) }));
        let outcome = run();
        RUNNING.with_borrow_mut(Vec::pop);
        let own = std::mem::replace(&mut self.thread().pass, outer);
        (outcome, own.unwrap_or(Ok(())))
    }

    /// Whether a backward pass may go through a call of the tape's that was recorded in this
    /// generation: one of the tape's, or within one of the tape's, may until the tape starts anew.
    /// The call is left out of a pass that may not.
    fn admit(&self, site: Site, generation: u64) -> Result<bool> {
        let (is_own, is_outlived) = {
            let thread = self.thread();
            (thread.pass.is_some(), thread.generation != generation)
        };
        match (is_own, is_outlived) {
            (true, false) => Ok(true),
            (_, true) => self.leave_out(outlived(site)).map(|()| false),
            (false, false) => self.leave_out(trespass(site)).map(|()| false),
        }
    }

    /// Leaves a call out of a backward pass. In a pass of the tape's, or of another tape's, the error
    /// comes after it, as the other ranks count on the calls that are yet to come.
    fn leave_out(&self, error: Error) -> Result<()> {
        let innermost =
            RUNNING.with_borrow(|running| running.last().map(|pass| Arc::clone(&pass.tape)));
        for tape in std::iter::once(self).chain(innermost.as_deref()) {
            if let Some(pass) = &mut tape.thread().pass {
                if pass.is_ok() {
                    *pass = Err(error);
                }
                return Ok(());
            }
        }
        Err(error)
    }

    /// How often the tape has started anew: what was recorded before is gone.
    pub(crate) fn generation(&self) -> u64 {
        self.thread().generation
    }

    /// Whether what is done on the tape is recorded.
    pub(crate) fn is_recording(&self) -> bool {
        View::of(&self.thread().token).requires_grad()
    }
}

/// A tensor without elements that requires grad.
pub(super) fn first_token() -> Tensor {
    // A leaf, whether or not recording is on.
    Tensor::zeros([0], (tch::Kind::Float, tch::Device::Cpu)).set_requires_grad(true)
}

impl Communicator {
    /// Whether a call on a tensor is to be recorded.
    #[inline]
    pub(crate) fn records(&self, x: &View) -> bool {
        x.requires_grad()
            || self.record().is_some_and(|record| carries_gradient(x) && record.is_recording())
    }

    /// Whether both are on one tape.
    pub(crate) fn is_on_tape_of(&self, other: &Self) -> bool {
        let tapes = self.record().zip(other.record());
        tapes.is_some_and(|(own, other)| Arc::ptr_eq(own, other))
    }

    /// Whether calls are recorded on a tape.
    pub(crate) fn is_on_tape(&self) -> bool {
        self.record().is_some_and(|record| record.is_recording())
    }
}

fn carries_gradient(x: &View) -> bool {
    let class = Datatype::of(x.scalar_type()).map(|datatype| datatype.class);
    matches!(class, Some(Class::Half | Class::Real | Class::Complex))
}

/// What the pullback of a call gets.
pub(crate) struct Pulled {
    pub(crate) cotangent: Tensor,
    saved: Result<Vec<Tensor>>,
}

impl Pulled {
    fn new(mut backward: Backward) -> (Self, Option<Tensor>) {
        let token = (backward.cotangents.len() > 1).then(|| backward.cotangents.swap_remove(1));
        let cotangent = backward.cotangents.swap_remove(0);
        (Self { cotangent, saved: backward.saved }, token)
    }

    /// The tensors saved with the node. A rank that has lost them says so to the others.
    pub(crate) fn saved(&mut self, site: Site, comm: &Communicator) -> Result<Vec<Tensor>> {
        let saved = std::mem::replace(&mut self.saved, Ok(Vec::new()));
        saved.map_err(|error| refuse(site, comm, error, false))
    }

    /// As [`saved`](Self::saved), where the others only start what they do with theirs.
    pub(crate) fn saved_to_start(
        &mut self,
        site: Site,
        comm: &Communicator,
    ) -> Result<Vec<Tensor>> {
        let saved = std::mem::replace(&mut self.saved, Ok(Vec::new()));
        saved.map_err(|error| Proposal::refuse(site, comm, error))
    }
}

/// Records a call as a node from `x` to `y`, on the communicator's tape if it is on one. Returns how
/// many calls of all ranks the tape then has.
///
/// The pullback gets the communicator for the backward pass, and returns `x`'s cotangent, if any.
#[inline]
pub(crate) fn record<F>(
    site: Site,
    comm: &Communicator,
    traffic: Traffic,
    [x, y]: [&Tensor; 2],
    saved: &[&Tensor],
    pullback: F,
) -> Result<usize>
where
    F: Fn(&Communicator, Pulled) -> Result<Option<Tensor>> + Send + Sync + 'static,
{
    let backward = comm.backward(site);
    let Some(record) = comm.record().filter(|record| record.is_recording()) else {
        autograd::record(site.call, &[x], &[y], saved, move |given| {
            Ok(vec![pullback(&backward, Pulled::new(given).0)?])
        })?;
        return Ok(0);
    };
    let mut thread = record.thread();
    let tape = record.tape.clone();
    let tape = tape.unwrap_or_else(|| (Arc::downgrade(record), thread.generation));
    let (token, _) = autograd::empty(site.call, &[0], TOKEN)?;
    autograd::record(site.call, &[x, &thread.token], &[y, &token], saved, move |given| {
        if let (Some(record), generation) = (tape.0.upgrade(), tape.1)
            && !record.admit(site, generation)?
        {
            return Ok(vec![None, None]);
        }
        let (pulled, token) = Pulled::new(given);
        let token = token.unwrap_or_else(|| unreachable!("the token is the second output"));
        // What the pullback does goes on from the cotangent of the token.
        let passing = Arc::new(Record::passing(token, &tape));
        let x = pullback(&backward.on(Arc::clone(&passing)), pulled)?;
        Ok(vec![x, Some(passing.token())])
    })?;
    thread.token = token;
    thread.collectives += usize::from(traffic.is_collective());
    thread.calls.push(Entry { site, traffic });
    // What a pullback records, it records on the tape of its pass.
    if !site.backward {
        note_use(comm);
    }
    Ok(thread.collectives)
}

thread_local! {
    /// A communicator on each tape that calls are recorded on while [`recorded_on`] runs.
    static USED: RefCell<Option<Vec<Communicator>>> = const { RefCell::new(None) };
}

/// Runs `f`, and tells on which tapes it recorded calls, by a communicator on each.
pub(crate) fn recorded_on<T>(f: impl FnOnce() -> T) -> (T, Vec<Communicator>) {
    /// Puts back what was there, also after a panic.
    struct Outer(Option<Vec<Communicator>>);
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

fn note_use(comm: &Communicator) {
    USED.with_borrow_mut(|used| {
        if let Some(used) = used
            && !used.iter().any(|other| other.is_on_tape_of(comm))
        {
            used.push(comm.unadmitted());
        }
    });
}

/// The token's scalar type: `Float`.
const TOKEN: i32 = 6;

/// What was recorded on a tape is used after the tape's backward pass.
pub(crate) fn outlived(site: Site) -> Error {
    let message = format!(
        "called at {}, before the tape's last backward pass, which the other ranks have gone \
         through; keep the graph, or use its results before",
        site.at
    );
    Error::Argument { call: site.call, message }
}

/// What was recorded on a tape is gone through by a backward pass that is not the tape's.
fn trespass(site: Site) -> Error {
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
