//! `MPI_Neighbor_allgather(v)` and `MPI_Neighbor_alltoall(v)`.
//!
//! Neighbours exchange messages, one along each edge of the graph. MPI's own functions are not called:
//! where two edges join the same ranks, as along a periodic axis of one or two ranks, MPIs differ in
//! which message is which. Here each edge has a tag.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use tch::Tensor;

use super::counts::Counts;
use super::graph::{Graph, Neighbor, Neighbors, Part, tag};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::call::blocks::{Blocks, axis_of, check_shape};
use crate::call::buffer::Input;
use crate::call::{Call, Exchange, Finish, Plan, Region};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Operator, apply};
use crate::engine::request::{Nonblocking, Request};

impl Graph {
    /// Sends `x` to all destinations, and joins what comes from the sources along `axis`, in the order
    /// of [`sources`](Self::sources).
    ///
    /// As `MPI_Neighbor_allgather(v)`, by a message along each edge. Collective: every rank must call
    /// it. The extents along `axis` travel first, in one small message along each edge.
    ///
    /// - Shape: at least one axis. Extents along `axis` may differ from rank to rank, and may be zero;
    ///   the other extents are equal. The result's extent along `axis` is the sum over the sources;
    ///   nothing comes from [`PROC_NULL`](crate::PROC_NULL).
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: the blocks of the cotangent go back to where they came from, and are added there, one
    ///   message along each edge.
    ///
    /// # Errors
    /// [`Error::Axis`] if there is no such axis; [`Error::Mismatch`] on all ranks if extents along other
    /// axes, or the kinds, differ; and the errors [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let line = universe.world().cartesian(&[0], &[false], false)?.expect("all ranks");
    /// // The ranks beside this one: two, or one at an end of the line.
    /// let beside = line.neighbor_all_gather(&Tensor::from_slice(&[line.rank()]), 0)?;
    /// let sources = line.sources();
    /// let expected: Vec<_> = sources.into_iter().filter(|rank| *rank != mpi4tch::PROC_NULL).collect();
    /// assert_eq!(beside, Tensor::from_slice(&expected));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Neighbor_allgather")]
    #[doc(alias = "MPI_Neighbor_allgatherv")]
    #[track_caller]
    pub fn neighbor_all_gather(&self, x: &Tensor, axis: i64) -> Result<Tensor> {
        apply::<Blocking>(&NeighborAllGather::new(&self.neighbors, axis, None), self, x)
    }

    /// Starts a [`neighbor_all_gather`](Self::neighbor_all_gather).
    ///
    /// As `MPI_Ineighbor_allgather(v)`. Collective: every rank must call it. Shape, kinds: as there. The
    /// extents travel first, so the start waits for all ranks to start too.
    ///
    /// - Adjoint: the wait's pullback starts that of `neighbor_all_gather`, the start's waits for it.
    ///
    /// # Errors
    /// As for `neighbor_all_gather`, and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let ring = universe.world().cartesian(&[0], &[true], false)?.expect("all ranks");
    /// let request = ring.ineighbor_all_gather(&Tensor::from_slice(&[ring.rank()]), 0)?;
    /// assert_eq!(request.wait()?, Tensor::from_slice(&ring.sources()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ineighbor_allgather")]
    #[doc(alias = "MPI_Ineighbor_allgatherv")]
    #[track_caller]
    pub fn ineighbor_all_gather(&self, x: &Tensor, axis: i64) -> Result<Request> {
        apply::<Nonblocking>(&NeighborAllGather::new(&self.neighbors, axis, None), self, x)
    }

    /// Cuts `x` along `scatter_axis` into one block for each destination, and joins the blocks that come
    /// from the sources along `gather_axis`, in the order of [`sources`](Self::sources).
    ///
    /// As `MPI_Neighbor_alltoall(v)`, by a message along each edge. Collective: every rank must call it.
    /// `counts` says what comes to this rank, along `scatter_axis`: an `i64` from each source, a slice
    /// has one entry for each source, which is zero for [`PROC_NULL`](crate::PROC_NULL). The counts, and
    /// the extents along `gather_axis`, travel first, in small messages along each edge.
    ///
    /// - Shape: at least one axis. The extent along `scatter_axis` is the sum of what the destinations
    ///   ask for, in the order of [`destinations`](Self::destinations). Extents along `gather_axis` may
    ///   differ from rank to rank; all others are equal. With two different axes, the counts of a rank
    ///   are equal, and the result has that count along `scatter_axis`, and the sum of the sources'
    ///   extents along `gather_axis`. With the same axis twice, the result has the sum of the counts.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: the same along the reversed edges, with axes exchanged and the counts known.
    ///
    /// # Errors
    /// [`Error::Axis`] if there is no such axis; [`Error::Counts`] if a count is negative, if a slice
    /// does not have one entry for each source, if counts differ though the axes do too, or if the
    /// extent is not the sum of what the destinations ask for, and then [`Error::Mismatch`] on the other
    /// ranks; [`Error::Mismatch`] on all ranks if they disagree; and the errors
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let ring = universe.world().cartesian(&[0], &[true], false)?.expect("all ranks");
    /// // −1 goes backward, and comes from ahead; 1 goes forward, and comes from behind.
    /// let y = ring.neighbor_all_to_all(&Tensor::from_slice(&[-1, 1]), 0, 0, 1)?;
    /// assert_eq!(y, Tensor::from_slice(&[1, -1]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Neighbor_alltoall")]
    #[doc(alias = "MPI_Neighbor_alltoallv")]
    #[doc(alias = "MPI_Neighbor_alltoallw")]
    #[track_caller]
    pub fn neighbor_all_to_all(
        &self,
        x: &Tensor,
        gather_axis: i64,
        scatter_axis: i64,
        counts: impl Into<Counts>,
    ) -> Result<Tensor> {
        let axes = Axes { gather: gather_axis, scatter: scatter_axis };
        apply::<Blocking>(&NeighborAllToAll::new(&self.neighbors, axes, counts.into()), self, x)
    }

    /// Starts a [`neighbor_all_to_all`](Self::neighbor_all_to_all).
    ///
    /// As `MPI_Ineighbor_alltoall(v)`. Collective: every rank must call it. Shape, kinds: as there. The
    /// sizes travel first, so the start waits for all ranks to start too.
    ///
    /// - Adjoint: the wait's pullback starts that of `neighbor_all_to_all`, the start's waits for it.
    ///
    /// # Errors
    /// As for `neighbor_all_to_all`, and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let ring = universe.world().cartesian(&[0], &[true], false)?.expect("all ranks");
    /// let request = ring.ineighbor_all_to_all(&Tensor::from_slice(&[-1, 1]), 0, 0, 1)?;
    /// assert_eq!(request.wait()?, Tensor::from_slice(&[1, -1]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ineighbor_alltoall")]
    #[doc(alias = "MPI_Ineighbor_alltoallv")]
    #[doc(alias = "MPI_Ineighbor_alltoallw")]
    #[track_caller]
    pub fn ineighbor_all_to_all(
        &self,
        x: &Tensor,
        gather_axis: i64,
        scatter_axis: i64,
        counts: impl Into<Counts>,
    ) -> Result<Request> {
        let axes = Axes { gather: gather_axis, scatter: scatter_axis };
        apply::<Nonblocking>(&NeighborAllToAll::new(&self.neighbors, axes, counts.into()), self, x)
    }
}

/// A number for each destination, and then one for each source, with the exchange that tells them.
#[derive(Debug)]
struct Told {
    exchange: Arc<Exchange>,
    words: Vec<i64>,
}

impl Told {
    fn new(neighbors: &Neighbors, comm: &Communicator, ahead: i64, back: &[i64]) -> Self {
        let exchange = Arc::new(neighbors.telling(comm));
        let words =
            neighbors.destinations.iter().map(|_| ahead).chain(back.iter().copied()).collect();
        Self { exchange, words }
    }
}

/// The adjoint of [`NeighborSum`].
#[derive(Debug)]
struct NeighborAllGather {
    neighbors: Arc<Neighbors>,
    axis: i64,
    /// The extent of what comes from each source, if it is known.
    extents: Option<Arc<[i64]>>,
    told: OnceLock<Told>,
    exchange: OnceLock<Arc<Exchange>>,
}

impl NeighborAllGather {
    fn new(neighbors: &Arc<Neighbors>, axis: i64, extents: Option<Arc<[i64]>>) -> Self {
        let (neighbors, told, exchange) = (Arc::clone(neighbors), OnceLock::new(), OnceLock::new());
        Self { neighbors, axis, extents, told, exchange }
    }

    fn resolve(&self, agreed: &Agreed) -> Arc<[i64]> {
        let told = || agreed.told_here()[..self.neighbors.sources.len()].into();
        self.extents.as_ref().map_or_else(told, Arc::clone)
    }

    fn exchange(
        &self,
        comm: &Communicator,
        axis: usize,
        shape: &[i64],
        extents: &[i64],
    ) -> &Arc<Exchange> {
        self.exchange.get_or_init(|| {
            let whole = with(shape, axis, extents.iter().sum());
            let (joined, all) = (regions(&whole, axis, extents), Region::all(shape));
            Arc::new(self.neighbors.exchange(
                |number| tag(comm, number, Part::Data),
                |_| all.clone(),
                |place| joined[place].clone(),
            ))
        })
    }
}

impl Operator for NeighborAllGather {
    fn name(&self) -> &'static str {
        "neighbor_all_gather"
    }

    fn prepare(&self, site: Site, comm: &Communicator) -> Result<()> {
        comm.make_context_of_exchanges(site)
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let shape = input.shape();
        let axis = axis_of(self.name(), self.axis, shape)?;
        let terms =
            Terms { axes: Terms::axis(axis), shape: Some((shape, Some(axis))), ..Terms::default() };
        if let Some(extents) = &self.extents {
            return Ok(Terms { edges: Some(self.exchange(comm, axis, shape, extents)), ..terms });
        }
        let back = vec![0; self.neighbors.sources.len()];
        let told = self.told.get_or_init(|| Told::new(&self.neighbors, comm, shape[axis], &back));
        Ok(Terms { told_along: Some((&told.exchange, &told.words)), ..terms })
    }

    fn exchanges_sizes(&self) -> bool {
        self.extents.is_none()
    }

    fn plans_alone(&self) -> bool {
        self.extents.is_none()
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        let axis = axis_of(self.name(), self.axis, input.shape())?;
        let extents = self.resolve(agreed);
        let shape = Blocks::new(axis, Arc::clone(&extents)).whole(self.name(), input.shape())?;
        let exchange = self.exchange(comm, axis, input.shape(), &extents);
        plan(comm, input, shape, exchange)
    }

    fn adjoint(&self, shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(NeighborSum {
            neighbors: Arc::clone(&self.neighbors),
            axis: self.axis,
            extents: self.resolve(agreed),
            shape: shape.into(),
            exchange: OnceLock::new(),
        })
    }
}

/// The adjoint of [`NeighborAllGather`]: each source gets back its block, and adds what comes.
#[derive(Debug)]
struct NeighborSum {
    neighbors: Arc<Neighbors>,
    axis: i64,
    /// The extent of the block of each source.
    extents: Arc<[i64]>,
    /// The shape of the result.
    shape: Arc<[i64]>,
    exchange: OnceLock<Arc<Exchange>>,
}

impl NeighborSum {
    fn exchange(&self, comm: &Communicator, input: &[i64]) -> Result<&Arc<Exchange>> {
        let axis = axis_of(self.name(), self.axis, &self.shape)?;
        Ok(self.exchange.get_or_init(|| {
            let (joined, all) = (regions(input, axis, &self.extents), Region::all(&self.shape));
            let exchange = self.neighbors.reversed().exchange(
                |number| tag(comm, number, Part::Data),
                |place| joined[place].clone(),
                |_| all.clone(),
            );
            Arc::new(Exchange { adds: true, zeros: vec![all], ..exchange })
        }))
    }
}

impl Operator for NeighborSum {
    fn name(&self) -> &'static str {
        "neighbor_all_gather"
    }

    fn prepare(&self, site: Site, comm: &Communicator) -> Result<()> {
        comm.make_context_of_exchanges(site)
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let edges = Some(self.exchange(comm, input.shape())?);
        Ok(Terms { edges, ..Terms::default() })
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let exchange = self.exchange(comm, input.shape())?;
        plan(comm, input, self.shape.to_vec(), exchange)
    }

    fn adjoint(&self, _: &[i64], _: &Agreed) -> Arc<dyn Operator> {
        let extents = Some(Arc::clone(&self.extents));
        Arc::new(NeighborAllGather::new(&self.neighbors, self.axis, extents))
    }
}

#[derive(Clone, Copy, Debug)]
struct Axes {
    gather: i64,
    scatter: i64,
}

/// Its own adjoint, with edges reversed and axes exchanged.
#[derive(Debug)]
struct NeighborAllToAll {
    neighbors: Arc<Neighbors>,
    axes: Axes,
    /// What comes from each source, along the scatter axis.
    counts: Counts,
    known: Option<Sizes>,
    told: OnceLock<Told>,
    exchange: OnceLock<Arc<Exchange>>,
}

/// The sizes that neighbours tell each other.
#[derive(Clone, Debug)]
struct Sizes {
    /// The extent of what goes to each destination, along the scatter axis.
    sent: Arc<[i64]>,
    /// The extent of what comes from each source, along the gather axis.
    heard: Arc<[i64]>,
}

impl NeighborAllToAll {
    fn new(neighbors: &Arc<Neighbors>, axes: Axes, counts: Counts) -> Self {
        let (neighbors, told, exchange) = (Arc::clone(neighbors), OnceLock::new(), OnceLock::new());
        Self { neighbors, axes, counts, known: None, told, exchange }
    }

    /// The gather axis and the scatter axis, from the start.
    fn axes(&self, shape: &[i64]) -> Result<(usize, usize)> {
        let axis = |axis| axis_of(self.name(), axis, shape);
        Ok((axis(self.axes.gather)?, axis(self.axes.scatter)?))
    }

    /// What comes from each source along the scatter axis: as given, and nothing from beyond an edge.
    fn counts(&self) -> Result<Vec<i64>> {
        let sources = &self.neighbors.sources;
        let refuse = |message| Err(Error::Counts { call: self.name(), message });
        let counts: Vec<i64> = match (self.counts.given(), self.counts.of_this_rank()) {
            (Some(counts), _) => counts.to_vec(),
            (None, count) => {
                sources.iter().map(|source| if source.exists() { count } else { 0 }).collect()
            }
        };
        if counts.len() != sources.len() {
            return refuse(format!(
                "{} counts were given for {} neighbours",
                counts.len(),
                sources.len()
            ));
        }
        if let Some(count) = counts.iter().find(|count| **count < 0) {
            return refuse(format!("count {count} is negative"));
        }
        let beyond = |(source, count): &(&Neighbor, &i64)| !source.exists() && **count != 0;
        if let Some((_, count)) = sources.iter().zip(&counts).find(beyond) {
            return refuse(format!(
                "count {count} was given for MPI_PROC_NULL, which sends nothing"
            ));
        }
        Ok(counts)
    }

    /// The count along the scatter axis of all that comes, if it is joined along another axis.
    fn common_count(&self, counts: &[i64]) -> Result<i64> {
        let heard =
            || self.neighbors.sources.iter().zip(counts).filter(|(source, _)| source.exists());
        let Some((_, first)) = heard().next() else { return Ok(self.counts.of_this_rank()) };
        if heard().all(|(_, count)| count == first) {
            return Ok(*first);
        }
        let message = format!(
            "counts {counts:?} along axis {} differ, but the blocks are joined along axis {}",
            self.axes.scatter, self.axes.gather
        );
        Err(Error::Counts { call: self.name(), message })
    }

    fn resolve(&self, agreed: &Agreed) -> Sizes {
        self.known.clone().unwrap_or_else(|| {
            let (heard, sent) = agreed.told_here().split_at(self.neighbors.sources.len());
            Sizes { sent: sent.into(), heard: heard.into() }
        })
    }

    /// The shape of the result, and the extents of the blocks that it consists of along the gather
    /// axis.
    fn joined(&self, shape: &[i64], sizes: &Sizes) -> Result<(Vec<i64>, Arc<[i64]>)> {
        let (gather, scatter) = self.axes(shape)?;
        let counts = self.counts()?;
        let (block, extents) = if gather == scatter {
            (shape.to_vec(), counts.into())
        } else {
            let count = self.common_count(&counts)?;
            (with(shape, scatter, count), Arc::clone(&sizes.heard))
        };
        let whole = Blocks::new(gather, Arc::clone(&extents)).whole(self.name(), &block)?;
        Ok((whole, extents))
    }

    fn exchange(
        &self,
        comm: &Communicator,
        shape: &[i64],
        sizes: &Sizes,
    ) -> Result<&Arc<Exchange>> {
        let (gather, scatter) = self.axes(shape)?;
        Counts::check_sum(self.name(), &sizes.sent, shape[scatter])?;
        let (whole, extents) = self.joined(shape, sizes)?;
        check_shape(self.name(), &whole)?;
        Ok(self.exchange.get_or_init(|| {
            let cut = regions(shape, scatter, &sizes.sent);
            let joined = regions(&whole, gather, &extents);
            Arc::new(self.neighbors.exchange(
                |number| tag(comm, number, Part::Data),
                |place| cut[place].clone(),
                |place| joined[place].clone(),
            ))
        }))
    }
}

impl Operator for NeighborAllToAll {
    fn name(&self) -> &'static str {
        "neighbor_all_to_all"
    }

    fn prepare(&self, site: Site, comm: &Communicator) -> Result<()> {
        comm.make_context_of_exchanges(site)
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let shape = input.shape();
        let (gather, scatter) = self.axes(shape)?;
        let counts = self.counts()?;
        if gather != scatter {
            self.common_count(&counts)?;
        }
        let terms = Terms {
            axes: [Terms::axis(gather)[0], Terms::axis(scatter)[0]],
            shape: Some((shape, Some(gather))),
            also_free: Some(scatter),
            ..Terms::default()
        };
        if let Some(sizes) = &self.known {
            return Ok(Terms { edges: Some(self.exchange(comm, shape, sizes)?), ..terms });
        }
        let told =
            self.told.get_or_init(|| Told::new(&self.neighbors, comm, shape[gather], &counts));
        Ok(Terms { told_along: Some((&told.exchange, &told.words)), ..terms })
    }

    fn exchanges_sizes(&self) -> bool {
        self.known.is_none()
    }

    fn plans_alone(&self) -> bool {
        self.known.is_none()
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        let sizes = self.resolve(agreed);
        let (shape, _) = self.joined(input.shape(), &sizes)?;
        let exchange = self.exchange(comm, input.shape(), &sizes)?;
        plan(comm, input, shape, exchange)
    }

    fn adjoint(&self, shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator> {
        let sizes = self.resolve(agreed);
        let axes = Axes { gather: self.axes.scatter, scatter: self.axes.gather };
        // `plan` has succeeded for this shape.
        let (counts, heard) = match (self.axes(shape), self.joined(shape, &sizes)) {
            (Ok((gather, scatter)), Ok((_, extents))) if gather == scatter => {
                (Counts::from(&*sizes.sent), extents)
            }
            (Ok((gather, _)), Ok((_, extents))) => (Counts::from(shape[gather]), extents),
            _ => unreachable!("the sizes have been checked"),
        };
        let known = Some(Sizes { sent: heard, heard: sizes.sent });
        Arc::new(Self { known, ..Self::new(&Arc::new(self.neighbors.reversed()), axes, counts) })
    }
}

fn plan<'x>(
    comm: &Communicator,
    input: Input<'x>,
    shape: Vec<i64>,
    exchange: &Arc<Exchange>,
) -> Result<Plan<'x>> {
    Ok(Plan {
        input: input.contiguous()?,
        shape: shape.into(),
        call: Call::Exchange(Arc::clone(exchange)),
        context: comm.exchanges(),
        finish: Finish::Nothing,
    })
}

/// `shape` with `extent` along the axis.
fn with(shape: &[i64], axis: usize, extent: i64) -> Vec<i64> {
    let mut shape = shape.to_vec();
    shape[axis] = extent;
    shape
}

/// The regions of a tensor that is cut along an axis into blocks of these extents.
fn regions(whole: &[i64], axis: usize, extents: &[i64]) -> Vec<Region> {
    let mut end = 0;
    extents
        .iter()
        .map(|extent| {
            end += extent;
            let mut ranges: Vec<Range<i64>> = whole.iter().map(|extent| 0..*extent).collect();
            ranges[axis] = end - extent..end;
            Region::new(whole, &ranges)
        })
        .collect()
}
