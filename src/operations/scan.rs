//! `MPI_Scan` and `MPI_Exscan`.

use std::sync::Arc;

use tch::Tensor;

use super::all_gather::AllGather;
use super::nonlinear;
use crate::autograd::Metadata;
use crate::base::error::{Error, Result};
use crate::base::op::Op;
use crate::base::rank::{Rank, index};
use crate::base::site::Site;
use crate::call::buffer::Input;
use crate::call::{Call, Finish, Plan};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Mode, Operator, apply};
use crate::engine::reduction;
use crate::engine::request::{Nonblocking, Request};

impl Communicator {
    /// Combines the `x` of this rank and of all ranks before it with `op`.
    ///
    /// Wraps `MPI_Scan`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's.
    /// - Kinds: as the [table of `Op`](Op#kinds) says; equal on all ranks. `Mean` is the mean over
    ///   the ranks up to this one.
    /// - Adjoint: for `Sum`, x̄_r = Σ ȳ_s over all s ≥ r: a scan from the last rank to the first, by
    ///   one `MPI_Scan` on a communicator with reversed ranks. For `Max`, `Min` and `Prod`, an `x`
    ///   that requires grad is gathered by [`all_gather`](Self::all_gather), and takes the memory of
    ///   all ranks' `x`. For `Max` and `Min`, the ranks up to this one that have the extreme value
    ///   share its cotangent.
    ///
    /// # Errors
    /// [`Error::OpKind`] if `op` is not defined for the tensor's kind; [`Error::NoAdjoint`] if it
    /// has no derivative and `x` requires grad; and the errors [common to all](crate#errors).
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
    #[track_caller]
    pub fn scan(&self, x: &Tensor, op: Op) -> Result<Tensor> {
        scan::<Blocking>(self, x, op, true)
    }

    /// Starts a [`scan`](Self::scan).
    ///
    /// Wraps `MPI_Iscan`. Collective: every rank must call it. Shape, kinds: as there.
    ///
    /// - Adjoint: the wait's pullback starts that of `scan`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`scan`](Self::scan), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = world.iscan(&Tensor::from_slice(&[1.0]), Op::Sum)?;
    /// assert_eq!(request.wait()?, Tensor::from_slice(&[f64::from(world.rank() + 1)]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Iscan")]
    #[track_caller]
    pub fn iscan(&self, x: &Tensor, op: Op) -> Result<Request> {
        scan::<Nonblocking>(self, x, op, true)
    }

    /// Combines the `x` of the ranks before this one with `op`; rank 0 receives the op's identity.
    ///
    /// Wraps `MPI_Exscan`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's.
    /// - Kinds: as the [table of `Op`](Op#kinds) says; equal on all ranks. `Mean` is not defined,
    ///   as rank 0 would have the mean of nothing. The identity is the value that changes nothing:
    ///   0 for `Sum`, 1 for `Prod`, −∞ or the least integer for `Max`, and so on.
    /// - Adjoint: for `Sum`, x̄_r = Σ ȳ_s over all s > r, computed as for [`scan`](Self::scan); the
    ///   result on rank 0 is a constant. For `Max`, `Min` and `Prod`: as for [`scan`](Self::scan).
    ///
    /// # Errors
    /// [`Error::Op`] for `Mean`; otherwise as for [`scan`](Self::scan).
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
    #[track_caller]
    pub fn exscan(&self, x: &Tensor, op: Op) -> Result<Tensor> {
        scan::<Blocking>(self, x, op, false)
    }

    /// Starts an [`exscan`](Self::exscan).
    ///
    /// Wraps `MPI_Iexscan`. Collective: every rank must call it. Shape, kinds: as there.
    ///
    /// - Adjoint: the wait's pullback starts that of `exscan`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`exscan`](Self::exscan), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = world.iexscan(&Tensor::from_slice(&[1.0]), Op::Sum)?;
    /// assert_eq!(request.wait()?, Tensor::from_slice(&[f64::from(world.rank())]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Iexscan")]
    #[track_caller]
    pub fn iexscan(&self, x: &Tensor, op: Op) -> Result<Request> {
        scan::<Nonblocking>(self, x, op, false)
    }
}

#[track_caller]
fn scan<M: Mode>(comm: &Communicator, x: &Tensor, op: Op, inclusive: bool) -> Result<M::Output> {
    let operator = Scan { op, inclusive, from: End::First };
    let ranks = comm.rank() + Rank::from(inclusive);
    if !op.is_linear() && op.is_differentiable() && comm.records(&Metadata::of(x)) {
        // The op is compared here, as a gather has none.
        let (_, comm) = M::agree(&operator, comm, x)?;
        let counts = vec![1; index(comm.size())];
        let gather = AllGather::new(0, (&counts).into());
        let all = apply::<M>(&gather, &comm, &x.f_unsqueeze(0)?)?;
        return M::then([all], move |[all]| nonlinear::reduce_first(&all, op, ranks.into()));
    }
    reduction::reduce::<M>(&operator, op, ranks, comm, x)
}

/// The rank at which a scan starts: the first or the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    First,
    Last,
}

/// The exclusive scan from either end, for the derivatives of `Prod`.
pub(super) fn exscan_from<M: Mode>(
    comm: &Communicator,
    x: &Tensor,
    op: Op,
    from: End,
) -> Result<M::Output> {
    apply::<M>(&Scan { op, inclusive: false, from }, comm, x)
}

/// With `Sum` its adjoint is the scan from the other end.
#[derive(Debug)]
struct Scan {
    op: Op,
    inclusive: bool,
    from: End,
}

impl Operator for Scan {
    fn name(&self) -> &'static str {
        if self.inclusive { "scan" } else { "exscan" }
    }

    fn prepare(&self, site: Site, comm: &Communicator) -> Result<()> {
        if self.from == End::Last { comm.make_reversed(site) } else { Ok(()) }
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
            End::Last => (comm.reversed(), comm.size() - 1),
        };
        let finish = if !self.inclusive && comm.rank() == first {
            Finish::Identity(self.op)
        } else {
            Finish::Nothing
        };
        let call = if self.inclusive { Call::Scan { op } } else { Call::Exscan { op } };
        Ok(Plan { input, shape, call, context, finish })
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        let from = if self.from == End::First { End::Last } else { End::First };
        Arc::new(Self { op: Op::Sum, inclusive: self.inclusive, from })
    }
}
