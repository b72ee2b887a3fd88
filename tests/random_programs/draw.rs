//! Programs drawn at random.
//!
//! All ranks draw the same one. So that values can be compared, no tensor gets large: a bound on
//! its elements is kept, and where it grows a step divides by it. Ties are exact, or there are
//! none: extrema are of what a random factor on each rank has set apart, or of what was broadcast before.

mod collectives;
mod communicators;
mod local;
mod messages;
mod requests;

use mpi4tch::Rank;

use crate::communicators::Group;
use crate::program::{Derivative, End, Input, Program, Step, Var};
use crate::random::Random;

/// The program of this seed.
pub fn program(seed: u64, ranks: usize) -> Program {
    let mut draft = Draft::new(Random(seed), ranks);
    let inputs: Vec<Input> = (0..2 + draft.random.below(3)).map(|_| draft.input()).collect();
    for _ in 0..draft.random.below(3) {
        draft.make();
    }
    draft.steps.push(Step::Tape);
    for _ in 0..6 + draft.random.below(14) {
        draft.step();
    }
    while !draft.pending.is_empty() {
        draft.settle();
    }
    let losses = draft.losses(&inputs);
    let derivative = match draft.random.below(6) {
        0 => Derivative::Backward,
        1 => Derivative::BackwardTwice,
        2 => Derivative::Grad,
        _ => Derivative::Second(draft.some_ranks()),
    };
    let Draft { steps, needs_no_tape, .. } = draft;
    Program { inputs, steps, losses, derivative, needs_no_tape }
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
    /// Whether a rank must do nothing that its loss does not depend on.
    needs_no_tape: bool,
    /// The communicators that there are; first the world.
    groups: Vec<Group>,
    /// How many communicators were made.
    made: usize,
    vars: usize,
    pool: Vec<Known>,
    pending: Vec<Pending>,
    steps: Vec<Step>,
}

const LARGEST: f64 = 4.0;
const MOST_ELEMENTS: i64 = 40;

impl Draft {
    fn new(mut random: Random, ranks: usize) -> Self {
        Self {
            needs_no_tape: random.one_in(3),
            random,
            ranks,
            groups: vec![Group::world(ranks)],
            made: 0,
            vars: 0,
            pool: Vec::new(),
            pending: Vec::new(),
            steps: Vec::new(),
        }
    }

    fn var(&mut self) -> Var {
        self.vars += 1;
        self.vars - 1
    }

    /// One of so many.
    fn rank(&mut self, ranks: usize) -> Rank {
        Rank::try_from(self.random.below(ranks)).expect("ranks are few")
    }

    /// All of them, where a tape might not be there.
    fn some_ranks(&mut self) -> Vec<bool> {
        if self.needs_no_tape || self.random.one_in(2) {
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
    fn losses(&mut self, inputs: &[Input]) -> Vec<Vec<Var>> {
        if self.needs_no_tape {
            return vec![self.finite(inputs); self.ranks];
        }
        let with_loss = self.some_ranks();
        let some = |of: bool| {
            let all = self.pool.iter().map(|known| known.var);
            all.filter(|_| of && self.random.one_in(3)).collect()
        };
        with_loss.into_iter().map(some).collect()
    }

    /// All tensors that come to be and are finite.
    fn finite(&self, inputs: &[Input]) -> Vec<Var> {
        let is_dropped =
            |x: Var| self.steps.iter().any(|step| matches!(step, Step::Drop { y } if *y == x));
        let steps = self
            .steps
            .iter()
            .filter(|step| !matches!(step, Step::Collective { call, .. } if call.is_infinite()));
        let written = steps.filter_map(Step::writes).filter(|y| !is_dropped(*y));
        inputs.iter().map(|input| input.var).chain(written).collect()
    }

    fn step(&mut self) {
        match self.random.below(24) {
            0..4 => self.local(),
            4..11 => self.collective(),
            11..14 => self.message(),
            14 => self.shift(),
            15 => {
                let on = self.group();
                self.steps.push(Step::Barrier { on });
            }
            16..19 => self.make(),
            19 => self.forget(),
            _ => self.settle(),
        }
    }

    /// The later ones more often.
    fn any(&mut self) -> Known {
        let count = self.pool.len();
        let place = self.random.below(count).max(self.random.below(count));
        self.pool[place].clone()
    }
}

fn is_same(shapes: &[Vec<i64>]) -> bool {
    shapes.iter().all(|shape| *shape == shapes[0])
}
