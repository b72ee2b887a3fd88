//! `MPI_Allreduce`.

use std::sync::Arc;

use tch::Tensor;

use super::nonlinear;
use crate::buffer::{Input, Output};
use crate::call::{Call, Plan, Reduction};
use crate::communicator::Communicator;
use crate::error::{Error, Result};
use crate::operator::{Operator, apply, apply_nonlinear};
use crate::reduction::Op;

impl Communicator {
    /// Combines `x` over all ranks with `op`; every rank receives the result.
    ///
    /// Wraps `MPI_Allreduce`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's. Any layout; the result is contiguous
    ///   and shares no storage with `x`.
    /// - Kinds: as the [table of `Op`](Op#kinds) says; equal on all ranks. In host memory.
    /// - Adjoint: of `Sum` it is `all_reduce` with `Sum`, of `Mean` with `Mean`. `Max` and `Min`
    ///   share the cotangent's sum among the ranks that have the extreme value; `Prod` is exact
    ///   where factors are zero. See the crate's [adjoint table](crate#adjoints).
    ///
    /// The objective is the sum of all ranks' losses: a result that every rank uses as its loss
    /// counts once per rank, and its gradient is that of the sum times
    /// [`size`](Communicator::size).
    ///
    /// # Errors
    /// [`Error::OpKind`] if `op` is not defined for the tensor's kind, [`Error::NoAdjoint`] if it
    /// has no derivative and `x` requires grad; [`Error::Kind`], [`Error::Layout`],
    /// [`Error::Device`] if MPI cannot take the tensor; [`Error::Mpi`] if MPI fails;
    /// [`Error::Finalized`] after the universe's end.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    ///
    /// let x = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
    /// let y = world.all_reduce(&x, Op::Sum)?;
    /// (y.sum(Kind::Double) / f64::from(world.size())).backward();
    /// assert_eq!(x.grad(), Tensor::from_slice(&[1.0, 1.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Allreduce")]
    pub fn all_reduce(&self, x: &Tensor, op: Op) -> Result<Tensor> {
        let operator = AllReduce { op };
        match op {
            Op::Max | Op::Min => apply_nonlinear(&operator, nonlinear::extremum, self, x),
            Op::Prod => apply_nonlinear(&operator, nonlinear::product, self, x),
            // The others are linear, or refuse a tensor that requires grad.
            _ => apply(&operator, self, x),
        }
    }
}

#[derive(Debug)]
struct AllReduce {
    op: Op,
}

const ALL_REDUCE: Reduction = Reduction { name: "MPI_Allreduce", run: mpi_sys::MPI_Allreduce };

impl Operator for AllReduce {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>) -> Result<Plan<'x>> {
        let call = self.name();
        if input.requires_grad() && !self.op.is_differentiable() {
            return Err(Error::NoAdjoint { call, op: self.op });
        }
        let op = self.op.mpi(call, input.datatype(), &comm.environment().handles().ops)?;
        let (input, divisor) = self.op.adapt(input, comm.size())?;
        let output = Output::new(call, input.shape(), input.datatype())?;
        Ok(Plan { input, output, call: Call::Reduction { function: ALL_REDUCE, op }, divisor })
    }

    fn adjoint(&self, _plan: &Plan) -> Arc<dyn Operator> {
        Arc::new(Self { op: self.op })
    }
}
