//! The collectives as a table: how each is called, on what, and what libtorch alone makes of all
//! ranks' tensors.

use mpi4tch::{Communicator, Op, Rank, Replicated, Result};
use tch::Tensor;

use crate::common::serial;

/// The arguments of a call. All ranks draw the same, and each takes its own count.
#[derive(Clone, Debug)]
pub struct Arguments {
    /// The shape that all ranks share, before counts replace extents.
    pub shape: Vec<i64>,
    /// May count from the end.
    pub axis: i64,
    /// The axis that `all_to_all` cuts, where `axis` is the one that it joins.
    pub scatter_axis: i64,
    /// Each rank's extent along `axis`.
    pub counts: Vec<i64>,
    /// Each rank's extent along `scatter_axis`; if that is `axis`, of the same sum as `counts`.
    pub scatter_counts: Vec<i64>,
    pub root: Rank,
    pub op: Op,
}

/// What an operation takes on a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// The shape that all share, which may have no axis at all.
    Same,
    /// The rank's count along the axis.
    Block,
    /// The sum of all counts along the axis.
    Whole,
    /// The same on the root; elsewhere, a shape that has nothing to do with it.
    WholeOnRoot,
    /// The rank's count along one axis, the sum of all counts along the other.
    BlockOfWhole,
    /// The sum of the rank's row of the matrix of counts along the axis.
    Row,
}

/// A collective.
pub struct Operation {
    pub name: &'static str,
    pub takes: Takes,
    /// Whether it combines with an op, and is defined for this one.
    pub ops: Option<fn(Op) -> bool>,
    pub has_root: bool,
    pub run: fn(&Communicator, &Tensor, &Arguments) -> Result<Tensor>,
    /// Each rank's result.
    pub serial: fn(&[Tensor], &Arguments) -> Vec<Tensor>,
}

const fn moves(
    name: &'static str,
    takes: Takes,
    has_root: bool,
    run: fn(&Communicator, &Tensor, &Arguments) -> Result<Tensor>,
    serial: fn(&[Tensor], &Arguments) -> Vec<Tensor>,
) -> Operation {
    Operation { name, takes, ops: None, has_root, run, serial }
}

const fn combines(
    name: &'static str,
    takes: Takes,
    ops: fn(Op) -> bool,
    has_root: bool,
    run: fn(&Communicator, &Tensor, &Arguments) -> Result<Tensor>,
    serial: fn(&[Tensor], &Arguments) -> Vec<Tensor>,
) -> Operation {
    Operation { name, takes, ops: Some(ops), has_root, run, serial }
}

/// Every collective on a tensor, one line each. What ends in `_with_counts` is given the counts of all
/// ranks.
#[rustfmt::skip]
pub const OPERATIONS: [Operation; 26] = [
    combines("all_reduce", Takes::Same, every, false, |c, x, a| c.all_reduce(x, a.op), all_reduce),
    combines("reduce", Takes::Same, every, true, |c, x, a| c.reduce(x, a.op, a.root), reduce),
    combines("scan", Takes::Same, every, false, |c, x, a| c.scan(x, a.op), scan),
    combines("exscan", Takes::Same, all_but_mean, false, |c, x, a| c.exscan(x, a.op), exscan),
    combines("reduce_scatter", Takes::Whole, every, false, |c, x, a| c.reduce_scatter(x, a.axis, own(c, &a.counts), a.op), reduce_scatter),
    combines("reduce_scatter_with_counts", Takes::Whole, every, false, |c, x, a| c.reduce_scatter(x, a.axis, &a.counts, a.op), reduce_scatter),
    combines("all_reduce_", Takes::Same, every, false, |c, x, a| in_place(x, |x| c.all_reduce_(x, a.op)), all_reduce),
    combines("reduce_", Takes::Same, every, true, |c, x, a| in_place(x, |x| c.reduce_(x, a.op, a.root)), reduce),
    moves("broadcast_", Takes::Same, true, |c, x, a| in_place(x, |x| c.broadcast_(x, a.root)), broadcast),
    moves("broadcast", Takes::Same, true, |c, x, a| c.broadcast(x, a.root), broadcast),
    moves("gather", Takes::Block, true, |c, x, a| c.gather(x, a.axis, a.root), gather),
    moves("gather_with_counts", Takes::Block, true, |c, x, a| c.gather_with_counts(x, a.axis, &a.counts, a.root), gather),
    moves("all_gather", Takes::Block, false, |c, x, a| c.all_gather(x, a.axis), all_gather),
    moves("all_gather_with_counts", Takes::Block, false, |c, x, a| c.all_gather_with_counts(x, a.axis, &a.counts), all_gather),
    moves("scatter", Takes::WholeOnRoot, true, |c, x, a| c.scatter(x, a.axis, own(c, &a.counts), a.root), scatter),
    moves("scatter_with_counts", Takes::Whole, true, |c, x, a| c.scatter(x, a.axis, &a.counts, a.root), scatter),
    moves("all_to_all", Takes::BlockOfWhole, false, |c, x, a| c.all_to_all(x, a.axis, a.scatter_axis, own(c, &a.scatter_counts)), all_to_all),
    moves("all_to_all to counts", Takes::BlockOfWhole, false, |c, x, a| c.all_to_all(x, a.axis, a.scatter_axis, &a.scatter_counts), all_to_all),
    moves("all_to_all_with_counts", Takes::BlockOfWhole, false, |c, x, a| c.all_to_all_with_counts(x, a.axis, &a.counts, a.scatter_axis, &a.scatter_counts), all_to_all),
    moves("all_to_all_v", Takes::Row, false, |c, x, a| c.all_to_all_v(x, a.axis, &a.row(rank(c))), all_to_all_v),
    moves("all_to_all_v_with_counts", Takes::Row, false, |c, x, a| c.all_to_all_v_with_counts(x, a.axis, &a.row(rank(c)), &a.column(rank(c))), all_to_all_v),
    // By tensors that are one variable on all ranks, of which each rank takes the whole.
    combines("sum, varied", Takes::Same, |op| op == Op::Sum, false, |c, x, _| Replicated::sum(c, x)?.vary(), all_reduce),
    combines("mean, varied", Takes::Same, |op| op == Op::Mean, false, |c, x, _| Replicated::mean(c, x)?.vary(), all_reduce),
    moves("broadcast, varied", Takes::Same, true, |c, x, a| Replicated::broadcast(c, x, a.root)?.vary(), broadcast),
    moves("concat, varied", Takes::Block, false, |c, x, a| Replicated::concat(c, x, a.axis)?.vary(), all_gather),
    // A result that is used again, so that cotangents are summed before they travel.
    moves("broadcast of gather", Takes::Block, true, |c, x, a| { let y = c.all_gather(x, a.axis)?; Ok(c.broadcast(&y, a.root)? + y) }, twice_all_gather),
];

/// Those that can be started, waited for at once.
#[rustfmt::skip]
pub const STARTED: [Operation; 22] = [
    combines("iall_reduce", Takes::Same, every, false, |c, x, a| c.iall_reduce(x, a.op)?.wait(), all_reduce),
    combines("ireduce", Takes::Same, every, true, |c, x, a| c.ireduce(x, a.op, a.root)?.wait(), reduce),
    combines("iscan", Takes::Same, every, false, |c, x, a| c.iscan(x, a.op)?.wait(), scan),
    combines("iexscan", Takes::Same, all_but_mean, false, |c, x, a| c.iexscan(x, a.op)?.wait(), exscan),
    combines("ireduce_scatter", Takes::Whole, every, false, |c, x, a| c.ireduce_scatter(x, a.axis, own(c, &a.counts), a.op)?.wait(), reduce_scatter),
    combines("ireduce_scatter_with_counts", Takes::Whole, every, false, |c, x, a| c.ireduce_scatter(x, a.axis, &a.counts, a.op)?.wait(), reduce_scatter),
    moves("ibroadcast", Takes::Same, true, |c, x, a| c.ibroadcast(x, a.root)?.wait(), broadcast),
    moves("igather", Takes::Block, true, |c, x, a| c.igather(x, a.axis, a.root)?.wait(), gather),
    moves("igather_with_counts", Takes::Block, true, |c, x, a| c.igather_with_counts(x, a.axis, &a.counts, a.root)?.wait(), gather),
    moves("iall_gather", Takes::Block, false, |c, x, a| c.iall_gather(x, a.axis)?.wait(), all_gather),
    moves("iall_gather_with_counts", Takes::Block, false, |c, x, a| c.iall_gather_with_counts(x, a.axis, &a.counts)?.wait(), all_gather),
    moves("iscatter", Takes::WholeOnRoot, true, |c, x, a| c.iscatter(x, a.axis, own(c, &a.counts), a.root)?.wait(), scatter),
    moves("iscatter_with_counts", Takes::Whole, true, |c, x, a| c.iscatter(x, a.axis, &a.counts, a.root)?.wait(), scatter),
    moves("iall_to_all", Takes::BlockOfWhole, false, |c, x, a| c.iall_to_all(x, a.axis, a.scatter_axis, own(c, &a.scatter_counts))?.wait(), all_to_all),
    moves("iall_to_all to counts", Takes::BlockOfWhole, false, |c, x, a| c.iall_to_all(x, a.axis, a.scatter_axis, &a.scatter_counts)?.wait(), all_to_all),
    moves("iall_to_all_with_counts", Takes::BlockOfWhole, false, |c, x, a| c.iall_to_all_with_counts(x, a.axis, &a.counts, a.scatter_axis, &a.scatter_counts)?.wait(), all_to_all),
    moves("iall_to_all_v", Takes::Row, false, |c, x, a| c.iall_to_all_v(x, a.axis, &a.row(rank(c)))?.wait(), all_to_all_v),
    combines("isum, varied", Takes::Same, |op| op == Op::Sum, false, |c, x, _| Replicated::isum(c, x)?.wait()?.ivary()?.wait(), all_reduce),
    combines("imean, varied", Takes::Same, |op| op == Op::Mean, false, |c, x, _| Replicated::imean(c, x)?.wait()?.ivary()?.wait(), all_reduce),
    moves("ibroadcast, varied", Takes::Same, true, |c, x, a| Replicated::ibroadcast(c, x, a.root)?.wait()?.ivary()?.wait(), broadcast),
    moves("iconcat, varied", Takes::Block, false, |c, x, a| Replicated::iconcat(c, x, a.axis)?.wait()?.ivary()?.wait(), all_gather),
    moves("iall_to_all_v_with_counts", Takes::Row, false, |c, x, a| c.iall_to_all_v_with_counts(x, a.axis, &a.row(rank(c)), &a.column(rank(c)))?.wait(), all_to_all_v),
];

fn rank(comm: &Communicator) -> usize {
    comm.rank().unsigned_abs() as usize
}

/// The rank's own entry.
pub fn own(comm: &Communicator, counts: &[i64]) -> i64 {
    counts[rank(comm)]
}

/// The result of a change in place, made on a copy that is no leaf.
fn in_place(x: &Tensor, f: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<Tensor> {
    let mut y = x.alias_copy();
    f(&mut y)?;
    Ok(y)
}

impl Arguments {
    /// `axis` counted from the start.
    pub fn axis_from_start(&self, axis: i64) -> usize {
        let dim = i64::try_from(self.shape.len()).unwrap();
        usize::try_from(if axis < 0 { axis + dim } else { axis }).unwrap()
    }

    /// The shape of a rank's input.
    pub fn input_shape(&self, takes: Takes, rank: usize) -> Vec<i64> {
        let mut shape = self.shape.clone();
        let total = |counts: &[i64]| counts.iter().sum();
        match takes {
            Takes::Same => {}
            Takes::WholeOnRoot if rank != self.root.unsigned_abs() as usize => {
                return vec![2; rank % 3];
            }
            Takes::Block => shape[self.axis_from_start(self.axis)] = self.counts[rank],
            Takes::Whole | Takes::WholeOnRoot => {
                shape[self.axis_from_start(self.axis)] = total(&self.counts);
            }
            Takes::BlockOfWhole => {
                shape[self.axis_from_start(self.scatter_axis)] = total(&self.scatter_counts);
                shape[self.axis_from_start(self.axis)] = self.counts[rank];
            }
            Takes::Row => shape[self.axis_from_start(self.axis)] = total(&self.row(rank)),
        }
        shape
    }

    /// What rank `from` sends to rank `to` by the matrix of counts, which is not symmetric.
    fn count(&self, from: usize, to: usize) -> i64 {
        self.counts[from].min(self.scatter_counts[to])
    }

    /// What a rank sends to each.
    pub fn row(&self, rank: usize) -> Vec<i64> {
        (0..self.counts.len()).map(|to| self.count(rank, to)).collect()
    }

    /// What a rank receives from each.
    pub fn column(&self, rank: usize) -> Vec<i64> {
        (0..self.counts.len()).map(|from| self.count(from, rank)).collect()
    }
}

pub fn every(_: Op) -> bool {
    true
}

fn all_but_mean(op: Op) -> bool {
    op != Op::Mean
}

fn all_reduce(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::all_reduce(xs, a.op)
}

fn reduce(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::reduce(xs, a.op, a.root)
}

fn scan(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::scan(xs, a.op)
}

fn exscan(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::exscan(xs, a.op)
}

fn reduce_scatter(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::reduce_scatter(xs, a.axis, &a.counts, a.op)
}

fn broadcast(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::broadcast(xs, a.root)
}

fn gather(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::gather(xs, a.axis, a.root)
}

fn all_gather(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::all_gather(xs, a.axis)
}

fn twice_all_gather(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::all_gather(xs, a.axis).iter().map(|y| y + y).collect()
}

fn scatter(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::scatter(xs, a.axis, &a.counts, a.root)
}

fn all_to_all(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    serial::all_to_all(xs, a.axis, a.scatter_axis, &a.scatter_counts)
}

fn all_to_all_v(xs: &[Tensor], a: &Arguments) -> Vec<Tensor> {
    let rows: Vec<_> = (0..xs.len()).map(|rank| a.row(rank)).collect();
    serial::all_to_all_v(xs, a.axis, &rows)
}
