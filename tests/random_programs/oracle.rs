//! A program carried out for all ranks at once, by libtorch alone.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use crate::communicators::Group;
use crate::outcome::{Outcome, REAL, loss, named, second_loss};
use crate::program::{Derivative, How, Program, Step, Var, first_part};

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
    match step {
        Step::Local { y, work } => {
            let run = |rank| work.run(rank, |x| all[&x][rank].shallow_clone());
            let results = (0..ranks).map(run).collect();
            all.insert(*y, results);
        }
        Step::Collective { on, y, x, call, how } => {
            let results = on_group(on, &all[x], |xs| match how {
                How::InPlaceOnPart => on_first_parts(xs, |parts| call.serial(parts)),
                _ => call.serial(xs),
            });
            let to = if *how == How::Started { started } else { all };
            to.insert(*y, results);
        }
        Step::Wait { ys } => {
            all.extend(ys.iter().map(|y| (*y, started.remove(y).expect("it was started"))));
        }
        Step::Message { y, x, message, .. } => {
            let mut results = copies(&all[x]);
            results[message.to] = all[x][message.from].shallow_clone();
            all.insert(*y, results);
        }
        Step::Shift { on, y, x, shift } => {
            let results = on_group(on, &all[x], |xs| {
                let result = |place| match shift.peer(place, xs.len(), false) {
                    Some(from) => xs[from].shallow_clone(),
                    None => Tensor::zeros(&shift.shapes[place][..], REAL),
                };
                (0..xs.len()).map(result).collect()
            });
            all.insert(*y, results);
        }
        Step::Make { .. }
        | Step::Tape
        | Step::Forget { .. }
        | Step::Drop { .. }
        | Step::EndMessage { .. }
        | Step::Barrier { .. } => {}
    }
}

fn copies(xs: &[Tensor]) -> Vec<Tensor> {
    xs.iter().map(Tensor::shallow_clone).collect()
}

/// What a call comes to on the ranks of a group, which is in their order; elsewhere nothing changes.
fn on_group(
    group: &Group,
    xs: &[Tensor],
    call: impl FnOnce(&[Tensor]) -> Vec<Tensor>,
) -> Vec<Tensor> {
    let mut all = copies(xs);
    let own: Vec<Tensor> = group.ranks.iter().map(|rank| xs[*rank].shallow_clone()).collect();
    for (rank, result) in group.ranks.iter().zip(call(&own)) {
        all[*rank] = result;
    }
    all
}

/// What a call comes to that changes the first part of each tensor; the rest stays.
fn on_first_parts(xs: &[Tensor], call: impl FnOnce(&[Tensor]) -> Vec<Tensor>) -> Vec<Tensor> {
    let cut = |x: &Tensor| {
        let parts = x.split_with_sizes([first_part(x), x.size()[0] - first_part(x)], 0);
        let [part, rest] = <[Tensor; 2]>::try_from(parts).expect("two parts");
        (part, rest)
    };
    let (parts, rests): (Vec<Tensor>, Vec<Tensor>) = xs.iter().map(cut).unzip();
    let joined =
        call(&parts).into_iter().zip(rests).map(|(part, rest)| Tensor::cat(&[part, rest], 0));
    joined.collect()
}
