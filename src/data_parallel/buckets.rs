//! Buckets: the gradients that one all-reduce sums.
//!
//! A large gradient is a bucket of its own, and is summed where it lies. Small ones share a flat
//! buffer, of which they become views, so that many of them cost one call.

use std::hash::{DefaultHasher, Hash, Hasher};

use tch::{Device, Kind, Tensor};

use super::DataParallelOptions;
use super::model::Variable;
use crate::autograd::{self, Metadata};
use crate::base::error::Result;

/// From this size on a gradient is a bucket of its own: copying it to a buffer would cost more than
/// another call.
const ALONE: usize = 1 << 20;

/// The buckets of a model's parameters, in the order in which they are summed.
#[derive(Debug)]
pub(super) struct Buckets {
    pub(super) list: Vec<Bucket>,
    /// The index of each parameter's bucket; none for one that does not require grad.
    pub(super) of_parameter: Vec<Option<usize>>,
    /// What the buckets depend on, for each parameter.
    layout: Vec<Layout>,
    /// The layout in words, which differ if the layout does.
    pub(super) description: String,
}

/// What of a parameter decides on its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Layout {
    scalar_type: i32,
    count: i64,
    requires_grad: bool,
}

impl Layout {
    fn of(parameter: &Tensor) -> Self {
        let metadata = Metadata::of(parameter);
        let (scalar_type, count) = (metadata.scalar_type(), metadata.count());
        Self { scalar_type, count, requires_grad: parameter.requires_grad() }
    }
}

#[derive(Debug)]
pub(super) struct Bucket {
    /// The indices of its parameters.
    pub(super) members: Vec<usize>,
    /// The buffer that its gradients are summed in, unless its only gradient is summed where it
    /// lies.
    buffer: Option<Buffer>,
}

/// A flat tensor, and the views that are the gradients.
#[derive(Debug)]
struct Buffer {
    flat: Tensor,
    views: Vec<Tensor>,
}

/// A bucket of several parameters that is not complete.
struct Open {
    kind: Kind,
    members: Vec<usize>,
    bytes: usize,
}

impl Buckets {
    pub(super) fn new(parameters: &[Variable], options: &DataParallelOptions) -> Result<Self> {
        let layout: Vec<Layout> = parameters.iter().map(|p| Layout::of(&p.tensor)).collect();
        let mut list: Vec<Bucket> = Vec::new();
        let mut open: Vec<Open> = Vec::new();
        let mut limit = options.first_bucket_bytes;
        // The backward pass comes to the parameters in about the reverse order of their creation.
        for (i, Variable { tensor, .. }) in parameters.iter().enumerate().rev() {
            if !layout[i].requires_grad {
                continue;
            }
            let own = tensor.f_kind()?;
            // Complex gradients are not reduced in a real kind.
            let kind = options.reduce_in.filter(|_| !tensor.is_complex()).unwrap_or(own);
            let count = usize::try_from(layout[i].count).unwrap_or(usize::MAX);
            let bytes = count.saturating_mul(kind.elt_size_in_bytes());
            if kind == own && bytes >= ALONE.min(options.bucket_bytes) {
                list.push(Bucket { members: vec![i], buffer: None });
                continue;
            }
            let place = open.iter().position(|bucket| bucket.kind == kind).unwrap_or_else(|| {
                open.push(Open { kind, members: Vec::new(), bytes: 0 });
                open.len() - 1
            });
            open[place].members.push(i);
            open[place].bytes += bytes;
            if open[place].bytes >= limit {
                list.push(Bucket::of(open.swap_remove(place), parameters)?);
                limit = options.bucket_bytes;
            }
        }
        for bucket in open {
            list.push(Bucket::of(bucket, parameters)?);
        }
        let mut of_parameter = vec![None; parameters.len()];
        for (bucket, Bucket { members, .. }) in list.iter().enumerate() {
            for &i in members {
                of_parameter[i] = Some(bucket);
            }
        }
        let mut hasher = DefaultHasher::new();
        (&layout, format!("{options:?}")).hash(&mut hasher);
        let trained = layout.iter().filter(|layout| layout.requires_grad).count();
        let description =
            format!("{trained} that require grad, layout {:08x}", hasher.finish() >> 32);
        Ok(Self { list, of_parameter, layout, description })
    }

    /// Whether they are those of the parameters as these are now: kinds may have changed, or
    /// whether gradients are required.
    pub(super) fn fit(&self, parameters: &[Variable]) -> bool {
        let layout = parameters.iter().map(|parameter| Layout::of(&parameter.tensor));
        layout.eq(self.layout.iter().copied())
    }
}

impl Bucket {
    fn of(open: Open, parameters: &[Variable]) -> Result<Self> {
        let tensors: Vec<&Tensor> = open.members.iter().map(|&i| &parameters[i].tensor).collect();
        let count = |x: &&Tensor| Metadata::of(x).count();
        let flat =
            Tensor::f_zeros([tensors.iter().map(count).sum::<i64>()], (open.kind, Device::Cpu))?;
        let (mut views, mut start) = (Vec::new(), 0);
        for tensor in &tensors {
            let view = flat.f_narrow(0, start, count(tensor))?.f_view(&tensor.size()[..])?;
            // Detached: tch's `Tensor::zero_grad` detaches gradients in place, which torch refuses
            // for other views.
            views.push(view.f_detach()?);
            start += count(tensor);
        }
        Ok(Self { members: open.members, buffer: Some(Buffer { flat, views }) })
    }

    /// Collects the gradients, zeros for those that are undefined. Returns the tensor to be summed
    /// over the ranks, which is contiguous.
    pub(super) fn collect(&self, parameters: &[Variable]) -> Result<Tensor> {
        let gradient = |i: usize| -> Result<Tensor> {
            let gradient = parameters[i].tensor.f_grad()?;
            let is_dense = Metadata::of(&gradient).is_strided() || !gradient.defined();
            Ok(if is_dense { gradient } else { gradient.f_to_dense(None, false)? })
        };
        let Some(Buffer { flat, views }) = &self.buffer else {
            let i = self.members[0];
            let (leaf, gradient) = (&parameters[i].tensor, gradient(i)?);
            return Ok(if gradient.defined() {
                gradient.f_to_kind(leaf.f_kind()?)?.f_contiguous()?
            } else {
                Tensor::f_zeros(&leaf.size()[..], (leaf.f_kind()?, Device::Cpu))?
            });
        };
        for (view, &i) in views.iter().zip(&self.members) {
            let mut view = view.shallow_clone();
            let gradient = gradient(i)?;
            if !gradient.defined() {
                let _ = view.f_zero_()?;
            } else if !is_same_memory(&gradient, &view) {
                view.f_copy_(&gradient)?;
            }
        }
        Ok(flat.shallow_clone())
    }

    /// Makes the sums the gradients of the parameters, but leaves undefined what is undefined on all
    /// ranks. `summed` is what [`collect`](Self::collect) returned.
    pub(super) fn distribute(
        &self,
        parameters: &[Variable],
        summed: &Tensor,
        is_defined: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let views: Vec<&Tensor> = match &self.buffer {
            Some(buffer) => buffer.views.iter().collect(),
            None => vec![summed],
        };
        for (view, &i) in views.into_iter().zip(&self.members) {
            let leaf = &parameters[i].tensor;
            if !is_defined(i) {
                continue;
            }
            let mut gradient = leaf.f_grad()?;
            let kind = leaf.f_kind()?;
            if view.f_kind()? == kind {
                if !gradient.defined() || !is_same_memory(&gradient, view) {
                    autograd::set_grad(leaf, view);
                }
            } else if gradient.defined() && Metadata::of(&gradient).is_strided() {
                gradient.f_copy_(view)?;
            } else {
                autograd::set_grad(leaf, &view.f_to_kind(kind)?);
            }
        }
        Ok(())
    }
}

/// Whether both are contiguous tensors of one kind and shape in the same memory.
fn is_same_memory(a: &Tensor, b: &Tensor) -> bool {
    let [a, b] = [a, b].map(Metadata::of);
    a.data() == b.data()
        && a.is_contiguous()
        && b.is_contiguous()
        && (a.scalar_type(), a.shape()) == (b.scalar_type(), b.shape())
}
