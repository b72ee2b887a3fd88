//! The parameters and buffers of a model: checked, compared across the ranks, and made equal.

use std::hash::{DefaultHasher, Hash, Hasher};

use tch::{Tensor, nn};

use super::DataParallelOptions;
use crate::autograd::{self, Metadata, Recording};
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::call::buffer::Input;
use crate::engine::agreement::{Turn, differences};
use crate::engine::communicator::Communicator;
use crate::engine::tape::carries_gradient;

/// A parameter or a buffer.
#[derive(Debug)]
pub(super) struct Variable {
    /// Its name with what it is: `parameter fc1.weight`.
    pub(super) name: String,
    pub(super) tensor: Tensor,
}

/// The variables of a model, without repetitions.
#[derive(Debug)]
pub(super) struct Model {
    /// In the order of their creation.
    pub(super) parameters: Vec<Variable>,
    buffers: Vec<Variable>,
}

impl Model {
    /// The model whose variables are in the store.
    pub(super) fn of_store(store: &nn::VarStore) -> Self {
        let mut buffers: Vec<(String, Tensor)> = store.variables().into_iter().collect();
        // The store has them in a hash map, whose order differs between ranks.
        buffers.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut parameters = Vec::new();
        for (i, tensor) in store.trainable_variables().into_iter().enumerate() {
            let mut names = Vec::new();
            buffers.retain(|(name, buffer)| {
                let is_same = autograd::is_same(buffer, &tensor);
                if is_same {
                    names.push(name.clone());
                }
                !is_same
            });
            let name = names.into_iter().next().unwrap_or_else(|| i.to_string());
            push(&mut parameters, "parameter", name, tensor);
        }
        let mut model = Self { parameters, buffers: Vec::new() };
        for (name, tensor) in buffers {
            push(&mut model.buffers, "buffer", name, tensor);
        }
        model
    }

    pub(super) fn new(parameters: &[Tensor], buffers: &[Tensor]) -> Self {
        let mut model = Self { parameters: Vec::new(), buffers: Vec::new() };
        let lists = [
            (&mut model.parameters, "parameter", parameters),
            (&mut model.buffers, "buffer", buffers),
        ];
        for (list, what, tensors) in lists {
            for (i, tensor) in tensors.iter().enumerate() {
                push(list, what, i.to_string(), tensor.shallow_clone());
            }
        }
        model
    }

    /// Refuses parameters that have a hook.
    pub(super) fn check_hooks(&self, call: &'static str) -> Result<()> {
        match self.parameters.iter().find(|parameter| autograd::has_hook(&parameter.tensor)) {
            None => Ok(()),
            Some(Variable { name, .. }) => {
                let message = format!(
                    "{name} has a hook already, perhaps of another DataParallel; drop that first"
                );
                Err(Error::Argument { call, message })
            }
        }
    }

    /// Refuses variables that cannot be trained or broadcast.
    pub(super) fn check(&self, call: &'static str) -> Result<()> {
        let refuse = |message: String| Err(Error::Argument { call, message });
        if self.parameters.is_empty() {
            return refuse("the model has no parameters".to_owned());
        }
        for Variable { name, tensor } in self.parameters.iter().chain(&self.buffers) {
            if !Metadata::of(tensor).is_defined() {
                return refuse(format!("{name} is undefined"));
            }
            Input::new(call, tensor).map_err(|error| {
                let (message, prefix) = (error.to_string(), format!("{call}: "));
                let message = message.strip_prefix(&prefix).unwrap_or(&message);
                Error::Argument { call, message: format!("{name}: {message}") }
            })?;
        }
        for Variable { name, tensor } in self.parameters.iter().chain(&self.buffers) {
            if autograd::overlaps(tensor) {
                return refuse(format!(
                    "several elements of {name} are in the same place in memory; copy it first"
                ));
            }
        }
        for Variable { name, tensor } in &self.parameters {
            if !tensor.is_leaf() {
                return refuse(format!("{name} is the result of an operation; a leaf is needed"));
            }
            if !carries_gradient(&Metadata::of(tensor)) {
                let kind = tensor.kind();
                return refuse(format!(
                    "{name} is of kind {kind:?}; one that carries gradients is needed"
                ));
            }
        }
        Ok(())
    }

    /// Compares the variables, by name, kind and shape, and the options across the ranks, within
    /// the call at `site`.
    pub(super) fn compare(
        &self,
        site: Site,
        comm: &Communicator,
        turn: &Turn,
        options: &DataParallelOptions,
    ) -> Result<()> {
        let mut own = vec![("options".to_owned(), format!("{options:?}"))];
        let variables = self.parameters.iter().chain(&self.buffers);
        own.extend(variables.enumerate().map(|(i, Variable { name, tensor })| {
            let (kind, shape) = (tensor.kind(), tensor.size());
            let frozen = if tensor.requires_grad() { "" } else { ", does not require grad" };
            (name.clone(), format!("{kind:?} {shape:?}{frozen}, number {i}"))
        }));
        let mut hasher = DefaultHasher::new();
        own.hash(&mut hasher);
        if comm.is_equal_on_all(site, turn.way(), hasher.finish())? {
            return Ok(());
        }
        let bytes = postcard::to_stdvec(&own)
            .map_err(|error| Error::Argument { call: site.call, message: error.to_string() });
        // This rank takes part even if it has an error, as the others wait for it.
        let texts = comm.exchange(site, bytes.as_deref().unwrap_or_default())?;
        let _ = bytes?;
        let all: Vec<Vec<(String, String)>> =
            texts.iter().map(|text| postcard::from_bytes(text).unwrap_or_default()).collect();
        let ranks: Vec<Rank> = (0..).take(all.len()).collect();
        Err(Error::Mismatch { differences: differences(&all, &ranks) })
    }

    /// Converts gradients whose parameters have changed their kind, and drops those of another
    /// shape.
    pub(super) fn convert_gradients(&self) -> Result<()> {
        for Variable { tensor, .. } in &self.parameters {
            let (gradient, kind) = (tensor.f_grad()?, tensor.f_kind()?);
            if !gradient.defined() {
                continue;
            }
            if gradient.size() != tensor.size() {
                autograd::set_grad(tensor, &Tensor::new());
            } else if gradient.f_kind()? != kind {
                autograd::set_grad(tensor, &gradient.f_to_kind(kind)?);
            }
        }
        Ok(())
    }

    /// Gives all ranks the values of rank 0.
    pub(super) fn broadcast(&self, comm: &Communicator) -> Result<()> {
        let _recording = Recording::off();
        for Variable { tensor, .. } in self.parameters.iter().chain(&self.buffers) {
            comm.broadcast_(&mut tensor.shallow_clone(), 0)?;
        }
        Ok(())
    }
}

/// Adds a variable to the list, unless it is there: parts of a model can share one.
fn push(list: &mut Vec<Variable>, what: &str, name: String, tensor: Tensor) {
    if !list.iter().any(|other| autograd::is_same(&other.tensor, &tensor)) {
        list.push(Variable { name: format!("{what} {name}"), tensor });
    }
}
