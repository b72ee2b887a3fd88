//! `MPI_Reduce`.

use std::sync::Arc;

use tch::Tensor;

use super::broadcast::Broadcast;
use crate::agreement::{Agreed, Terms};
use crate::buffer::Input;
use crate::call::{Call, Finish, Plan};
use crate::communicator::{Communicator, Rank};
use crate::error::Result;
use crate::operator::{Operator, apply, apply_in_place, negotiate, records, replace};
use crate::reduction::Op;

impl Communicator {
    /// Combines `x` over all ranks with `op`; `root` receives the result, the others zeros.
    ///
    /// Wraps `MPI_Reduce`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's.
    /// - Kinds: as the [table of `Op`](Op#kinds) says; equal on all ranks.
    /// - Adjoint: of `Sum`, `x̄ = broadcast(ȳ, root)`; of `Mean` the same divided. The result off
    ///   root is a constant: its cotangent is ignored. With `Max`, `Min` and `Prod`, an `x` that
    ///   requires grad goes by [`all_reduce`](Self::all_reduce), whose derivative needs the result
    ///   on every rank.
    ///
    /// # Errors
    /// `Error::Rank` if there is no rank `root`; `Error::OpKind` if `op` is not defined for the
    /// tensor's kind; `Error::NoAdjoint` if it has no derivative and `x` requires grad; and what is
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let ones = world.reduce(&Tensor::from_slice(&[1]), Op::Sum, 0)?;
    /// let expected = if world.rank() == 0 { world.size() } else { 0 };
    /// assert_eq!(ones, Tensor::from_slice(&[expected]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Reduce")]
    pub fn reduce(&self, x: &Tensor, op: Op, root: Rank) -> Result<Tensor> {
        if !op.is_linear() && op.is_differentiable() && records(x) {
            // The call that follows does not compare the root.
            let _ = negotiate(&Reduce { op, root }, self, x)?;
            let y = self.all_reduce(x, op)?;
            // Off root a constant, though still a node that takes part in the backward pass.
            return Ok(if self.rank() == root { y } else { y.f_masked_fill(&all(&y)?, 0.0)? });
        }
        let operator = Reduce { op, root };
        op.averaging(self.size(), x, |x| apply(&operator, self, x))
    }

    /// [`reduce`](Self::reduce) in place: `x` becomes the result, on `root`, or zeros.
    ///
    /// Wraps `MPI_Reduce`, with `MPI_IN_PLACE` on the root. Collective: every rank must call it.
    /// It follows torch's rules for changes in place, as [`all_reduce_`](Self::all_reduce_) does.
    ///
    /// - Shape, kinds, adjoint: as `reduce`.
    ///
    /// # Errors
    /// As for `reduce`; `Error::Autograd` if torch's rules forbid the change.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let mut x = Tensor::from_slice(&[1]);
    /// world.reduce_(&mut x, Op::Max, 0)?;
    /// assert_eq!(x, Tensor::from_slice(&[i32::from(world.rank() == 0)]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Reduce")]
    #[doc(alias = "MPI_IN_PLACE")]
    pub fn reduce_(&self, x: &mut Tensor, op: Op, root: Rank) -> Result<()> {
        if op == Op::Sum {
            return apply_in_place(&Reduce { op, root }, self, x);
        }
        replace("reduce", self, x, |x| self.reduce(x, op, root))
    }
}

/// A mask that holds everywhere.
fn all(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_ones_like()?.f_to_kind(tch::Kind::Bool)?)
}

/// For `Sum`, the adjoint of [`Broadcast`].
#[derive(Debug)]
pub(super) struct Reduce {
    pub(super) op: Op,
    pub(super) root: Rank,
}

impl Operator for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        comm.check_root(self.name(), self.root)?;
        self.op.check(self.name(), comm, input)?;
        Ok(Terms {
            op: Some(self.op),
            root: Some(self.root),
            shape: Some((input.shape(), None)),
            ..Terms::default()
        })
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let op = self.op.check(self.name(), comm, &input)?;
        let input = self.op.operand(input)?.contiguous()?;
        let shape = input.shape().into();
        let finish =
            if comm.rank() == self.root { Finish::Nothing } else { Finish::Fill(0.into()) };
        let call = Call::Reduce { op, root: self.root };
        Ok(Plan { input, shape, call, context: comm.context(), finish })
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Broadcast { root: self.root })
    }
}
