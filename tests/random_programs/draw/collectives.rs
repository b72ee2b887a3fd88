//! Draws collective calls.

use mpi4tch::Op;

use super::{Draft, Known, Pending, is_same};
use crate::call::{Call, Counts};
use crate::communicators::Group;
use crate::local::Local;
use crate::program::{How, Step};

impl Draft {
    pub(super) fn collective(&mut self) {
        let (on, mut x) = (self.group(), self.any());
        if !is_same(&on.pick(&x.shapes)) && self.random.one_in(2) {
            // Most calls take the same shape everywhere: look for one.
            let mut latest_first = self.pool.iter().rev();
            if let Some(same) = latest_first.find(|known| is_same(&on.pick(&known.shapes))) {
                x = same.clone();
            }
        }
        let call = self.call(&on.pick(&x.shapes));
        let op = call.op();
        let is_extremum = matches!(op, Some(Op::Max | Op::Min));
        if is_extremum && self.random.one_in(2) {
            x = self.with_ties(&on, &x);
        } else if is_extremum || (op == Some(Op::Prod) && x.bound > 1.0) {
            x = self.scaled(&x);
        }
        let how = match self.random.below(8) {
            0..3 if call.can_start() => How::Started,
            3 if call.can_be_in_place() => How::InPlace,
            4 if call.can_be_in_place() => How::InPlaceOnPart,
            3..5 if call.can_start() => How::Started,
            _ => How::Blocking,
        };
        let bound = match op {
            Some(Op::Sum) => x.bound * on.size() as f64,
            Some(Op::Prod) => x.bound.max(1.0).powi(i32::try_from(on.size()).unwrap_or(1)),
            _ => x.bound,
        };
        let mut shapes = x.shapes.clone();
        for (rank, shape) in on.ranks.iter().zip(call.result_shapes(&on.pick(&x.shapes))) {
            shapes[*rank] = shape;
        }
        let bound = bound.max(x.bound);
        let result = Known { var: self.var(), shapes, bound };
        let is_infinite = call.is_infinite();
        let can_be_dropped = matches!(op, None | Some(Op::Sum | Op::Mean));
        self.steps.push(Step::Collective { on, y: result.var, x: x.var, call, how });
        let pending = Pending { result, ends: Vec::new(), can_be_dropped, is_infinite };
        match how {
            How::Started => self.pending.push(pending),
            _ => self.finish(pending),
        }
    }

    /// The same elements on some ranks, bit for bit, and half of them on the others.
    fn with_ties(&mut self, on: &Group, x: &Known) -> Known {
        let (on, y, root) = (on.clone(), self.var(), self.rank(on.size()));
        let (call, how) = (Call::Broadcast(root), How::Blocking);
        self.steps.push(Step::Collective { on, y, x: x.var, call, how });
        let factors = (0..self.ranks).map(|_| self.random.among(&[1.0, 1.0, 0.5])).collect();
        self.work(Local::Scale(y, factors), x.shapes.clone(), x.bound)
    }

    /// One that takes such a tensor.
    fn call(&mut self, shapes: &[Vec<i64>]) -> Call {
        let op = self.random.among(&[Op::Sum, Op::Sum, Op::Mean, Op::Max, Op::Min, Op::Prod]);
        let (ranks, root) = (shapes.len(), self.rank(shapes.len()));
        let dim = shapes.iter().map(Vec::len).min().unwrap_or(1);
        let same = is_same(shapes);
        if same && !self.random.one_in(3) {
            return match self.random.below(16) {
                0..3 => Call::AllReduce(op),
                3 | 4 => Call::Reduce(op, root),
                5 | 6 => Call::Broadcast(root),
                7 => Call::Scan(op),
                8 => Call::Exscan(if op == Op::Mean { Op::Sum } else { op }),
                9 => self.random.among(&[Call::MaxLoc, Call::MinLoc]),
                10 => Call::CustomSum,
                11 => Call::ReplicatedSum(self.random.among(&[Op::Sum, Op::Mean])),
                12 => {
                    let axis = self.random.below(dim);
                    let op = self.random.among(&[Op::Sum, Op::Mean]);
                    Call::ReplicatedBlock(op, self.signed(axis, dim))
                }
                13 => Call::ReplicatedBroadcast(root),
                _ => {
                    let axis = self.random.below(dim);
                    let counts = self.partition(shapes[0][axis], ranks);
                    Call::ReduceScatter(self.signed(axis, dim), counts, op)
                }
            };
        }
        let axis = (0..dim).filter(|axis| is_same_off(shapes, *axis)).collect::<Vec<_>>();
        let Some(axis) = (!axis.is_empty()).then(|| self.random.among(&axis)) else {
            // The root's alone is looked at.
            let shape = &shapes[root.unsigned_abs() as usize];
            let axis = self.random.below(shape.len());
            let counts = match self.partition(shape[axis], ranks) {
                Counts::Known(counts) | Counts::Own(counts) => Counts::Own(counts),
            };
            return Call::Scatter(i64::try_from(axis).unwrap_or(0), counts, root);
        };
        let extents: Vec<i64> = shapes.iter().map(|shape| shape[axis]).collect();
        let known = self.random.one_in(2);
        let counts =
            if known { Counts::Known(extents.clone()) } else { Counts::Own(extents.clone()) };
        let at = self.signed(axis, dim);
        match self.random.below(7) {
            0 => Call::Gather(at, counts, root),
            1 => Call::AllGather(at, counts),
            6 => Call::ReplicatedConcat(at),
            2 => {
                let cuts = self.partition(extents[root.unsigned_abs() as usize], ranks);
                Call::Scatter(at, cuts, root)
            }
            3 | 4 => {
                let row = |extent: &i64| match self.partition(*extent, ranks) {
                    Counts::Known(row) | Counts::Own(row) => row,
                };
                Call::AllToAllV(at, extents.iter().map(row).collect(), known)
            }
            _ => {
                let other = self.random.below(dim);
                let total = if other == axis { extents.iter().sum() } else { shapes[0][other] };
                let cuts = match (self.partition(total, ranks), known) {
                    (Counts::Known(cuts) | Counts::Own(cuts), true) => Counts::Known(cuts),
                    (Counts::Known(cuts) | Counts::Own(cuts), false) => Counts::Own(cuts),
                };
                Call::AllToAll(at, counts, self.signed(other, dim), cuts)
            }
        }
    }

    /// The axis, now and then counted from the end.
    fn signed(&mut self, axis: usize, dim: usize) -> i64 {
        let (axis, dim) = (i64::try_from(axis).unwrap_or(0), i64::try_from(dim).unwrap_or(1));
        if self.random.one_in(2) { axis } else { axis - dim }
    }

    /// An extent as a sum of one count per rank.
    fn partition(&mut self, extent: i64, ranks: usize) -> Counts {
        let mut counts = vec![0; ranks];
        for _ in 0..extent {
            counts[self.random.below(ranks)] += 1;
        }
        if self.random.one_in(2) { Counts::Known(counts) } else { Counts::Own(counts) }
    }
}

/// Whether the shapes are the same but for this axis.
fn is_same_off(shapes: &[Vec<i64>], axis: usize) -> bool {
    shapes.iter().all(|shape| shape.len() == shapes[0].len())
        && (0..shapes[0].len())
            .all(|i| i == axis || shapes.iter().all(|shape| shape[i] == shapes[0][i]))
}
