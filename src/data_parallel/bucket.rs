//! [`Bucket`]: gradients that are summed over the ranks in one call.

use tch::{Kind, Tensor};

use super::model::Variable;
use crate::autograd::{self, Device, Metadata, Recording};
use crate::base::error::{Error, Result};
use crate::call::buffer::Output;
use crate::environment::datatype::Datatype;

/// Gradients that are summed over the ranks in one call.
#[derive(Debug)]
pub(super) struct Bucket {
    /// The indices of their parameters.
    pub(super) members: Vec<usize>,
    kind: Kind,
    device: Device,
    count: i64,
    /// The buffer that they are summed in; `None` for a single one, which is summed where it lies.
    buffer: Option<Buffer>,
}

/// A flat tensor, and its parts, which become the gradients.
#[derive(Debug)]
struct Buffer {
    flat: Tensor,
    views: Vec<Tensor>,
}

impl Buffer {
    fn new(shapes: &[Vec<i64>], kind: Kind, device: Device) -> Result<Self> {
        let counts: Vec<i64> = shapes.iter().map(|shape| shape.iter().product()).collect();
        let flat = zeros(&[counts.iter().sum()], kind, device)?;
        let (mut views, mut start) = (Vec::new(), 0);
        for (shape, count) in shapes.iter().zip(&counts) {
            let view = flat.f_narrow(0, start, *count)?.f_view(&shape[..])?;
            // Detached: tch's `Tensor::zero_grad` detaches gradients in place, which torch refuses
            // for other views.
            views.push(view.f_detach()?);
            start += count;
        }
        Ok(Self { flat, views })
    }
}

impl Bucket {
    /// Of a single gradient, which is summed where it lies.
    pub(super) fn of_one(member: usize, kind: Kind, gradient: &Metadata) -> Self {
        let (device, count) = (gradient.device(), gradient.count());
        Self { members: vec![member], kind, device, count, buffer: None }
    }

    /// Of gradients that share a buffer of this kind, on this device.
    pub(super) fn of_several(
        members: Vec<usize>,
        (kind, device): (Kind, Device),
        parameters: &[Variable],
    ) -> Result<Self> {
        let shapes: Vec<Vec<i64>> = members.iter().map(|i| parameters[*i].tensor.size()).collect();
        let buffer = Buffer::new(&shapes, kind, device)?;
        let count = Metadata::of(&buffer.flat).count();
        Ok(Self { members, kind, device, count, buffer: Some(buffer) })
    }

    /// Whether it is the gradient of this parameter itself.
    pub(super) fn is_gradient_of(&self, parameter: usize) -> bool {
        self.buffer.is_none() && self.members[0] == parameter
    }

    /// Prepares the bucket for a pass. If the program has kept gradients that the parameters have
    /// no more, they must not change: another buffer takes the place of theirs.
    pub(super) fn prepare(&mut self, parameters: &[Variable]) -> Result<()> {
        let Some(Buffer { flat, views }) = &self.buffer else { return Ok(()) };
        let is_dropped =
            |(view, i): (&Tensor, &usize)| !autograd::is_same(&parameters[*i].tensor.grad(), view);
        let dropped: Vec<bool> = views.iter().zip(&self.members).map(is_dropped).collect();
        let is_kept = |(view, dropped): (&Tensor, &bool)| *dropped && autograd::owners(view).0 > 1;
        let shares_memory = autograd::owners(flat).1 > 1 + views.len();
        if views.iter().zip(&dropped).any(is_kept) || (shares_memory && dropped.contains(&true)) {
            let shapes: Vec<Vec<i64>> = views.iter().map(Tensor::size).collect();
            self.buffer = Some(Buffer::new(&shapes, self.kind, self.device)?);
        }
        Ok(())
    }

    /// Multiplies the gradients that are there by the weight, with which the new ones will come.
    pub(super) fn weigh(&self, parameters: &[Variable], weight: &Tensor) -> Result<()> {
        let _recording = Recording::off();
        for (place, &i) in self.members.iter().enumerate() {
            let leaf = &parameters[i].tensor;
            let mut gradient = leaf.f_grad()?;
            if !gradient.defined() {
                continue;
            }
            let view = self.buffer.as_ref().map(|buffer| &buffer.views[place]);
            if view.is_some_and(|view| autograd::is_same(&gradient, view)) {
                let _ = gradient.f_mul_(weight)?;
            } else {
                // The program, or another gradient, may share its memory.
                let weighed = gradient.f_mul(weight)?.f_to_kind(gradient.f_kind()?)?;
                autograd::set_grad(leaf, &weighed);
            }
        }
        Ok(())
    }

    /// Gives each gradient memory of its own, as it may be added to. libtorch makes a cotangent the
    /// gradient, and views of one cotangent may be the gradients of several parameters.
    pub(super) fn part(&self, parameters: &[Variable]) -> Result<()> {
        for (place, &i) in self.members.iter().enumerate() {
            let leaf = &parameters[i].tensor;
            let view = self.buffer.as_ref().map(|buffer| &buffer.views[place]);
            let is_in_bucket =
                |gradient| view.is_some_and(|view| autograd::is_same(gradient, view));
            if !is_in_bucket(&leaf.f_grad()?) {
                part(leaf)?;
            }
        }
        Ok(())
    }

    /// Collects the gradients, zeros for those that are undefined. Returns the tensor to be summed
    /// over the ranks, which is contiguous, and shares its memory with nothing else.
    pub(super) fn collect(&self, parameters: &[Variable]) -> Result<Tensor> {
        let _recording = Recording::off();
        let gradient = |i: usize| -> Result<Tensor> {
            let gradient = parameters[i].tensor.f_grad()?;
            let is_dense = Metadata::of(&gradient).is_strided() || !gradient.defined();
            Ok(if is_dense { gradient } else { gradient.f_to_dense(None, false)? })
        };
        let Some(Buffer { flat, views }) = &self.buffer else {
            let gradient = gradient(self.members[0])?;
            if !gradient.defined() {
                return self.zeros(&parameters[self.members[0]].tensor.size());
            }
            // libtorch makes a cotangent the gradient if it is the only reference to it. But a
            // view can share the memory of another cotangent, which is still to be read.
            let is_alone = autograd::owners(&gradient).1 == 1 && !gradient.requires_grad();
            let is_fit = gradient.f_kind()? == self.kind && Metadata::of(&gradient).is_contiguous();
            if is_alone && is_fit {
                return Ok(gradient);
            }
            let mut copy = self.zeros(&gradient.size())?;
            copy.f_copy_(&gradient)?;
            return Ok(copy);
        };
        for (view, &i) in views.iter().zip(&self.members) {
            let mut view = view.shallow_clone();
            let gradient = gradient(i)?;
            if !gradient.defined() {
                let _ = view.f_zero_()?;
            } else if !autograd::is_same(&gradient, &view) {
                view.f_copy_(&gradient)?;
                if gradient.f_kind()? == self.kind && Metadata::of(&gradient).is_contiguous() {
                    // As `distribute` does it. If it is done now, the memory of the gradient, which is
                    // in the cache, is free for the gradients that follow.
                    autograd::set_grad(&parameters[i].tensor, &view);
                }
            }
        }
        Ok(flat.shallow_clone())
    }

    /// Zeros to be summed, of a rank that has not collected its gradients.
    pub(super) fn nothing(&self) -> Result<Tensor> {
        self.zeros(&[self.count])
    }

    fn zeros(&self, shape: &[i64]) -> Result<Tensor> {
        zeros(shape, self.kind, self.device)
    }

    /// Makes the sums the gradients of the parameters, but leaves undefined what is undefined on all
    /// ranks. `summed` is what [`collect`](Self::collect) returned.
    pub(super) fn distribute(
        &self,
        parameters: &[Variable],
        summed: &Tensor,
        is_defined: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let _recording = Recording::off();
        let views: Vec<&Tensor> = match &self.buffer {
            Some(buffer) => buffer.views.iter().collect(),
            None => vec![summed],
        };
        for (view, &i) in views.into_iter().zip(&self.members).filter(|(_, i)| is_defined(**i)) {
            let leaf = &parameters[i].tensor;
            let mut gradient = leaf.f_grad()?;
            if gradient.defined() && autograd::is_same(&gradient, view) {
                continue;
            }
            let kind = leaf.f_kind()?;
            let metadata = Metadata::of(&gradient);
            let is_contiguous = metadata.is_contiguous();
            let may_be_written = metadata.is_strided() && autograd::owners(&gradient).1 == 1;
            if may_be_written && (!is_contiguous || self.kind != kind) {
                // It keeps its layout, which is that of the parameter.
                gradient.f_copy_(view)?;
            } else if self.kind != kind {
                autograd::set_grad(leaf, &view.f_to_kind(kind)?);
            } else {
                autograd::set_grad(leaf, view);
            }
        }
        Ok(())
    }
}

/// New zeros, each in memory of its own.
fn zeros(shape: &[i64], kind: Kind, device: Device) -> Result<Tensor> {
    const CALL: &str = "DataParallel";
    let datatype = Datatype::of_kind(kind)
        .ok_or_else(|| Error::Kind { call: CALL, kind: format!("{kind:?}") })?;
    Ok(Output::at(device.into(), CALL, shape, datatype)?.into_tensor().f_zero_()?)
}

/// Replaces the leaf's gradient by a copy if another tensor has the same memory.
pub(super) fn part(leaf: &Tensor) -> Result<()> {
    let gradient = leaf.f_grad()?;
    let metadata = Metadata::of(&gradient);
    if metadata.is_defined() && metadata.is_strided() && autograd::owners(&gradient).1 > 1 {
        let _recording = Recording::off();
        autograd::set_grad(leaf, &gradient.f_alias_copy()?);
    }
    Ok(())
}
