//! [`Neighbors`]: the edges of a graph at a rank, and the messages along them.
//!
//! MPI's functions for neighbours are not called: where two edges join the same ranks, as along a
//! periodic axis of one or two ranks, MPIs differ in which message is which. Here each edge has a tag.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::grid::Grid;
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::base::tag::Tag;
use crate::call::buffer::Input;
use crate::call::{Call, Edge, Exchange, Finish, Plan, Region, Source, Stage};
use crate::engine::communicator::Communicator;
use crate::environment::status::PROC_NULL;

/// How often a rank may be listed: there are tags for as many messages between two ranks.
pub(super) const MOST: i32 = 2048;

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
    pub(super) number: i32,
}

impl Neighbor {
    pub(super) fn exists(&self) -> bool {
        self.rank != PROC_NULL
    }
}

impl Neighbors {
    /// Of several edges from one rank to another, the first that the one lists is the first that the
    /// other lists.
    pub(super) fn of_graph(sources: &[Rank], destinations: &[Rank]) -> Self {
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

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A number for each destination, and then one for each source, with the exchange that tells them.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) exchange: Arc<Exchange>,
    pub(super) words: Vec<i64>,
}

impl Told {
    pub(super) fn new(
        neighbors: &Neighbors,
        comm: &Communicator,
        ahead: i64,
        back: &[i64],
    ) -> Self {
        let exchange = Arc::new(neighbors.telling(comm));
        let words =
            neighbors.destinations.iter().map(|_| ahead).chain(back.iter().copied()).collect();
        Self { exchange, words }
    }
}

/// The plan of an exchange between neighbours, with a result of this shape.
pub(super) fn plan<'x>(
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
pub(super) fn with(shape: &[i64], axis: usize, extent: i64) -> Vec<i64> {
    let mut shape = shape.to_vec();
    shape[axis] = extent;
    shape
}

/// The regions of a tensor that is cut along an axis into blocks of these extents.
pub(super) fn regions(whole: &[i64], axis: usize, extents: &[i64]) -> Vec<Region> {
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
