//! Programs drawn at random.
//!
//! All ranks draw the same one. So that values can be compared, no tensor gets large: a bound on
//! its elements is kept, and where it grows a step divides by it. Ties are exact, or there are
//! none: extrema are of what a random factor on each rank has set apart, or of what was broadcast before.

use mpi4tch::{Op, Rank, Tag};

use crate::call::{Call, Counts};
use crate::program::{Derivative, End, How, Input, Local, Message, Program, Shift, Step, Var};
use crate::random::Random;

/// The program of this seed.
pub fn program(seed: u64, ranks: usize) -> Program {
    let random = Random(seed);
    let mut draft =
        Draft { random, ranks, vars: 0, pool: Vec::new(), pending: Vec::new(), steps: Vec::new() };
    let inputs = (0..2 + draft.random.below(3)).map(|_| draft.input()).collect();
    for _ in 0..6 + draft.random.below(14) {
        draft.step();
    }
    while !draft.pending.is_empty() {
        draft.settle();
    }
    let losses = draft.losses();
    let derivative = match draft.random.below(6) {
        0 => Derivative::Backward,
        1 => Derivative::BackwardTwice,
        2 => Derivative::Grad,
        _ => Derivative::Second(draft.some_ranks()),
    };
    Program { inputs, steps: draft.steps, losses, derivative }
}

/// What is known of a tensor on each rank.
#[derive(Clone)]
struct Known {
    var: Var,
    shapes: Vec<Vec<i64>>,
    /// Of the absolute values of its elements.
    bound: f64,
}

/// What was started and neither waited for nor dropped.
struct Pending {
    result: Known,
    /// The ends of a message, with their ranks; none of a collective.
    ends: Vec<(End, usize)>,
    /// Whether it can be dropped: the derivative of what is not linear needs a result.
    can_be_dropped: bool,
    /// The result holds infinities on rank 0.
    is_infinite: bool,
}

struct Draft {
    random: Random,
    ranks: usize,
    vars: usize,
    pool: Vec<Known>,
    pending: Vec<Pending>,
    steps: Vec<Step>,
}

const LARGEST: f64 = 4.0;
const MOST_ELEMENTS: i64 = 40;

impl Draft {
    fn var(&mut self) -> Var {
        self.vars += 1;
        self.vars - 1
    }

    fn rank(&mut self) -> Rank {
        Rank::try_from(self.random.below(self.ranks)).expect("ranks are few")
    }

    fn some_ranks(&mut self) -> Vec<bool> {
        if self.random.one_in(2) {
            return vec![true; self.ranks];
        }
        (0..self.ranks).map(|_| self.random.one_in(2)).collect()
    }

    fn input(&mut self) -> Input {
        let dim = 1 + self.random.below(2);
        let shape: Vec<i64> = (0..dim).map(|_| self.random.extent(1, 4)).collect();
        let mut shapes = vec![shape; self.ranks];
        if self.random.one_in(3) {
            let axis = self.random.below(dim);
            for shape in &mut shapes {
                shape[axis] = self.random.extent(0, 4);
            }
        }
        let (var, requires_grad) = (self.var(), self.some_ranks());
        self.pool.push(Known { var, shapes: shapes.clone(), bound: 2.0 });
        Input { var, shapes, requires_grad }
    }

    /// Each rank's loss is of some of the tensors, and some ranks have none.
    fn losses(&mut self) -> Vec<Vec<Var>> {
        let with_loss = self.some_ranks();
        let some = |of: bool| {
            let all = self.pool.iter().map(|known| known.var);
            all.filter(|_| of && self.random.one_in(3)).collect()
        };
        with_loss.into_iter().map(some).collect()
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..4 => self.local(),
            4..11 => self.collective(),
            11..14 => self.message(),
            14 => self.shift(),
            15 => self.steps.push(Step::Barrier),
            _ => self.settle(),
        }
    }

    /// The later ones more often.
    fn any(&mut self) -> Known {
        let count = self.pool.len();
        let place = self.random.below(count).max(self.random.below(count));
        self.pool[place].clone()
    }

    /// A step of local work, whose result later steps may use.
    fn work(&mut self, work: Local, shapes: Vec<Vec<i64>>, bound: f64) -> Known {
        let y = self.var();
        self.steps.push(Step::Local { y, work });
        self.add(Known { var: y, shapes, bound })
    }

    /// Lets later steps use a tensor, or what it is made small by.
    fn add(&mut self, known: Known) -> Known {
        let largest = known.shapes.iter().map(|shape| shape.iter().product::<i64>()).max();
        if largest > Some(MOST_ELEMENTS) {
            return self.narrowed(&known);
        }
        if known.bound > LARGEST {
            return self.scaled(&known);
        }
        self.pool.push(known.clone());
        known
    }

    /// By a factor that differs from rank to rank.
    fn scaled(&mut self, x: &Known) -> Known {
        let factors = (0..self.ranks).map(|_| self.random.factor() / x.bound.max(1.0)).collect();
        let bound = 1.5 * (x.bound / x.bound.max(1.0));
        self.work(Local::Scale(x.var, factors), x.shapes.clone(), bound)
    }

    /// The same elements on some ranks, bit for bit, and half of them on the others.
    fn with_ties(&mut self, x: &Known) -> Known {
        let (y, root) = (self.var(), self.rank());
        let (call, how) = (Call::Broadcast(root), How::Blocking);
        self.steps.push(Step::Collective { y, x: x.var, call, how });
        let factors = (0..self.ranks).map(|_| self.random.among(&[1.0, 1.0, 0.5])).collect();
        self.work(Local::Scale(y, factors), x.shapes.clone(), x.bound)
    }

    /// A few rows or columns, other ones on each rank.
    fn narrowed(&mut self, x: &Known) -> Known {
        let axis = self.random.below(x.shapes.iter().map(Vec::len).min().unwrap_or(1));
        let same = self.random.one_in(2) && is_same(&x.shapes);
        let most = x.shapes[0][axis].min(4);
        let length = self.random.extent(most.min(1), most);
        let (mut parts, mut shapes) = (Vec::new(), x.shapes.clone());
        for shape in &mut shapes {
            let most = shape[axis].min(4);
            let length = if same { length } else { self.random.extent(0, most) };
            parts.push((self.random.extent(0, shape[axis] - length), length));
            shape[axis] = length;
        }
        let axis = i64::try_from(axis).expect("axes are few");
        self.work(Local::Narrow(x.var, axis, parts), shapes, x.bound)
    }

    fn local(&mut self) {
        let (x, y) = (self.any(), self.any());
        let alike = x.shapes == y.shapes;
        let joins =
            x.shapes.iter().zip(&y.shapes).all(|(a, b)| a.len() == b.len() && a[1..] == b[1..]);
        let most = y.shapes.iter().map(|shape| shape.iter().product::<i64>()).max().unwrap_or(0);
        let flat = x.shapes.iter().all(|shape| shape.len() == 1);
        let plane = x.shapes.iter().all(|shape| shape.len() == 2);
        let each = |f: fn(&Vec<i64>) -> Vec<i64>| x.shapes.iter().map(f).collect::<Vec<_>>();
        match self.random.below(9) {
            0 => self.work(Local::Sin(x.var), x.shapes, 1.0),
            1 => self.scaled(&x),
            2 if self.random.one_in(2) => {
                let ranks = self.some_ranks();
                self.work(Local::Detach(x.var, ranks), x.shapes, x.bound)
            }
            3 if alike => self.work(Local::Add(x.var, y.var), x.shapes, x.bound + y.bound),
            4 if alike => self.work(Local::Mul(x.var, y.var), x.shapes, x.bound * y.bound),
            5 if joins => {
                let ends = x.shapes.iter().zip(&y.shapes);
                let shapes = ends
                    .map(|(a, b)| {
                        let mut shape = a.clone();
                        shape[0] += b[0];
                        shape
                    })
                    .collect();
                self.work(Local::Cat(x.var, y.var), shapes, x.bound.max(y.bound))
            }
            6 => self.narrowed(&x),
            7 if plane => {
                let shapes = each(|shape| vec![shape[1], shape[0]]);
                self.work(Local::Transpose(x.var), shapes, x.bound)
            }
            8 if !flat => {
                let shapes = each(|shape| vec![shape.iter().product()]);
                self.work(Local::Flatten(x.var), shapes, x.bound)
            }
            _ => {
                let bound = x.bound + most as f64 * y.bound;
                self.work(Local::AddSum(x.var, y.var), x.shapes, bound)
            }
        };
    }

    fn collective(&mut self) {
        let mut x = self.any();
        if !is_same(&x.shapes) && self.random.one_in(2) {
            // Most calls take the same shape everywhere: look for one.
            if let Some(same) = self.pool.iter().rev().find(|known| is_same(&known.shapes)) {
                x = same.clone();
            }
        }
        let call = self.call(&x);
        let op = call.op();
        let is_extremum = matches!(op, Some(Op::Max | Op::Min));
        if is_extremum && self.random.one_in(2) {
            x = self.with_ties(&x);
        } else if is_extremum || (op == Some(Op::Prod) && x.bound > 1.0) {
            x = self.scaled(&x);
        }
        let can_start = !matches!(call, Call::MaxLoc | Call::MinLoc);
        let in_place = matches!(call, Call::AllReduce(_) | Call::Reduce(..) | Call::Broadcast(_));
        let how = match self.random.below(8) {
            0..3 if can_start => How::Started,
            3 if in_place => How::InPlace,
            4 if in_place => How::InPlaceOnPart,
            3..5 if can_start => How::Started,
            _ => How::Blocking,
        };
        let bound = match op {
            Some(Op::Sum) => x.bound * self.ranks as f64,
            Some(Op::Prod) => x.bound.max(1.0).powi(i32::try_from(self.ranks).unwrap_or(1)),
            _ => x.bound,
        };
        let shapes = if in_place { x.shapes.clone() } else { call.result_shapes(&x.shapes) };
        let bound = bound.max(x.bound);
        let result = Known { var: self.var(), shapes, bound };
        let is_infinite = matches!(call, Call::Exscan(Op::Max | Op::Min));
        let can_be_dropped = matches!(op, None | Some(Op::Sum | Op::Mean));
        self.steps.push(Step::Collective { y: result.var, x: x.var, call, how });
        let pending = Pending { result, ends: Vec::new(), can_be_dropped, is_infinite };
        match how {
            How::Started => self.pending.push(pending),
            _ => self.finish(pending),
        }
    }

    /// The result is there.
    fn finish(&mut self, Pending { result, is_infinite, .. }: Pending) {
        if is_infinite {
            let bound = 1.5 * result.bound;
            self.work(Local::Clamp(result.var, bound), result.shapes, bound);
        } else {
            self.add(result);
        }
    }

    /// One that takes such a tensor.
    fn call(&mut self, x: &Known) -> Call {
        let op = self.random.among(&[Op::Sum, Op::Sum, Op::Mean, Op::Max, Op::Min, Op::Prod]);
        let root = self.rank();
        let dim = x.shapes.iter().map(Vec::len).min().unwrap_or(1);
        let same = is_same(&x.shapes);
        if same && !self.random.one_in(3) {
            return match self.random.below(12) {
                0..3 => Call::AllReduce(op),
                3 | 4 => Call::Reduce(op, root),
                5 | 6 => Call::Broadcast(root),
                7 => Call::Scan(op),
                8 => Call::Exscan(if op == Op::Mean { Op::Sum } else { op }),
                9 => self.random.among(&[Call::MaxLoc, Call::MinLoc]),
                _ => {
                    let axis = self.random.below(dim);
                    let counts = self.partition(x.shapes[0][axis]);
                    Call::ReduceScatter(self.signed(axis, dim), counts, op)
                }
            };
        }
        let axis = (0..dim).filter(|axis| is_same_off(&x.shapes, *axis)).collect::<Vec<_>>();
        let Some(axis) = (!axis.is_empty()).then(|| self.random.among(&axis)) else {
            // The root's alone is looked at.
            let shape = &x.shapes[root.unsigned_abs() as usize];
            let axis = self.random.below(shape.len());
            let counts = match self.partition(shape[axis]) {
                Counts::Known(counts) | Counts::Own(counts) => Counts::Own(counts),
            };
            return Call::Scatter(i64::try_from(axis).unwrap_or(0), counts, root);
        };
        let extents: Vec<i64> = x.shapes.iter().map(|shape| shape[axis]).collect();
        let known = self.random.one_in(2);
        let counts =
            if known { Counts::Known(extents.clone()) } else { Counts::Own(extents.clone()) };
        let at = self.signed(axis, dim);
        match self.random.below(6) {
            0 => Call::Gather(at, counts, root),
            1 => Call::AllGather(at, counts),
            2 => {
                let cuts = self.partition(extents[root.unsigned_abs() as usize]);
                Call::Scatter(at, cuts, root)
            }
            3 | 4 => {
                let row = |extent: &i64| match self.partition(*extent) {
                    Counts::Known(row) | Counts::Own(row) => row,
                };
                Call::AllToAllV(at, extents.iter().map(row).collect(), known)
            }
            _ => {
                let other = self.random.below(dim);
                let total = if other == axis { extents.iter().sum() } else { x.shapes[0][other] };
                let cuts = match (self.partition(total), known) {
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
    fn partition(&mut self, extent: i64) -> Counts {
        let mut counts = vec![0; self.ranks];
        for _ in 0..extent {
            counts[self.random.below(self.ranks)] += 1;
        }
        if self.random.one_in(2) { Counts::Known(counts) } else { Counts::Own(counts) }
    }

    fn message(&mut self) {
        let x = self.any();
        let (from, to) = (self.random.below(self.ranks), self.random.below(self.ranks));
        let y = self.var();
        let mut started = self.random.among(&[
            vec![End::Send, End::Receive],
            vec![End::Send, End::Receive],
            vec![End::Send],
            vec![End::Receive],
            vec![],
        ]);
        if from == to {
            // A rank cannot wait for itself.
            started = vec![End::Send, End::Receive];
        }
        // Who receives from anybody must not get what is for another receive.
        let any_source = self.random.one_in(4);
        let tag = if any_source { 100 + Tag::try_from(y).expect("names are few") } else { 5 };
        let shape = x.shapes[from].clone();
        let mut shapes = x.shapes.clone();
        shapes[to].clone_from(&shape);
        let ends: Vec<_> =
            started.iter().map(|end| (*end, if *end == End::Send { from } else { to })).collect();
        let message = Message { from, to, tag, shape, any_source, started };
        self.steps.push(Step::Message { y, x: x.var, message });
        let result = Known { var: y, shapes, bound: x.bound };
        // Whose message it was is known only after the wait.
        let can_be_dropped = !any_source;
        let pending = Pending { result, ends, can_be_dropped, is_infinite: false };
        if pending.ends.is_empty() { self.finish(pending) } else { self.pending.push(pending) }
    }

    fn shift(&mut self) {
        let x = self.any();
        let (y, by) = (self.var(), self.random.below(self.ranks));
        let around = self.random.one_in(2);
        let in_parts = self.random.one_in(2);
        // Who receives from anybody must not get what is for another receive.
        let any_source = self.random.one_in(4);
        let tag = if any_source { 100 + Tag::try_from(y).expect("names are few") } else { 7 };
        let shapes = x.shapes.clone();
        let mut shift = Shift { by, around, shapes, in_parts, any_source, tag };
        for rank in 0..self.ranks {
            if let Some(from) = shift.peer(rank, self.ranks, false) {
                shift.shapes[rank].clone_from(&x.shapes[from]);
            }
        }
        let shapes = shift.shapes.clone();
        self.steps.push(Step::Shift { y, x: x.var, shift });
        self.add(Known { var: y, shapes, bound: x.bound });
    }

    /// Waits for some of what was started, or drops it.
    fn settle(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let place = self.random.below(self.pending.len());
        let drops = self.pending[place].can_be_dropped && self.random.one_in(8);
        let y = self.pending[place].result.var;
        if self.pending[place].ends.is_empty() {
            if drops {
                self.pending.remove(place);
                self.steps.push(Step::Drop { y });
                return;
            }
            let mut done = vec![self.pending.remove(place)];
            while self.random.one_in(3) {
                let Some(more) = self.pending.iter().position(|pending| pending.ends.is_empty())
                else {
                    break;
                };
                done.push(self.pending.remove(more));
            }
            let ys = done.iter().map(|pending| pending.result.var).collect();
            self.steps.push(Step::Wait { ys });
            for pending in done {
                self.finish(pending);
            }
            return;
        }
        let count = self.pending[place].ends.len();
        let (end, rank) = self.pending[place].ends.remove(self.random.below(count));
        self.steps.push(Step::EndMessage { y, rank, end, waits: !drops });
        if drops && end == End::Receive {
            // There is no result; the sender may still wait.
            self.pending[place].result.shapes.clear();
        }
        if self.pending[place].ends.is_empty() {
            let pending = self.pending.remove(place);
            if !pending.result.shapes.is_empty() {
                self.finish(pending);
            }
        }
    }
}

fn is_same(shapes: &[Vec<i64>]) -> bool {
    shapes.iter().all(|shape| *shape == shapes[0])
}

/// Whether the shapes are the same but for this axis.
fn is_same_off(shapes: &[Vec<i64>], axis: usize) -> bool {
    shapes.iter().all(|shape| shape.len() == shapes[0].len())
        && (0..shapes[0].len())
            .all(|i| i == axis || shapes.iter().all(|shape| shape[i] == shapes[0][i]))
}
