//! [`Graph`]: ranks with neighbours.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use super::communicators::null;
use super::grid::Grid;
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::tag::Tag;
use crate::call::{Edge, Exchange, Region, Source, Stage};
use crate::communicator::topology::create_graph;
use crate::engine::agreement::Terms;
use crate::engine::communicator::Communicator;
use crate::environment::status::PROC_NULL;

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
    /// See [`Graph`].
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
    #[must_use]
    #[doc(alias = "MPI_Dist_graph_neighbors")]
    pub fn sources(&self) -> Vec<Rank> {
        self.neighbors.sources.iter().map(|source| source.rank).collect()
    }

    /// The ranks that this one sends to, in the order in which what they receive is cut.
    ///
    /// Local.
    #[must_use]
    #[doc(alias = "MPI_Dist_graph_neighbors")]
    pub fn destinations(&self) -> Vec<Rank> {
        self.neighbors.destinations.iter().map(|destination| destination.rank).collect()
    }
}

/// How often a rank may be listed: there are tags for as many messages between two ranks.
const MOST: i32 = 2048;

/// The neighbours of a rank, in the order in which blocks are joined and cut.
#[derive(Clone, Debug)]
pub(super) struct Neighbors {
    pub(super) sources: Vec<Neighbor>,
    pub(super) destinations: Vec<Neighbor>,
}

/// One end of an edge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbor {
    /// The rank at the other end, or [`PROC_NULL`].
    pub(super) rank: Rank,
    /// The number of the edge, the same at both ends. Edges from one rank to another differ in it.
    number: i32,
}

impl Neighbor {
    pub(super) fn exists(&self) -> bool {
        self.rank != PROC_NULL
    }
}

impl Neighbors {
    /// Of several edges from one rank to another, the first that the one lists is the first that the
    /// other lists.
    fn of_graph(sources: &[Rank], destinations: &[Rank]) -> Self {
        let list = |ranks: &[Rank]| {
            let mut seen = BTreeMap::new();
            let number = |rank: &Rank| {
                let next = seen.entry(*rank).or_insert(0);
                *next += 1;
                Neighbor { rank: *rank, number: *next - 1 }
            };
            ranks.iter().map(number).collect()
        };
        Self { sources: list(sources), destinations: list(destinations) }
    }

    /// An edge has a number for each axis and direction of travel. So what is sent backward comes from
    /// ahead, although both neighbours are the same rank along a periodic axis of one or two ranks.
    pub(super) fn of_grid(grid: &Grid) -> Self {
        let (mut sources, mut destinations) = (Vec::new(), Vec::new());
        for (axis, backward) in (0..grid.dims.len()).zip((0..).step_by(2)) {
            let (before, after) = grid.shift(axis, 1);
            let forward = backward + 1;
            sources.push(Neighbor { rank: before, number: forward });
            sources.push(Neighbor { rank: after, number: backward });
            destinations.push(Neighbor { rank: before, number: backward });
            destinations.push(Neighbor { rank: after, number: forward });
        }
        Self { sources, destinations }
    }

    /// The same edges, in the other direction.
    pub(super) fn reversed(&self) -> Self {
        Self { sources: self.destinations.clone(), destinations: self.sources.clone() }
    }

    /// A message along each edge. `tag` takes the number of an edge to a tag; `sent` and `received` take
    /// the place of a destination or source in the list to the region.
    pub(super) fn exchange(
        &self,
        tag: impl Fn(i32) -> Tag,
        sent: impl Fn(usize) -> Region,
        received: impl Fn(usize) -> Region,
    ) -> Exchange {
        let edges = |list: &[Neighbor], region: &dyn Fn(usize) -> Region| {
            list.iter()
                .enumerate()
                .filter(|(_, neighbor)| neighbor.exists())
                .map(|(place, Neighbor { rank, number })| Edge {
                    peer: *rank,
                    tag: tag(*number),
                    region: region(place),
                })
                .collect()
        };
        let (sends, receives) = (edges(&self.destinations, &sent), edges(&self.sources, &received));
        let stages = vec![Stage { source: Source::Input, sends, receives }];
        Exchange { stages, ..Exchange::default() }
    }

    /// The exchange by which a rank tells a number to each destination, and then one to each source.
    /// It is told one by each source, and then one by each destination; zeros beyond an edge.
    pub(super) fn telling(&self, comm: &Communicator) -> Exchange {
        let (sources, destinations) = (self.sources.len(), self.destinations.len());
        let word = |place: usize| {
            let (place, count) = (signed(place), signed(sources + destinations));
            let range = place..place + 1;
            Region::new(&[count], std::slice::from_ref(&range))
        };
        let ahead = self.exchange(|number| tag(comm, number, Part::Ahead), word, word);
        let back = self.reversed().exchange(
            |number| tag(comm, number, Part::Back),
            |place| word(destinations + place),
            |place| word(sources + place),
        );
        let mut stages = ahead.stages;
        for (stage, other) in stages.iter_mut().zip(back.stages) {
            stage.sends.extend(other.sends);
            stage.receives.extend(other.receives);
        }
        let told = self.sources.iter().chain(&self.destinations).enumerate();
        let zeros =
            told.filter(|(_, other)| !other.exists()).map(|(place, _)| word(place)).collect();
        Exchange { stages, zeros, ..Exchange::default() }
    }
}

/// The messages of an exchange, which may be under way at the same time.
#[derive(Clone, Copy)]
pub(super) enum Part {
    /// The data.
    Data,
    /// The sizes that are told in the direction of the data.
    Ahead,
    /// The sizes that are told in the other direction.
    Back,
}

/// The tag of a message along the edge of this number.
pub(super) fn tag(comm: &Communicator, number: i32, part: Part) -> Tag {
    let part = match part {
        Part::Data => 0,
        Part::Ahead => 1,
        Part::Back => 2,
    };
    (number * 3 + part) * 4 + comm.pass_number()
}

pub(super) fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
