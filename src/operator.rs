//! Operators closed under adjoint, and what is written once for all of them.
//!
//! Take the tensors of all ranks as one vector. An [`Operator`] is a linear map on it, carried out
//! by one MPI call, and its adjoint is another [`Operator`]. So the pullback of [`apply`] is
//! [`apply`] of the adjoint, by the same differentiable path, and every order of derivative
//! follows.

use std::fmt;
use std::sync::Arc;

use tch::Tensor;

use crate::autograd::{self, Backward};
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

    /// Checks the arguments and lays out buffers, counts and datatypes.
    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>) -> Result<Plan<'x>>;

    /// The adjoint of the linear map, for an input laid out as in `plan`.
    fn adjoint(&self, plan: &Plan) -> Arc<dyn Operator>;
}

/// Carries out a linear operator as a node of the autograd graph.
pub(crate) fn apply(operator: &dyn Operator, comm: &Communicator, x: &Tensor) -> Result<Tensor> {
    let call = operator.name();
    let input = Input::new(call, x)?;
    let requires_grad = input.requires_grad();
    let plan = operator.plan(comm, input)?;
    if !requires_grad {
        return plan.run(call, comm);
    }
    let adjoint = operator.adjoint(&plan);
    let y = plan.run(call, comm)?;
    let comm = comm.backward();
    autograd::record(call, &[x], &[&y], &[], move |Backward { cotangents, .. }| {
        cotangents.iter().map(|ȳ| apply(&*adjoint, &comm, ȳ).map(Some)).collect()
    })?;
    Ok(y)
}

/// `(comm, x, y, ȳ)` to `x̄`: local work, then linear operators, then local work.
pub(crate) type Derivative = fn(&Communicator, &Tensor, &Tensor, &Tensor) -> Result<Tensor>;

/// Carries out an operator that is not linear as a node of the autograd graph.
pub(crate) fn apply_nonlinear(
    operator: &dyn Operator,
    derivative: Derivative,
    comm: &Communicator,
    x: &Tensor,
) -> Result<Tensor> {
    let call = operator.name();
    let input = Input::new(call, x)?;
    let requires_grad = input.requires_grad();
    let y = operator.plan(comm, input)?.run(call, comm)?;
    if requires_grad {
        let comm = comm.backward();
        let pullback = move |Backward { cotangents, saved }: Backward| {
            let [x, y] = &saved[..] else { unreachable!("x and y are saved") };
            cotangents.iter().map(|ȳ| derivative(&comm, x, y, ȳ).map(Some)).collect()
        };
        autograd::record(call, &[x], &[&y], &[x, &y], pullback)?;
    }
    Ok(y)
}
