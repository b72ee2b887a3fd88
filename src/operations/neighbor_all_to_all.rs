//! `MPI_Neighbor_alltoall(v)`.

use std::sync::{Arc, OnceLock};

use tch::Tensor;

use super::counts::Counts;
use super::graph::Graph;
use super::neighbors::{Neighbor, Neighbors, Part, Told, plan, regions, tag, with};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::call::blocks::{Blocks, axis_of, check_shape};
use crate::call::buffer::Input;
use crate::call::{Exchange, Plan};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Operator, apply};
use crate::engine::request::{Nonblocking, Request};

impl Graph {
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
    /// As for [`neighbor_all_to_all`](Self::neighbor_all_to_all), and those of [`Request::wait`].
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
