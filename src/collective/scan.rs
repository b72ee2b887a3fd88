//! `MPI_Scan` and `MPI_Exscan`.

use std::sync::Arc;

use tch::Tensor;

use super::nonlinear;
use crate::agreement::{Agreed, Terms};
use crate::buffer::Input;
use crate::call::{Call, Finish, Plan, Reduction};
use crate::communicator::Communicator;
use crate::error::{Error, Result};
use crate::operator::{Operator, apply, negotiate, records};
use crate::reduction::Op;

impl Communicator {
    /// Combines the `x` of this rank and of those before it with `op`.
    ///
    /// Wraps `MPI_Scan`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's.
    /// - Kinds: as the [table of `Op`](Op#kinds) says; equal on all ranks. `Mean` is that of the
    ///   ranks so far.
    /// - Adjoint: of `Sum`, x̄_r = Σ_{s≥r} ȳ_s: the scan from the other end, as one `MPI_Scan` on a
    ///   communicator with reversed ranks. With `Max`, `Min` and `Prod`, an `x` that requires grad
    ///   goes by [`all_gather`](Self::all_gather), and takes the memory of all ranks' `x`. There the
    ///   gradient of `Max` and `Min` is NaN where the result is, and where the result is the op's
    ///   identity, −∞ or ∞, later ranks count as ties and part of the cotangent is lost.
    ///
    /// # Errors
    /// `Error::OpKind` if `op` is not defined for the tensor's kind; `Error::NoAdjoint` if it has
    /// no derivative and `x` requires grad; and what is [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let y = world.scan(&Tensor::from_slice(&[1]), Op::Sum)?;
    /// assert_eq!(y, Tensor::from_slice(&[world.rank() + 1]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Scan")]
    pub fn scan(&self, x: &Tensor, op: Op) -> Result<Tensor> {
        let operator = Scan { op, inclusive: true, from: End::First };
        if !op.is_linear() && op.is_differentiable() && records(x) {
            // The calls that follow do not compare the op.
            let _ = negotiate(&operator, self, x)?;
            return nonlinear::prefix(self, x, op, i64::from(self.rank()) + 1);
        }
        op.averaging(self.rank() + 1, x, |x| apply(&operator, self, x))
    }

    /// Combines the `x` of the ranks before this one with `op`; rank 0 receives the op's identity.
    ///
    /// Wraps `MPI_Exscan`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's.
    /// - Kinds: as the [table of `Op`](Op#kinds) says; equal on all ranks. `Mean` is not defined:
    ///   nothing has no mean. The identity of `Max` is −∞, or the least integer, and so on.
    /// - Adjoint: of `Sum`, x̄_r = Σ_{s>r} ȳ_s, as for [`scan`](Self::scan); the result on rank 0 is a
    ///   constant. `Max`, `Min` and `Prod` as for `scan`.
    ///
    /// # Errors
    /// `Error::Op` for `Mean`; otherwise as for `scan`.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// // Where this rank's part of a vector begins.
    /// let length = Tensor::from_slice(&[10]);
    /// assert_eq!(world.exscan(&length, Op::Sum)?, Tensor::from_slice(&[10 * world.rank()]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Exscan")]
    pub fn exscan(&self, x: &Tensor, op: Op) -> Result<Tensor> {
        let operator = Scan { op, inclusive: false, from: End::First };
        if !op.is_linear() && op.is_differentiable() && records(x) {
            // The calls that follow do not compare the op.
            let _ = negotiate(&operator, self, x)?;
            return nonlinear::prefix(self, x, op, i64::from(self.rank()));
        }
        apply(&operator, self, x)
    }
}

/// The end of the ranks at which a scan starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    First,
    Last,
}

/// The exclusive scan from either end, for derivatives.
pub(super) fn exscan_from(comm: &Communicator, x: &Tensor, op: Op, from: End) -> Result<Tensor> {
    apply(&Scan { op, inclusive: false, from }, comm, x)
}

/// For `Sum`, its own adjoint from the other end.
#[derive(Debug)]
struct Scan {
    op: Op,
    inclusive: bool,
    from: End,
}

const SCAN: Reduction = Reduction { name: "MPI_Scan", run: mpi_sys::MPI_Scan };
const EXSCAN: Reduction = Reduction { name: "MPI_Exscan", run: mpi_sys::MPI_Exscan };

impl Operator for Scan {
    fn name(&self) -> &'static str {
        if self.inclusive { "scan" } else { "exscan" }
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        if !self.inclusive && self.op == Op::Mean {
            let reason = "rank 0 would have the mean of nothing";
            return Err(Error::Op { call: self.name(), op: self.op, reason });
        }
        self.op.check(self.name(), comm, input)?;
        Ok(Terms { op: Some(self.op), shape: Some((input.shape(), None)), ..Terms::default() })
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let op = self.op.check(self.name(), comm, &input)?;
        let input = self.op.operand(input)?.contiguous()?;
        let shape = input.shape().into();
        let (context, first) = match self.from {
            End::First => (comm.context(), 0),
            End::Last => (comm.reversed()?, comm.size() - 1),
        };
        let finish = if !self.inclusive && comm.rank() == first {
            Finish::Fill(self.op.identity(input.datatype().kind))
        } else {
            Finish::Nothing
        };
        let function = if self.inclusive { SCAN } else { EXSCAN };
        Ok(Plan { input, shape, call: Call::Reduction { function, op }, context, finish })
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        let from = if self.from == End::First { End::Last } else { End::First };
        Arc::new(Self { op: Op::Sum, inclusive: self.inclusive, from })
    }
}
