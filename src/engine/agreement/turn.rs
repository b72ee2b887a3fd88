//! The order in which the collective calls on a communicator reach MPI.
//!
//! MPI matches the collective calls of the ranks by their order alone, and some MPIs write beyond a
//! buffer if matched calls differ in size. So a call is made only after the ranks have agreed on it
//! and all calls before it have been made or refused. Then every rank makes the same calls of MPI
//! in the same order.
//!
//! A call takes its place in the order when the user makes or starts it. A blocking call waits for
//! its turn. A started call stays [`Pending`], and is polled whenever this crate waits for
//! something or starts something: see [`flight`](crate::engine::flight).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::description::{AT, LAST, Line, ONE_SIDED, PLACE, encode};
use super::rounds::{Rounds, WORDS};
use super::texts::Texts;
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::base::tag::Tag;
use crate::base::way::Way;
use crate::engine::communicator::Communicator;

/// The order of a communicator's collective calls on this rank.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<Order>);

#[derive(Debug, Default)]
struct Order {
    /// How many places have been taken.
    taken: u64,
    /// The place whose turn it is.
    current: u64,
    /// How many comparisons have been begun.
    exchanges: u64,
    /// How many calls this rank has withdrawn: it did not make them, though their terms were right.
    withdrawn: u64,
    /// Whether a call that other ranks may have made has failed here after it was agreed on.
    out_of_step: bool,
    /// Whether a backward pass through messages or started calls has failed on this rank: messages of
    /// it may be on their way.
    has_failed_pass: bool,
    /// The last call that was agreed on and had different source lines on the ranks.
    other_lines: Option<Site>,
}

/// How many tags a comparison has: one for each round, and the last for texts.
const TAGS: Tag = 32;

impl Turns {
    fn order(&self) -> MutexGuard<'_, Order> {
        self.0.lock()
    }

    /// Notes that a backward pass through messages or started calls has failed on this rank.
    pub(crate) fn note_failed_pass(&self) {
        self.order().has_failed_pass = true;
    }

    pub(crate) fn have_failed_pass(&self) -> bool {
        self.order().has_failed_pass
    }

    pub(super) fn are_out_of_step(&self) -> bool {
        self.order().out_of_step
    }

    /// Notes that this rank will not make the call of this place. Later calls include the number of
    /// such calls in their fingerprint. If one has taken its place already, on another thread, its
    /// fingerprint lacks this one, and the rank is out of step.
    pub(super) fn withdraw(&self, place: u64) {
        let mut order = self.order();
        order.withdrawn += 1;
        order.out_of_step |= order.taken > place + 1;
    }

    fn is_turn(&self, place: u64) -> bool {
        self.order().current == place
    }

    fn pass(&self, place: u64) {
        let mut order = self.order();
        // A call that is given up before its turn passes the places before it as well.
        order.out_of_step |= order.current != place;
        order.current = order.current.max(place + 1);
    }
}

/// A call that has taken its place, and waits for the agreement or for its turn.
pub(crate) struct Pending {
    site: Site,
    comm: Communicator,
    place: u64,
    /// How many calls this rank had withdrawn when this one took its place.
    withdrawn: u64,
    /// The hash that the ranks compare; see [`Turn::seal`].
    seal: u64,
    tag: Tag,
    exchange: Exchange,
    /// Whether the place has been passed, or handed over to a [`Turn`].
    ended: bool,
}

enum Exchange {
    /// The ranks compare their calls.
    Rounds(Rounds),
    /// The calls differ, and the ranks exchange descriptions of them.
    Texts(Texts),
    /// The ranks agree, and make the call in this way.
    Done(Way),
}

/// The outcome of a [`Pending`] call: its turn, or every rank's text if their calls differ.
pub(crate) type Outcome = std::result::Result<Turn, Vec<Vec<u8>>>;

impl Pending {
    /// Takes the next place, and begins to compare the call. The ranks agree if the fingerprint is
    /// equal on all of them and the sum of their `balance` is zero.
    pub(super) fn new(
        site: Site,
        comm: &Communicator,
        fingerprint: u64,
        balance: u64,
        way: Way,
    ) -> Self {
        let (place, number, withdrawn) = {
            let mut order = comm.turns().order();
            order.exchanges += 1;
            order.taken += 1;
            (order.taken - 1, order.exchanges - 1, order.withdrawn)
        };
        let slots = u64::from(comm.environment().largest_tag().unsigned_abs() + 1)
            / u64::from(TAGS.unsigned_abs());
        // The largest tag of MPI is at least 32767; the tags are reused in turn.
        let tag = Tag::try_from(number % slots).unwrap_or(0) * TAGS;
        // Place and withdrawn calls are included, so that ranks that have made different numbers of
        // calls do not agree.
        let seal = hash(&(fingerprint, place, withdrawn));
        let line = hash(&(site.at.file(), site.at.line(), site.at.column()));
        // A word is equal on all ranks if its maximum is the complement of its complement's
        // maximum.
        let words = [seal, !seal, line, !line, way.number()];
        let exchange = Exchange::Rounds(Rounds::new(words, balance, tag));
        Self { site, comm: comm.plain(), place, withdrawn, seal, tag, exchange, ended: false }
    }

    /// Takes the next place for a call that the ranks compared with their tape.
    pub(super) fn compared(site: Site, comm: &Communicator) -> Self {
        let place = {
            let mut order = comm.turns().order();
            order.taken += 1;
            order.taken - 1
        };
        let exchange = Exchange::Done(Way::Polls);
        let (withdrawn, seal, tag) = (0, hash(&place), 0);
        Self { site, comm: comm.plain(), place, withdrawn, seal, tag, exchange, ended: false }
    }

    /// Goes on as far as possible without waiting. If the calls differ, this rank sends the others
    /// the `lines` that describe its call.
    ///
    /// # Safety
    /// MPI can be called.
    #[inline]
    pub(crate) unsafe fn poll(
        &mut self,
        lines: &mut dyn FnMut() -> Vec<Line>,
    ) -> Result<Option<Outcome>> {
        let comm = &self.comm;
        if let Exchange::Rounds(rounds) = &mut self.exchange {
            // SAFETY: passed on to the caller.
            let Some((words, balance)) = (unsafe { rounds.poll(comm) })? else { return Ok(None) };
            let ([same_terms, same_line], way) = verdict(words);
            let agree = same_terms && balance == 0;
            if agree && !same_line {
                comm.turns().order().other_lines = Some(self.site);
                comm.environment().watch().note_lines(self.site);
            }
            self.exchange = if agree {
                Exchange::Done(way)
            } else {
                let mut lines = lines();
                lines.retain(|(name, _)| same_terms || !ONE_SIDED.contains(name));
                let failed = match self.withdrawn {
                    0 => String::new(),
                    count => format!(", {count} of which failed here"),
                };
                lines.push((PLACE, format!("{}{failed}", self.place)));
                lines.push((AT, self.site.place()));
                let last = comm.turns().order().other_lines;
                lines.extend(last.map(|site| (LAST, site.to_string())));
                // SAFETY: passed on to the caller.
                let texts = unsafe { Texts::send(comm, self.tag + TAGS - 1, encode(&lines)) };
                Exchange::Texts(texts?)
            };
        }
        if comm.turns().are_out_of_step() {
            return Err(Error::OutOfStep { call: self.site.call });
        }
        if !comm.turns().is_turn(self.place) {
            return Ok(None);
        }
        match &mut self.exchange {
            Exchange::Done(way) => {
                self.ended = true;
                let turns = Some(Arc::clone(comm.turns()));
                let (place, seal, made) = (self.place, self.seal, AtomicBool::default());
                let turn = Turn { turns, place, seal, way: *way, made };
                Ok(Some(Ok(turn)))
            }
            Exchange::Texts(texts) => {
                // SAFETY: passed on to the caller.
                let Some(texts) = (unsafe { texts.poll(comm) })? else { return Ok(None) };
                self.ended = true;
                comm.turns().pass(self.place);
                Ok(Some(Err(texts)))
            }
            Exchange::Rounds(_) => unreachable!("the rounds are over"),
        }
    }

    pub(super) fn comm(&self) -> &Communicator {
        &self.comm
    }

    pub(super) fn place(&self) -> u64 {
        self.place
    }

    pub(super) fn seal(&self) -> u64 {
        self.seal
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Gives the call up. Other ranks may still make it, so this rank is out of step.
    pub(super) fn give_up(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.comm.turns().order().out_of_step = true;
            self.comm.turns().pass(self.place);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// Whether the terms agree, whether the lines do, and how the call is made.
fn verdict([terms, not_terms, line, not_line, way]: [u64; WORDS]) -> ([bool; 2], Way) {
    ([terms == !not_terms, line == !not_line], Way::of_number(way))
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The turn of a call that the ranks have agreed on. Dropping it begins the next call's turn.
#[derive(Debug)]
pub(crate) struct Turn {
    /// None if the ranks do not agree on the call.
    turns: Option<Arc<Turns>>,
    place: u64,
    seal: u64,
    way: Way,
    made: AtomicBool,
}

impl Turn {
    /// For a call that the ranks do not agree on.
    pub(crate) fn free(seal: u64) -> Self {
        Self { turns: None, place: 0, seal, way: Way::Waits, made: AtomicBool::new(true) }
    }

    /// A number that the call has on all ranks that agreed on it, and that no other call of the
    /// communicator has; 0 where calls are not compared. Of a call that makes no MPI call it is the
    /// fingerprint.
    pub(crate) fn seal(&self) -> u64 {
        self.seal
    }

    pub(crate) fn way(&self) -> Way {
        self.way
    }

    /// Notes that the call failed in part, so that this rank is out of step: no further call can be
    /// made.
    pub(crate) fn failed(&self) {
        if let Some(turns) = &self.turns {
            turns.order().out_of_step = true;
        }
    }

    /// Notes that the call has been made. Otherwise it counts as withdrawn when the turn is
    /// dropped.
    pub(crate) fn made(&self) {
        self.made.store(true, Ordering::Relaxed);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = &self.turns else { return };
        if !self.made.load(Ordering::Relaxed) {
            turns.withdraw(self.place);
        }
        turns.pass(self.place);
    }
}
