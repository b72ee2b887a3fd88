//! The node of a checkpoint, whose pullback runs the function again and goes back through its graph.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, ReentrantMutex};
use tch::{Kind, Tensor};

use super::calls::Label;
use super::record::{self, Pulled, Record, add_node, carries_gradient};
use super::run::Noted;
use super::{Traffic, revolve};
use crate::autograd::{self, Generators, Metadata, Recording};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::engine::communicator::Communicator;
use crate::engine::request::settle_tape;

/// A function that is run again in the backward pass: a step of a loop. One thread runs it at a time, as
/// tensors that it has captured are not `Sync`.
pub(super) type Step = ReentrantMutex<Box<dyn Fn(usize, &[Tensor]) -> Result<Vec<Tensor>> + Send>>;

/// A state of the loop, with the state that the random numbers had then.
struct State {
    tensors: Vec<Tensor>,
    /// The versions that the tensors had: they must not be changed in place.
    versions: Vec<i64>,
    generators: Generators,
}

impl State {
    fn new(tensors: Vec<Tensor>, generators: Generators) -> Self {
        let versions = versions(&tensors);
        Self { tensors, versions, generators }
    }
}

/// The loop of a checkpoint; a checkpoint of one function is a loop of one step.
pub(super) struct Loop {
    pub(super) site: Site,
    pub(super) label: Label,
    pub(super) steps: usize,
    pub(super) slots: usize,
    pub(super) step: Step,
}

/// A loop after its first run.
struct Recomputation {
    of: Loop,
    tape: Weak<Record>,
    /// What was noted of each step.
    noted: Arc<Vec<Noted>>,
    /// Which of the inputs require grad.
    require: Vec<bool>,
    /// The kinds and shapes of the outputs.
    outputs: Vec<(Kind, Vec<i64>)>,
    generators: Mutex<Generators>,
    /// The states that the first run has kept besides the inputs, for the first backward pass.
    kept: Mutex<Vec<(usize, State)>>,
}

impl Loop {
    /// Runs the loop for the first time, without a graph, and adds its node to that of the program.
    pub(super) fn record(
        self,
        tape: &Arc<Record>,
        comm: &Communicator,
        inputs: &[&Tensor],
    ) -> Result<Vec<Tensor>> {
        let call = self.site.call;
        if inputs.iter().any(|x| !Metadata::of(x).is_defined()) {
            return Err(Error::Undefined { call });
        }
        let record = tape.in_use();
        let records = autograd::is_recording() && !record.is_first_run();
        let given: Vec<Tensor> = inputs.iter().map(|x| Ok(x.f_detach()?)).collect::<Result<_>>()?;
        let mut state: Vec<Tensor> = given.iter().map(Tensor::shallow_clone).collect();
        if !records && !record.is_first_run() {
            for i in 0..self.steps {
                state = self.run(i, &state)?;
            }
            return apart(&given, &state);
        }
        let _recording = Recording::off();
        let first = Generators::now(call)?;
        let mut last = first.clone();
        let mut places = revolve::kept(self.steps, self.slots).skip(1).peekable();
        let mut kept = Vec::new();
        let (state, noted) = record
            .run_first(self.label, || {
                let mut noted = Vec::new();
                for i in 0..self.steps {
                    if records && places.next_if_eq(&i).is_some() {
                        let tensors = state.iter().map(Tensor::shallow_clone).collect();
                        last = Generators::now_or(call, &last)?;
                        kept.push((i, State::new(tensors, last.clone())));
                    }
                    let (after, note) = record.run_first(Label::Step(i), || self.run(i, &state))?;
                    state = after;
                    noted.push(note.finished(noted.last()));
                }
                Ok((state, noted))
            })?
            .0;
        let results = detached(&apart(&given, &state)?)?;
        if !records {
            return Ok(results);
        }
        let _recording = Recording::on();
        let with_gradient: Vec<&Tensor> =
            results.iter().filter(|y| carries_gradient(&Metadata::of(y))).collect();
        let node = Recomputation {
            tape: Arc::downgrade(tape),
            noted: Arc::new(noted),
            require: inputs.iter().map(|x| x.requires_grad()).collect(),
            outputs: results.iter().map(|y| (y.kind(), y.size())).collect(),
            generators: Mutex::new(first),
            kept: Mutex::new(kept),
            of: self,
        };
        let nodes = [inputs, &with_gradient[..]];
        add_node(node.of.site, comm, Traffic::Checkpoint, nodes, inputs, move |comm, pulled| {
            node.pull(comm, pulled)
        })?;
        Ok(results)
    }

    /// Runs a step. A panic is an error.
    fn run(&self, i: usize, state: &[Tensor]) -> Result<Vec<Tensor>> {
        let call = self.site.call;
        let refuse = |message: String| Err(Error::Argument { call, message });
        let before = versions(state);
        let outcome = {
            let _recording = Recording::kept();
            catch_unwind(AssertUnwindSafe(|| (self.step.lock())(i, state)))
        };
        let after = match outcome {
            Ok(outcome) => outcome?,
            Err(panic) => {
                let text = autograd::panic_text(&*panic);
                return refuse(format!("the function panicked: {text}"));
            }
        };
        if after.iter().any(|y| !Metadata::of(y).is_defined()) {
            return Err(Error::Undefined { call });
        }
        if let Some(j) = changed(state, &before) {
            return refuse(format!(
                "the function changed input {j} in place, which it needs when it is run again"
            ));
        }
        Ok(after)
    }
}

impl Recomputation {
    fn refuse<T>(&self, message: &str) -> Result<T> {
        Err(Error::Argument { call: self.of.site.call, message: message.to_owned() })
    }

    fn refuse_other<T>(&self, now: &(Kind, Vec<i64>), before: &(Kind, Vec<i64>)) -> Result<T> {
        self.refuse(&format!(
            "in the backward pass the function returned a tensor of kind {:?} and shape {:?}, in its \
             first run of kind {:?} and shape {:?}",
            now.0, now.1, before.0, before.1
        ))
    }

    fn pull(&self, comm: &Communicator, mut pulled: Pulled) -> Result<Vec<Option<Tensor>>> {
        let inputs = pulled.take_saved()?;
        let Some(tape) = self.tape.upgrade().filter(|tape| tape.is_open()) else {
            return self.refuse("the tape has been dropped, so the function cannot be run again");
        };
        // Outputs of other kinds have no cotangents.
        let mut given = pulled.cotangents.into_iter();
        let cotangents = self.outputs.iter().map(|(kind, _)| {
            let like = Tensor::empty([0], (*kind, tch::Device::Cpu));
            if carries_gradient(&Metadata::of(&like)) { given.next() } else { None }
        });
        let cotangents: Vec<Option<Tensor>> = cotangents.collect();
        if autograd::is_recording() {
            self.pull_recorded(&tape, comm, &inputs, cotangents)
        } else {
            self.pull_steps(&tape, inputs, cotangents)
        }
    }

    /// Refuses a state that was changed in place: the gradient would be that of another program.
    fn check_unchanged(&self, i: usize, state: &State) -> Result<()> {
        changed(&state.tensors, &state.versions).map_or(Ok(()), |j| {
            self.refuse(&format!(
                "tensor {j} of the state before step {i} was changed in place after the state was \
                 kept; return a copy of it from the step"
            ))
        })
    }

    /// Goes back through one step after another.
    fn pull_steps(
        &self,
        tape: &Arc<Record>,
        inputs: Vec<Tensor>,
        mut cotangents: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let generators = self.generators.lock().clone();
        let mut states = vec![(0, State::new(inputs, generators))];
        states.append(&mut self.kept.lock());
        let new_record =
            || Arc::new(Record::of_checkpoint(record::first_token(), tape.as_origin()));
        let advance = |i: usize, state: &State| {
            self.check_unchanged(i, state)?;
            let tensors: Vec<Tensor> = detached(&state.tensors)?;
            let (record, _recording) = (new_record(), Recording::off());
            let (tensors, generators) =
                self.run_again(tape, &record, i, &tensors, &state.generators)?;
            Ok::<_, Error>(State::new(detached(&tensors)?, generators))
        };
        let pull = |i: usize, state: &State| {
            self.check_unchanged(i, state)?;
            let requires = |(j, x): (usize, &Tensor)| {
                if i == 0 { self.require[j] } else { carries_gradient(&Metadata::of(x)) }
            };
            let variables: Vec<Tensor> = detached(&state.tensors)?;
            let leaves: Vec<bool> = variables.iter().enumerate().map(requires).collect();
            let variables: Vec<Tensor> = variables
                .into_iter()
                .zip(&leaves)
                .map(|(x, &is_leaf)| if is_leaf { x.set_requires_grad(true) } else { x })
                .collect();
            let record = new_record();
            let token = record.last_token();
            let recording = Recording::on();
            let (outputs, _) = self.run_again(tape, &record, i, &variables, &state.generators)?;
            let Roots { outputs, seeds } =
                self.roots(tape, &record, &outputs, &cotangents, false)?;
            drop(recording);
            let (outputs, seeds): (Vec<_>, Vec<_>) =
                (outputs.iter().collect(), seeds.iter().collect());
            if !autograd::accumulates() {
                let known: Vec<&Tensor> =
                    variables.iter().filter(|x| x.requires_grad()).chain([&token]).collect();
                self.check_captured(&outputs, &known)?;
            }
            autograd::backward(self.of.site.call, &outputs, &seeds, false, false)?;
            record.close();
            let gradient =
                |(x, is_leaf): (_, bool)| is_leaf.then(|| autograd::take_grad(x)).flatten();
            cotangents = variables.iter().zip(leaves).map(gradient).collect();
            Ok::<_, Error>(())
        };
        revolve::reverse(self.of.steps, self.of.slots, states, advance, pull)?;
        Ok(cotangents)
    }

    /// Runs all steps again with one graph, which depends on the inputs and is itself recorded, and
    /// goes back through it by a pass that is recorded, too.
    fn pull_recorded(
        &self,
        tape: &Arc<Record>,
        comm: &Communicator,
        inputs: &[Tensor],
        cotangents: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let call = self.of.site.call;
        let Some(own) = comm.record() else { return self.refuse("the pass has no token") };
        let token = own.last_token().f_alias()?;
        let record = Arc::new(Record::of_checkpoint(token.shallow_clone(), tape.as_origin()));
        let variables: Vec<Tensor> = inputs
            .iter()
            .zip(&self.require)
            .map(|(x, &requires)| Ok(if requires { x.f_alias()? } else { x.f_detach()? }))
            .collect::<Result<_>>()?;
        let mut state: Vec<Tensor> = variables.iter().map(Tensor::shallow_clone).collect();
        let mut generators = self.generators.lock().clone();
        for i in 0..self.of.steps {
            (state, generators) = self.run_again(tape, &record, i, &state, &generators)?;
        }
        let Roots { outputs, seeds } = self.roots(tape, &record, &state, &cotangents, true)?;
        let (outputs, seeds): (Vec<_>, Vec<_>) = (outputs.iter().collect(), seeds.iter().collect());
        let asked: Vec<&Tensor> =
            variables.iter().filter(|x| x.requires_grad()).chain([&token]).collect();
        self.check_captured(&outputs, &asked)?;
        let mut gradients = autograd::grad(call, &outputs, &seeds, &asked, true, true)?;
        if let Some(token) = gradients.pop().flatten() {
            own.state().last_token = token;
        }
        record.close();
        let mut gradients = gradients.into_iter();
        Ok(variables
            .iter()
            .map(|x| x.requires_grad().then(|| gradients.next().flatten()).flatten())
            .collect())
    }

    /// Runs a step again, with the random numbers of the first run. Returns the state after it, and
    /// that of the random numbers.
    fn run_again(
        &self,
        tape: &Arc<Record>,
        record: &Arc<Record>,
        i: usize,
        state: &[Tensor],
        random: &Generators,
    ) -> Result<(Vec<Tensor>, Generators)> {
        let call = self.of.site.call;
        tape.run_again(self.of.site, record, (&self.noted, i), || {
            let _restored = random.restore(call)?;
            let after = self.of.run(i, state)?;
            settle_tape(record)?;
            if i + 1 == self.of.steps && after.len() == self.outputs.len() {
                let now = after.iter().map(|y| (y.kind(), y.size()));
                if let Some((now, before)) = now.zip(&self.outputs).find(|(now, y)| now != *y) {
                    return self.refuse_other(&now, before);
                }
            }
            Ok((after, Generators::now_or(call, random)?))
        })
    }

    /// The roots of the pass through the calls of `record`: the outputs that require grad, and the
    /// last token.
    fn roots(
        &self,
        tape: &Arc<Record>,
        record: &Arc<Record>,
        outputs: &[Tensor],
        cotangents: &[Option<Tensor>],
        is_recorded: bool,
    ) -> Result<Roots> {
        let call = self.of.site.call;
        if outputs.len() != cotangents.len() {
            let (now, before) = (outputs.len(), cotangents.len());
            return self.refuse(&format!(
                "in the backward pass the function returned {now} tensors, in its first run {before}"
            ));
        }
        let last = record.last_token();
        let seed = if is_recorded { last.shallow_clone() } else { last.f_detach()? };
        let mut roots =
            Roots { outputs: vec![tape.root(call, &last, record.run())?], seeds: vec![seed] };
        for (y, cotangent) in outputs.iter().zip(cotangents) {
            let Some(cotangent) = cotangent else { continue };
            let [now, before] = [y, cotangent].map(|x| (x.kind(), x.size()));
            if now != before {
                return self.refuse_other(&now, &before);
            }
            if y.requires_grad() {
                roots.outputs.push(y.shallow_clone());
                roots.seeds.push(cotangent.shallow_clone());
            }
        }
        Ok(roots)
    }

    /// Refuses a pass that has no place for the gradients of tensors that the function has captured.
    fn check_captured(&self, outputs: &[&Tensor], inputs: &[&Tensor]) -> Result<()> {
        if autograd::has_other_leaves(self.of.site.call, outputs, inputs)? {
            return self.refuse(
                "the function uses a tensor that requires grad and is none of its inputs: such a \
                 tensor gets its gradient by `backward` without create_graph; make it an input",
            );
        }
        Ok(())
    }
}

/// Tensors to go back from, and their cotangents.
struct Roots {
    outputs: Vec<Tensor>,
    seeds: Vec<Tensor>,
}

fn detached(tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    tensors.iter().map(|x| Ok(x.f_detach()?)).collect()
}

fn versions(tensors: &[Tensor]) -> Vec<i64> {
    tensors.iter().map(autograd::version).collect()
}

/// The first of the tensors that was changed in place since it had this version.
fn changed(tensors: &[Tensor], versions: &[i64]) -> Option<usize> {
    tensors.iter().zip(versions).position(|(x, version)| autograd::version(x) != *version)
}

/// The results, of which those that share memory with an input, with one another, or with a tensor that the
/// function has captured are copied: the graph knows nothing of that memory, and a change of one of them in
/// place would change the other.
fn apart(inputs: &[Tensor], results: &[Tensor]) -> Result<Vec<Tensor>> {
    let is_apart = |(i, y): (usize, &Tensor)| {
        let (of_tensor, of_storage) = autograd::owners(y);
        let mut others = inputs.iter().chain(&results[..i]);
        of_tensor == 1 && of_storage <= 1 && !others.any(|x| autograd::shares_memory(x, y))
    };
    let are_apart: Vec<bool> = results.iter().enumerate().map(is_apart).collect();
    let copied = |(y, is_apart): (&Tensor, bool)| {
        Ok(if is_apart { y.shallow_clone() } else { y.f_alias_copy()? })
    };
    results.iter().zip(are_apart).map(copied).collect()
}
