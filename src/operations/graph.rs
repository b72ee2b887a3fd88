//! [`Graph`]: ranks with neighbours.

use std::ops::Deref;
use std::sync::Arc;

use super::communicators::null;
use super::neighbors::{MOST, Neighbor, Neighbors};
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::call::Region;
use crate::communicator::topology::create_graph;
use crate::engine::agreement::Terms;
use crate::engine::communicator::Communicator;

/// A communicator whose ranks have neighbours: those that a rank hears, its sources, and those that it
/// sends to, its destinations. It dereferences to the communicator, so that all operations can be
/// called on it.
///
/// A [`Cartesian`](crate::Cartesian) dereferences to its graph. For each axis of the grid, in order, it
/// has the neighbour before this rank and the one after it, which are both sources and destinations
/// (MPI 4.1, 8.6). Beyond an edge that is not periodic the neighbour is
/// [`PROC_NULL`](crate::PROC_NULL): nothing is sent there, and nothing comes from there.
///
/// If the communicator that it was made from is on a [`Tape`](crate::Tape), so is the graph.
///
/// # Examples
/// Each rank hears the rank before it, in a ring:
/// ```
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let (rank, size) = (world.rank(), world.size());
/// let ring = world.graph(&[(rank + size - 1) % size], &[(rank + 1) % size])?;
/// let heard = ring.neighbor_all_gather(&Tensor::from_slice(&[rank]), 0)?;
/// assert_eq!(heard, Tensor::from_slice(&ring.sources()));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Clone, Debug)]
#[doc(alias = "MPI_Dist_graph_neighbors")]
pub struct Graph {
    comm: Communicator,
    pub(super) neighbors: Arc<Neighbors>,
}

impl Deref for Graph {
    type Target = Communicator;

    fn deref(&self) -> &Communicator {
        &self.comm
    }
}

impl Communicator {
    /// A communicator of the same ranks, in which this rank hears `sources` and sends to
    /// `destinations`. A rank may be listed several times, and may be this one. The lists must match:
    /// if a rank lists another n times as a destination, the other lists it n times as a source.
    ///
    /// Wraps `MPI_Dist_graph_create_adjacent`, without weights; ranks keep their numbers. Collective:
    /// every rank must call it.
    ///
    /// # Errors
    /// [`Error::Rank`] if there is no such rank, and then [`Error::Mismatch`] on the other ranks;
    /// [`Error::Mismatch`] on all ranks, with the lists of each, if they do not match;
    /// [`Error::Argument`] if a rank is listed more than 2048 times; [`Error::Mpi`] if MPI fails;
    /// [`Error::Finalized`] after the universe's end.
    ///
    /// # Examples
    /// All other ranks send to rank 0:
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let others: Vec<_> = (1..world.size()).collect();
    /// let star = match world.rank() {
    ///     0 => world.graph(&others, &[])?,
    ///     _ => world.graph(&[], &[0])?,
    /// };
    /// let heard = star.neighbor_all_gather(&Tensor::from_slice(&[world.rank()]), 0)?;
    /// assert_eq!(heard, Tensor::from_slice(&star.sources()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Dist_graph_create_adjacent")]
    #[track_caller]
    pub fn graph(&self, sources: &[Rank], destinations: &[Rank]) -> Result<Graph> {
        let site = self.site("graph");
        let neighbors = Neighbors::of_graph(sources, destinations);
        let edges = Arc::new(neighbors.exchange(
            |number| number,
            |_| Region::all(&[]),
            |_| Region::all(&[]),
        ));
        let terms = self.check_neighbors(site.call, &neighbors);
        let terms = terms.map(|()| Terms { edges: Some(&edges), ..Terms::default() });
        let comm = self.make(site, terms, "MPI_Dist_graph_create_adjacent", |parent, made| {
            // SAFETY: `make` gives a live communicator, and room for the new one; the ranks have been
            // checked.
            unsafe { create_graph(parent, sources, destinations, made) }
        })?;
        Ok(Graph::new(comm.ok_or_else(|| null("graph"))?, neighbors))
    }

    fn check_neighbors(&self, call: &'static str, neighbors: &Neighbors) -> Result<()> {
        let Neighbors { sources, destinations } = neighbors;
        for (role, list) in [("source", sources), ("destination", destinations)] {
            if let Some(Neighbor { rank, .. }) =
                list.iter().find(|other| !self.has_rank(other.rank))
            {
                return Err(Error::Rank { call, role, rank: *rank, size: self.size() });
            }
            if let Some(Neighbor { rank, .. }) = list.iter().find(|other| other.number >= MOST) {
                let message = format!("rank {rank} is listed as a {role} more than {MOST} times");
                return Err(Error::Argument { call, message });
            }
        }
        Ok(())
    }
}

impl Graph {
    pub(super) fn new(comm: Communicator, neighbors: Neighbors) -> Self {
        Self { comm, neighbors: Arc::new(neighbors) }
    }

    /// The ranks that this one hears, in the order in which what they send is joined.
    ///
    /// Local.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let (rank, size) = (world.rank(), world.size());
    /// let ring = world.graph(&[(rank + size - 1) % size], &[(rank + 1) % size])?;
    /// assert_eq!(ring.sources(), [(rank + size - 1) % size]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Dist_graph_neighbors")]
    pub fn sources(&self) -> Vec<Rank> {
        self.neighbors.sources.iter().map(|source| source.rank).collect()
    }

    /// The ranks that this one sends to, in the order in which what they receive is cut.
    ///
    /// Local.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let ring = universe.world().cartesian(&[0], &[true], false)?.expect("all ranks");
    /// let (before, after) = ring.shift(0, 1)?;
    /// assert_eq!(ring.destinations(), [before, after]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Dist_graph_neighbors")]
    pub fn destinations(&self) -> Vec<Rank> {
        self.neighbors.destinations.iter().map(|destination| destination.rank).collect()
    }
}
