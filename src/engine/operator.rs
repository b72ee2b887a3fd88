//! Operators closed under adjoint, and the functions that carry out any of them.
//!
//! Take the tensors of all ranks as one vector. An [`Operator`] is a map on it, carried out by one
//! MPI call. A linear one's adjoint is another [`Operator`], so the pullback of [`apply`] is
//! [`apply`] of the adjoint, by the same differentiable path, and every order of derivative
//! follows. An operator that is not linear has a [`Derivative`] of its own, which consists of
//! linear operators and local work.
//!
//! Each operator can be carried out in two [`Mode`]s: [`Blocking`], or
//! [`Nonblocking`](crate::engine::request::Nonblocking), which returns a
//! [`Request`](crate::Request). A collective is written once, for both.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use tch::Tensor;

use crate::autograd::{self, Metadata};
use crate::base::error::Result;
use crate::base::rank::{Rank, index};
use crate::base::site::Site;
use crate::base::way::Way;
use crate::call::buffer::Input;
use crate::call::{Bulk, Plan};
use crate::engine::agreement::{
    Admission, Agreed, Proposal, Terms, Turn, agree, agree_on_outcome, fingerprint, refuse,
};
use crate::engine::communicator::Communicator;
use crate::engine::execution;
use crate::engine::flight::Start;
use crate::engine::request::settle_messages;
use crate::engine::tape::{self, Traffic};
use crate::engine::trace::Traced;
use crate::environment::status::Envelope;

/// A map on the tuple of all ranks' tensors, carried out by one MPI call or, if it does not
/// [communicate](Self::communicates), by none.
pub(crate) trait Operator: fmt::Debug + Send + Sync + 'static {
    /// The name of the method of [`Communicator`], such as `all_reduce`: for errors and graph
    /// nodes.
    fn name(&self) -> &'static str;

    /// Creates, by a collective call, a context that the operator needs besides the communicator's
    /// own. Called before [`terms`](Self::terms).
    fn prepare(&self, _site: Site, _comm: &Communicator) -> Result<()> {
        Ok(())
    }

    /// Checks this rank's arguments, and returns what the ranks must agree on. It makes no MPI
    /// call.
    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>>;

    /// Whether [`plan`](Self::plan) needs the other ranks' sizes, which are then exchanged first.
    fn exchanges_sizes(&self) -> bool {
        false
    }

    /// Whether the sizes that a rank is told are not told to all, so that [`plan`](Self::plan) may fail
    /// on some ranks only. The ranks then agree on the outcome.
    fn plans_alone(&self) -> bool {
        false
    }

    /// What there is to cut into pieces, as far as this rank knows.
    fn bulk(&self, _comm: &Communicator, input: &Input) -> Bulk {
        Bulk::Elements(input.count())
    }

    /// Which ranks take part in the call.
    fn traffic(&self) -> Traffic {
        Traffic::Collective
    }

    /// Whether it makes an MPI call. A map that makes none is not agreed on, though its adjoint may
    /// communicate. Its plan is [`Plan::without_call`].
    fn communicates(&self) -> bool {
        true
    }

    /// The rank whose tensor decides for all ranks whether the call is recorded; `None` if each
    /// rank's own decides. That rank tells the others by the first count of [`Terms::told`].
    fn recorded_by(&self) -> Option<Rank> {
        None
    }

    /// Lays out buffers, counts and datatypes.
    ///
    /// [`terms`](Self::terms) has returned `Ok` for this input. `agreed` has the sizes that the
    /// ranks told each other if [`exchanges_sizes`](Self::exchanges_sizes), and is empty otherwise.
    /// Without that exchange the ranks may not have agreed yet, so other ranks' arguments are
    /// unknown. Where sizes were exchanged, a check of them must have the same outcome on all
    /// ranks: a rank that fails alone leaves the others waiting in MPI.
    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>>;

    /// The adjoint of the linear map, for an input of this shape and the sizes in `agreed`.
    fn adjoint(&self, shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator>;
}

/// Whether an operator's call is waited for or only started.
pub(crate) trait Mode: 'static {
    /// The result, or a request for it.
    type Output: Send;

    /// Carries out an operator and adds it to the autograd graph: as one node, or as two, start and
    /// wait.
    ///
    /// `derivative` returns the operator's derivative for the input's shape and the agreed sizes.
    #[track_caller]
    fn carry_out<D: Derivative>(
        operator: &dyn Operator,
        comm: &Communicator,
        x: &Tensor,
        derivative: impl FnOnce(&[i64], &Agreed) -> D,
    ) -> Result<Self::Output>;

    /// Agrees on a composite call, which consists of one other call or of several blocking ones.
    /// Those are then made on the returned communicator, without an agreement of their own.
    #[track_caller]
    fn agree(
        operator: &dyn Operator,
        comm: &Communicator,
        x: &Tensor,
    ) -> Result<(Agreed, Communicator)>;

    /// Applies local work to results: at once, or at the wait.
    fn then<const N: usize>(
        outputs: [Self::Output; N],
        f: impl FnOnce([Tensor; N]) -> Result<Tensor> + Send + 'static,
    ) -> Result<Self::Output>;
}

/// The mode of calls that are waited for.
pub(crate) struct Blocking;

/// The pullback of an operator: takes the cotangent of its result to that of its input.
///
/// It communicates by operators only, so it can be carried out in either mode and differentiated.
pub(crate) trait Derivative: Send + Sync + 'static {
    /// Whether the pullback needs the values of the input and of the result.
    const READS: bool;

    /// Returns the cotangent of the input. `saved` has the input and the result if
    /// [`READS`](Self::READS), and is empty otherwise.
    fn pull<M: Mode>(
        &self,
        comm: &Communicator,
        saved: &[Tensor],
        cotangent: &Tensor,
    ) -> Result<M::Output>;
}

/// The derivative of a linear operator: its adjoint.
pub(crate) struct Linear(Arc<dyn Operator>);

impl Derivative for Linear {
    const READS: bool = false;

    fn pull<M: Mode>(
        &self,
        comm: &Communicator,
        _: &[Tensor],
        cotangent: &Tensor,
    ) -> Result<M::Output> {
        apply::<M>(&*self.0, comm, cotangent)
    }
}

/// Carries out a linear operator.
#[track_caller]
#[inline]
pub(crate) fn apply<M: Mode>(
    operator: &dyn Operator,
    comm: &Communicator,
    x: &Tensor,
) -> Result<M::Output> {
    let adjoint = |shape: &[i64], agreed: &_| Linear(operator.adjoint(shape, agreed));
    comm.note(M::carry_out(operator, comm, x, adjoint))
}

/// Carries out an operator that is not linear.
#[track_caller]
#[inline]
pub(crate) fn apply_nonlinear<M: Mode>(
    operator: &dyn Operator,
    comm: &Communicator,
    x: &Tensor,
    derivative: impl Derivative,
) -> Result<M::Output> {
    comm.note(M::carry_out(operator, comm, x, |_, _| derivative))
}

impl Mode for Blocking {
    type Output = Tensor;

    #[track_caller]
    #[inline]
    fn carry_out<D: Derivative>(
        operator: &dyn Operator,
        comm: &Communicator,
        x: &Tensor,
        derivative: impl FnOnce(&[i64], &Agreed) -> D,
    ) -> Result<Tensor> {
        let site = comm.site(operator.name());
        let way = comm.environment().way();
        let Ready { plan, agreed, records, turn, mut traced } =
            Ready::new(operator, site, comm, x, way)?;
        if !records {
            return execution::run(plan, site, comm, turn.as_deref());
        }
        let derivative = derivative(plan.input.shape(), &agreed);
        let y = execution::run(plan, site, comm, turn.as_deref())?;
        let site = Site { seal: turn.as_deref().map_or(0, Turn::seal), ..site };
        drop(turn);
        settle_messages(comm, &operator.traffic())?;
        let saved: &[&Tensor] = if D::READS { &[x, &y] } else { &[] };
        let traffic = operator.traffic();
        tape::add_node(site, comm, traffic, [&[x], &[&y]], saved, move |comm, mut pulled| {
            let saved = pulled.saved(site, comm)?;
            Ok(vec![Some(derivative.pull::<Self>(comm, &saved, pulled.cotangent())?)])
        })?;
        traced.note_place(comm);
        Ok(y)
    }

    #[track_caller]
    fn agree(
        operator: &dyn Operator,
        comm: &Communicator,
        x: &Tensor,
    ) -> Result<(Agreed, Communicator)> {
        let site = comm.site(operator.name());
        agree_on_parts(operator, site, comm, x, comm.environment().way())
    }

    fn then<const N: usize>(
        outputs: [Tensor; N],
        f: impl FnOnce([Tensor; N]) -> Result<Tensor> + Send + 'static,
    ) -> Result<Tensor> {
        f(outputs)
    }
}

/// Carries out, in place, a linear operator whose result has the shape of its input.
#[track_caller]
pub(crate) fn apply_in_place(
    operator: &dyn Operator,
    comm: &Communicator,
    x: &mut Tensor,
) -> Result<()> {
    comm.note(change_in_place(operator, comm, x))
}

#[track_caller]
fn change_in_place(operator: &dyn Operator, comm: &Communicator, x: &mut Tensor) -> Result<()> {
    let site = comm.site(operator.name());
    let target = match autograd::InPlace::new(site.call, x) {
        Ok(target) => target,
        Err(error) => return Err(refuse(site, comm, error, operator.exchanges_sizes())),
    };
    // On a tape a node has a second output, the token; libtorch allows a node in place only one.
    if comm.is_on_tape() {
        return replace(site, comm, x, |comm, x| apply::<Blocking>(operator, comm, x));
    }
    // libtorch skips the node of a view whose cotangent is undefined, and with it the
    // communication. So a view that is recorded is changed by way of a copy. The call on the copy
    // is in place as well: other ranks may have no view, and MPI_IN_PLACE must be given by all
    // ranks or by none.
    if target.is_view() && comm.records(&Metadata::of(x)) {
        let mut y = x.f_alias_copy()?;
        change_in_place(operator, comm, &mut y)?;
        return Ok(x.f_copy_(&y)?);
    }
    let way = comm.environment().way();
    let ready = Ready::new(operator, site, comm, x, way)?;
    let Ready { plan, agreed, records, turn, traced: _traced } = ready;
    let Some(turn) = turn else { unreachable!("what changes in place is collective") };
    let adjoint = records.then(|| Linear(operator.adjoint(plan.input.shape(), &agreed)));
    execution::run_in_place(plan, site, comm, (&mut x.shallow_clone(), target.data()), &turn)?;
    drop(turn);
    let Some(adjoint) = adjoint else { return target.bump_version(x) };
    let comm = comm.backward(site);
    target.record(x, move |backward| {
        let cotangent = &backward.cotangents[0];
        Ok(vec![Some(adjoint.pull::<Blocking>(&comm, &[], cotangent)?)])
    })
}

/// Replaces `x` by `f(comm, x)`, by torch's rules for changes in place. The calls of `f` are
/// reported at the line of `site`.
pub(crate) fn replace(
    site: Site,
    comm: &Communicator,
    x: &mut Tensor,
    f: impl FnOnce(&Communicator, &Tensor) -> Result<Tensor>,
) -> Result<()> {
    if let Err(error) = autograd::InPlace::new(site.call, x) {
        return Err(refuse(site, comm, error, false));
    }
    // f may save its input for the backward pass, and x changes after that.
    let before = if comm.records(&Metadata::of(x)) { x.f_alias_copy()? } else { x.shallow_clone() };
    let y = f(&comm.at(site), &before)?;
    Ok(x.f_copy_(&y)?)
}

/// An operator that has been checked, agreed on and laid out.
pub(crate) struct Ready<'x> {
    pub(crate) plan: Plan<'x>,
    pub(crate) agreed: Agreed,
    pub(crate) records: bool,
    /// The turn of the call, if it is collective.
    turn: Option<Arc<Turn>>,
    pub(crate) traced: Traced,
}

impl<'x> Ready<'x> {
    #[inline]
    fn new(
        operator: &dyn Operator,
        site: Site,
        comm: &Communicator,
        x: &'x Tensor,
        way: Way,
    ) -> Result<Self> {
        let mut traced = Traced::begin(site, comm);
        let (input, agreed, turn) = negotiate(operator, site, comm, x, way)?;
        let records = match operator.recorded_by() {
            None => comm.records(input.view()),
            Some(rank) => agreed.counts(0)[index(rank)] != 0,
        };
        let mut plan = operator.plan(comm, input, &agreed);
        if let Some(turn) = turn.as_deref().filter(|_| operator.plans_alone()) {
            plan = agree_on_outcome(site, comm, turn, plan);
        }
        if let Ok(plan) = &plan {
            traced.describe(plan, || operator.traffic());
        }
        Ok(Self { plan: plan?, agreed, records, turn, traced })
    }

    /// The plan of an operator that is part of a call that the ranks have agreed on, without autograd.
    pub(crate) fn as_part(
        operator: &dyn Operator,
        site: Site,
        comm: &Communicator,
        x: &'x Tensor,
    ) -> Result<(Plan<'x>, Traced)> {
        let mut traced = Traced::begin(site, comm);
        let plan = operator.plan(comm, Input::new(site.call, x)?, &Agreed::default())?;
        traced.describe(&plan, || operator.traffic());
        Ok((plan, traced))
    }

    /// As [`new`](Self::new), for a call that is only started. The plan is made before the ranks
    /// have agreed, and they agree while the call waits in its queue. A call that exchanges sizes,
    /// is part of one that was agreed on, is not collective, or makes no MPI call, is prepared as by
    /// `new`.
    pub(crate) fn to_start(
        operator: &dyn Operator,
        site: Site,
        comm: &Communicator,
        x: &'x Tensor,
    ) -> Result<(Self, Start)> {
        let is_granted = matches!(comm.admission(), Some(Admission::Granted(_)));
        let agrees_later = operator.communicates()
            && operator.traffic().is_collective()
            && !operator.exchanges_sizes();
        if is_granted || !agrees_later {
            let mut ready = Self::new(operator, site, comm, x, Way::Polls)?;
            let start = ready.turn.take().map_or(Start::Now, Start::InTurn);
            return Ok((ready, start));
        }
        let mut traced = Traced::begin(site, comm);
        operator.prepare(site, comm)?;
        let input = match Input::new(operator.name(), x) {
            Ok(input) => input,
            Err(error) => return Err(Proposal::refuse(site, comm, error)),
        };
        let records = comm.records(input.view());
        let subject = Some((input.datatype(), records));
        let terms = operator.terms(comm, &input);
        note_arguments(comm, &input, &terms, operator.recorded_by().is_some());
        let terms = match terms {
            Ok(terms) => terms,
            Err(error) => return Err(Proposal::refuse(site, comm, error)),
        };
        let agreed = Agreed::default();
        let plan = match operator.plan(comm, input, &agreed) {
            Ok(plan) => plan,
            Err(error) => return Err(Proposal::refuse(site, comm, error)),
        };
        traced.describe(&plan, || operator.traffic());
        let proposal = Proposal::begin(site, comm, subject, Ok(terms))?;
        let start = proposal.map_or(Start::Now, |proposal| Start::Agreed(Box::new(proposal)));
        Ok((Self { plan, agreed, records, turn: None, traced }, start))
    }
}

/// Notes the arguments of a call in a checkpoint, which must be the same when it is run again. Those of
/// a part of a call that was agreed on are not noted.
#[inline]
pub(crate) fn note_arguments(
    comm: &Communicator,
    input: &Input,
    terms: &Result<Terms>,
    tells_recording: bool,
) {
    let is_whole = !matches!(comm.admission(), Some(Admission::Granted(_) | Admission::Compared));
    if let (Some(record), Ok(terms)) = (comm.tape_record(), terms)
        && is_whole
        && comm.is_forward()
    {
        record.note_arguments(|hasher| {
            (input.shape(), input.datatype().scalar_type()).hash(hasher);
            terms.hash_arguments(tells_recording, hasher);
        });
    }
}

/// Agrees on a composite call. Returns the communicator on which its parts are made in its turn.
pub(crate) fn agree_on_parts(
    operator: &dyn Operator,
    site: Site,
    comm: &Communicator,
    x: &Tensor,
    way: Way,
) -> Result<(Agreed, Communicator)> {
    let (_, agreed, turn) = comm.note(negotiate(operator, site, comm, x, way))?;
    let granted = |turn| comm.admitted(Admission::Granted(turn));
    Ok((agreed, turn.map_or_else(|| comm.clone(), granted)))
}

/// Checks the call on this rank, and agrees on it with the others if it is collective and makes an
/// MPI call.
#[inline]
fn negotiate<'x>(
    operator: &dyn Operator,
    site: Site,
    comm: &Communicator,
    x: &'x Tensor,
    way: Way,
) -> Result<(Input<'x>, Agreed, Option<Arc<Turn>>)> {
    let call = operator.name();
    if !operator.traffic().is_collective() {
        tape::refuse_message_on_no_tape(site, comm)?;
        let input = Input::new(call, x)?;
        let terms = operator.terms(comm, &input);
        note_arguments(comm, &input, &terms, operator.recorded_by().is_some());
        terms?;
        if let Traffic::Messages { send, .. } = operator.traffic()
            && let Some(record) = comm.tape_record()
        {
            // The wildcards of a receive have been noted before the call.
            record.note_arguments(|hasher| send.as_ref().and_then(Envelope::known).hash(hasher));
        }
        return Ok((input, Agreed::default(), None));
    }
    if !operator.communicates() {
        let input = Input::new(call, x)?;
        let terms = operator.terms(comm, &input);
        note_arguments(comm, &input, &terms, operator.recorded_by().is_some());
        let terms = terms?;
        // A tape compares the call in place of an agreement, as the adjoint may communicate.
        let subject = Some((input.datatype(), comm.records(input.view())));
        let seal = if comm.is_on_tape() { fingerprint(site, comm, subject, terms) } else { 0 };
        return Ok((input, Agreed::default(), Some(Arc::new(Turn::free(seal)))));
    }
    operator.prepare(site, comm)?;
    let exchanges = operator.exchanges_sizes();
    // A rank that refuses its arguments tells the ranks that would otherwise wait for it.
    let input = match Input::new(call, x) {
        Ok(input) => input,
        Err(error) => return Err(refuse(site, comm, error, exchanges)),
    };
    let records = operator.recorded_by().is_none() && comm.records(input.view());
    let subject = Some((input.datatype(), records));
    let terms = operator.terms(comm, &input);
    note_arguments(comm, &input, &terms, operator.recorded_by().is_some());
    let own = || input.way(comm.handle(), || operator.bulk(comm, &input));
    let way = if terms.is_ok() { way.max(own()) } else { way };
    let (agreed, turn) = agree(site, comm, subject, terms, exchanges, way)?;
    Ok((input, agreed, Some(turn)))
}
