//! `MPI_Allgather(v)`.

use std::sync::Arc;

use tch::Tensor;

use super::counts::Counts;
use super::reduce_scatter::ReduceScatter;
use crate::base::error::Result;
use crate::base::op::Op;
use crate::call::blocks::{Blocks, axis_of};
use crate::call::buffer::Input;
use crate::call::{Bulk, Call, Finish, Plan};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Operator, apply};
use crate::engine::request::{Nonblocking, Request};

impl Communicator {
    /// Joins all ranks' `x` along `axis`, in order of the ranks; every rank receives the whole.
    ///
    /// Wraps `MPI_Allgather`, or `MPI_Allgatherv` where the blocks differ. Collective: every rank
    /// must call it. The block sizes travel first, in one small message; where they are known,
    /// [`all_gather_with_counts`](Self::all_gather_with_counts) saves it.
    ///
    /// - Shape: at least one axis. Extents along `axis` may differ from rank to rank, and may be
    ///   zero; the other extents are equal. The result's extent along `axis` is the sum.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: `x̄ = reduce_scatter(ȳ, axis, Sum)`, one exchange, with the counts known.
    ///
    /// # Errors
    /// [`Error::Axis`](crate::Error::Axis) if there is no such axis;
    /// [`Error::Mismatch`](crate::Error::Mismatch) on all ranks if extents along other axes, or the
    /// kinds, differ; and the errors [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let y = world.all_gather(&Tensor::from_slice(&[world.rank()]), 0)?;
    /// let ranks: Vec<_> = (0..world.size()).collect();
    /// assert_eq!(y, Tensor::from_slice(&ranks));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Allgather")]
    #[doc(alias = "MPI_Allgatherv")]
    #[track_caller]
    pub fn all_gather(&self, x: &Tensor, axis: i64) -> Result<Tensor> {
        apply::<Blocking>(&AllGather::new(axis, Counts::EXTENT), self, x)
    }

    /// Starts an [`all_gather`](Self::all_gather).
    ///
    /// Wraps `MPI_Iallgather(v)`. Collective: every rank must call it. Shape, kinds: as there.
    /// The block sizes travel first, so the start waits for the other ranks to start too;
    /// [`iall_gather_with_counts`](Self::iall_gather_with_counts) does not.
    ///
    /// - Adjoint: the wait's pullback starts that of `all_gather`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`all_gather`](Self::all_gather), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = world.iall_gather(&Tensor::from_slice(&[world.rank()]), 0)?;
    /// let ranks: Vec<_> = (0..world.size()).collect();
    /// assert_eq!(request.wait()?, Tensor::from_slice(&ranks));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Iallgatherv")]
    #[track_caller]
    pub fn iall_gather(&self, x: &Tensor, axis: i64) -> Result<Request> {
        apply::<Nonblocking>(&AllGather::new(axis, Counts::EXTENT), self, x)
    }

    /// [`all_gather`](Self::all_gather) where every rank knows all extents along `axis`.
    ///
    /// Collective: every rank must call it. Shape, kinds, adjoint: as there.
    ///
    /// # Errors
    /// As for [`all_gather`](Self::all_gather); [`Error::Counts`](crate::Error::Counts) if `counts`
    /// has not one entry per rank, or its own entry is not the tensor's extent.
    ///
    /// # Examples
    /// ```
    /// use tch::{Device, Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// // Rank r has r + 1 elements.
    /// let counts: Vec<i64> = (1..=i64::from(world.size())).collect();
    /// let x = Tensor::zeros([counts[world.rank() as usize]], (Kind::Float, Device::Cpu));
    /// let y = world.all_gather_with_counts(&x, 0, &counts)?;
    /// assert_eq!(y.size(), [counts.iter().sum::<i64>()]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Allgatherv")]
    #[track_caller]
    pub fn all_gather_with_counts(&self, x: &Tensor, axis: i64, counts: &[i64]) -> Result<Tensor> {
        apply::<Blocking>(&AllGather::new(axis, counts.into()), self, x)
    }

    /// Starts an [`all_gather_with_counts`](Self::all_gather_with_counts).
    ///
    /// Wraps `MPI_Iallgather(v)`. Collective: every rank must call it. Shape, kinds: as there.
    ///
    /// - Adjoint: the wait's pullback starts that of `all_gather_with_counts`, the start's waits
    ///   for it.
    ///
    /// # Errors
    /// As for [`all_gather_with_counts`](Self::all_gather_with_counts), and those of
    /// [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let counts = vec![1; world.size() as usize];
    /// let request = world.iall_gather_with_counts(&Tensor::from_slice(&[0.5]), 0, &counts)?;
    /// assert_eq!(request.wait()?.size(), [i64::from(world.size())]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Iallgatherv")]
    #[track_caller]
    pub fn iall_gather_with_counts(
        &self,
        x: &Tensor,
        axis: i64,
        counts: &[i64],
    ) -> Result<Request> {
        apply::<Nonblocking>(&AllGather::new(axis, counts.into()), self, x)
    }
}

/// The adjoint of [`ReduceScatter`] with `Sum`.
#[derive(Debug)]
pub(super) struct AllGather {
    pub(super) axis: i64,
    pub(super) counts: Counts,
    call: &'static str,
}

impl AllGather {
    pub(super) fn new(axis: i64, counts: Counts) -> Self {
        Self { axis, counts, call: "all_gather" }
    }

    /// For another call, whose name it has in errors.
    pub(super) fn of(call: &'static str, axis: i64, counts: Counts) -> Self {
        Self { axis, counts, call }
    }
}

impl Operator for AllGather {
    fn name(&self) -> &'static str {
        self.call
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let axis = axis_of(self.name(), self.axis, input.shape())?;
        let extent = input.shape()[axis];
        self.counts.check_own(self.name(), comm, extent)?;
        Ok(Terms {
            axes: Terms::axis(axis),
            shape: Some((input.shape(), Some(axis))),
            counts: [self.counts.given(), None],
            told: self.counts.told(extent),
            ..Terms::default()
        })
    }

    fn exchanges_sizes(&self) -> bool {
        self.counts.are_exchanged()
    }

    fn bulk(&self, comm: &Communicator, input: &Input) -> Bulk {
        Bulk::Blocks(input.count().saturating_mul(comm.size().into()))
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        let axis = axis_of(self.name(), self.axis, input.shape())?;
        let blocks = Blocks::new(axis, self.counts.resolve(agreed, 0));
        let shape = blocks.whole(self.name(), input.shape())?;
        let input = input.contiguous()?;
        let call = Call::AllGather { parts: blocks.parts(&shape) };
        let finish = Finish::unpacked(blocks, &shape);
        Ok(Plan { input, shape: shape.into(), call, context: comm.context(), finish })
    }

    fn adjoint(&self, _shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator> {
        let counts = self.counts.resolve(agreed, 0).into();
        Arc::new(ReduceScatter { axis: self.axis, counts, op: Op::Sum })
    }
}
