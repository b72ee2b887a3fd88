//! A backward pass of a tape: the comparison before it, its roots, and the state of the tape after
//! it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tch::Tensor;

use super::comparison::{differences, told};
use super::{PassOptions, Record};
use crate::autograd::{self, Metadata};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::communicator::Identity;
use crate::engine::agreement::{Terms, agree};
use crate::engine::communicator::Communicator;
use crate::engine::trace::Traced;

/// A backward pass and its options.
#[derive(Clone, Copy)]
pub(super) struct BackwardPass {
    pub(super) site: Site,
    options: PassOptions,
}

/// The roots of a backward pass: tensors and their cotangents.
pub(super) type Roots = Vec<(Tensor, Tensor)>;

impl BackwardPass {
    #[track_caller]
    pub(super) fn new(call: &'static str, options: PassOptions) -> Self {
        Self { site: Site::new(call), options }
    }

    /// The name of the operation, with the options, which the ranks must agree on.
    fn operation(self) -> &'static str {
        let PassOptions { keep_graph, create_graph } = self.options;
        match (self.site.call, keep_graph, create_graph) {
            (call, false, false) => call,
            ("Tape::backward", _, false) => "Tape::backward with keep_graph",
            ("Tape::backward", _, true) => "Tape::backward with create_graph",
            ("Tape::grad", _, false) => "Tape::grad with keep_graph",
            ("Tape::grad", _, true) => "Tape::grad with create_graph",
            (_, _, false) => "Tape::vjp with keep_graph",
            (_, _, true) => "Tape::vjp with create_graph",
        }
    }

    fn keeps(self) -> bool {
        self.options.keep_graph || self.options.create_graph
    }
}

impl Communicator {
    /// Goes back from a loss of which this communicator's ranks have one in common, and adds to the
    /// gradients of the leaves: by a pass of the tape, if the communicator is on one.
    #[track_caller]
    pub(crate) fn backward_from(&self, call: &'static str, loss: &Tensor) -> Result<()> {
        let pass = BackwardPass::new(call, PassOptions::default());
        let roots = loss_root(call, Some(loss)).and_then(|roots| match roots.first() {
            Some(_) => Ok(roots),
            None => {
                let message = "the loss does not require grad; one that depends on a variable is \
                               needed"
                    .to_owned();
                Err(Error::Argument { call, message })
            }
        });
        // A pass within a pullback is a part of the pass that the pullback belongs to.
        if let Some(record) = self.tape_record().filter(|record| record.comm().is_some()) {
            return record.backward(pass, roots);
        }
        let outcome = roots.and_then(|roots| {
            let (outputs, cotangents): (Vec<_>, Vec<_>) = roots.iter().map(|(y, c)| (y, c)).unzip();
            autograd::backward(call, &outputs, &cotangents, false, false)
        });
        self.note(outcome)
    }
}

/// The error, with its likely reason if it is libtorch's for a graph that was freed: a checkpoint goes
/// back through the graphs of the tensors that its function has captured, and frees them.
fn explained(error: Error, has_checkpoints: bool) -> Error {
    match error {
        Error::Autograd { call, message }
            if has_checkpoints && message.contains("backward through the graph a second time") =>
        {
            let reason = "a checkpoint frees the graph of a tensor that its function has captured; \
                          make the tensor an input";
            Error::Autograd { call, message: format!("{message}: {reason}") }
        }
        error => error,
    }
}

impl Record {
    fn has_checkpoints(&self) -> bool {
        !self.state().calls.runs().is_empty()
    }

    /// Goes back from the roots to the leaves, and adds to their gradients.
    pub(super) fn backward(
        self: &Arc<Self>,
        pass: BackwardPass,
        roots: Result<Roots>,
    ) -> Result<()> {
        let create_graph = pass.options.create_graph;
        let has_checkpoints = self.has_checkpoints();
        self.carry_out(pass, roots, |outputs, cotangents, first_token| {
            let keeps = pass.keeps();
            autograd::backward(pass.site.call, outputs, cotangents, keeps, create_graph)
                .map_err(|error| explained(error, has_checkpoints))?;
            Ok(((), autograd::take_grad(first_token)))
        })
    }

    /// Goes back from the roots to the inputs, and returns their gradients.
    pub(super) fn grad(
        self: &Arc<Self>,
        pass: BackwardPass,
        roots: Result<Roots>,
        inputs: &[&Tensor],
    ) -> Result<Vec<Tensor>> {
        let call = pass.site.call;
        let roots = roots.and_then(|roots| check_inputs(call, inputs).map(|()| roots));
        let has_checkpoints = self.has_checkpoints();
        let gradients = self.carry_out(pass, roots, |outputs, cotangents, first_token| {
            // The first token is an input as well, so that libtorch visits every node on the way to
            // it.
            let inputs: Vec<&Tensor> = inputs.iter().copied().chain([first_token]).collect();
            let (keeps, create_graph) = (pass.keeps(), pass.options.create_graph);
            let mut gradients =
                autograd::grad(call, outputs, cotangents, &inputs, keeps, create_graph)
                    .map_err(|error| explained(error, has_checkpoints))?;
            let token = gradients.pop().flatten();
            Ok((gradients, token))
        })?;
        inputs
            .iter()
            .zip(gradients)
            .map(|(input, gradient)| match gradient {
                None => Ok(input.f_zeros_like()?),
                // Zeros that come from one pullback alone are expanded, and share one element.
                Some(gradient) if gradient.stride().contains(&0) => Ok(gradient.f_contiguous()?),
                Some(gradient) => Ok(gradient),
            })
            .collect()
    }

    /// [`Tape::vjp`](super::Tape::vjp), with `call` as its name in errors.
    #[track_caller]
    pub(crate) fn vjp(
        self: &Arc<Self>,
        call: &'static str,
        outputs: &[(&Tensor, &Tensor)],
        inputs: &[&Tensor],
        options: PassOptions,
    ) -> Result<Vec<Tensor>> {
        self.grad(BackwardPass::new(call, options), cotangent_roots(call, outputs), inputs)
    }

    /// Carries out a backward pass, if the ranks agree on it, from the roots and the last token to
    /// the first token. `run` returns its result and the first token's gradient, from which the
    /// tape goes on under `create_graph`.
    fn carry_out<T>(
        self: &Arc<Self>,
        pass: BackwardPass,
        roots: Result<Roots>,
        run: impl FnOnce(&[&Tensor], &[&Tensor], &Tensor) -> Result<(T, Option<Tensor>)>,
    ) -> Result<T> {
        let Some(comm) = self.comm() else { unreachable!("a pullback's record has no passes") };
        if self.is_running() {
            let message =
                "called in a checkpoint of the tape, whose calls it cannot go through yet";
            return Err(Error::Argument { call: pass.site.call, message: message.to_owned() });
        }
        let _traced = Traced::begin(pass.site, comm);
        let outcome = self.agree(comm, pass, roots).and_then(|roots| {
            let create_graph = pass.options.create_graph;
            let (first, last) = {
                let state = self.state();
                (state.first_token.shallow_clone(), state.last_token.shallow_clone())
            };
            let seed = if create_graph { last.shallow_clone() } else { last.f_detach()? };
            let root = self.root(pass.site.call, &last, None)?;
            let roots: Roots = std::iter::once((root, seed)).chain(roots).collect();
            let (outputs, cotangents): (Vec<_>, Vec<_>) = roots.iter().map(|(y, c)| (y, c)).unzip();
            let (outcome, left_out) = self.pass(pass.site, || run(&outputs, &cotangents, &first));
            if outcome.is_err() {
                self.state().calls.note_failed_pass();
            }
            // After a failed pass under `create_graph`, the tape has no gradient of the first token
            // to go on from, so it starts anew as well.
            if !pass.keeps() || (outcome.is_err() && create_graph) {
                self.start_anew();
            }
            let (result, token) = outcome?;
            if let Some(token) = token.filter(|_| create_graph) {
                self.state().last_token = token;
            }
            left_out.map(|()| result)
        });
        comm.note(outcome)
    }

    /// Compares what the ranks ask for, and what they recorded. Returns the roots if they agree.
    fn agree(
        self: &Arc<Self>,
        comm: &Communicator,
        pass: BackwardPass,
        roots: Result<Roots>,
    ) -> Result<Roots> {
        let settled = crate::engine::request::settle_tape(self);
        let usable = self.state().calls.check_usable(pass.site.call);
        let roots = roots.and_then(|roots| settled.and(usable).map(|()| roots));
        let site = Site { call: pass.operation(), ..pass.site };
        let (terms, roots) = match roots {
            Ok(roots) => (Ok(Terms::default()), roots),
            Err(error) => (Err(error), Roots::new()),
        };
        let (_, turn) = agree(site, comm, None, terms, true, comm.environment().way())?;
        let (own, contexts) = {
            let state = self.state();
            (state.calls.fingerprint(), state.contexts.len())
        };
        let sums = comm.sum_control(site, turn.way(), [own, i64::from(contexts != 0)]);
        turn.made();
        let [sum, contexts] = sums?;
        if sum == 0 {
            if contexts != 0 {
                self.make_contexts(comm, pass.site)?;
            }
            return Ok(roots);
        }
        let bytes = told(&self.state().calls, comm)
            .and_then(|told| postcard::to_stdvec(&told).map_err(|e| malformed(pass, &e)));
        // This rank takes part in the exchange even if it has an error, as the others wait for it.
        let texts = comm.exchange(pass.site, bytes.as_deref().unwrap_or_default())?;
        let _ = bytes?;
        let all: Vec<_> =
            texts.iter().map(|text| postcard::from_bytes(text).unwrap_or_default()).collect();
        Err(Error::Tape { differences: differences(&all, comm.identity()) })
    }

    /// Makes the contexts that checkpoints need when they are run again, in one order on all ranks.
    /// Only the ranks that have used a communicator in a checkpoint know that it needs one.
    fn make_contexts(&self, comm: &Communicator, site: Site) -> Result<()> {
        let own = self.state().contexts.clone();
        let texts = comm.exchange(site, &postcard::to_stdvec(&own).unwrap_or_default())?;
        let all: BTreeSet<Identity> = texts
            .iter()
            .flat_map(|text| postcard::from_bytes::<Vec<Identity>>(text).unwrap_or_default())
            .collect();
        let site = Site { call: "the communicator of checkpoints", ..site };
        all.into_iter().try_for_each(|identity| {
            crate::communicator::make_context(site, comm.environment(), identity)
        })?;
        self.state().contexts.clear();
        Ok(())
    }
}

fn malformed(pass: BackwardPass, error: &postcard::Error) -> Error {
    Error::Argument { call: pass.site.call, message: error.to_string() }
}

/// The root of a pass that starts from a loss; none if this rank has no loss.
pub(crate) fn loss_root(
    call: &'static str,
    loss: Option<&Tensor>,
) -> Result<Vec<(Tensor, Tensor)>> {
    let refuse = |message: String| Err(Error::Argument { call, message });
    let Some(loss) = loss else { return Ok(Roots::new()) };
    if !loss.defined() {
        return refuse("the loss is undefined".to_owned());
    }
    if Metadata::of(loss).count() != 1 {
        return refuse(format!("the loss has shape {:?}; one element is needed", loss.size()));
    }
    if loss.is_complex() {
        return refuse(format!("the loss is of kind {:?}; a real kind is needed", loss.kind()));
    }
    if !loss.requires_grad() {
        return Ok(Roots::new());
    }
    Ok(vec![(loss.shallow_clone(), loss.f_ones_like()?)])
}

/// The roots of a pass that starts from outputs and their cotangents.
fn cotangent_roots(call: &'static str, outputs: &[(&Tensor, &Tensor)]) -> Result<Roots> {
    let refuse = |message: String| Err(Error::Argument { call, message });
    let mut roots = Roots::new();
    for (i, (output, cotangent)) in outputs.iter().enumerate() {
        if !output.defined() || !cotangent.defined() {
            return refuse(format!("output {i} or its cotangent is undefined"));
        }
        let [own, given] = [output, cotangent].map(|x| (x.kind(), x.size()));
        if own != given {
            return refuse(format!(
                "output {i} is of kind {:?} and shape {:?}, but its cotangent of kind {:?} and \
                 shape {:?}",
                own.0, own.1, given.0, given.1
            ));
        }
        if output.requires_grad() {
            roots.push((output.shallow_clone(), cotangent.shallow_clone()));
        }
    }
    Ok(roots)
}

fn check_inputs(call: &'static str, inputs: &[&Tensor]) -> Result<()> {
    match inputs.iter().position(|input| !input.defined() || !input.requires_grad()) {
        Some(i) => {
            let message = format!("input {i} does not require grad");
            Err(Error::Argument { call, message })
        }
        None => Ok(()),
    }
}
