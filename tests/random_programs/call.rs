//! The collectives: how each is called, and what libtorch alone makes of all ranks' tensors.

use mpi4tch::{Communicator, Op, Rank, Replicated, ReplicatedRequest, Request, Result};
use tch::{Tensor, no_grad};

use crate::common::serial;
use crate::common::tensors::zeros;

/// A collective and its arguments besides the tensor.
#[derive(Clone, Debug)]
pub enum Call {
    AllReduce(Op),
    Reduce(Op, Rank),
    Broadcast(Rank),
    Scan(Op),
    Exscan(Op),
    MaxLoc,
    MinLoc,
    /// The sum of the sines, by a node of the user's own.
    CustomSum,
    Gather(i64, Counts, Rank),
    AllGather(i64, Counts),
    Scatter(i64, Counts, Rank),
    ReduceScatter(i64, Counts, Op),
    /// The axis that is joined, and the one that is cut.
    AllToAll(i64, Counts, i64, Counts),
    /// What each rank sends to each, and whether they know what they receive.
    AllToAllV(i64, Vec<Vec<i64>>, bool),
    /// By a replicated tensor, of which every rank takes the whole, or its block along an axis: a sum
    /// or mean, a broadcast, or all blocks joined.
    ReplicatedSum(Op),
    ReplicatedBlock(Op, i64),
    ReplicatedBroadcast(Rank),
    ReplicatedConcat(i64),
}

/// Each rank's extent.
#[derive(Clone, Debug)]
pub enum Counts {
    /// Every rank is given all of them.
    Known(Vec<i64>),
    /// Every rank is given its own, or sees it.
    Own(Vec<i64>),
}

impl Counts {
    fn all(&self) -> &[i64] {
        match self {
            Self::Known(counts) | Self::Own(counts) => counts,
        }
    }
}

impl Call {
    /// What it combines with.
    pub fn op(&self) -> Option<Op> {
        match self {
            Self::AllReduce(op)
            | Self::Reduce(op, _)
            | Self::Scan(op)
            | Self::Exscan(op)
            | Self::ReduceScatter(_, _, op)
            | Self::ReplicatedSum(op)
            | Self::ReplicatedBlock(op, _) => Some(*op),
            Self::CustomSum => Some(Op::Sum),
            Self::MaxLoc => Some(Op::Max),
            Self::MinLoc => Some(Op::Min),
            _ => None,
        }
    }

    /// Whether it can be started.
    pub fn can_start(&self) -> bool {
        !matches!(self, Self::MaxLoc | Self::MinLoc | Self::CustomSum)
    }

    /// Whether it has a form in place.
    pub fn can_be_in_place(&self) -> bool {
        matches!(self, Self::AllReduce(_) | Self::Reduce(..) | Self::Broadcast(_))
    }

    /// Whether the result holds infinities on rank 0.
    pub fn is_infinite(&self) -> bool {
        matches!(self, Self::Exscan(Op::Max | Op::Min))
    }

    /// Those of the result, of tensors of such shapes.
    pub fn result_shapes(&self, shapes: &[Vec<i64>]) -> Vec<Vec<i64>> {
        let xs: Vec<Tensor> = shapes.iter().map(|shape| zeros(shape)).collect();
        self.serial(&xs).iter().map(Tensor::size).collect()
    }

    pub fn run(&self, comm: &Communicator, x: &Tensor) -> Result<Tensor> {
        let rank = comm.rank().unsigned_abs() as usize;
        let own = |counts: &[i64]| counts[rank];
        match self {
            Self::AllReduce(op) => comm.all_reduce(x, *op),
            Self::Reduce(op, root) => comm.reduce(x, *op, *root),
            Self::Broadcast(root) => comm.broadcast(x, *root),
            Self::Scan(op) => comm.scan(x, *op),
            Self::Exscan(op) => comm.exscan(x, *op),
            Self::MaxLoc => Ok(comm.max_loc(x)?.0),
            Self::MinLoc => Ok(comm.min_loc(x)?.0),
            Self::CustomSum => custom_sum(comm, x),
            Self::Gather(axis, Counts::Own(_), root) => comm.gather(x, *axis, *root),
            Self::Gather(axis, Counts::Known(counts), root) => {
                comm.gather_with_counts(x, *axis, counts, *root)
            }
            Self::AllGather(axis, Counts::Own(_)) => comm.all_gather(x, *axis),
            Self::AllGather(axis, Counts::Known(counts)) => {
                comm.all_gather_with_counts(x, *axis, counts)
            }
            Self::Scatter(axis, Counts::Own(counts), root) => {
                comm.scatter(x, *axis, own(counts), *root)
            }
            Self::Scatter(axis, Counts::Known(counts), root) => {
                comm.scatter(x, *axis, counts, *root)
            }
            Self::ReduceScatter(axis, Counts::Own(counts), op) => {
                comm.reduce_scatter(x, *axis, own(counts), *op)
            }
            Self::ReduceScatter(axis, Counts::Known(counts), op) => {
                comm.reduce_scatter(x, *axis, counts, *op)
            }
            Self::AllToAll(axis, Counts::Known(counts), cut, Counts::Known(cuts)) => {
                comm.all_to_all_with_counts(x, *axis, counts, *cut, cuts)
            }
            Self::AllToAll(axis, _, cut, cuts) => comm.all_to_all(x, *axis, *cut, own(cuts.all())),
            Self::AllToAllV(axis, matrix, false) => comm.all_to_all_v(x, *axis, &matrix[rank]),
            Self::AllToAllV(axis, matrix, true) => {
                comm.all_to_all_v_with_counts(x, *axis, &matrix[rank], &column(matrix, rank))
            }
            Self::ReplicatedSum(op) => replicated(comm, x, *op)?.vary(),
            Self::ReplicatedBlock(op, axis) => replicated(comm, x, *op)?.shard(*axis),
            Self::ReplicatedBroadcast(root) => Replicated::broadcast(comm, x, *root)?.vary(),
            Self::ReplicatedConcat(axis) => Replicated::concat(comm, x, *axis)?.vary(),
        }
    }

    /// None where it cannot be started.
    pub fn start(&self, comm: &Communicator, x: &Tensor) -> Option<Result<Request>> {
        let rank = comm.rank().unsigned_abs() as usize;
        let own = |counts: &[i64]| counts[rank];
        Some(match self {
            Self::AllReduce(op) => comm.iall_reduce(x, *op),
            Self::Reduce(op, root) => comm.ireduce(x, *op, *root),
            Self::Broadcast(root) => comm.ibroadcast(x, *root),
            Self::Scan(op) => comm.iscan(x, *op),
            Self::Exscan(op) => comm.iexscan(x, *op),
            Self::MaxLoc | Self::MinLoc | Self::CustomSum => return None,
            Self::Gather(axis, Counts::Own(_), root) => comm.igather(x, *axis, *root),
            Self::Gather(axis, Counts::Known(counts), root) => {
                comm.igather_with_counts(x, *axis, counts, *root)
            }
            Self::AllGather(axis, Counts::Own(_)) => comm.iall_gather(x, *axis),
            Self::AllGather(axis, Counts::Known(counts)) => {
                comm.iall_gather_with_counts(x, *axis, counts)
            }
            Self::Scatter(axis, Counts::Own(counts), root) => {
                comm.iscatter(x, *axis, own(counts), *root)
            }
            Self::Scatter(axis, Counts::Known(counts), root) => {
                comm.iscatter(x, *axis, counts, *root)
            }
            Self::ReduceScatter(axis, Counts::Own(counts), op) => {
                comm.ireduce_scatter(x, *axis, own(counts), *op)
            }
            Self::ReduceScatter(axis, Counts::Known(counts), op) => {
                comm.ireduce_scatter(x, *axis, counts, *op)
            }
            Self::AllToAll(axis, Counts::Known(counts), cut, Counts::Known(cuts)) => {
                comm.iall_to_all_with_counts(x, *axis, counts, *cut, cuts)
            }
            Self::AllToAll(axis, _, cut, cuts) => comm.iall_to_all(x, *axis, *cut, own(cuts.all())),
            Self::AllToAllV(axis, matrix, false) => comm.iall_to_all_v(x, *axis, &matrix[rank]),
            Self::AllToAllV(axis, matrix, true) => {
                comm.iall_to_all_v_with_counts(x, *axis, &matrix[rank], &column(matrix, rank))
            }
            Self::ReplicatedSum(op) => waited(started(comm, x, *op)).and_then(|y| y.ivary()),
            Self::ReplicatedBlock(op, axis) => {
                waited(started(comm, x, *op)).and_then(|y| y.ishard(*axis))
            }
            Self::ReplicatedBroadcast(root) => {
                waited(Replicated::ibroadcast(comm, x, *root)).and_then(|y| y.ivary())
            }
            Self::ReplicatedConcat(axis) => {
                waited(Replicated::iconcat(comm, x, *axis)).and_then(|y| y.ivary())
            }
        })
    }

    /// None where it has no form in place.
    pub fn run_in_place(&self, comm: &Communicator, x: &mut Tensor) -> Option<Result<()>> {
        match self {
            Self::AllReduce(op) => Some(comm.all_reduce_(x, *op)),
            Self::Reduce(op, root) => Some(comm.reduce_(x, *op, *root)),
            Self::Broadcast(root) => Some(comm.broadcast_(x, *root)),
            _ => None,
        }
    }

    /// The result on all ranks, by libtorch alone.
    pub fn serial(&self, xs: &[Tensor]) -> Vec<Tensor> {
        let on_all = |y: &Tensor| serial::on_every_rank(y, xs.len());
        match self {
            Self::AllReduce(op) => serial::all_reduce(xs, *op),
            Self::Reduce(op, root) => serial::reduce(xs, *op, *root),
            Self::Broadcast(root) => serial::broadcast(xs, *root),
            Self::Scan(op) => serial::scan(xs, *op),
            Self::Exscan(op) => serial::exscan(xs, *op),
            Self::CustomSum => {
                serial::all_reduce(&xs.iter().map(Tensor::sin).collect::<Vec<_>>(), Op::Sum)
            }
            // The lowest rank wins a tie.
            Self::MaxLoc => on_all(&fold(xs, |y, x| x.where_self(&x.greater_tensor(y), y))),
            Self::MinLoc => on_all(&fold(xs, |y, x| x.where_self(&x.less_tensor(y), y))),
            Self::Gather(axis, _, root) => serial::gather(xs, *axis, *root),
            Self::AllGather(axis, _) => serial::all_gather(xs, *axis),
            Self::Scatter(axis, counts, root) => serial::scatter(xs, *axis, counts.all(), *root),
            Self::ReduceScatter(axis, counts, op) => {
                serial::reduce_scatter(xs, *axis, counts.all(), *op)
            }
            Self::AllToAll(axis, _, cut, counts) => {
                serial::all_to_all(xs, *axis, *cut, counts.all())
            }
            Self::AllToAllV(axis, matrix, _) => serial::all_to_all_v(xs, *axis, matrix),
            Self::ReplicatedSum(op) => serial::all_reduce(xs, *op),
            Self::ReplicatedBlock(op, axis) => {
                let counts = serial::balanced(&xs[0], *axis, xs.len());
                serial::reduce_scatter(xs, *axis, &counts, *op)
            }
            Self::ReplicatedBroadcast(root) => serial::broadcast(xs, *root),
            Self::ReplicatedConcat(axis) => serial::all_gather(xs, *axis),
        }
    }
}

fn replicated(comm: &Communicator, x: &Tensor, op: Op) -> Result<Replicated> {
    if op == Op::Mean { Replicated::mean(comm, x) } else { Replicated::sum(comm, x) }
}

fn started(comm: &Communicator, x: &Tensor, op: Op) -> Result<ReplicatedRequest> {
    if op == Op::Mean { Replicated::imean(comm, x) } else { Replicated::isum(comm, x) }
}

fn waited(request: Result<ReplicatedRequest>) -> Result<Replicated> {
    request.and_then(ReplicatedRequest::wait)
}

fn custom_sum(comm: &Communicator, x: &Tensor) -> Result<Tensor> {
    let y = no_grad(|| comm.all_reduce(&x.sin(), Op::Sum))?;
    let mut results = comm.custom("sum", &[x], &[&y], &[x], |comm, saved, cotangents| {
        Ok(vec![Some(comm.all_reduce(&cotangents[0], Op::Sum)? * saved[0].cos())])
    })?;
    Ok(results.remove(0))
}

fn column(matrix: &[Vec<i64>], rank: usize) -> Vec<i64> {
    matrix.iter().map(|row| row[rank]).collect()
}

fn fold(xs: &[Tensor], f: impl Fn(&Tensor, &Tensor) -> Tensor) -> Tensor {
    xs[1..].iter().fold(xs[0].shallow_clone(), |y, x| f(&y, x))
}
