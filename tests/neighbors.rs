//! Graphs of ranks, and what neighbours send each other.

mod common;

use std::process::ExitCode;

use common::tensors::{range, tensor, variable, zeros};
use common::{Context, start, works};
use mpi4tch::{Communicator, Error, Graph, PROC_NULL, Result, mpi_sys, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            graphs_are_those_of_mpi,
            neighbours_in_a_grid_have_the_order_of_the_standard,
            gathered_from_the_sources,
            exchanged_along_one_axis,
            exchanged_along_two_axes,
            what_goes_backward_comes_from_ahead,
            edges_between_the_same_ranks_keep_their_order,
            every_kind,
            adjoints,
            second_derivatives,
            on_a_tape,
            graphs_that_are_refused,
            lists_that_do_not_match,
            counts_that_are_refused,
            an_extent_that_nobody_asked_for,
            shapes_that_differ,
        ],
    )
}

/// Graphs of all sorts, by name: of each rank's sources and destinations.
fn graphs(comm: &Communicator) -> Result<Vec<(&'static str, Graph)>> {
    let (rank, size) = (comm.rank(), comm.size());
    let at = |place: i32| place.rem_euclid(size);
    let all: Vec<i32> = (0..size).collect();
    let grid = |dims: &[i32], periodic: &[bool]| -> Result<Graph> {
        Ok(Graph::clone(&comm.cartesian(dims, periodic, false)?.expect("all ranks are in it")))
    };
    let star = comm.graph(if rank == 0 { &all } else { &[] }, &[0])?;
    Ok(vec![
        ("ring", comm.graph(&[at(rank - 1)], &[at(rank + 1)])?),
        ("skewed", comm.graph(&[at(rank - 2), at(rank + 1)], &[at(rank - 1), at(rank + 2)])?),
        (
            "twice",
            comm.graph(&[at(rank - 1), at(rank - 1), rank], &[rank, at(rank + 1), at(rank + 1)])?,
        ),
        ("star", star),
        ("complete", comm.graph(&all, &all)?),
        ("none", comm.graph(&[], &[])?),
        ("line", grid(&[0], &[false])?),
        ("circle", grid(&[0], &[true])?),
        ("torus", grid(&[0, 0], &[true; 2])?),
        ("cylinder", grid(&[0, 0], &[false, true])?),
    ])
}

/// The edges of a graph as seen from both ends.
struct Edges {
    /// Each rank's sources and destinations.
    sources: Vec<Vec<i32>>,
    destinations: Vec<Vec<i32>>,
    is_grid: bool,
}

impl Edges {
    fn of(name: &str, graph: &Graph) -> Result<Self> {
        let all = |list: Vec<i32>| -> Result<Vec<Vec<i32>>> {
            let lengths = graph.all_gather(&tensor(&[list.len() as i64]), 0)?;
            let lengths: Vec<i64> = lengths.try_into().expect("integers");
            let lists = graph.all_gather(&tensor(&list), 0)?;
            let lists = lists.split_with_sizes(&lengths[..], 0);
            Ok(lists.into_iter().map(|list| list.try_into().expect("ranks")).collect())
        };
        let is_grid = ["line", "circle", "torus", "cylinder"].contains(&name);
        Ok(Self {
            sources: all(graph.sources())?,
            destinations: all(graph.destinations())?,
            is_grid,
        })
    }

    /// The place among the receiver's sources of an edge of the sender's.
    fn arrival(&self, sender: i32, place: usize) -> (i32, usize) {
        let destinations = &self.destinations[sender as usize];
        let receiver = destinations[place];
        if self.is_grid {
            // What goes backward along an axis comes from ahead.
            return (receiver, place ^ 1);
        }
        let before = destinations[..place].iter().filter(|other| **other == receiver).count();
        let sources = self.sources[receiver as usize].iter().enumerate();
        let mut arrivals = sources.filter(|(_, source)| **source == sender).map(|(place, _)| place);
        (receiver, arrivals.nth(before).expect("the lists match"))
    }

    /// The place among the sender's destinations of an edge that comes to a rank.
    fn origin(&self, receiver: i32, place: usize) -> (i32, usize) {
        let sender = self.sources[receiver as usize][place];
        let out = 0..self.destinations[sender as usize].len();
        let origin = out.clone().find(|out| {
            self.destinations[sender as usize][*out] != PROC_NULL
                && self.arrival(sender, *out) == (receiver, place)
        });
        (sender, origin.expect("the lists match"))
    }
}

/// How many rows a rank asks of a source.
fn asked(receiver: i32, place: usize) -> i64 {
    (i64::from(receiver) + 2 * place as i64) % 4
}

/// The block that a rank sends by an edge, of so many rows and columns.
fn block(sender: i32, place: usize, rows: i64, columns: i64) -> Tensor {
    let first = 1000.0 * f64::from(sender) + 100.0 * place as f64;
    (range(rows * columns, Kind::Double) + first).view([rows, columns])
}

fn cat(blocks: Vec<Tensor>, axis: i64, none: [i64; 2]) -> Tensor {
    if blocks.is_empty() {
        return zeros(&none);
    }
    Tensor::cat(&blocks, axis)
}

fn exists(list: Vec<i32>) -> impl Iterator<Item = (usize, i32)> {
    list.into_iter().enumerate().filter(|(_, rank)| *rank != PROC_NULL)
}

fn graphs_are_those_of_mpi(context: &Context) -> Result<()> {
    let comm = &context.world;
    let (rank, size) = (comm.rank(), comm.size());
    let (sources, destinations) =
        (vec![(rank + 1) % size, rank], vec![rank, (rank + size - 1) % size]);
    let graph = comm.graph(&sources, &destinations)?;
    assert_eq!((graph.rank(), graph.size()), (rank, size));
    assert_eq!((graph.sources(), graph.destinations()), (sources.clone(), destinations.clone()));
    let (mut from, mut to, mut weights) = ([-1; 2], [-1; 2], [[0; 2]; 2]);
    // SAFETY: the communicator is a graph with two edges in each direction.
    unsafe {
        mpi_sys::MPI_Dist_graph_neighbors(
            graph.as_raw(),
            2,
            from.as_mut_ptr(),
            weights[0].as_mut_ptr(),
            2,
            to.as_mut_ptr(),
            weights[1].as_mut_ptr(),
        );
    }
    assert_eq!((&from[..], &to[..]), (&sources[..], &destinations[..]));
    works(&graph)
}

fn neighbours_in_a_grid_have_the_order_of_the_standard(context: &Context) -> Result<()> {
    let grid =
        context.world.cartesian(&[0, 0], &[false, true], false)?.expect("all ranks are in it");
    let mut expected = Vec::new();
    for axis in 0..2 {
        let (before, after) = grid.shift(axis, 1)?;
        expected.extend([before, after]);
    }
    assert_eq!((grid.sources(), grid.destinations()), (expected.clone(), expected));
    Ok(())
}

/// Blocks of other extents from each rank, along either axis.
fn gathered_from_the_sources(context: &Context) -> Result<()> {
    for (name, graph) in graphs(&context.world)? {
        let own = |rank: i32| block(rank, 0, i64::from(rank) % 3, 2);
        let expected: Vec<Tensor> = exists(graph.sources()).map(|(_, rank)| own(rank)).collect();
        let (along_rows, along_columns) = (
            cat(expected.iter().map(Tensor::shallow_clone).collect(), 0, [0, 2]),
            cat(expected.iter().map(Tensor::tr).collect(), 1, [2, 0]),
        );
        let x = own(graph.rank());
        assert_eq!(graph.neighbor_all_gather(&x, 0)?, along_rows, "{name}");
        assert_eq!(graph.neighbor_all_gather(&x.tr(), -1)?, along_columns, "{name}");
        assert_eq!(graph.ineighbor_all_gather(&x, 0)?.wait()?, along_rows, "{name}");
        assert_eq!(graph.ineighbor_all_gather(&x.tr(), 1)?.wait()?, along_columns, "{name}");
    }
    Ok(())
}

/// The same axis twice: every edge has a block of its own size.
fn exchanged_along_one_axis(context: &Context) -> Result<()> {
    for (name, graph) in graphs(&context.world)? {
        let (edges, rank) = (Edges::of(name, &graph)?, graph.rank());
        let sent = exists(graph.destinations()).map(|(place, _)| {
            let (receiver, there) = edges.arrival(rank, place);
            block(rank, place, asked(receiver, there), 2)
        });
        let x = cat(sent.collect(), 0, [0, 2]);
        let counts: Vec<i64> = graph
            .sources()
            .iter()
            .enumerate()
            .map(|(place, source)| if *source == PROC_NULL { 0 } else { asked(rank, place) })
            .collect();
        let received = exists(graph.sources()).map(|(place, _)| {
            let (sender, there) = edges.origin(rank, place);
            block(sender, there, asked(rank, place), 2)
        });
        let expected = cat(received.collect(), 0, [0, 2]);
        assert_eq!(graph.neighbor_all_to_all(&x, 0, 0, &counts)?, expected, "{name}");
        assert_eq!(graph.ineighbor_all_to_all(&x, 0, 0, &counts)?.wait()?, expected, "{name}");
        let (x, expected) = (x.tr(), expected.tr());
        assert_eq!(graph.neighbor_all_to_all(&x, -1, 1, &counts)?, expected, "{name}");
    }
    Ok(())
}

/// Two axes: a rank asks each source for as much, and has an extent of its own along the other axis.
fn exchanged_along_two_axes(context: &Context) -> Result<()> {
    for (name, graph) in graphs(&context.world)? {
        let (edges, rank) = (Edges::of(name, &graph)?, graph.rank());
        let (wide, asks) = (|rank: i32| 1 + i64::from(rank) % 2, |rank: i32| i64::from(rank) % 3);
        let sent = exists(graph.destinations())
            .map(|(place, receiver)| block(rank, place, asks(receiver), wide(rank)));
        let x = cat(sent.collect(), 0, [0, wide(rank)]);
        let received = exists(graph.sources()).map(|(place, sender)| {
            let (_, there) = edges.origin(rank, place);
            block(sender, there, asks(rank), wide(sender))
        });
        let expected = cat(received.collect(), 1, [asks(rank), 0]);
        assert_eq!(graph.neighbor_all_to_all(&x, 1, 0, asks(rank))?, expected, "{name}");
        assert_eq!(graph.ineighbor_all_to_all(&x, 1, 0, asks(rank))?.wait()?, expected, "{name}");
    }
    Ok(())
}

/// On a periodic axis of one or two ranks both neighbours are the same rank.
fn what_goes_backward_comes_from_ahead(context: &Context) -> Result<()> {
    for ranks in [1, 2] {
        let ranks = ranks.min(context.world.size());
        let Some(ring) = context.world.cartesian(&[ranks], &[true], false)? else { continue };
        let rank = f64::from(ring.rank());
        let other = f64::from(ranks - 1) - rank;
        let x = tensor(&[-1.0 - 10.0 * rank, 1.0 + 10.0 * rank]);
        let y = ring.neighbor_all_to_all(&x, 0, 0, 1)?;
        assert_eq!(y, tensor(&[1.0 + 10.0 * other, -1.0 - 10.0 * other]));
    }
    Ok(())
}

fn edges_between_the_same_ranks_keep_their_order(context: &Context) -> Result<()> {
    let comm = &context.world;
    let (left, right) =
        ((comm.rank() + comm.size() - 1) % comm.size(), (comm.rank() + 1) % comm.size());
    let graph = comm.graph(&[left; 5], &[right; 5])?;
    let x = range(5, Kind::Int64) + 100 * i64::from(comm.rank());
    let expected = range(5, Kind::Int64) + 100 * i64::from(left);
    assert_eq!(graph.neighbor_all_to_all(&x, 0, 0, 1)?, expected);
    Ok(())
}

fn every_kind(context: &Context) -> Result<()> {
    let grid = context.world.cartesian(&[0, 0], &[true; 2], false)?.expect("all ranks are in it");
    let kinds = [
        Kind::Uint8,
        Kind::Int8,
        Kind::Int16,
        Kind::Int,
        Kind::Int64,
        Kind::Half,
        Kind::BFloat16,
        Kind::Float,
        Kind::ComplexFloat,
        Kind::ComplexDouble,
        Kind::Bool,
    ];
    for kind in kinds {
        let x = testing::random(&grid, &[4, 3], kind)?;
        let all = grid.all_gather(&x.unsqueeze(0), 0)?;
        let expected: Vec<Tensor> =
            grid.sources().iter().map(|rank| all.get((*rank).into())).collect();
        assert_eq!(grid.neighbor_all_gather(&x, 0)?, Tensor::cat(&expected, 0), "{kind:?}");
        let there = grid.neighbor_all_to_all(&x, 1, 0, 1)?;
        // What came from before goes back there, and comes from ahead.
        let back = grid.neighbor_all_to_all(&there.transpose(0, 1), 1, 0, 3)?;
        assert_eq!(back.size(), [3, 4]);
        assert_eq!(back.transpose(0, 1), x, "{kind:?}");
    }
    Ok(())
}

fn adjoints(context: &Context) -> Result<()> {
    for (_, graph) in graphs(&context.world)? {
        let rank = i64::from(graph.rank());
        let x = variable(&graph, &[1 + rank % 3, 2])?;
        testing::assert_adjoint(&graph, &x, |x| graph.neighbor_all_gather(x, 0))?;
        testing::assert_adjoint(&graph, &x.tr(), |x| graph.ineighbor_all_gather(x, 1)?.wait())?;
        let edges = exists(graph.destinations()).count() as i64;
        let x = variable(&graph, &[3, 2 * edges])?;
        testing::assert_adjoint(&graph, &x, |x| graph.neighbor_all_to_all(x, 1, 1, 2))?;
        testing::assert_adjoint(&graph, &x, |x| graph.neighbor_all_to_all(x, 0, 1, 2))?;
        testing::assert_adjoint(&graph, &x, |x| graph.ineighbor_all_to_all(x, 0, 1, 2)?.wait())?;
    }
    Ok(())
}

fn second_derivatives(context: &Context) -> Result<()> {
    for (name, graph) in graphs(&context.world)? {
        if !["skewed", "twice", "circle", "cylinder"].contains(&name) {
            continue;
        }
        let edges = exists(graph.destinations()).count() as i64;
        let x = variable(&graph, &[2, edges])?;
        let equal = variable(&graph, &[2, 2])?;
        let gather = |x: &Tensor| Ok(graph.neighbor_all_gather(&x.exp(), 0)?.sin());
        testing::gradgradcheck(&graph, &equal, gather)?;
        testing::gradgradcheck(&graph, &x, |x| {
            Ok(graph.neighbor_all_to_all(&x.exp(), 0, 1, 1)?.sin())
        })?;
        testing::gradgradcheck(&graph, &x, |x| {
            Ok(graph.ineighbor_all_to_all(&x.exp(), 1, 1, 1)?.wait()?.sin())
        })?;
    }
    Ok(())
}

/// A loss on one rank only: the others take part in the backward pass all the same.
fn on_a_tape(context: &Context) -> Result<()> {
    let (rank, size) = (context.world.rank(), context.world.size());
    let tape = context.world.tape();
    let ring = tape.graph(&[(rank + size - 1) % size], &[(rank + 1) % size])?;
    let x = tensor(&[1.0 + f64::from(rank)]).set_requires_grad(true);
    let y = ring.neighbor_all_gather(&x.square(), 0)?;
    let z = ring.neighbor_all_to_all(&y, 0, 0, 1)?;
    let loss = (rank == 0).then(|| z.sum(Kind::Double));
    tape.backward(loss.as_ref())?;
    let heard = (2 * size - 2) % size == rank;
    let expected = if heard { 2.0 * (1.0 + f64::from(rank)) } else { 0.0 };
    assert_eq!(x.grad(), tensor(&[expected]));
    Ok(())
}

fn graphs_that_are_refused(context: &Context) -> Result<()> {
    let comm = &context.world;
    let size = comm.size();
    for (rank, role) in [(size, "source"), (PROC_NULL, "source"), (size, "destination")] {
        let lists = if role == "source" { (vec![rank], vec![]) } else { (vec![], vec![rank]) };
        let error = comm.graph(&lists.0, &lists.1).expect_err("there is no such rank");
        let text = error.to_string();
        assert!(text.starts_with(&format!("graph: {role} {rank} is out of range")), "{text}");
    }
    let error = comm.graph(&[0; 2049], &[]).expect_err("too many");
    assert_eq!(error.to_string(), "graph: rank 0 is listed as a source more than 2048 times");
    works(comm)
}

fn lists_that_do_not_match(context: &Context) -> Result<()> {
    let comm = &context.world;
    let size = comm.size();
    // Every rank hears rank 0, which sends to itself alone.
    let error = comm.graph(&[0], if comm.rank() == 0 { &[0] } else { &[] });
    assert_eq!(error.is_err(), size > 1);
    if let Err(error) = error {
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        assert!(error.to_string().contains("destinations: [0] on rank 0; none on"), "{error}");
    }
    works(comm)
}

fn counts_that_are_refused(context: &Context) -> Result<()> {
    let line = context.world.cartesian(&[0], &[false], false)?.expect("all ranks are in it");
    let ring = context.world.cartesian(&[0], &[true], false)?.expect("all ranks are in it");
    let x = testing::random(&ring, &[2, 2], Kind::Double)?;
    for (counts, gather, text) in [
        (&[1][..], 0, "1 counts were given for 2 neighbours"),
        (&[-1, 1], 0, "count -1 is negative"),
        (&[1, 2], 1, "counts [1, 2] along axis 0 differ, but the blocks are joined along axis 1"),
    ] {
        let error = ring.neighbor_all_to_all(&x, gather, 0, counts).expect_err(text);
        assert_eq!(error.to_string(), format!("neighbor_all_to_all: {text}"));
    }
    if line.size() == 1 {
        let error = line.neighbor_all_to_all(&x, 0, 0, &[1, 0]).expect_err("nobody is there");
        let text = "neighbor_all_to_all: count 1 was given for MPI_PROC_NULL, which sends nothing";
        assert_eq!(error.to_string(), text);
    }
    let error = ring.neighbor_all_gather(&x, 2).expect_err("no such axis");
    let text = "neighbor_all_gather: axis 2 is out of range for a tensor of shape [2, 2]";
    assert_eq!(error.to_string(), text);
    works(&ring)
}

/// The extent on one rank only is not the sum of what its destinations ask for.
fn an_extent_that_nobody_asked_for(context: &Context) -> Result<()> {
    let ring = context.world.cartesian(&[0], &[true], false)?.expect("all ranks are in it");
    let last = ring.rank() == ring.size() - 1;
    let x = testing::random(&ring, &[if last { 3 } else { 2 }], Kind::Double)?;
    let text = "neighbor_all_to_all: counts [1, 1] sum to 2, but the extent to cut is 3";
    for started in [false, true] {
        let error = if started {
            ring.ineighbor_all_to_all(&x, 0, 0, 1).map(drop).expect_err(text)
        } else {
            ring.neighbor_all_to_all(&x, 0, 0, 1).map(drop).expect_err(text)
        };
        if last {
            assert_eq!(error.to_string(), text);
        } else {
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }
    works(&ring)
}

fn shapes_that_differ(context: &Context) -> Result<()> {
    let ring = context.world.cartesian(&[0], &[true], false)?.expect("all ranks are in it");
    if ring.size() == 1 {
        return Ok(());
    }
    let last = ring.rank() == ring.size() - 1;
    let x = testing::random(&ring, &[2, if last { 1 << 16 } else { 3 }], Kind::Double)?;
    for error in [
        ring.neighbor_all_gather(&x, 0).map(drop),
        ring.ineighbor_all_gather(&x, 0).map(drop),
        ring.neighbor_all_to_all(&x, 0, 0, 1).map(drop),
    ] {
        let error = error.expect_err("the shapes differ");
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        assert!(error.to_string().contains("shape: [_, 3]"), "{error}");
    }
    works(&ring)
}
