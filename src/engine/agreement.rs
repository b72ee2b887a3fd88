//! Agreement between the ranks on a collective call, before it is made.
//!
//! The arguments that must be equal on all ranks are the call's [`Terms`]. The ranks compare a
//! fingerprint of them by a small all-reduce ([`rounds`]). If it differs, all ranks get the same
//! error before any of them makes the MPI call, which might not end or might write beyond a buffer.
//! Calls that need the other ranks' sizes exchange these next.
//!
//! Fingerprints can be compared across ranks because all ranks run the same executable, and
//! [`DefaultHasher::new`] uses fixed keys: equal values have equal hashes on every rank.

mod description;
mod rounds;
mod texts;
mod turn;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::base::check::Check;
use crate::base::error::{Error, Result};
use crate::base::op::Op;
use crate::base::rank::{Rank, index};
use crate::base::site::Site;
use crate::base::way::Way;
use crate::engine::communicator::Communicator;
use crate::environment::datatype::Datatype;
pub(crate) use description::differences;
use description::{Line, PAIRS, decode};
pub(crate) use turn::{Pending, Turn, Turns};

/// The arguments of a call that all ranks must agree on, and the sizes that each rank tells the
/// others.
#[derive(Debug, Default)]
pub(crate) struct Terms<'a> {
    pub(crate) op: Option<Op>,
    pub(crate) root: Option<Rank>,
    /// The axes that the call names.
    pub(crate) axes: [Option<i64>; 2],
    /// Counts that every rank was given.
    pub(crate) counts: [Option<&'a [i64]>; 2],
    /// The shape, if it must agree, and the axis along which the extents may still differ.
    pub(crate) shape: Option<(&'a [i64], Option<usize>)>,
    /// This rank's row and column of a matrix of counts of which it does not know the rest.
    pub(crate) pairs: Option<Pairs<'a>>,
    /// Whether the ranks must agree on recording the call, whatever else is compared.
    pub(crate) compares_recording: bool,
    /// The sizes that this rank tells every other.
    pub(crate) told: Option<Told<'a>>,
    /// A number for each rank, which only that rank is told.
    pub(crate) told_each: Option<&'a [i64]>,
}

/// This rank's row and column of the matrix of counts. The ranks agree if every rank is to receive
/// from each other rank the count that the other is to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs<'a> {
    /// The count that is sent to each rank, in order of the ranks.
    pub(crate) send: &'a [i64],
    /// The count that is received from each rank.
    pub(crate) receive: &'a [i64],
    /// Whether the elements are too many for an `int`, so that another MPI function is called.
    pub(crate) wide: bool,
}

impl Pairs<'_> {
    /// A number whose sum over all ranks, with wrapping, is zero if the ranks agree: the rank that
    /// sends a count adds its hash, and the rank that receives it subtracts the hash.
    fn balance(&self, rank: Rank) -> u64 {
        let hash = |from: Rank, to: Rank, count: i64| {
            let mut hasher = DefaultHasher::new();
            (from, to, count).hash(&mut hasher);
            hasher.finish()
        };
        let counts = self.send.iter().zip(self.receive);
        (0..).zip(counts).fold(0_u64, |sum, (other, (&sent, &received))| {
            sum.wrapping_add(hash(rank, other, sent)).wrapping_sub(hash(other, rank, received))
        })
    }
}

/// The sizes that a rank tells the others: counts, and a shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) counts: [i64; 2],
    pub(crate) shape: &'a [i64],
}

/// The sizes that the ranks told each other, in order of the ranks; empty if the call exchanges
/// none.
#[derive(Debug, Default)]
pub(crate) struct Agreed {
    counts: Vec<[i64; 2]>,
    shapes: Vec<Vec<i64>>,
    /// The number that each rank told only this one.
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

/// The kind of the tensor, and whether the call is recorded.
pub(crate) type Subject = Option<(Datatype, bool)>;

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
        return terms.map(|_| (Agreed::default(), Arc::new(Turn::free())));
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

/// Tells the others that this rank refuses the call, unless calls are not compared. Returns the
/// error: `error`, or that of the attempt to tell them.
pub(crate) fn refuse(site: Site, comm: &Communicator, error: Error, exchanges: bool) -> Error {
    match agree(site, comm, None, Err(error), exchanges, comm.environment().way()) {
        Err(error) => error,
        Ok(_) => unreachable!("terms that are an error are never agreed on"),
    }
}

/// A started call that the ranks are agreeing on: see [`Pending`].
///
/// If it is dropped before the call is launched, for instance because memory cannot be allocated,
/// the agreement goes on without a call. If all ranks have dropped theirs, they stay in step.
pub(crate) struct Proposal(Option<Inner>);

struct Inner {
    pending: Pending,
    said: Said,
}

impl Proposal {
    /// Begins to agree on a call that is started at `site`; `None` where calls are not compared.
    ///
    /// A rank whose own arguments are wrong gets its error at once; the others get, at their waits,
    /// an error that names this rank.
    pub(crate) fn begin(
        site: Site,
        comm: &Communicator,
        subject: Subject,
        terms: Result<Terms>,
    ) -> Result<Option<Self>> {
        comm.environment().allows(site.call)?;
        if comm.check_level() == Check::None {
            return terms.map(|_| None);
        }
        match comm.admission() {
            Some(Admission::Begun(begun)) => {
                let proposal = begun.lock().take();
                return terms.map(|_| proposal);
            }
            Some(Admission::Compared) => {
                let pending = Pending::compared(site, comm);
                let (terms, error) = match terms {
                    Ok(terms) => (Ok(terms.to_owned()), None),
                    Err(error) => (Err(error.to_string()), Some(error)),
                };
                let proposal =
                    Self(Some(Inner { pending, said: Said { site, subject: None, terms } }));
                // The others make the call. Dropping the proposal notes that this rank does not.
                return error.map_or(Ok(Some(proposal)), Err);
            }
            Some(Admission::Granted(_)) | None => (),
        }
        let terms = in_step(site, comm, terms);
        let subject = recorded(comm, subject, &terms);
        let says = Says { site, comm, subject, terms: &terms };
        let pending = Pending::new(site, comm, says.fingerprint(), says.balance(), Way::Polls);
        let (terms, error) = match terms {
            Ok(terms) => (Ok(terms.to_owned()), None),
            Err(error) => (Err(error.to_string()), Some(error)),
        };
        let said = Said { site, subject, terms };
        let proposal = Self(Some(Inner { pending, said }));
        match error {
            None => Ok(Some(proposal)),
            Some(error) => {
                comm.flights().refuse(proposal);
                Err(error)
            }
        }
    }

    /// Tells the others that this rank refuses the call that they start, unless calls are not
    /// compared. Returns the error.
    pub(crate) fn refuse(site: Site, comm: &Communicator, error: Error) -> Error {
        match Self::begin(site, comm, None, Err(error)) {
            Err(error) => error,
            Ok(_) => unreachable!("an error is never agreed on"),
        }
    }

    /// See [`Turn::seal`].
    pub(crate) fn seal(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.pending.seal())
    }

    /// The site of the call, and its communicator.
    pub(crate) fn origin(&self) -> Option<(Site, Communicator)> {
        self.0.as_ref().map(|inner| (inner.said.site, inner.pending.comm().clone()))
    }

    /// Goes on as far as possible without waiting.
    ///
    /// # Safety
    /// MPI can be called.
    pub(crate) unsafe fn poll(&mut self) -> Result<Option<Result<Turn>>> {
        let Some(Inner { pending, said }) = &mut self.0 else {
            unreachable!("a proposal is taken only when dropped")
        };
        // SAFETY: passed on to the caller.
        match unsafe { pending.poll(&mut || said.lines()) } {
            Ok(outcome) => Ok(outcome.map(|outcome| outcome.map_err(|texts| mismatch(&texts)))),
            Err(error) => {
                pending.give_up();
                Err(error)
            }
        }
    }
}

impl Drop for Proposal {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take().filter(|inner| !inner.pending.has_ended()) {
            let comm = inner.pending.comm().clone();
            comm.turns().withdraw(inner.pending.place());
            comm.flights().refuse(Self(Some(inner)));
        }
    }
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

/// A rank's side of a call: its terms, or the error with which it refuses.
struct Says<'s, 'a> {
    site: Site,
    comm: &'s Communicator,
    subject: Subject,
    terms: &'s Result<Terms<'a>>,
}

impl Says<'_, '_> {
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self.terms {
            Ok(terms) => {
                (self.site.call, self.site.backward).hash(&mut hasher);
                let subject = self.subject.map(|(datatype, r)| (datatype.scalar_type(), r));
                subject.hash(&mut hasher);
                terms.hash(&mut hasher);
            }
            // The rank makes a refusal differ from every other rank's fingerprint.
            Err(error) => ("refused", self.comm.rank(), error.to_string()).hash(&mut hasher),
        }
        hasher.finish()
    }

    fn balance(&self) -> u64 {
        let pairs = self.terms.as_ref().ok().and_then(|terms| terms.pairs);
        pairs.map_or(0, |pairs| pairs.balance(self.comm.rank()))
    }

    fn lines(&self) -> Vec<Line> {
        describe(self.site, self.subject, self.terms.as_ref().map_err(ToString::to_string))
    }
}

/// As [`Says`], owned, for a call that is under way.
struct Said {
    site: Site,
    subject: Subject,
    terms: std::result::Result<OwnedTerms, String>,
}

impl Said {
    fn lines(&self) -> Vec<Line> {
        let terms = self.terms.as_ref().map(OwnedTerms::borrow);
        describe(self.site, self.subject, terms.as_ref().map_err(|error| (*error).clone()))
    }
}

/// The lines by which a rank describes its call to the others if their calls differ.
fn describe(site: Site, subject: Subject, terms: std::result::Result<&Terms, String>) -> Vec<Line> {
    match terms {
        Ok(terms) => terms.describe(site, subject),
        Err(error) => vec![("refused", error)],
    }
}

/// [`Terms`] without the sizes to exchange, owned, for a call that is under way.
struct OwnedTerms {
    op: Option<Op>,
    root: Option<Rank>,
    axes: [Option<i64>; 2],
    counts: [Option<Vec<i64>>; 2],
    shape: Option<(Vec<i64>, Option<usize>)>,
    pairs: Option<([Vec<i64>; 2], bool)>,
}

impl OwnedTerms {
    fn borrow(&self) -> Terms<'_> {
        Terms {
            op: self.op,
            root: self.root,
            axes: self.axes,
            counts: self.counts.each_ref().map(Option::as_deref),
            shape: self.shape.as_ref().map(|(shape, free)| (&shape[..], *free)),
            pairs: self.pairs.as_ref().map(|([send, receive], wide)| Pairs {
                send,
                receive,
                wide: *wide,
            }),
            compares_recording: false,
            told: None,
            told_each: None,
        }
    }
}

impl Hash for Terms<'_> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let Self { op, root, axes, counts, shape, pairs, .. } = self;
        (op, root, axes, counts, pairs.map(|pairs| pairs.wide)).hash(hasher);
        if let Some((shape, free)) = shape {
            (free, shape.len()).hash(hasher);
            for (i, extent) in shape.iter().enumerate().filter(|&(i, _)| *free != Some(i)) {
                (i, extent).hash(hasher);
            }
        }
    }
}

impl Terms<'_> {
    /// The terms of one axis, counted from the start.
    pub(crate) fn axis(axis: usize) -> [Option<i64>; 2] {
        [i64::try_from(axis).ok(), None]
    }

    fn to_owned(&self) -> OwnedTerms {
        OwnedTerms {
            op: self.op,
            root: self.root,
            axes: self.axes,
            counts: self.counts.map(|counts| counts.map(<[i64]>::to_vec)),
            shape: self.shape.map(|(shape, free)| (shape.to_vec(), free)),
            pairs: self
                .pairs
                .map(|Pairs { send, receive, wide }| ([send.to_vec(), receive.to_vec()], wide)),
        }
    }

    /// The terms by name, for the error.
    fn describe(&self, site: Site, subject: Subject) -> Vec<Line> {
        let pass = if site.backward { "backward" } else { "forward" };
        let mut lines = vec![("operation", site.call.to_owned()), ("pass", pass.to_owned())];
        if let Some(op) = self.op {
            lines.push(("op", format!("Op::{op:?}")));
        }
        if let Some((datatype, requires_grad)) = subject {
            lines.push(("kind", format!("{:?}", datatype.kind)));
            lines.push(("requires_grad", requires_grad.to_string()));
        }
        if let Some(root) = self.root {
            lines.push(("root", root.to_string()));
        }
        let [first, second] = self.axes;
        if let Some(axis) = first {
            let second = second.map_or(String::new(), |axis| format!(" and {axis}"));
            lines.push(("axis", format!("{axis}{second}")));
        }
        for (name, counts) in ["counts", "counts to scatter"].into_iter().zip(self.counts) {
            if let Some(counts) = counts {
                lines.push((name, format!("{counts:?}")));
            }
        }
        if let Some(Pairs { send, receive, wide }) = self.pairs {
            lines.extend(PAIRS.into_iter().zip([send, receive].map(|list| format!("{list:?}"))));
            let known = if wide { "known, beyond an int" } else { "known" };
            lines.push(("counts of every pair", known.to_owned()));
        }
        if let Some((shape, free)) = self.shape {
            let extents: Vec<String> = shape
                .iter()
                .enumerate()
                .map(
                    |(i, extent)| if free == Some(i) { "_".to_owned() } else { extent.to_string() },
                )
                .collect();
            lines.push(("shape", format!("[{}]", extents.join(", "))));
        }
        lines
    }
}
