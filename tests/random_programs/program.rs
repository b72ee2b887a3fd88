//! A program: steps on named tensors, of which every rank has its own.

use std::fmt;

use mpi4tch::Tag;
use tch::{Kind, Tensor};

use crate::call::Call;

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
    pub any_source: bool,
    pub tag: Tag,
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
