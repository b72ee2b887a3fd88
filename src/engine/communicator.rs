//! [`Communicator`]: a group of ranks, with the context in which its calls are made: pass, tape,
//! line.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use mpi_sys::MPI_Comm;

use crate::base::check::Check;
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::communicator::{Further, Handle, Identity};
use crate::engine::agreement::{Admission, Turns, agree_on};
use crate::engine::flight::Flights;
use crate::engine::runtime::Runtime;
use crate::engine::tape::Record;
use crate::environment::Environment;

/// A group of ranks that communicate with each other and with nobody else.
///
/// Cheap to clone: clones are the same communicator. The operations are its methods, each in a
/// file of its own; the table of them is on the crate's [front page](crate).
///
/// A communicator has MPI contexts of its own: one for calls of the forward pass, one for those of
/// the backward pass, and one for the crate's own messages. A message in one context is never
/// received in another.
///
/// Dropping a communicator is local and makes no MPI call. Once no rank holds it or anything made
/// from it, its contexts are freed by the next call that makes a communicator from the same parent,
/// or at the latest when MPI is finalized. An autograd graph that communicates on it holds it.
///
/// # Examples
/// ```
/// use mpi4tch::Op;
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// // The even ranks and the odd ranks get a communicator each.
/// let half = world.split(Some(world.rank() % 2), 0)?.expect("each rank has a color");
/// let ranks = half.all_reduce(&Tensor::from_slice(&[1]), Op::Sum)?;
/// assert_eq!(ranks, Tensor::from_slice(&[half.size()]));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Clone)]
#[doc(alias = "MPI_Comm")]
pub struct Communicator {
    inner: Arc<Inner>,
    pass: Pass,
    /// Whether the calls are made by a pullback of the user's: see [`Communicator::custom`].
    of_pullback: bool,
    /// The tape that calls are recorded on.
    record: Option<Arc<Record>>,
    /// Whether the ranks have compared the calls, or will before a backward pass goes through them:
    /// those on a tape, and in its backward pass those of its own pullbacks.
    is_compared: bool,
    /// The line that calls are reported at, if not their caller's: in the backward pass, and where
    /// one operation is carried out by another.
    origin: Option<&'static Location<'static>>,
    /// The number of the call whose pullback makes the calls, or 0.
    adjoint_of: u64,
    /// The reason why its calls need no agreement of their own.
    admission: Option<Admission>,
}

/// The state that all clones of a communicator share.
struct Inner {
    handle: Arc<Handle>,
    /// The calls that were started, on all communicators.
    flights: Arc<Flights>,
    /// The order of its collective calls.
    turns: Arc<Turns>,
}

/// The communicator of a message, and whose call it is. Of one pass, only messages with the same lane
/// are in the same context.
pub(crate) type Lane = (Identity, Caller);

/// Whose call a call of the forward pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// The program's.
    Program,
    /// A pullback's that the user wrote.
    Pullback,
    /// A checkpoint's that is run again.
    Checkpoint,
}

/// Which pass the calls of a communicator belong to.
#[derive(Clone, Copy)]
enum Pass {
    Forward,
    Backward,
}

impl Communicator {
    /// A communicator on no tape, for calls of the forward pass.
    pub(crate) fn new(handle: Arc<Handle>, flights: &Arc<Flights>) -> Self {
        let inner = Inner { handle, flights: Arc::clone(flights), turns: Arc::default() };
        Self {
            inner: Arc::new(inner),
            pass: Pass::Forward,
            of_pullback: false,
            record: None,
            is_compared: false,
            origin: None,
            adjoint_of: 0,
            admission: None,
        }
    }

    /// Duplicates `comm`, which its owner keeps, by the call at `site`. Collective over `comm`.
    pub(crate) fn duplicate_of(site: Site, comm: MPI_Comm, runtime: &Runtime) -> Result<Self> {
        let handle = Handle::duplicate_of(site, comm, &runtime.environment)?;
        Ok(Self::new(handle, &runtime.flights))
    }

    /// The handle: its MPI contexts.
    #[inline]
    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.inner.handle
    }

    /// The communicator of a handle that was just made from this one. It is on the same tape.
    pub(crate) fn child(&self, handle: Arc<Handle>) -> Self {
        let (record, is_compared) = (self.record.clone(), self.is_compared);
        if let Some(record) = &record {
            record.note_made(handle.identity());
        }
        Self { record, is_compared, ..Self::new(handle, &self.inner.flights) }
    }

    /// The calling process's rank.
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let ranks = world.all_gather(&Tensor::from_slice(&[world.rank()]), 0)?;
    /// assert_eq!(ranks, Tensor::from_slice(&(0..world.size()).collect::<Vec<_>>()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[inline]
    #[must_use]
    #[doc(alias = "MPI_Comm_rank")]
    pub fn rank(&self) -> Rank {
        self.inner.handle.rank()
    }

    /// The number of ranks.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let sum = world.all_reduce(&Tensor::from_slice(&[1]), Op::Sum)?;
    /// assert_eq!(sum, Tensor::from_slice(&[world.size()]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[inline]
    #[must_use]
    #[doc(alias = "MPI_Comm_size")]
    pub fn size(&self) -> Rank {
        self.inner.handle.size()
    }

    /// Ends the job at once, on all ranks, with this exit code: for errors after which this rank
    /// cannot go on while others may be waiting for it.
    ///
    /// Wraps `MPI_Abort`, for all ranks of the program, whatever the communicator.
    ///
    /// # Examples
    /// ```no_run
    /// use std::process::ExitCode;
    ///
    /// fn main() -> ExitCode {
    ///     let universe = mpi4tch::initialize().expect("MPI starts");
    ///     let world = universe.world();
    ///     if let Err(error) = train(&world) {
    ///         eprintln!("rank {}: {error}", world.rank());
    ///         world.abort(1);
    ///     }
    ///     ExitCode::SUCCESS
    /// }
    /// # fn train(_: &mpi4tch::Communicator) -> mpi4tch::Result<()> { Ok(()) }
    /// ```
    #[doc(alias = "MPI_Abort")]
    pub fn abort(&self, code: i32) -> ! {
        self.environment().flush_timeline();
        // Without `Environment::enter`: another thread may hold the permission and wait for ever.
        if self.environment().is_open() {
            // SAFETY: MPI has not been finalized, and the program ends here.
            unsafe { mpi_sys::MPI_Abort(mpi_sys::MPI_COMM_WORLD, code) };
        }
        std::process::exit(code)
    }

    /// Passes the outcome on, and notes its error by [`Environment::note`].
    #[inline]
    pub(crate) fn note<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            self.environment().note(error);
        }
        outcome
    }

    pub(crate) fn has_rank(&self, rank: Rank) -> bool {
        (0..self.size()).contains(&rank)
    }

    /// Checks that `root` is a rank of the communicator.
    #[inline]
    pub(crate) fn check_root(&self, call: &'static str, root: Rank) -> Result<()> {
        if self.has_rank(root) {
            return Ok(());
        }
        Err(Error::Rank { call, role: "root", rank: root, size: self.size() })
    }

    /// The same communicator, for the backward pass of the call at `site`.
    pub(crate) fn backward(&self, site: Site) -> Self {
        let (origin, adjoint_of) = (Some(site.at), site.number);
        Self { pass: Pass::Backward, origin, adjoint_of, ..self.plain() }
    }

    /// The same communicator, for the calls of a pullback of the user's. They are ordinary calls,
    /// which are reported at their own lines.
    pub(crate) fn of_pullback(&self) -> Self {
        let (of_pullback, is_compared) = (true, false);
        Self { pass: Pass::Forward, of_pullback, is_compared, origin: None, ..self.clone() }
    }

    /// The same communicator, for calls that are recorded on a tape.
    pub(crate) fn recorded_on(&self, record: Arc<Record>, is_compared: bool) -> Self {
        Self { record: Some(record), is_compared, ..self.clone() }
    }

    /// The same communicator, on no tape, for calls with an agreement of their own. It does not
    /// keep a tape alive.
    pub(crate) fn plain(&self) -> Self {
        Self { record: None, is_compared: false, ..self.unadmitted() }
    }

    /// The same communicator, for calls with an agreement of their own.
    pub(crate) fn unadmitted(&self) -> Self {
        Self { admission: None, ..self.clone() }
    }

    /// The same communicator, for calls that carry out the one at `site` and are reported at its
    /// line. Without it, calls made in a closure would be reported at a line of this crate.
    pub(crate) fn at(&self, site: Site) -> Self {
        Self { origin: Some(site.at), ..self.clone() }
    }

    /// The same communicator, for calls that need no agreement of their own.
    pub(crate) fn admitted(&self, admission: Admission) -> Self {
        Self { admission: Some(admission), ..self.clone() }
    }

    #[inline]
    pub(crate) fn admission(&self) -> Option<&Admission> {
        self.admission.as_ref()
    }

    #[inline]
    pub(crate) fn turns(&self) -> &Arc<Turns> {
        &self.inner.turns
    }

    #[inline]
    pub(crate) fn identity(&self) -> Identity {
        self.inner.handle.identity()
    }

    /// How much the ranks compare of their calls.
    #[inline]
    pub(crate) fn check_level(&self) -> Check {
        self.environment().check()
    }

    /// The record of the tape that calls are recorded on, unless it has been dropped; of the
    /// checkpoint that is run again, if the tape runs one.
    #[inline]
    pub(crate) fn record(&self) -> Option<Arc<Record>> {
        self.tape_record().map(Record::in_use)
    }

    /// The record of the tape that the communicator is on, unless it has been dropped.
    #[inline]
    pub(crate) fn tape_record(&self) -> Option<&Arc<Record>> {
        self.record.as_ref().filter(|record| record.is_open())
    }

    /// The same communicator, which stays on the record that is in use now.
    pub(crate) fn as_in_use(&self) -> Self {
        Self { record: self.record(), ..self.clone() }
    }

    /// Whether the ranks compare the calls by a tape, so that the calls need no agreement in its
    /// backward pass.
    pub(crate) fn is_compared(&self) -> bool {
        self.is_compared
    }

    /// The number of the call whose pullback makes the calls, or 0.
    pub(crate) fn adjoint_of(&self) -> u64 {
        self.adjoint_of
    }

    /// Whether its calls are those of the forward pass.
    #[inline]
    pub(crate) fn is_forward(&self) -> bool {
        matches!(self.pass, Pass::Forward)
    }

    /// The site of a call: the caller's line, or that of the call that it is made for.
    #[inline]
    #[track_caller]
    pub(crate) fn site(&self, call: &'static str) -> Site {
        let caller = Location::caller();
        let number = self.environment().watch().count_call();
        if let Some(record) = &self.record
            && self.origin.is_none()
            && self.admission.is_none()
        {
            record.note_call(call, caller, self.identity());
        }
        let backward = matches!(self.pass, Pass::Backward);
        Site { call, at: self.origin.unwrap_or(caller), backward, number, seal: 0 }
    }

    /// The MPI context for calls of the pass.
    #[inline]
    pub(crate) fn context(&self) -> MPI_Comm {
        let handle = &self.inner.handle;
        match (self.pass, self.caller()) {
            (_, Caller::Pullback) => handle.of_pullbacks().get(),
            (Pass::Backward, _) => handle.backward(),
            // A communicator that was made in the checkpoint itself has no other messages.
            (Pass::Forward, Caller::Checkpoint) => {
                handle.of_checkpoints().unwrap_or_else(|| handle.forward())
            }
            (Pass::Forward, Caller::Program) => {
                if let Some(record) = &self.record {
                    record.note_context(handle);
                }
                handle.forward()
            }
        }
    }

    #[inline]
    fn caller(&self) -> Caller {
        match &self.record {
            _ if self.of_pullback => Caller::Pullback,
            Some(record) if record.is_run_again() => Caller::Checkpoint,
            _ => Caller::Program,
        }
    }

    /// The lane of its messages.
    pub(crate) fn lane(&self) -> Lane {
        (self.identity(), self.caller())
    }

    #[inline]
    pub(crate) fn environment(&self) -> &Environment {
        self.inner.handle.environment()
    }

    /// The calls that were started, on all communicators.
    pub(crate) fn flights(&self) -> &Flights {
        &self.inner.flights
    }

    /// The MPI context of the crate's own messages.
    pub(crate) fn control(&self) -> MPI_Comm {
        self.inner.handle.control()
    }

    /// The MPI context with the ranks in reverse order, for the adjoint of a scan. It must have
    /// been [made](Self::make_reversed).
    pub(crate) fn reversed(&self) -> MPI_Comm {
        self.inner.handle.reversed().get()
    }

    /// Makes the context with the ranks in reverse order, unless it exists, by a collective call at
    /// `site`.
    pub(crate) fn make_reversed(&self, site: Site) -> Result<()> {
        let site = Site { call: "the communicator of a scan's adjoint", ..site };
        self.make_further(site, &self.inner.handle.reversed())
    }

    /// Makes the context for the calls of users' pullbacks, unless it exists, by a collective call
    /// at `site`. It is separate because nothing orders their messages with those of other
    /// adjoints.
    pub(crate) fn make_context_of_pullbacks(&self, site: Site) -> Result<()> {
        let site = Site { call: "the communicator of pullbacks", ..site };
        self.make_further(site, &self.inner.handle.of_pullbacks())
    }

    /// Makes the context for the messages of exchanges, unless it exists, by a collective call at
    /// `site`. It is separate because their tags are the crate's own.
    pub(crate) fn make_context_of_exchanges(&self, site: Site) -> Result<()> {
        let site = Site { call: "the communicator of exchanges", ..site };
        self.make_further(site, &self.inner.handle.exchanges())
    }

    /// The context of the messages of exchanges, which must have been
    /// [made](Self::make_context_of_exchanges).
    pub(crate) fn exchanges(&self) -> MPI_Comm {
        self.inner.handle.exchanges().get()
    }

    /// Which calls an exchange is one of. Exchanges with different numbers may go on at the same time,
    /// in an order that differs between ranks.
    pub(crate) fn pass_number(&self) -> i32 {
        match (self.pass, self.caller()) {
            (_, Caller::Pullback) => 2,
            (Pass::Backward, _) => 1,
            (Pass::Forward, Caller::Checkpoint) => 3,
            (Pass::Forward, Caller::Program) => 0,
        }
    }

    fn make_further(&self, site: Site, context: &Further) -> Result<()> {
        if context.is_made() {
            return Ok(());
        }
        let turn = agree_on(site, self)?;
        context.make(site)?;
        turn.made();
        Ok(())
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Communicator")
            .field("rank", &self.rank())
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}
