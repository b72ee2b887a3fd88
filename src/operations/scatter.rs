//! `MPI_Scatter(v)`.

use std::sync::Arc;

use tch::Tensor;

use super::counts::Counts;
use super::gather::Gather;
use crate::base::error::Result;
use crate::base::rank::{Rank, index};
use crate::call::blocks::{Blocks, axis_of, elements_of_row};
use crate::call::buffer::Input;
use crate::call::{Bulk, Call, Finish, Plan};
use crate::engine::agreement::{Agreed, Terms, Told};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Operator, apply};
use crate::engine::request::{Nonblocking, Request};

impl Communicator {
    /// Cuts `root`'s `x` along `axis` into one block per rank, of the extents `counts`.
    ///
    /// Wraps `MPI_Scatter`, or `MPI_Scatterv` where the blocks differ. Collective: every rank must
    /// call it. If `counts` is an `i64`, this rank's own count, then the counts and the shape
    /// travel first, in one small message. If it is a slice, the counts of all ranks, then nothing
    /// but the data travels. See [`Counts`].
    ///
    /// - Shape: on `root`, at least one axis, with the sum of all counts along `axis`. On other
    ///   ranks, if `counts` is an `i64`, `x` may have any shape; if it is a slice, the shape must
    ///   be the root's, except along `axis`. `axis` must be the same number on all ranks: a
    ///   negative one is not converted before the comparison. The result has this rank's count
    ///   along `axis`.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: `x̄ = gather(ȳ, axis, root)` on `root`, and zeros of `x`'s own shape elsewhere.
    ///
    /// # Errors
    /// [`Error::Axis`](crate::Error::Axis) if there is no such axis;
    /// [`Error::Rank`](crate::Error::Rank) if there is no rank `root`;
    /// [`Error::Counts`](crate::Error::Counts) if a count is negative, if a slice does not have one
    /// entry per rank, or, on all ranks, if the counts do not sum to the extent;
    /// [`Error::Mismatch`](crate::Error::Mismatch) on all ranks if they disagree; and the errors
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let x = Tensor::arange(2 * i64::from(world.size()), (Kind::Int64, tch::Device::Cpu));
    /// let y = world.scatter(&x, 0, 2, 0)?;
    /// let first = 2 * i64::from(world.rank());
    /// assert_eq!(y, Tensor::from_slice(&[first, first + 1]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Scatter")]
    #[doc(alias = "MPI_Scatterv")]
    #[track_caller]
    pub fn scatter(
        &self,
        x: &Tensor,
        axis: i64,
        counts: impl Into<Counts>,
        root: Rank,
    ) -> Result<Tensor> {
        let counts = counts.into();
        apply::<Blocking>(&Scatter { axis, counts, root, block: None }, self, x)
    }

    /// Starts a [`scatter`](Self::scatter).
    ///
    /// Wraps `MPI_Iscatter(v)`. Collective: every rank must call it. Shape, kinds: as there.
    /// If `counts` is an `i64`, the counts travel first, so the start waits for the other ranks to
    /// start too; with a slice it does not.
    ///
    /// - Adjoint: the wait's pullback starts that of `scatter`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`scatter`](Self::scatter), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let ranks: Vec<_> = (0..world.size()).collect();
    /// let request = world.iscatter(&Tensor::from_slice(&ranks), 0, 1, 0)?;
    /// assert_eq!(request.wait()?, Tensor::from_slice(&[world.rank()]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Iscatterv")]
    #[track_caller]
    pub fn iscatter(
        &self,
        x: &Tensor,
        axis: i64,
        counts: impl Into<Counts>,
        root: Rank,
    ) -> Result<Request> {
        let counts = counts.into();
        apply::<Nonblocking>(&Scatter { axis, counts, root, block: None }, self, x)
    }
}

/// The adjoint of [`Gather`].
#[derive(Debug)]
pub(super) struct Scatter {
    pub(super) axis: i64,
    pub(super) counts: Counts,
    pub(super) root: Rank,
    /// The shape of this rank's result, if it is known.
    pub(super) block: Option<Vec<i64>>,
}

impl Scatter {
    /// The shape of the whole, except for the extent along the axis, and the blocks.
    fn blocks(&self, own: &[i64], agreed: &Agreed) -> Result<(Vec<i64>, Blocks)> {
        let shape = match (&self.block, self.counts.are_exchanged()) {
            (Some(block), _) => block.clone(),
            (None, true) => agreed.shape_of(self.root).to_vec(),
            (None, false) => own.to_vec(),
        };
        let axis = axis_of(self.name(), self.axis, &shape)?;
        Ok((shape, Blocks::new(axis, self.counts.resolve(agreed, 0))))
    }
}

impl Operator for Scatter {
    fn name(&self) -> &'static str {
        "scatter"
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        comm.check_root(self.name(), self.root)?;
        self.counts.check(self.name(), comm)?;
        let is_root = comm.rank() == self.root;
        if is_root {
            let axis = axis_of(self.name(), self.axis, input.shape())?;
            if let Some(counts) = self.counts.given() {
                Counts::check_sum(self.name(), counts, input.shape()[axis])?;
            }
        }
        // If the root does not tell its shape, every rank knows it, except along the axis.
        let known = match &self.block {
            Some(block) => Some(&block[..]),
            None => (!self.counts.are_exchanged()).then(|| input.shape()),
        };
        let axis = known.map(|shape| axis_of(self.name(), self.axis, shape)).transpose()?;
        let shape = known.map(|shape| (shape, axis));
        let told = self
            .counts
            .told(0)
            .map(|told| Told { shape: if is_root { input.shape() } else { &[] }, ..told });
        // The axis is compared as given: off root the number of axes may be unknown.
        Ok(Terms {
            root: Some(self.root),
            axes: [Some(self.axis), None],
            shape,
            counts: [self.counts.given(), None],
            told,
            ..Terms::default()
        })
    }

    fn exchanges_sizes(&self) -> bool {
        self.counts.are_exchanged()
    }

    fn bulk(&self, comm: &Communicator, input: &Input) -> Bulk {
        let whole = |shape: &[i64]| {
            let axis = axis_of(self.name(), self.axis, shape).ok()?;
            let counts = self.counts.given()?.iter();
            let extent = counts.fold(0_i64, |sum, count| sum.saturating_add(*count));
            Some(extent.saturating_mul(elements_of_row(shape, axis)))
        };
        Bulk::Blocks(match &self.block {
            _ if comm.rank() == self.root => input.count(),
            Some(block) => whole(block).unwrap_or(0),
            // Off root the tensor has the root's shape, except along the axis, if all counts are given.
            None => whole(input.shape()).unwrap_or(0),
        })
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        let (shape, blocks) = self.blocks(input.shape(), agreed)?;
        if self.counts.are_exchanged() {
            Counts::check_sum(self.name(), &blocks.counts, shape[blocks.axis])?;
        }
        let own = blocks.counts[index(comm.rank())];
        let block = blocks.shape_with(&shape, own);
        let input = if comm.rank() == self.root { input.packed(&blocks)? } else { input };
        let call = Call::Scatter { parts: blocks.parts(&shape), root: self.root };
        Ok(Plan {
            input,
            shape: block.into(),
            call,
            context: comm.context(),
            finish: Finish::Nothing,
        })
    }

    fn adjoint(&self, shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Gather {
            axis: self.axis,
            counts: self.counts.resolve(agreed, 0).into(),
            root: self.root,
            off_root: Some(shape.to_vec()),
        })
    }
}
