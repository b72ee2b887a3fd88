//! `MPI_Allreduce`.

use std::sync::Arc;

use tch::Tensor;

use super::nonlinear::{Extremum, Product};
use crate::autograd::{InPlace, Recording};
use crate::base::error::Result;
use crate::base::op::Op;
use crate::base::site::Site;
use crate::base::way::Way;
use crate::call::buffer::Input;
use crate::call::{Call, Finish, Plan};
use crate::engine::agreement::{Agreed, Terms, Turn};
use crate::engine::communicator::Communicator;
use crate::engine::execution::{self, Started};
use crate::engine::operator::{
    Blocking, Mode, Operator, Ready, apply_in_place, apply_nonlinear, replace,
};
use crate::engine::reduction;
use crate::engine::request::{Nonblocking, Request};

impl Communicator {
    /// Combines `x` over all ranks with `op`; every rank receives the result.
    ///
    /// Wraps `MPI_Allreduce`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's. Any layout; the result is contiguous
    ///   and shares no storage with `x`.
    /// - Kinds: as the [table of `Op`](Op#kinds) says; equal on all ranks. In host memory.
    /// - Adjoint: for `Sum` it is `all_reduce` with `Sum`, for `Mean` with `Mean`. For `Max` and
    ///   `Min` the ranks that have the extreme value share the sum of the cotangents. For `Prod` it
    ///   is exact where factors are zero. See the crate's [adjoint table](crate#adjoints).
    ///
    /// The objective is the sum of all ranks' losses. If every rank uses the result as its loss, it
    /// counts once per rank, and the gradient is [`size`](Communicator::size) times too large. The
    /// result of [`Replicated::sum`](crate::Replicated::sum) counts once.
    ///
    /// # Errors
    /// [`Error::OpKind`](crate::Error::OpKind) if `op` is not defined for the tensor's kind;
    /// [`Error::NoAdjoint`](crate::Error::NoAdjoint) if it has no derivative and `x` requires grad;
    /// and the errors [common to all](crate#errors).
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
    #[track_caller]
    #[inline]
    pub fn all_reduce(&self, x: &Tensor, op: Op) -> Result<Tensor> {
        all_reduce::<Blocking>(self, x, op)
    }

    /// Starts an [`all_reduce`](Self::all_reduce).
    ///
    /// Wraps `MPI_Iallreduce`. Collective: every rank must call it. Shape, kinds: as there.
    ///
    /// - Adjoint: the wait's pullback starts that of `all_reduce`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`all_reduce`](Self::all_reduce), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = world.iall_reduce(&Tensor::from_slice(&[1_i64]), Op::Sum)?;
    /// assert_eq!(request.wait()?, Tensor::from_slice(&[i64::from(world.size())]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Iallreduce")]
    #[track_caller]
    pub fn iall_reduce(&self, x: &Tensor, op: Op) -> Result<Request> {
        all_reduce::<Nonblocking>(self, x, op)
    }

    /// [`all_reduce`](Self::all_reduce) in place: `x` becomes the result.
    ///
    /// Wraps `MPI_Allreduce` with `MPI_IN_PLACE`. Collective: every rank must call it.
    ///
    /// - Shape, kinds, adjoint: as for [`all_reduce`](Self::all_reduce). Falls back to a copy if
    ///   `x` is not contiguous, if the op is `Mean` or a logical op on integers, if the call is on
    ///   a [`Tape`](crate::Tape), or if `x` requires grad and either is a view or the op is not
    ///   linear.
    ///
    /// It follows torch's rules for changes in place: it bumps the version counter, adds a node to
    /// the history of `x`, or of the tensor that `x` is a view of, and refuses a leaf that requires
    /// grad.
    ///
    /// # Errors
    /// As for [`all_reduce`](Self::all_reduce); [`Error::Autograd`](crate::Error::Autograd) if
    /// torch's rules forbid the change.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let mut x = Tensor::from_slice(&[1.0, 2.0]);
    /// world.all_reduce_(&mut x, Op::Mean)?;
    /// assert_eq!(x, Tensor::from_slice(&[1.0, 2.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Allreduce")]
    #[doc(alias = "MPI_IN_PLACE")]
    #[track_caller]
    pub fn all_reduce_(&self, x: &mut Tensor, op: Op) -> Result<()> {
        if op.changes_in_place(self, x) {
            return apply_in_place(&AllReduce::new(op), self, x);
        }
        replace(self.site("all_reduce"), self, x, |comm, x| comm.all_reduce(x, op))
    }
}

#[track_caller]
#[inline]
pub(super) fn all_reduce<M: Mode>(comm: &Communicator, x: &Tensor, op: Op) -> Result<M::Output> {
    let operator = AllReduce::new(op);
    match op {
        Op::Max | Op::Min => apply_nonlinear::<M>(&operator, comm, x, Extremum),
        Op::Prod => apply_nonlinear::<M>(&operator, comm, x, Product),
        // The other ops are linear, or refuse a tensor that requires grad.
        _ => reduction::reduce::<M>(&operator, op, comm.size(), comm, x),
    }
}

/// Sums `x`, which is contiguous, over all ranks in place, without autograd. It is part of a call
/// that the ranks have agreed on, whose turn is `turn`, and is made in the way of that call: if the
/// ranks poll, the sum is only started.
pub(crate) fn sum_in_place(
    site: Site,
    comm: &Communicator,
    x: &Tensor,
    turn: &Turn,
) -> Result<Option<Started>> {
    let _recording = Recording::off();
    let target = InPlace::new(site.call, x)?;
    let operator = AllReduce::of(site.call, Op::Sum);
    let (plan, traced) = Ready::as_part(&operator, site, comm, x)?;
    let mut x = x.shallow_clone();
    let started = match turn.way() {
        Way::Waits | Way::Pieces(_) => {
            execution::run_in_place(plan, site, comm, (&mut x, target.data()), turn)?;
            None
        }
        Way::Polls => {
            let started = Started::in_place(plan, site, comm, (&x, target.data()))?;
            Some(started.traced_by(traced))
        }
    };
    target.bump_version(&mut x)?;
    Ok(started)
}

/// With `Sum` it is its own adjoint.
#[derive(Debug)]
pub(super) struct AllReduce {
    op: Op,
    call: &'static str,
}

impl AllReduce {
    pub(super) fn new(op: Op) -> Self {
        Self { op, call: "all_reduce" }
    }

    /// As part of another call, whose name it has in errors.
    pub(super) const fn of(call: &'static str, op: Op) -> Self {
        Self { op, call }
    }
}

impl Operator for AllReduce {
    fn name(&self) -> &'static str {
        self.call
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        self.op.check(self.name(), comm, input)?;
        Ok(Terms { op: Some(self.op), shape: Some((input.shape(), None)), ..Terms::default() })
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let op = self.op.check(self.name(), comm, &input)?;
        let input = self.op.operand(input)?.contiguous()?;
        let shape = input.shape().into();
        let call = Call::AllReduce { op };
        Ok(Plan { input, shape, call, context: comm.context(), finish: Finish::Nothing })
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Self { op: Op::Sum, call: self.call })
    }
}
