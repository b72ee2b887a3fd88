//! `MPI_Reduce_scatter(_block)`.

use std::sync::Arc;

use tch::Tensor;

use super::all_gather::AllGather;
use super::all_reduce::all_reduce;
use super::counts::Counts;
use crate::autograd::Metadata;
use crate::base::error::Result;
use crate::base::op::Op;
use crate::base::rank::index;
use crate::call::blocks::{Blocks, axis_of};
use crate::call::buffer::Input;
use crate::call::{Bulk, Call, Finish, Plan, Summing};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Mode, Operator};
use crate::engine::reduction;
use crate::engine::request::{Nonblocking, Request};

impl Communicator {
    /// Combines `x` over all ranks with `op`, and cuts the result along `axis` into one block per
    /// rank, of the extents `counts`.
    ///
    /// Wraps `MPI_Reduce_scatter_block`, or `MPI_Reduce_scatter` where the counts differ. A `Sum` or
    /// `Mean` of blocks of 4 KiB and more and of similar size, of any kind but half precision, is made by
    /// `MPI_Alltoallv` and added up by this crate, which is faster and sends as much (measurements are in
    /// `src/call/reduce_scatter.rs`). It needs memory for the blocks that are received: a MiB for each other
    /// rank or, if it is started, as much as `x` has.
    /// Collective: every rank must call it. If `counts` is an `i64`, this rank's own count, then
    /// the counts travel first, in one small message. If it is a slice, the counts of all ranks,
    /// then nothing but the data travels. See [`Counts`].
    ///
    /// - Shape: at least one axis, equal on all ranks, with the sum of all counts along `axis`. The
    ///   result has the rank's count along `axis`.
    /// - Kinds: as the [table of `Op`](Op#kinds) says; equal on all ranks.
    /// - Adjoint: for `Sum`, `x̄ = all_gather(ȳ, axis)`, one call, with the counts known; for
    ///   `Mean`, the same divided by the number of ranks. For `Max`, `Min` and `Prod`, an `x` that
    ///   requires grad is reduced by [`all_reduce`](Self::all_reduce).
    ///
    /// # Errors
    /// [`Error::Axis`](crate::Error::Axis) if there is no such axis;
    /// [`Error::Counts`](crate::Error::Counts) if a count is negative, if a slice does not have one
    /// entry per rank, or, on all ranks, if the counts do not sum to the extent;
    /// [`Error::OpKind`](crate::Error::OpKind) if `op` is not defined for the tensor's kind;
    /// [`Error::NoAdjoint`](crate::Error::NoAdjoint) if it has no derivative and `x` requires grad;
    /// [`Error::Mismatch`](crate::Error::Mismatch) on all ranks if they disagree; and the errors
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let x = Tensor::ones([2 * i64::from(world.size())], (Kind::Int, tch::Device::Cpu));
    /// let y = world.reduce_scatter(&x, 0, 2, Op::Sum)?;
    /// assert_eq!(y, Tensor::from_slice(&[world.size(), world.size()]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Reduce_scatter")]
    #[doc(alias = "MPI_Reduce_scatter_block")]
    #[track_caller]
    pub fn reduce_scatter(
        &self,
        x: &Tensor,
        axis: i64,
        counts: impl Into<Counts>,
        op: Op,
    ) -> Result<Tensor> {
        let counts = counts.into();
        reduce_scatter::<Blocking>(self, x, ReduceScatter { axis, counts, op })
    }

    /// Starts a [`reduce_scatter`](Self::reduce_scatter).
    ///
    /// Wraps `MPI_Ireduce_scatter(_block)`, or `MPI_Ialltoallv` as there. Collective: every rank must
    /// call it. Shape, kinds: as there. If `counts` is an `i64`, the counts travel first, so the start
    /// waits for the other ranks to start too; with a slice it does not.
    ///
    /// - Adjoint: the wait's pullback starts that of `reduce_scatter`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`reduce_scatter`](Self::reduce_scatter), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let x = Tensor::from_slice(&vec![1_i64; world.size() as usize]);
    /// let request = world.ireduce_scatter(&x, 0, 1, Op::Sum)?;
    /// assert_eq!(request.wait()?, Tensor::from_slice(&[i64::from(world.size())]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ireduce_scatter")]
    #[track_caller]
    pub fn ireduce_scatter(
        &self,
        x: &Tensor,
        axis: i64,
        counts: impl Into<Counts>,
        op: Op,
    ) -> Result<Request> {
        let counts = counts.into();
        reduce_scatter::<Nonblocking>(self, x, ReduceScatter { axis, counts, op })
    }
}

#[track_caller]
fn reduce_scatter<M: Mode>(
    comm: &Communicator,
    x: &Tensor,
    operator: ReduceScatter,
) -> Result<M::Output> {
    let op = operator.op;
    if op.is_linear() || !op.is_differentiable() || !comm.records(&Metadata::of(x)) {
        return reduction::reduce::<M>(&operator, op, comm.size(), comm, x);
    }
    // The derivative needs the result on every rank.
    let (agreed, comm) = M::agree(&operator, comm, x)?;
    let blocks = operator.blocks(&x.size(), &agreed)?;
    let rank = index(comm.rank());
    let start: i64 = blocks.counts[..rank].iter().sum();
    let y = all_reduce::<M>(&comm, x, op)?;
    M::then([y], move |[y]| {
        Ok(y.f_narrow(operator.axis, start, blocks.counts[rank])?.f_alias_copy()?)
    })
}

/// With `Sum` it is the adjoint of [`AllGather`].
#[derive(Debug)]
pub(super) struct ReduceScatter {
    pub(super) axis: i64,
    pub(super) counts: Counts,
    pub(super) op: Op,
}

impl ReduceScatter {
    fn blocks(&self, shape: &[i64], agreed: &Agreed) -> Result<Blocks> {
        let axis = axis_of(self.name(), self.axis, shape)?;
        let counts = self.counts.resolve(agreed, 0);
        Counts::check_sum(self.name(), &counts, shape[axis])?;
        Ok(Blocks::new(axis, counts))
    }
}

impl Operator for ReduceScatter {
    fn name(&self) -> &'static str {
        "reduce_scatter"
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        self.op.check(self.name(), comm, input)?;
        let axis = axis_of(self.name(), self.axis, input.shape())?;
        self.counts.check(self.name(), comm)?;
        if let Some(counts) = self.counts.given() {
            Counts::check_sum(self.name(), counts, input.shape()[axis])?;
        }
        Ok(Terms {
            op: Some(self.op),
            axes: Terms::axis(axis),
            shape: Some((input.shape(), None)),
            counts: [self.counts.given(), None],
            told: self.counts.told(0),
            ..Terms::default()
        })
    }

    fn exchanges_sizes(&self) -> bool {
        self.counts.are_exchanged()
    }

    fn bulk(&self, _comm: &Communicator, input: &Input) -> Bulk {
        Bulk::Blocks(input.count())
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        let op = self.op.check(self.name(), comm, &input)?;
        let blocks = self.blocks(input.shape(), agreed)?;
        let own = blocks.counts[index(comm.rank())];
        let shape = blocks.shape_with(input.shape(), own);
        let (parts, is_sum) = (blocks.parts(input.shape()), matches!(self.op, Op::Sum | Op::Mean));
        let summing = Summing::of_blocks(&parts, input.datatype()).filter(|_| is_sum);
        let call = Call::ReduceScatter { parts, op, summing };
        let input = self.op.operand(input)?.packed(&blocks)?;
        Ok(Plan {
            input,
            shape: shape.into(),
            call,
            context: comm.context(),
            finish: Finish::Nothing,
        })
    }

    fn adjoint(&self, _shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator> {
        let counts = self.counts.resolve(agreed, 0);
        Arc::new(AllGather::new(self.axis, counts.into()))
    }
}
