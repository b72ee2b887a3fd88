//! `MPI_Reduce`.

use std::sync::Arc;

use tch::Tensor;

use super::all_reduce::all_reduce;
use super::broadcast::Broadcast;
use crate::autograd::Metadata;
use crate::base::error::Result;
use crate::base::op::Op;
use crate::base::rank::Rank;
use crate::call::buffer::Input;
use crate::call::{Call, Finish, Plan};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Mode, Operator, apply_in_place, replace};
use crate::engine::reduction;
use crate::engine::request::{Nonblocking, Request};

/// Whether `MPI_Reduce` is called in place. With MPICH the result is copied instead: MPICH 4.0.2
/// reads from the address `MPI_IN_PLACE`, and ends with a segmentation fault, if the root is not
/// rank 0 and the tensor is not small (seen in plain C on 2 ranks).
fn is_in_place() -> bool {
    mpi_sys::loaded_vendor() != mpi_sys::Vendor::Mpich
}

impl Communicator {
    /// Combines `x` over all ranks with `op`; `root` receives the result, the others zeros.
    ///
    /// Wraps `MPI_Reduce`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's.
    /// - Kinds: as the [table of `Op`](Op#kinds) says; equal on all ranks.
    /// - Adjoint: for `Sum`, `x̄ = broadcast(ȳ, root)`; for `Mean`, the same divided by the number
    ///   of ranks. The result on other ranks than `root` is a constant, whose cotangent is ignored.
    ///   For `Max`, `Min` and `Prod`, an `x` that requires grad is reduced by
    ///   [`all_reduce`](Self::all_reduce), as the derivative needs the result on every rank.
    ///
    /// # Errors
    /// [`Error::Rank`](crate::Error::Rank) if there is no rank `root`;
    /// [`Error::OpKind`](crate::Error::OpKind) if `op` is not defined for the tensor's kind;
    /// [`Error::NoAdjoint`](crate::Error::NoAdjoint) if it has no derivative and `x` requires grad;
    /// and the errors [common to all](crate#errors).
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
    #[track_caller]
    pub fn reduce(&self, x: &Tensor, op: Op, root: Rank) -> Result<Tensor> {
        reduce::<Blocking>(self, x, op, root)
    }

    /// Starts a [`reduce`](Self::reduce).
    ///
    /// Wraps `MPI_Ireduce`. Collective: every rank must call it. Shape, kinds: as there.
    ///
    /// - Adjoint: the wait's pullback starts that of `reduce`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`reduce`](Self::reduce), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = world.ireduce(&Tensor::from_slice(&[1.0]), Op::Sum, 0)?;
    /// let sum = if world.rank() == 0 { f64::from(world.size()) } else { 0.0 };
    /// assert_eq!(request.wait()?, Tensor::from_slice(&[sum]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ireduce")]
    #[track_caller]
    pub fn ireduce(&self, x: &Tensor, op: Op, root: Rank) -> Result<Request> {
        reduce::<Nonblocking>(self, x, op, root)
    }

    /// [`reduce`](Self::reduce) in place: `x` becomes the result on `root`, and zeros elsewhere.
    ///
    /// Wraps `MPI_Reduce`, with `MPI_IN_PLACE` on the root; with MPICH, the result is copied into
    /// `x`. Collective: every rank must call it.
    ///
    /// It follows torch's rules for changes in place, as [`all_reduce_`](Self::all_reduce_) does.
    ///
    /// - Shape, kinds, adjoint: as for [`reduce`](Self::reduce).
    ///
    /// # Errors
    /// As for [`reduce`](Self::reduce); [`Error::Autograd`](crate::Error::Autograd) if torch's
    /// rules forbid the change.
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
    #[track_caller]
    pub fn reduce_(&self, x: &mut Tensor, op: Op, root: Rank) -> Result<()> {
        if is_in_place() && op.changes_in_place(self, x) {
            return apply_in_place(&Reduce { op, root }, self, x);
        }
        replace(self.site("reduce"), self, x, |comm, x| comm.reduce(x, op, root))
    }
}

#[track_caller]
fn reduce<M: Mode>(comm: &Communicator, x: &Tensor, op: Op, root: Rank) -> Result<M::Output> {
    let operator = Reduce { op, root };
    if !op.is_linear() && op.is_differentiable() && comm.records(&Metadata::of(x)) {
        // The root is compared here, as all_reduce has none.
        let (_, agreed) = M::agree(&operator, comm, x)?;
        let y = all_reduce::<M>(&agreed, x, op)?;
        let is_root = comm.rank() == root;
        // Off root the result is a constant. It is filled by a differentiable operation, so that
        // the all_reduce stays in the graph.
        return M::then([y], move |[y]| {
            Ok(if is_root { y } else { y.f_masked_fill(&all(&y)?, 0.0)? })
        });
    }
    reduction::reduce::<M>(&operator, op, comm.size(), comm, x)
}

/// A mask that is true everywhere.
fn all(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_ones_like()?.f_to_kind(tch::Kind::Bool)?)
}

/// With `Sum` it is the adjoint of [`Broadcast`].
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
        let finish = if comm.rank() == self.root { Finish::Nothing } else { Finish::Zero };
        let call = Call::Reduce { op, root: self.root };
        Ok(Plan { input, shape, call, context: comm.context(), finish })
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Broadcast::new(self.root))
    }
}
