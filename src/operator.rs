//! Operators closed under adjoint, and what is written once for all of them.
//!
//! Take the tensors of all ranks as one vector. An [`Operator`] is a linear map on it, carried out
//! by one MPI call, and its adjoint is another [`Operator`]. So the pullback of [`apply`] is
//! [`apply`] of the adjoint, by the same differentiable path, and every order of derivative
//! follows.

use std::fmt;
use std::sync::Arc;

use tch::Tensor;

use crate::agreement::{Agreed, Terms, agree, refuse};
use crate::autograd::{self, Backward, View};
use crate::buffer::Input;
use crate::call::Plan;
use crate::communicator::Communicator;
use crate::error::Result;

/// A map on the tuple of all ranks' tensors, carried out by one MPI call.
///
/// With the op `Max`, `Min` or `Prod` it is not linear, and goes by [`apply_nonlinear`] instead of
/// [`apply`].
pub(crate) trait Operator: fmt::Debug + Send + Sync + 'static {
    /// The method of [`Communicator`], for errors and the names of graph nodes: `all_reduce`.
    fn name(&self) -> &'static str;

    /// Checks the arguments by themselves, and says what the ranks must agree on.
    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>>;

    /// Whether a rank cannot lay out its buffers before it knows the others' sizes.
    fn exchanges_sizes(&self) -> bool {
        false
    }

    /// Lays out buffers, counts and datatypes.
    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>>;

    /// The adjoint of the linear map, for an input of this shape and what was agreed on.
    fn adjoint(&self, shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator>;
}

/// Carries out a linear operator as a node of the autograd graph.
pub(crate) fn apply(operator: &dyn Operator, comm: &Communicator, x: &Tensor) -> Result<Tensor> {
    let ready = Ready::new(operator, comm, x)?;
    if !ready.requires_grad {
        return ready.plan.run(operator.name(), comm);
    }
    let adjoint = operator.adjoint(ready.plan.input.shape(), &ready.agreed);
    let y = ready.plan.run(operator.name(), comm)?;
    autograd::record(operator.name(), &[x], &[&y], &[], pullback(adjoint, comm))?;
    Ok(y)
}

/// The pullback of a linear operator: its adjoint, in the backward pass's context.
pub(crate) fn pullback(
    adjoint: Arc<dyn Operator>,
    comm: &Communicator,
) -> impl Fn(Backward) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static {
    let comm = comm.backward();
    move |Backward { cotangents, .. }| {
        cotangents.iter().map(|cotangent| apply(&*adjoint, &comm, cotangent).map(Some)).collect()
    }
}

/// Carries out an operator that is not linear as a node of the autograd graph.
///
/// `derivative` takes `(comm, x, y, ȳ)` to `x̄`: local work, then a linear operator, then local
/// work.
pub(crate) fn apply_nonlinear<D>(
    operator: &dyn Operator,
    comm: &Communicator,
    x: &Tensor,
    derivative: D,
) -> Result<Tensor>
where
    D: Fn(&Communicator, &Tensor, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    let ready = Ready::new(operator, comm, x)?;
    let requires_grad = ready.requires_grad;
    let y = ready.plan.run(operator.name(), comm)?;
    if requires_grad {
        let (call, comm) = (operator.name(), comm.backward());
        let pullback = move |Backward { cotangents, saved }: Backward| {
            let saved = saved.map_err(|error| refuse(call, &comm, error, false))?;
            let [x, y] = &saved[..] else { unreachable!("x and y are saved") };
            cotangents
                .iter()
                .map(|cotangent| derivative(&comm, x, y, cotangent).map(Some))
                .collect()
        };
        autograd::record(operator.name(), &[x], &[&y], &[x, &y], pullback)?;
    }
    Ok(y)
}

/// Carries out a linear operator whose result has the shape of its input, in place.
pub(crate) fn apply_in_place(
    operator: &dyn Operator,
    comm: &Communicator,
    x: &mut Tensor,
) -> Result<()> {
    let call = operator.name();
    let target = match autograd::InPlace::new(call, x) {
        Ok(target) => target,
        Err(error) => return Err(refuse(call, comm, error, operator.exchanges_sizes())),
    };
    let ready = Ready::new(operator, comm, x)?;
    let adjoint =
        ready.requires_grad.then(|| operator.adjoint(ready.plan.input.shape(), &ready.agreed));
    let Ready { plan, .. } = ready;
    plan.run_in_place(call, comm, &mut x.shallow_clone(), target.data())?;
    match adjoint {
        Some(adjoint) => target.record(x, pullback(adjoint, comm)),
        None => target.bump_version(x),
    }
}

/// Replaces `x` by `f(x)`, with torch's rules for changes in place.
pub(crate) fn replace(
    call: &'static str,
    comm: &Communicator,
    x: &mut Tensor,
    f: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<()> {
    if let Err(error) = autograd::InPlace::new(call, x) {
        return Err(refuse(call, comm, error, false));
    }
    // f may keep its input for the backward pass, while x changes.
    let before = if records(x) { x.f_alias_copy()? } else { x.shallow_clone() };
    let y = f(&before)?;
    Ok(x.f_copy_(&y)?)
}

/// Whether a call on `x` is to be recorded.
pub(crate) fn records(x: &Tensor) -> bool {
    View::of(x).requires_grad()
}

/// An operator that has been checked, agreed on and laid out.
struct Ready<'x> {
    plan: Plan<'x>,
    agreed: Agreed,
    requires_grad: bool,
}

impl<'x> Ready<'x> {
    #[inline]
    fn new(operator: &dyn Operator, comm: &Communicator, x: &'x Tensor) -> Result<Self> {
        let (input, agreed) = negotiate(operator, comm, x)?;
        let requires_grad = input.requires_grad();
        let plan = operator.plan(comm, input, &agreed)?;
        Ok(Self { plan, agreed, requires_grad })
    }
}

/// Checks the call on this rank, and agrees on it with the others where that is due.
#[inline]
pub(crate) fn negotiate<'x>(
    operator: &dyn Operator,
    comm: &Communicator,
    x: &'x Tensor,
) -> Result<(Input<'x>, Agreed)> {
    let call = operator.name();
    let exchanges = operator.exchanges_sizes();
    // A rank that refuses its arguments says so to those that would wait for it.
    let input = match Input::new(call, x) {
        Ok(input) => input,
        Err(error) => return Err(refuse(call, comm, error, exchanges)),
    };
    let tensor = Some((input.datatype(), input.requires_grad()));
    let agreed = agree(call, comm, tensor, operator.terms(comm, &input), exchanges)?;
    Ok((input, agreed))
}
