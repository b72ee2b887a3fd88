//! Agreement between the ranks on a collective call, before it is made.
//!
//! The arguments that must be equal on all ranks are the call's [`Terms`]. The ranks compare a
//! fingerprint of them by a small all-reduce ([`rounds`]). If it differs, all ranks get the same
//! error before any of them makes the MPI call, which might not end or might write beyond a buffer.
//! Calls that need the other ranks' sizes exchange these next.
//!
//! Fingerprints can be compared across ranks because all ranks run the same executable, and
//! [`DefaultHasher::new`](std::hash::DefaultHasher::new) uses fixed keys: equal values have equal hashes on every rank.

mod description;
mod proposal;
mod rounds;
mod saying;
mod terms;
mod texts;
mod turn;

use std::sync::Arc;

use parking_lot::Mutex;

use crate::base::check::Check;
use crate::base::error::{Error, Result};
use crate::base::op::Op;
use crate::base::rank::{Rank, index};
use crate::base::site::Site;
use crate::base::way::Way;
use crate::engine::communicator::Communicator;
pub(crate) use description::differences;
use description::{decode, encode};
pub(crate) use proposal::Proposal;
use saying::{Says, Subject};
pub(crate) use terms::{Pairs, Terms, Told};
pub(crate) use turn::{Pending, Turn, Turns};

/// The sizes that the ranks told each other, in order of the ranks; empty if the call exchanges
/// none.
#[derive(Debug, Default)]
pub(crate) struct Agreed {
    counts: Vec<[i64; 2]>,
    shapes: Vec<Vec<i64>>,
    /// The number that each rank told only this one, or that came by each message of an exchange.
    told_here: Vec<i64>,
}

impl Agreed {
    /// Each rank's `i`th count.
    pub(crate) fn counts(&self, i: usize) -> Vec<i64> {
        self.counts.iter().map(|counts| counts[i]).collect()
    }

    /// The number that each rank told only this one. [`counts`](Self::counts) then has, for each
    /// rank, the sum of the numbers that it told and the sum of those that it was told, or −1 for a
    /// sum that overflows an `i64`.
    pub(crate) fn told_here(&self) -> &[i64] {
        &self.told_here
    }

    pub(crate) fn shape_of(&self, rank: Rank) -> &[i64] {
        &self.shapes[index(rank)]
    }
}

/// The reason why a call needs no agreement of its own.
#[derive(Clone)]
pub(crate) enum Admission {
    /// It is part of a blocking call that the ranks have agreed on.
    Granted(Arc<Turn>),
    /// It is the only part of a started call, and takes over that call's proposal.
    Begun(Arc<Mutex<Option<Proposal>>>),
    /// It is an adjoint on a tape, and the ranks have compared what they recorded there.
    Compared,
}

/// What a rank tells the others, in one message: two counts, the number of axes, and the extents.
/// If a tensor has more axes than fit, the shapes travel in a further message.
type Words = [i64; WORDS];
const WORDS: usize = 11;
const EXTENTS: usize = 3;
const MOST_EXTENTS: usize = WORDS - EXTENTS;

/// Compares the terms of the call at `site` across the ranks, waits for its turn, and exchanges
/// sizes if the terms have any.
///
/// If this rank's own arguments are wrong, `terms` is the error: this rank gets that error, and the
/// others get one that names this rank. With `exchanges` the call is compared even under
/// `MPI4TCH_CHECK=none`: calls that exchange sizes or create communicators rely on it. `way` is the
/// way in which this rank can make the call.
#[inline]
pub(crate) fn agree(
    site: Site,
    comm: &Communicator,
    subject: Subject,
    terms: Result<Terms>,
    exchanges: bool,
    way: Way,
) -> Result<(Agreed, Arc<Turn>)> {
    // Checked first: a place that was taken would have to be given up.
    comm.environment().allows(site.call)?;
    if let Some(Admission::Granted(turn)) = comm.admission() {
        return Ok((exchange(site, comm, turn, &terms?)?, Arc::clone(turn)));
    }
    if comm.check_level() == Check::None && !exchanges {
        return terms.map(|_| (Agreed::default(), Arc::new(Turn::free(0))));
    }
    let terms = in_step(site, comm, terms);
    let says = Says { site, comm, subject: recorded(comm, subject, &terms), terms: &terms };
    let mut pending = Pending::new(site, comm, says.fingerprint(), says.balance(), way);
    let outcome = comm.environment().wait(site, || {
        // SAFETY: `wait` gives permission to call MPI.
        unsafe { pending.poll(&mut || says.lines()) }
    })?;
    let turn = match outcome {
        Ok(turn) => Arc::new(turn),
        Err(texts) => return Err(terms.err().unwrap_or_else(|| mismatch(&texts))),
    };
    Ok((exchange(site, comm, &turn, &terms?)?, turn))
}

/// Waits until all ranks make the call at `site`, under `MPI4TCH_CHECK=none` too.
pub(crate) fn agree_on(site: Site, comm: &Communicator) -> Result<Arc<Turn>> {
    let way = comm.environment().way();
    agree(site, &comm.plain(), None, Ok(Terms::default()), true, way).map(|(_, turn)| turn)
}

/// Shares the outcome of a step of a call that all ranks have agreed on. If it is an error on some
/// ranks, the others get an error that names it.
pub(crate) fn agree_on_outcome<T>(
    site: Site,
    comm: &Communicator,
    turn: &Turn,
    outcome: Result<T>,
) -> Result<T> {
    let all = comm.intersect_control(site, turn.way(), vec![u64::from(outcome.is_ok())])?;
    if all == [1] {
        return outcome;
    }
    let lines = outcome.as_ref().err().map(|error| ("refused", error.to_string()));
    let texts = comm.exchange(site, &encode(lines.as_slice()))?;
    Err(outcome.err().unwrap_or_else(|| mismatch(&texts)))
}

/// Tells the others that this rank refuses the call, unless calls are not compared. Returns the
/// error: `error`, or that of the attempt to tell them.
pub(crate) fn refuse(site: Site, comm: &Communicator, error: Error, exchanges: bool) -> Error {
    match agree(site, comm, None, Err(error), exchanges, comm.environment().way()) {
        Err(error) => error,
        Ok(_) => unreachable!("terms that are an error are never agreed on"),
    }
}

/// The fingerprint of a call that the ranks do not agree on, for their comparison by a tape.
pub(crate) fn fingerprint(site: Site, comm: &Communicator, subject: Subject, terms: Terms) -> u64 {
    let terms = Ok(terms);
    Says { site, comm, subject: recorded(comm, subject, &terms), terms: &terms }.fingerprint()
}

/// The terms, or an error if this rank is out of step with the others.
fn in_step<'a>(site: Site, comm: &Communicator, terms: Result<Terms<'a>>) -> Result<Terms<'a>> {
    if comm.turns().are_out_of_step() { Err(Error::OutOfStep { call: site.call }) } else { terms }
}

/// The part of `subject` that the ranks compare. The backward pass needs a call to be recorded by
/// all ranks or by none, which is compared under `MPI4TCH_CHECK=collective`. It is always compared
/// for a reduction that is not linear, as that makes other MPI calls if it is recorded.
fn recorded(comm: &Communicator, subject: Subject, terms: &Result<Terms>) -> Subject {
    let decides = terms.as_ref().is_ok_and(|terms| {
        let is_nonlinear = |op: Op| op.is_differentiable() && !op.is_linear();
        terms.compares_recording || terms.op.is_some_and(is_nonlinear)
    });
    let compares = decides || comm.check_level() == Check::Collective;
    subject.map(|(datatype, records)| (datatype, records && compares))
}

fn mismatch(texts: &[Vec<u8>]) -> Error {
    let all: Vec<_> = texts.iter().map(|text| decode(text)).collect();
    let ranks: Vec<Rank> = (0..).take(all.len()).collect();
    Error::Mismatch { differences: differences(&all, &ranks) }
}

/// Exchanges the sizes that the ranks tell each other, if any. All ranks are in the same call.
#[inline]
fn exchange(site: Site, comm: &Communicator, turn: &Turn, terms: &Terms) -> Result<Agreed> {
    if let Some(told_each) = terms.told_each {
        let told_here = comm.all_to_all_control(site, turn.way(), told_each.to_vec())?;
        let sum = |counts: &[i64]| counts.iter().try_fold(0_i64, |sum, n| sum.checked_add(*n));
        let sums = [told_each, &told_here].map(|counts| sum(counts).unwrap_or(-1));
        let counts = comm.all_gather_control(site, turn.way(), &sums)?;
        return Ok(Agreed { counts, told_here, ..Agreed::default() });
    }
    if let Some((exchange, words)) = terms.told_along {
        let told_here = comm.exchange_control(site, exchange, words)?;
        return Ok(Agreed { told_here, ..Agreed::default() });
    }
    let Some(told) = terms.told else { return Ok(Agreed::default()) };
    let mut record: Words = [0; WORDS];
    record[..2].copy_from_slice(&told.counts);
    record[2] = i64::try_from(told.shape.len()).unwrap_or(i64::MAX);
    for (word, extent) in record[EXTENTS..].iter_mut().zip(told.shape) {
        *word = *extent;
    }
    let records: Vec<Words> = comm.all_gather_control(site, turn.way(), &record)?;
    let mut shapes: Vec<Vec<i64>> = records
        .iter()
        .map(|record| {
            let dim = usize::try_from(record[2]).unwrap_or(0).min(MOST_EXTENTS);
            record[EXTENTS..EXTENTS + dim].to_vec()
        })
        .collect();
    if records.iter().any(|record| record[2] > MOST_EXTENTS as i64) {
        let bytes: Vec<u8> = told.shape.iter().flat_map(|extent| extent.to_le_bytes()).collect();
        for (shape, bytes) in shapes.iter_mut().zip(comm.exchange(site, &bytes)?) {
            let extents = bytes.chunks_exact(8);
            *shape = extents.map(|e| e.try_into().map_or(0, i64::from_le_bytes)).collect();
        }
    }
    let counts = records.iter().map(|record| [record[0], record[1]]).collect();
    Ok(Agreed { counts, shapes, ..Agreed::default() })
}
