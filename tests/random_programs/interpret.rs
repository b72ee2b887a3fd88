//! A program carried out: by one rank, on a tape; and for all ranks at once, by libtorch alone.

use std::collections::BTreeMap;

use crate::common::passes::{CREATE_GRAPH, KEEP_GRAPH};
use mpi4tch::{Communicator, PROC_NULL, Rank, Request, Result, Source, wait_all};
use tch::{Device, Kind, Tensor};

use crate::program::{Derivative, End, How, Input, Program, Shift, Step, Var};

/// What a program comes to on a rank: tensors with their names.
#[derive(Default)]
pub struct Outcome {
    pub values: Vec<(String, Tensor)>,
    pub gradients: Vec<(String, Tensor)>,
    pub second: Vec<(String, Tensor)>,
}

const REAL: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Tells the weights in the losses from the inputs.
const WEIGHTS: u64 = 1 << 32;

impl Input {
    fn on(&self, seed: u64, rank: usize) -> Tensor {
        let shape = &self.shapes[rank];
        normal(seed, self.var, rank, shape).set_requires_grad(self.requires_grad[rank])
    }
}

/// Normal numbers that depend on all of this, and that every rank can draw.
fn normal(seed: u64, var: Var, rank: usize, shape: &[i64]) -> Tensor {
    let mixed = seed.wrapping_mul(10_007) + var as u64 * 101 + rank as u64;
    tch::manual_seed(mixed.cast_signed());
    Tensor::randn(shape, REAL)
}

/// A rank's loss; none if it has none.
fn loss(program: &Program, seed: u64, rank: usize, at: impl Fn(Var) -> Tensor) -> Option<Tensor> {
    let term = |&x: &Var| weighed(seed, x, rank, &(at(x).sin()));
    program.losses[rank].iter().map(term).reduce(|sum, term| sum + term)
}

fn weighed(seed: u64, x: Var, rank: usize, tensor: &Tensor) -> Tensor {
    (tensor * normal(seed + WEIGHTS, x, rank, &tensor.size())).sum(Kind::Double)
}

/// What the gradients, in the order of the inputs, are called.
fn named(program: &Program, rank: usize, gradients: Vec<Tensor>) -> Vec<(String, Tensor)> {
    let inputs = program.inputs.iter().filter(|input| input.requires_grad[rank]);
    inputs.map(|input| format!("v{}", input.var)).zip(gradients).collect()
}

/// The loss of the second derivative: of a rank's first gradients.
fn second_loss(seed: u64, rank: usize, gradients: &[Tensor]) -> Option<Tensor> {
    let gradients = gradients.iter().enumerate();
    gradients
        .map(|(i, gradient)| weighed(seed, 1000 + i, rank, gradient))
        .reduce(|sum, term| sum + term)
}

/// Runs the program on this rank.
pub fn run(world: &Communicator, program: &Program, seed: u64) -> Result<Outcome> {
    let rank = world.rank().unsigned_abs() as usize;
    let tape = world.tape();
    let mut own = Own { rank, tensors: BTreeMap::new(), requests: BTreeMap::new() };
    for input in &program.inputs {
        own.tensors.insert(input.var, input.on(seed, rank));
    }
    let inputs: Vec<Tensor> = program
        .inputs
        .iter()
        .filter(|input| input.requires_grad[rank])
        .map(|input| own.at(input.var))
        .collect();
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    for step in &program.steps {
        own.step(&tape, step)?;
    }
    let mut outcome = Outcome::default();
    for (var, value) in &own.tensors {
        outcome.values.push((format!("v{var}"), value.detach()));
    }
    let loss = loss(program, seed, rank, |x| own.at(x));
    // As in a program whose function has returned: only the tape keeps what is left.
    drop(own);
    let gradients = match &program.derivative {
        Derivative::Grad => tape.grad(loss.as_ref(), &inputs)?,
        Derivative::Backward | Derivative::BackwardTwice => {
            if matches!(program.derivative, Derivative::BackwardTwice) {
                tape.backward_with(loss.as_ref(), KEEP_GRAPH)?;
            }
            tape.backward(loss.as_ref())?;
            let gradient = |x: &&Tensor| {
                let gradient = x.grad();
                if gradient.defined() { gradient } else { x.zeros_like() }
            };
            inputs.iter().map(gradient).collect()
        }
        Derivative::Second(on) => {
            let gradients = tape.grad_with(loss.as_ref(), &inputs, CREATE_GRAPH)?;
            let loss = second_loss(seed, rank, &gradients).filter(|_| on[rank]);
            let second = tape.grad(loss.as_ref(), &inputs)?;
            outcome.second = named(program, rank, second);
            gradients
        }
    };
    outcome.gradients = named(program, rank, gradients);
    Ok(outcome)
}

/// What a rank has.
struct Own {
    rank: usize,
    tensors: BTreeMap<Var, Tensor>,
    /// A collective's is under the name of its `End::Receive`.
    requests: BTreeMap<(Var, End), Request>,
}

impl Own {
    fn at(&self, x: Var) -> Tensor {
        self.tensors[&x].shallow_clone()
    }

    fn take(&mut self, y: Var, end: End) -> Request {
        self.requests.remove(&(y, end)).expect("it was started")
    }

    fn step(&mut self, comm: &Communicator, step: &Step) -> Result<()> {
        match step {
            Step::Local { y, work } => {
                let result = work.run(self.rank, |x| self.at(x));
                self.tensors.insert(*y, result);
            }
            Step::Collective { y, x, call, how } => {
                let x = self.at(*x);
                match how {
                    How::Blocking => {
                        self.tensors.insert(*y, call.run(comm, &x)?);
                    }
                    How::InPlace | How::InPlaceOnPart => {
                        let mut copy = x.alias_copy();
                        let mut part = copy.narrow(0, 0, first_part(&copy));
                        let changed = if *how == How::InPlace { &mut copy } else { &mut part };
                        call.run_in_place(comm, changed).expect("it has a form in place")?;
                        self.tensors.insert(*y, copy);
                    }
                    How::Started => {
                        let request = call.start(comm, &x).expect("it can be started")?;
                        self.requests.insert((*y, End::Receive), request);
                    }
                }
            }
            Step::Wait { ys } => {
                let requests: Vec<_> = ys.iter().map(|y| self.take(*y, End::Receive)).collect();
                let results = wait_all(requests)?;
                self.tensors.extend(ys.iter().copied().zip(results));
            }
            Step::Drop { y } => drop(self.take(*y, End::Receive)),
            Step::Message { y, x, message } => {
                let x = self.at(*x);
                if self.rank == message.from {
                    let (to, tag) = (as_rank(message.to), message.tag);
                    if message.started.contains(&End::Send) {
                        let request = comm.isend(&x, to, tag)?;
                        self.requests.insert((*y, End::Send), request);
                    } else {
                        self.tensors.insert(*y, comm.send(&x, to, tag)?);
                    }
                }
                if self.rank == message.to {
                    let like = Tensor::zeros(&message.shape[..], REAL);
                    let from = match message.any_source {
                        true => Source::Any,
                        false => Source::Rank(as_rank(message.from)),
                    };
                    if message.started.contains(&End::Receive) {
                        let request = comm.irecv(&like, from, message.tag)?;
                        self.requests.insert((*y, End::Receive), request);
                    } else {
                        self.tensors.insert(*y, comm.recv(&like, from, message.tag)?);
                    }
                } else {
                    self.tensors.entry(*y).or_insert(x);
                }
            }
            Step::EndMessage { y, rank, end, waits } => {
                if *rank == self.rank {
                    let request = self.take(*y, *end);
                    if *waits {
                        let result = request.wait()?;
                        self.tensors.insert(*y, result);
                    }
                }
            }
            Step::Shift { y, x, shift } => {
                let result = self.shift(comm, &self.at(*x), shift)?;
                self.tensors.insert(*y, result);
            }
            Step::Barrier => comm.barrier()?,
        }
        Ok(())
    }

    fn shift(&self, comm: &Communicator, x: &Tensor, shift: &Shift) -> Result<Tensor> {
        let ranks = shift.shapes.len();
        let peer = |to| shift.peer(self.rank, ranks, to).map_or(PROC_NULL, as_rank);
        let (to, from) = (peer(true), peer(false));
        let like = Tensor::zeros(&shift.shapes[self.rank][..], REAL);
        let source = match shift.any_source && from != PROC_NULL {
            true => Source::Any,
            false => Source::Rank(from),
        };
        if !shift.in_parts {
            return comm.sendrecv(x, to, &like, source, shift.tag);
        }
        let request = comm.isend(x, to, shift.tag)?;
        let result = comm.recv(&like, source, shift.tag)?;
        let _ = request.wait()?;
        Ok(result)
    }
}

impl Shift {
    /// Whom a rank sends to, or receives from.
    pub fn peer(&self, rank: usize, ranks: usize, to: bool) -> Option<usize> {
        let by = self.by % ranks;
        let inside = if to { rank + by < ranks } else { rank >= by };
        let place = if to { rank + by } else { rank + ranks - by };
        (inside || self.around).then_some(place % ranks)
    }
}

fn as_rank(rank: usize) -> Rank {
    Rank::try_from(rank).expect("ranks are few")
}

fn first_part(x: &Tensor) -> i64 {
    x.size()[0] / 2
}

/// What the program comes to on each rank.
pub fn run_serially(program: &Program, seed: u64) -> Vec<Outcome> {
    let ranks = program.losses.len();
    let mut all: BTreeMap<Var, Vec<Tensor>> = BTreeMap::new();
    for input in &program.inputs {
        all.insert(input.var, (0..ranks).map(|rank| input.on(seed, rank)).collect());
    }
    let leaves: Vec<Vec<Tensor>> = (0..ranks)
        .map(|rank| {
            let inputs = program.inputs.iter().filter(|input| input.requires_grad[rank]);
            inputs.map(|input| all[&input.var][rank].shallow_clone()).collect()
        })
        .collect();
    let mut started = BTreeMap::new();
    for step in &program.steps {
        step_serially(&mut all, &mut started, step, ranks);
    }
    let mut outcomes: Vec<Outcome> = (0..ranks).map(|_| Outcome::default()).collect();
    for (var, values) in &all {
        for (outcome, value) in outcomes.iter_mut().zip(values) {
            outcome.values.push((format!("v{var}"), value.detach()));
        }
    }
    let losses: Vec<Tensor> = (0..ranks)
        .filter_map(|rank| loss(program, seed, rank, |x| all[&x][rank].shallow_clone()))
        .collect();
    let second = matches!(program.derivative, Derivative::Second(_));
    let first = gradients(losses, &leaves, second);
    if let Derivative::Second(on) = &program.derivative {
        let losses = (0..ranks).filter(|rank| on[*rank]);
        let losses = losses.filter_map(|rank| second_loss(seed, rank, &first[rank])).collect();
        for (rank, second) in gradients(losses, &leaves, false).into_iter().enumerate() {
            outcomes[rank].second = named(program, rank, second);
        }
    }
    let times = if matches!(program.derivative, Derivative::BackwardTwice) { 2.0 } else { 1.0 };
    for (rank, first) in first.into_iter().enumerate() {
        let first = first.iter().map(|gradient| gradient * times).collect();
        outcomes[rank].gradients = named(program, rank, first);
    }
    outcomes
}

/// Those of the sum of the losses, with respect to each rank's leaves.
fn gradients(losses: Vec<Tensor>, leaves: &[Vec<Tensor>], create_graph: bool) -> Vec<Vec<Tensor>> {
    let all: Vec<&Tensor> = leaves.iter().flatten().collect();
    if all.is_empty() {
        return leaves.iter().map(|_| Vec::new()).collect();
    }
    // No leaf is left out, nor is any without a second derivative.
    let nothing = all.iter().map(|x| x.square().sum(Kind::Double) * 0.0);
    let loss: Tensor = losses.into_iter().chain(nothing).reduce(|sum, term| sum + term).unwrap();
    let mut gradients = Tensor::run_backward(&[loss], &all, true, create_graph).into_iter();
    leaves.iter().map(|own| gradients.by_ref().take(own.len()).collect()).collect()
}

fn step_serially(
    all: &mut BTreeMap<Var, Vec<Tensor>>,
    started: &mut BTreeMap<Var, Vec<Tensor>>,
    step: &Step,
    ranks: usize,
) {
    let copies = |xs: &[Tensor]| xs.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
    match step {
        Step::Local { y, work } => {
            let run = |rank| work.run(rank, |x| all[&x][rank].shallow_clone());
            let results = (0..ranks).map(run).collect();
            all.insert(*y, results);
        }
        Step::Collective { y, x, call, how: How::InPlaceOnPart } => {
            let cut =
                |x: &Tensor| x.split_with_sizes([first_part(x), x.size()[0] - first_part(x)], 0);
            let (parts, rests): (Vec<Tensor>, Vec<Tensor>) = all[x]
                .iter()
                .map(|x| {
                    let [part, rest] = <[Tensor; 2]>::try_from(cut(x)).expect("two parts");
                    (part, rest)
                })
                .unzip();
            let results = call.serial(&parts);
            let whole =
                results.iter().zip(&rests).map(|(part, rest)| Tensor::cat(&[part, rest], 0));
            all.insert(*y, whole.collect());
        }
        Step::Collective { y, x, call, how } => {
            let results = call.serial(&all[x]);
            let to = if *how == How::Started { started } else { all };
            to.insert(*y, results);
        }
        Step::Wait { ys } => {
            all.extend(ys.iter().map(|y| (*y, started.remove(y).expect("it was started"))));
        }
        Step::Message { y, x, message } => {
            let mut results = copies(&all[x]);
            results[message.to] = all[x][message.from].shallow_clone();
            all.insert(*y, results);
        }
        Step::Shift { y, x, shift } => {
            let result = |rank| match shift.peer(rank, ranks, false) {
                Some(from) => all[x][from].shallow_clone(),
                None => Tensor::zeros(&shift.shapes[rank][..], REAL),
            };
            let results = (0..ranks).map(result).collect();
            all.insert(*y, results);
        }
        Step::Drop { .. } | Step::EndMessage { .. } | Step::Barrier => {}
    }
}
