//! A program: steps on named tensors, of which every rank has its own.

use std::fmt;

use mpi4tch::{Communicator, Op, Rank, Request, Result, Tag};
use tch::{Kind, Tensor};

/// A tensor's name: `v0`, `v1`, …
pub type Var = usize;

/// The same on all ranks; so is what it says of each rank.
#[derive(Clone)]
pub struct Program {
    pub inputs: Vec<Input>,
    pub steps: Vec<Step>,
    /// What each rank's loss depends on; a rank where it is nothing has no loss.
    pub losses: Vec<Vec<Var>>,
    pub derivative: Derivative,
}

/// Drawn at random, different on each rank.
#[derive(Clone)]
pub struct Input {
    pub var: Var,
    pub shapes: Vec<Vec<i64>>,
    pub requires_grad: Vec<bool>,
}

#[derive(Clone, Debug)]
pub enum Derivative {
    Backward,
    /// With the graph kept in between.
    BackwardTwice,
    Grad,
    /// With a second loss, of the first gradients, on these ranks.
    Second(Vec<bool>),
}

#[derive(Clone)]
pub enum Step {
    Local {
        y: Var,
        work: Local,
    },
    Collective {
        y: Var,
        x: Var,
        call: Call,
        how: How,
    },
    /// For what was started; more than one by `wait_all`.
    Wait {
        ys: Vec<Var>,
    },
    /// Of what was started.
    Drop {
        y: Var,
    },
    /// `y` is the other rank's `x` on the rank `to`, and `x` elsewhere.
    Message {
        y: Var,
        x: Var,
        message: Message,
    },
    /// On the end's rank only: the others do so at other steps.
    EndMessage {
        y: Var,
        rank: usize,
        end: End,
        waits: bool,
    },
    Shift {
        y: Var,
        x: Var,
        shift: Shift,
    },
    Barrier,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Blocking,
    InPlace,
    /// In place on a copy's first part along axis 0; the rest stays.
    InPlaceOnPart,
    Started,
}

/// Which of a message's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Send,
    Receive,
}

#[derive(Clone, Debug)]
pub struct Message {
    pub from: usize,
    pub to: usize,
    pub tag: Tag,
    /// What is received.
    pub shape: Vec<i64>,
    pub any_source: bool,
    /// Which ends are started, and waited for later.
    pub started: Vec<End>,
}

/// Every rank sends to the rank `by` further on.
#[derive(Clone, Debug)]
pub struct Shift {
    pub by: usize,
    /// Beyond the last rank comes the first one, else nobody.
    pub around: bool,
    /// What each rank receives.
    pub shapes: Vec<Vec<i64>>,
    /// By `isend`, `recv` and `wait`, not by `sendrecv`.
    pub in_parts: bool,
}

/// Work of each rank on its own tensors.
#[derive(Clone, Debug)]
pub enum Local {
    Sin(Var),
    /// By each rank's own factor.
    Scale(Var, Vec<f64>),
    /// What is detached on these ranks.
    Detach(Var, Vec<bool>),
    Clamp(Var, f64),
    Add(Var, Var),
    Mul(Var, Var),
    /// The first, and the sum of the second's elements.
    AddSum(Var, Var),
    /// From, and how many, on each rank.
    Narrow(Var, i64, Vec<(i64, i64)>),
    Cat(Var, Var),
    Transpose(Var),
    Flatten(Var),
}

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
    Gather(i64, Counts, Rank),
    AllGather(i64, Counts),
    Scatter(i64, Counts, Rank),
    ReduceScatter(i64, Counts, Op),
    /// The axis that is joined, and the one that is cut.
    AllToAll(i64, Counts, i64, Counts),
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

impl Local {
    pub fn reads(&self) -> Vec<Var> {
        match *self {
            Self::Sin(x)
            | Self::Scale(x, _)
            | Self::Detach(x, _)
            | Self::Clamp(x, _)
            | Self::Narrow(x, ..)
            | Self::Transpose(x)
            | Self::Flatten(x) => vec![x],
            Self::Add(x, y) | Self::Mul(x, y) | Self::AddSum(x, y) | Self::Cat(x, y) => vec![x, y],
        }
    }

    /// The result on a rank, whose tensors `at` gives.
    pub fn run(&self, rank: usize, at: impl Fn(Var) -> Tensor) -> Tensor {
        match self {
            Self::Sin(x) => at(*x).sin(),
            Self::Scale(x, factors) => at(*x) * factors[rank],
            Self::Detach(x, ranks) if ranks[rank] => at(*x).detach(),
            Self::Detach(x, _) => at(*x),
            Self::Clamp(x, most) => at(*x).clamp(-most, *most),
            Self::Add(x, y) => at(*x) + at(*y),
            Self::Mul(x, y) => at(*x) * at(*y),
            Self::AddSum(x, y) => at(*x) + at(*y).sum(Kind::Double),
            Self::Narrow(x, axis, parts) => at(*x).narrow(*axis, parts[rank].0, parts[rank].1),
            Self::Cat(x, y) => Tensor::cat(&[at(*x), at(*y)], 0),
            Self::Transpose(x) => at(*x).transpose(0, 1),
            Self::Flatten(x) => at(*x).flatten(0, -1),
        }
    }
}

impl Call {
    pub fn run(&self, comm: &Communicator, x: &Tensor) -> Result<Tensor> {
        let own = |counts: &[i64]| counts[comm.rank().unsigned_abs() as usize];
        match self {
            Self::AllReduce(op) => comm.all_reduce(x, *op),
            Self::Reduce(op, root) => comm.reduce(x, *op, *root),
            Self::Broadcast(root) => comm.broadcast(x, *root),
            Self::Scan(op) => comm.scan(x, *op),
            Self::Exscan(op) => comm.exscan(x, *op),
            Self::MaxLoc => Ok(comm.max_loc(x)?.0),
            Self::MinLoc => Ok(comm.min_loc(x)?.0),
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
                comm.scatter_with_counts(x, *axis, counts, *root)
            }
            Self::ReduceScatter(axis, Counts::Own(counts), op) => {
                comm.reduce_scatter(x, *axis, own(counts), *op)
            }
            Self::ReduceScatter(axis, Counts::Known(counts), op) => {
                comm.reduce_scatter_with_counts(x, *axis, counts, *op)
            }
            Self::AllToAll(axis, Counts::Known(counts), cut, Counts::Known(cuts)) => {
                comm.all_to_all_with_counts(x, *axis, counts, *cut, cuts)
            }
            Self::AllToAll(axis, _, cut, cuts) => comm.all_to_all(x, *axis, *cut, own(cuts.all())),
        }
    }

    /// None where it cannot be started.
    pub fn start(&self, comm: &Communicator, x: &Tensor) -> Option<Result<Request>> {
        let own = |counts: &[i64]| counts[comm.rank().unsigned_abs() as usize];
        Some(match self {
            Self::AllReduce(op) => comm.iall_reduce(x, *op),
            Self::Reduce(op, root) => comm.ireduce(x, *op, *root),
            Self::Broadcast(root) => comm.ibroadcast(x, *root),
            Self::Scan(op) => comm.iscan(x, *op),
            Self::Exscan(op) => comm.iexscan(x, *op),
            Self::MaxLoc | Self::MinLoc => return None,
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
                comm.iscatter_with_counts(x, *axis, counts, *root)
            }
            Self::ReduceScatter(axis, Counts::Own(counts), op) => {
                comm.ireduce_scatter(x, *axis, own(counts), *op)
            }
            Self::ReduceScatter(axis, Counts::Known(counts), op) => {
                comm.ireduce_scatter_with_counts(x, *axis, counts, *op)
            }
            Self::AllToAll(axis, Counts::Known(counts), cut, Counts::Known(cuts)) => {
                comm.iall_to_all_with_counts(x, *axis, counts, *cut, cuts)
            }
            Self::AllToAll(axis, _, cut, cuts) => comm.iall_to_all(x, *axis, *cut, own(cuts.all())),
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
        let on_all = |y: Tensor| xs.iter().map(|_| y.shallow_clone()).collect::<Vec<_>>();
        let only_on = |root: Rank, y: Tensor, elsewhere: Tensor| {
            let mut ys: Vec<_> = xs.iter().map(|_| elsewhere.shallow_clone()).collect();
            ys[root.unsigned_abs() as usize] = y;
            ys
        };
        let cut = |y: &Tensor, axis: i64, counts: &Counts| y.split_with_sizes(counts.all(), axis);
        match self {
            Self::AllReduce(op) => on_all(combined(xs, *op)),
            Self::Reduce(op, root) => {
                only_on(*root, combined(xs, *op), xs[0].detach().zeros_like())
            }
            Self::Broadcast(root) => on_all(xs[root.unsigned_abs() as usize].shallow_clone()),
            Self::Scan(op) => (1..=xs.len()).map(|r| combined(&xs[..r], *op)).collect(),
            Self::Exscan(op) => {
                let identity = match op {
                    Op::Max => f64::NEG_INFINITY,
                    Op::Min => f64::INFINITY,
                    Op::Prod => 1.0,
                    _ => 0.0,
                };
                let first = xs[0].detach().full_like(identity);
                let others = (1..xs.len()).map(|r| combined(&xs[..r], *op));
                [first].into_iter().chain(others).collect()
            }
            // The lowest rank wins a tie.
            Self::MaxLoc => on_all(fold(xs, |y, x| x.where_self(&x.greater_tensor(y), y))),
            Self::MinLoc => on_all(fold(xs, |y, x| x.where_self(&x.less_tensor(y), y))),
            Self::Gather(axis, _, root) => {
                let whole = Tensor::cat(xs, *axis);
                let nothing = whole.detach().narrow(*axis, 0, 0);
                only_on(*root, whole, nothing)
            }
            Self::AllGather(axis, _) => on_all(Tensor::cat(xs, *axis)),
            Self::Scatter(axis, counts, root) => {
                cut(&xs[root.unsigned_abs() as usize], *axis, counts)
            }
            Self::ReduceScatter(axis, counts, op) => cut(&combined(xs, *op), *axis, counts),
            Self::AllToAll(axis, _, other, counts) => cut(&Tensor::cat(xs, *axis), *other, counts),
        }
    }
}

fn fold(xs: &[Tensor], f: impl Fn(&Tensor, &Tensor) -> Tensor) -> Tensor {
    xs[1..].iter().fold(xs[0].shallow_clone(), |y, x| f(&y, x))
}

fn combined(xs: &[Tensor], op: Op) -> Tensor {
    let all = Tensor::stack(xs, 0);
    match op {
        Op::Sum => all.sum_dim_intlist(0, false, Kind::Double),
        Op::Mean => all.mean_dim(0, false, Kind::Double),
        Op::Prod => all.prod_dim_int(0, false, Kind::Double),
        Op::Max => all.amax(0, false),
        Op::Min => all.amin(0, false),
        _ => unreachable!("these are drawn"),
    }
}

impl Step {
    /// The tensors that must be there before it, or must have been started.
    fn reads(&self) -> Vec<Var> {
        match self {
            Self::Local { work, .. } => work.reads(),
            Self::Collective { x, .. } | Self::Message { x, .. } | Self::Shift { x, .. } => {
                vec![*x]
            }
            Self::Wait { ys } => ys.clone(),
            Self::Drop { y } | Self::EndMessage { y, .. } => vec![*y],
            Self::Barrier => Vec::new(),
        }
    }

    fn writes(&self) -> Option<Var> {
        match self {
            Self::Local { y, .. }
            | Self::Collective { y, .. }
            | Self::Message { y, .. }
            | Self::Shift { y, .. } => Some(*y),
            _ => None,
        }
    }
}

impl Program {
    /// Without the step, and what depends on it; none if others need it.
    pub fn without(&self, step: usize) -> Option<Self> {
        let mut gone: Vec<Var> = self.steps[step].writes().into_iter().collect();
        if gone.is_empty() && !matches!(self.steps[step], Step::Barrier) {
            return None;
        }
        let mut program = Self { steps: Vec::new(), ..self.clone() };
        for (i, kept) in self.steps.iter().enumerate() {
            if let Step::Wait { ys } = kept {
                let ys: Vec<Var> = ys.iter().copied().filter(|y| !gone.contains(y)).collect();
                if !ys.is_empty() {
                    program.steps.push(Step::Wait { ys });
                }
            } else if i == step || kept.reads().iter().any(|x| gone.contains(x)) {
                gone.extend(kept.writes());
            } else {
                program.steps.push(kept.clone());
            }
        }
        for loss in &mut program.losses {
            loss.retain(|x| !gone.contains(x));
        }
        Some(program)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Input { var, shapes, requires_grad } in &self.inputs {
            writeln!(f, "  v{var} = input {shapes:?}, requires grad: {requires_grad:?}")?;
        }
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        for (rank, loss) in self.losses.iter().enumerate() {
            let terms: Vec<_> = loss.iter().map(|x| format!("v{x}")).collect();
            writeln!(f, "  loss on rank {rank}: of {}", terms.join(", "))?;
        }
        writeln!(f, "  {:?}", self.derivative)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { y, work } => write!(f, "v{y} = {work:?}"),
            Self::Collective { y, x, call, how: How::Blocking } => {
                write!(f, "v{y} = {call:?} of v{x}")
            }
            Self::Collective { y, x, call, how } => write!(f, "v{y} = {call:?} of v{x}, {how:?}"),
            Self::Wait { ys } => write!(f, "wait for {ys:?}"),
            Self::Drop { y } => write!(f, "drop {y}"),
            Self::Message { y, x, message } => write!(f, "v{y} = v{x} by {message:?}"),
            Self::EndMessage { y, rank, end, waits } => {
                let what = if *waits { "wait for" } else { "drop" };
                write!(f, "rank {rank}: {what} the {end:?} of v{y}")
            }
            Self::Shift { y, x, shift } => write!(f, "v{y} = v{x} by {shift:?}"),
            Self::Barrier => write!(f, "barrier"),
        }
    }
}
