//! `MPI_Alltoall(v)`.

use std::ops::Range;
use std::sync::Arc;

use tch::Tensor;

use super::counts::Counts;
use crate::base::error::Result;
use crate::base::rank::index;
use crate::call::blocks::{Blocks, axis_of, check_shape, elements_of_row};
use crate::call::buffer::Input;
use crate::call::{Bulk, Call, Finish, Plan};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Operator, apply};
use crate::engine::request::{Nonblocking, Request};

impl Communicator {
    /// Joins all ranks' `x` along `gather_axis`, and cuts the whole along `scatter_axis` into one
    /// block per rank, of the extents `counts`. The result is that of a gather and a scatter, but
    /// no rank ever holds the whole.
    ///
    /// With two different axes it redistributes a tensor: the tensor was cut along `gather_axis`,
    /// and is cut along `scatter_axis` afterwards. With the same axis twice it cuts the tensor
    /// anew, into blocks of other sizes, and keeps the order of the elements. To send chosen blocks
    /// to chosen ranks, by a matrix of counts, use [`all_to_all_v`](Self::all_to_all_v).
    ///
    /// Wraps `MPI_Alltoall`, or `MPI_Alltoallv` where blocks differ. Collective: every rank must
    /// call it. `counts` says what each rank receives along `scatter_axis`: an `i64` is this rank's
    /// own count, a slice the counts of all ranks, see [`Counts`]. The extents along `gather_axis`
    /// travel first, in one small message, and with them the count if it is an `i64`. Where both
    /// are known, [`all_to_all_with_counts`](Self::all_to_all_with_counts) saves that message.
    ///
    /// - Shape: at least one axis. Extents along `gather_axis` may differ from rank to rank, and
    ///   may be zero; the other extents are equal. The counts sum to the whole's extent along
    ///   `scatter_axis`. The result has the sum of the extents along `gather_axis`, and this rank's
    ///   count along `scatter_axis`.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: `all_to_all` with axes and counts exchanged, one call, with the counts known.
    ///
    /// # Errors
    /// [`Error::Axis`](crate::Error::Axis) if there is no such axis;
    /// [`Error::Counts`](crate::Error::Counts) if a count is negative, if a slice does not have one
    /// entry per rank, or, on all ranks, if the counts do not sum to the extent;
    /// [`Error::Mismatch`](crate::Error::Mismatch) on all ranks if they disagree; and the errors
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let size = i64::from(world.size());
    /// // Rank r has row r of a matrix before, and column r afterwards.
    /// let row = Tensor::ones([1, size], (tch::Kind::Float, tch::Device::Cpu));
    /// let column = world.all_to_all(&row, 0, 1, 1)?;
    /// assert_eq!(column.size(), [size, 1]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Alltoall")]
    #[track_caller]
    pub fn all_to_all(
        &self,
        x: &Tensor,
        gather_axis: i64,
        scatter_axis: i64,
        counts: impl Into<Counts>,
    ) -> Result<Tensor> {
        let (gathered, scattered) = (Counts::EXTENT, counts.into());
        apply::<Blocking>(&AllToAll { gather_axis, gathered, scatter_axis, scattered }, self, x)
    }

    /// Starts an [`all_to_all`](Self::all_to_all).
    ///
    /// Wraps `MPI_Ialltoall(v)`. Collective: every rank must call it. Shape, kinds: as there.
    /// The extents travel first, so the start waits for the other ranks to start too;
    /// [`iall_to_all_with_counts`](Self::iall_to_all_with_counts) does not.
    ///
    /// - Adjoint: the wait's pullback starts that of `all_to_all`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`all_to_all`](Self::all_to_all), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// // Every rank has the row 0, 1, …; rank r receives column r, whose elements are all r.
    /// let ranks: Vec<_> = (0..world.size()).collect();
    /// let request = world.iall_to_all(&Tensor::from_slice(&ranks).unsqueeze(0), 0, 1, 1)?;
    /// let column = vec![world.rank(); ranks.len()];
    /// assert_eq!(request.wait()?, Tensor::from_slice(&column).unsqueeze(1));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ialltoall")]
    #[track_caller]
    pub fn iall_to_all(
        &self,
        x: &Tensor,
        gather_axis: i64,
        scatter_axis: i64,
        counts: impl Into<Counts>,
    ) -> Result<Request> {
        let (gathered, scattered) = (Counts::EXTENT, counts.into());
        apply::<Nonblocking>(&AllToAll { gather_axis, gathered, scatter_axis, scattered }, self, x)
    }

    /// [`all_to_all`](Self::all_to_all) where every rank knows all extents along `gather_axis` and
    /// all counts along `scatter_axis`.
    ///
    /// Collective: every rank must call it. Shape, kinds, adjoint: as there.
    ///
    /// # Errors
    /// As for [`all_to_all`](Self::all_to_all); [`Error::Counts`](crate::Error::Counts) if a list
    /// does not have one count per rank, or if this rank's count along `gather_axis` is not the
    /// tensor's extent.
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// // Rank r has r + 1 elements.
    /// let counts: Vec<i64> = (1..=i64::from(world.size())).collect();
    /// let total = counts.iter().sum::<i64>();
    /// let mine = counts[world.rank() as usize];
    /// let rows = Tensor::zeros([mine, total], (tch::Kind::Float, tch::Device::Cpu));
    /// let columns = world.all_to_all_with_counts(&rows, 0, &counts, 1, &counts)?;
    /// assert_eq!(columns.size(), [total, mine]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Alltoall")]
    #[track_caller]
    pub fn all_to_all_with_counts(
        &self,
        x: &Tensor,
        gather_axis: i64,
        gather_counts: &[i64],
        scatter_axis: i64,
        scatter_counts: &[i64],
    ) -> Result<Tensor> {
        let (gathered, scattered) = (gather_counts.into(), scatter_counts.into());
        apply::<Blocking>(&AllToAll { gather_axis, gathered, scatter_axis, scattered }, self, x)
    }

    /// Starts an [`all_to_all_with_counts`](Self::all_to_all_with_counts).
    ///
    /// Wraps `MPI_Ialltoall(v)`. Collective: every rank must call it. Shape, kinds: as there.
    ///
    /// - Adjoint: the wait's pullback starts that of `all_to_all_with_counts`, the start's waits
    ///   for it.
    ///
    /// # Errors
    /// As for [`all_to_all_with_counts`](Self::all_to_all_with_counts), and those of
    /// [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let ranks: Vec<_> = (0..world.size()).collect();
    /// let counts = vec![1; ranks.len()];
    /// let x = Tensor::from_slice(&ranks).unsqueeze(0);
    /// let request = world.iall_to_all_with_counts(&x, 0, &counts, 1, &counts)?;
    /// assert_eq!(request.wait()?.size(), [ranks.len() as i64, 1]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ialltoall")]
    #[track_caller]
    pub fn iall_to_all_with_counts(
        &self,
        x: &Tensor,
        gather_axis: i64,
        gather_counts: &[i64],
        scatter_axis: i64,
        scatter_counts: &[i64],
    ) -> Result<Request> {
        let (gathered, scattered) = (gather_counts.into(), scatter_counts.into());
        apply::<Nonblocking>(&AllToAll { gather_axis, gathered, scatter_axis, scattered }, self, x)
    }
}

/// Its own adjoint, with axes and counts exchanged.
#[derive(Debug)]
struct AllToAll {
    gather_axis: i64,
    gathered: Counts,
    scatter_axis: i64,
    scattered: Counts,
}

impl AllToAll {
    /// The blocks that the whole is cut into before, along the gather axis, and after, along the
    /// scatter axis.
    fn blocks(&self, shape: &[i64], agreed: &Agreed) -> Result<(Blocks, Blocks)> {
        let gather_axis = axis_of(self.name(), self.gather_axis, shape)?;
        let scatter_axis = axis_of(self.name(), self.scatter_axis, shape)?;
        let before = Blocks::new(gather_axis, self.gathered.resolve(agreed, 0));
        let after = Blocks::new(scatter_axis, self.scattered.resolve(agreed, 1));
        let joined = before.total(self.name())?;
        let whole = if gather_axis == scatter_axis { joined } else { shape[scatter_axis] };
        Counts::check_sum(self.name(), &after.counts, whole)?;
        Ok((before, after))
    }
}

impl Operator for AllToAll {
    fn name(&self) -> &'static str {
        "all_to_all"
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let gather_axis = axis_of(self.name(), self.gather_axis, input.shape())?;
        let scatter_axis = axis_of(self.name(), self.scatter_axis, input.shape())?;
        let extent = input.shape()[gather_axis];
        self.gathered.check_own(self.name(), comm, extent)?;
        self.scattered.check(self.name(), comm)?;
        let told = self.gathered.told(extent).map(|mut told| {
            told.counts[1] = self.scattered.own(comm, 0);
            told
        });
        Ok(Terms {
            axes: [Terms::axis(gather_axis)[0], Terms::axis(scatter_axis)[0]],
            shape: Some((input.shape(), Some(gather_axis))),
            counts: [self.gathered.given(), self.scattered.given()],
            told,
            ..Terms::default()
        })
    }

    fn exchanges_sizes(&self) -> bool {
        self.gathered.are_exchanged()
    }

    fn bulk(&self, _comm: &Communicator, input: &Input) -> Bulk {
        Bulk::Blocks(input.count())
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        let (before, after) = self.blocks(input.shape(), agreed)?;
        let rank = index(comm.rank());
        let own = after.counts[rank];
        let (joined, cut) = (before.total(self.name())?, after.total(self.name())?);
        let most = |blocks: &Blocks| blocks.counts.iter().copied().max().unwrap_or(0);
        let whole = before.shape_with(input.shape(), joined);
        // Checks the largest of all ranks' results, so that all ranks fail or none does.
        check_shape(self.name(), &after.shape_with(&whole, most(&after)))?;
        let shape = after.shape_with(&whole, own);
        let (sent, received, largest, common) = if before.axis == after.axis {
            let (old, new) = (ranges(&before.counts), ranges(&after.counts));
            let row = elements_of_row(&shape, before.axis);
            let sent = new.iter().map(|range| overlap(&old[rank], range)).collect::<Vec<_>>();
            let received = old.iter().map(|range| overlap(&new[rank], range)).collect::<Vec<_>>();
            let largest = most(&before).max(most(&after)).saturating_mul(row);
            (Blocks::new(before.axis, sent), Blocks::new(after.axis, received), largest, false)
        } else {
            let cell = elements_of_row(&shape, after.axis) / joined.max(1);
            let cells = |sent: i64, cut: i64| cell.saturating_mul(sent).saturating_mul(cut);
            let largest = cells(most(&before), cut).max(cells(joined, most(&after)));
            let common = all_equal(&before.counts) && all_equal(&after.counts);
            (after, before, largest, common)
        };
        let call = Call::AllToAll {
            send: sent.parts(input.shape()),
            receive: received.parts(&shape),
            largest,
            common,
        };
        let input = input.packed(&sent)?;
        let finish = Finish::unpacked(received, &shape);
        Ok(Plan { input, shape: shape.into(), call, context: comm.context(), finish })
    }

    fn adjoint(&self, _shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Self {
            gather_axis: self.scatter_axis,
            gathered: self.scattered.resolve(agreed, 1).into(),
            scatter_axis: self.gather_axis,
            scattered: self.gathered.resolve(agreed, 0).into(),
        })
    }
}

fn all_equal(counts: &[i64]) -> bool {
    counts.windows(2).all(|pair| pair[0] == pair[1])
}

/// Each rank's range of the axis.
fn ranges(counts: &[i64]) -> Vec<Range<i64>> {
    let mut end = 0;
    counts
        .iter()
        .map(|count| {
            end += count;
            end - count..end
        })
        .collect()
}

fn overlap(a: &Range<i64>, b: &Range<i64>) -> i64 {
    (a.end.min(b.end) - a.start.max(b.start)).max(0)
}
