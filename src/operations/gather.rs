//! `MPI_Gather(v)`.

use std::sync::Arc;

use tch::Tensor;

use super::counts::Counts;
use super::scatter::Scatter;
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::call::blocks::{Blocks, axis_of};
use crate::call::buffer::Input;
use crate::call::{Bulk, Call, Finish, Plan};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Operator, apply};
use crate::engine::request::{Nonblocking, Request};

impl Communicator {
    /// Joins all ranks' `x` along `axis`, in order of the ranks; `root` receives the whole.
    ///
    /// Wraps `MPI_Gather`, or `MPI_Gatherv` where the blocks differ. Collective: every rank must
    /// call it. The block sizes travel first, in one small message; where they are known,
    /// [`gather_with_counts`](Self::gather_with_counts) saves it.
    ///
    /// - Shape: at least one axis. Extents along `axis` may differ from rank to rank, and may be
    ///   zero; the other extents are equal. The result's extent along `axis` is the sum on `root`,
    ///   and 0 elsewhere.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: `x̄ = scatter(ȳ, axis, count, root)`, with the counts known.
    ///
    /// # Errors
    /// [`Error::Axis`](crate::Error::Axis) if there is no such axis;
    /// [`Error::Rank`](crate::Error::Rank) if there is no rank `root`;
    /// [`Error::Mismatch`](crate::Error::Mismatch) on all ranks if extents along other axes, or the
    /// kinds, differ; and the errors [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let y = world.gather(&Tensor::from_slice(&[world.rank()]), 0, 0)?;
    /// let ranks: Vec<_> = (0..world.size()).filter(|_| world.rank() == 0).collect();
    /// assert_eq!(y, Tensor::from_slice(&ranks));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Gather")]
    #[doc(alias = "MPI_Gatherv")]
    #[track_caller]
    pub fn gather(&self, x: &Tensor, axis: i64, root: Rank) -> Result<Tensor> {
        apply::<Blocking>(&Gather { axis, counts: Counts::EXTENT, root, off_root: None }, self, x)
    }

    /// Starts a [`gather`](Self::gather).
    ///
    /// Wraps `MPI_Igather(v)`. Collective: every rank must call it. Shape, kinds: as there.
    /// The block sizes travel first, so the start waits for the other ranks to start too;
    /// [`igather_with_counts`](Self::igather_with_counts) does not.
    ///
    /// - Adjoint: the wait's pullback starts that of `gather`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`gather`](Self::gather), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = world.igather(&Tensor::from_slice(&[world.rank()]), 0, 0)?;
    /// let ranks: Vec<_> = if world.rank() == 0 { (0..world.size()).collect() } else { vec![] };
    /// assert_eq!(request.wait()?, Tensor::from_slice(&ranks));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Igatherv")]
    #[track_caller]
    pub fn igather(&self, x: &Tensor, axis: i64, root: Rank) -> Result<Request> {
        apply::<Nonblocking>(
            &Gather { axis, counts: Counts::EXTENT, root, off_root: None },
            self,
            x,
        )
    }

    /// [`gather`](Self::gather) where every rank knows all extents along `axis`.
    ///
    /// Collective: every rank must call it. Shape, kinds, adjoint: as there.
    ///
    /// # Errors
    /// As for [`gather`](Self::gather); [`Error::Counts`](crate::Error::Counts) if `counts` has not
    /// one entry per rank, or its own entry is not the tensor's extent.
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
    /// let y = world.gather_with_counts(&x, 0, &counts, 0)?;
    /// let expected = if world.rank() == 0 { counts.iter().sum() } else { 0 };
    /// assert_eq!(y.size(), [expected]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Gatherv")]
    #[track_caller]
    pub fn gather_with_counts(
        &self,
        x: &Tensor,
        axis: i64,
        counts: &[i64],
        root: Rank,
    ) -> Result<Tensor> {
        apply::<Blocking>(&Gather { axis, counts: counts.into(), root, off_root: None }, self, x)
    }

    /// Starts a [`gather_with_counts`](Self::gather_with_counts).
    ///
    /// Wraps `MPI_Igather(v)`. Collective: every rank must call it. Shape, kinds: as there.
    ///
    /// - Adjoint: the wait's pullback starts that of `gather_with_counts`, the start's waits for
    ///   it.
    ///
    /// # Errors
    /// As for [`gather_with_counts`](Self::gather_with_counts), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let counts = vec![1; world.size() as usize];
    /// let request = world.igather_with_counts(&Tensor::from_slice(&[0.5]), 0, &counts, 0)?;
    /// let extent = if world.rank() == 0 { world.size() } else { 0 };
    /// assert_eq!(request.wait()?.size(), [i64::from(extent)]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Igatherv")]
    #[track_caller]
    pub fn igather_with_counts(
        &self,
        x: &Tensor,
        axis: i64,
        counts: &[i64],
        root: Rank,
    ) -> Result<Request> {
        apply::<Nonblocking>(&Gather { axis, counts: counts.into(), root, off_root: None }, self, x)
    }
}

/// The adjoint of [`Scatter`].
#[derive(Debug)]
pub(super) struct Gather {
    pub(super) axis: i64,
    pub(super) counts: Counts,
    pub(super) root: Rank,
    /// The shape of the zeros that ranks other than the root receive; if `None`, the extent along
    /// the axis is 0.
    pub(super) off_root: Option<Vec<i64>>,
}

impl Operator for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        comm.check_root(self.name(), self.root)?;
        let axis = axis_of(self.name(), self.axis, input.shape())?;
        let extent = input.shape()[axis];
        self.counts.check_own(self.name(), comm, extent)?;
        Ok(Terms {
            root: Some(self.root),
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
        let whole = blocks.whole(self.name(), input.shape())?;
        let call = Call::Gather { parts: blocks.parts(&whole), root: self.root };
        let input = input.contiguous()?;
        let (shape, finish) = if comm.rank() == self.root {
            let finish = Finish::unpacked(blocks, &whole);
            (whole, finish)
        } else {
            let nothing = blocks.shape_with(input.shape(), 0);
            (self.off_root.clone().unwrap_or(nothing), Finish::Zero)
        };
        Ok(Plan { input, shape: shape.into(), call, context: comm.context(), finish })
    }

    fn adjoint(&self, shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator> {
        let counts = self.counts.resolve(agreed, 0);
        Arc::new(Scatter {
            axis: self.axis,
            counts: counts.into(),
            root: self.root,
            block: Some(shape.to_vec()),
        })
    }
}
