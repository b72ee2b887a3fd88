//! A program: steps on named tensors, of which every rank has its own.

use std::fmt;

use mpi4tch::Tag;
use tch::Tensor;

use crate::call::Call;
use crate::communicators::{Group, Making};
use crate::local::Local;

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
    /// Whether the program also runs without a tape: each rank's loss depends on the results of all its
    /// calls, and these on its inputs.
    pub needs_no_tape: bool,
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
    /// Makes communicators from one, each for another group of its ranks.
    Make {
        on: Group,
        making: Making,
        made: Vec<Group>,
    },
    /// The tape is made, from the world. All communicators made before are put on it.
    Tape,
    /// Drops a communicator.
    Forget {
        on: Group,
    },
    /// `y` is the result on the communicator's ranks, and `x` elsewhere.
    Collective {
        on: Group,
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
        on: Group,
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
    /// `y` is the result on the communicator's ranks, and `x` elsewhere.
    Shift {
        on: Group,
        y: Var,
        x: Var,
        shift: Shift,
    },
    Barrier {
        on: Group,
    },
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
    /// Ranks of the world.
    pub from: usize,
    pub to: usize,
    pub tag: Tag,
    /// What is received.
    pub shape: Vec<i64>,
    pub any_source: bool,
    /// Which ends are started, and waited for later.
    pub started: Vec<End>,
}

/// Every rank of the communicator sends to the rank `by` further on.
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
            Self::Make { .. } | Self::Tape | Self::Forget { .. } | Self::Barrier { .. } => {
                Vec::new()
            }
        }
    }

    pub fn writes(&self) -> Option<Var> {
        match self {
            Self::Local { y, .. }
            | Self::Collective { y, .. }
            | Self::Message { y, .. }
            | Self::Shift { y, .. } => Some(*y),
            _ => None,
        }
    }

    /// The communicator that it is on.
    fn on(&self) -> Option<&Group> {
        match self {
            Self::Make { on, .. }
            | Self::Forget { on }
            | Self::Collective { on, .. }
            | Self::Message { on, .. }
            | Self::Shift { on, .. }
            | Self::Barrier { on } => Some(on),
            _ => None,
        }
    }

    /// The names of the communicators that it makes.
    fn makes(&self) -> Vec<usize> {
        let Self::Make { made, .. } = self else { return Vec::new() };
        made.iter().map(|group| group.name).collect()
    }

    /// Whether the program is still right without it and what depends on it.
    fn can_be_left_out(&self, needs_no_tape: bool) -> bool {
        match self {
            // A loss depends on what was infinite only through it.
            Self::Local { work: Local::Clamp(..), .. } => !needs_no_tape,
            Self::Tape | Self::Wait { .. } | Self::Drop { .. } | Self::EndMessage { .. } => false,
            _ => true,
        }
    }
}

impl Shift {
    /// Whom a rank of the communicator sends to, or receives from.
    pub fn peer(&self, rank: usize, ranks: usize, to: bool) -> Option<usize> {
        let by = self.by % ranks;
        let inside = if to { rank + by < ranks } else { rank >= by };
        let place = if to { rank + by } else { rank + ranks - by };
        (inside || self.around).then_some(place % ranks)
    }
}

/// How much of a tensor is changed by [`How::InPlaceOnPart`].
pub fn first_part(x: &Tensor) -> i64 {
    x.size()[0] / 2
}

impl Program {
    /// Without the step, and what depends on it; none if others need it.
    pub fn without(&self, step: usize) -> Option<Self> {
        if !self.steps[step].can_be_left_out(self.needs_no_tape) {
            return None;
        }
        let (mut gone, mut unmade) = (Vec::<Var>::new(), Vec::new());
        let mut program = Self { steps: Vec::new(), ..self.clone() };
        for (i, kept) in self.steps.iter().enumerate() {
            if let Step::Wait { ys } = kept {
                let ys: Vec<Var> = ys.iter().copied().filter(|y| !gone.contains(y)).collect();
                if !ys.is_empty() {
                    program.steps.push(Step::Wait { ys });
                }
            } else if i == step
                || kept.reads().iter().any(|x| gone.contains(x))
                || kept.on().is_some_and(|on| unmade.contains(&on.name))
            {
                gone.extend(kept.writes());
                unmade.extend(kept.makes());
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
        let tape = if self.needs_no_tape { "with and without a tape" } else { "on a tape" };
        writeln!(f, "  {:?}, {tape}", self.derivative)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { y, work } => write!(f, "v{y} = {work:?}"),
            Self::Make { on, making, made } => {
                let made: Vec<_> = made.iter().map(Group::to_string).collect();
                write!(f, "{} = {making:?} of c{}", made.join(", "), on.name)
            }
            Self::Tape => write!(f, "tape"),
            Self::Forget { on } => write!(f, "drop c{}", on.name),
            Self::Collective { on, y, x, call, how } => {
                write!(f, "v{y} = {call:?} of v{x} on c{}, {how:?}", on.name)
            }
            Self::Wait { ys } => write!(f, "wait for {ys:?}"),
            Self::Drop { y } => write!(f, "drop {y}"),
            Self::Message { on, y, x, message } => {
                write!(f, "v{y} = v{x} by {message:?} on c{}", on.name)
            }
            Self::EndMessage { y, rank, end, waits } => {
                let what = if *waits { "wait for" } else { "drop" };
                write!(f, "rank {rank}: {what} the {end:?} of v{y}")
            }
            Self::Shift { on, y, x, shift } => {
                write!(f, "v{y} = v{x} by {shift:?} on c{}", on.name)
            }
            Self::Barrier { on } => write!(f, "barrier on c{}", on.name),
        }
    }
}
