//! [`Buckets`]: how the gradients of a model are put in buckets.
//!
//! A large gradient is a bucket of its own, and is summed where it lies. Small ones share a flat
//! buffer, of which they become views, so that many of them cost one call.

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};

use tch::{Kind, Tensor};

use super::DataParallelOptions;
use super::bucket::Bucket;
use super::model::Variable;
use crate::autograd::{Device, Metadata};
use crate::base::error::Result;

/// From this size on a gradient is a bucket of its own: copying it to a buffer would cost more than
/// another call.
const ALONE: usize = 256 << 10;

/// The buckets of a model's parameters, in the order in which they are summed.
#[derive(Debug)]
pub(super) struct Buckets {
    pub(super) list: Vec<Bucket>,
    /// The index of each parameter's bucket; none for one that does not require grad.
    pub(super) of_parameter: Vec<Option<usize>>,
    /// What the buckets depend on, for each parameter.
    layout: Vec<Layout>,
    /// The devices of the parameters.
    devices: Vec<Device>,
    /// A hash of the layout and the options: ranks on which it is equal have equal buckets.
    pub(super) hash: u64,
}

/// What of a parameter decides on its bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Layout {
    scalar_type: i32,
    shape: Vec<i64>,
    requires_grad: bool,
    /// The number of its device among those of the model, which is the same on all ranks though the
    /// devices may not be.
    device: usize,
}

impl Layout {
    /// Adds the parameter's device to the list if it is not there.
    fn of(parameter: &Tensor, devices: &mut Vec<Device>) -> Self {
        let metadata = Metadata::of(parameter);
        let (scalar_type, shape) = (metadata.scalar_type(), metadata.shape().to_vec());
        let device = devices.iter().position(|device| *device == metadata.device());
        let device = device.unwrap_or_else(|| {
            devices.push(metadata.device());
            devices.len() - 1
        });
        Self { scalar_type, shape, requires_grad: parameter.requires_grad(), device }
    }

    fn is_that_of(&self, parameter: &Tensor, devices: &[Device]) -> bool {
        let metadata = Metadata::of(parameter);
        self.scalar_type == metadata.scalar_type()
            && self.shape == metadata.shape()
            && self.requires_grad == parameter.requires_grad()
            && devices[self.device] == metadata.device()
    }
}

/// A bucket of several parameters that is not complete.
struct Open {
    kind: Kind,
    device: Device,
    members: Vec<usize>,
    bytes: usize,
}

impl Buckets {
    pub(super) fn new(parameters: &[Variable], options: &DataParallelOptions) -> Result<Self> {
        let mut devices = Vec::new();
        let layout: Vec<Layout> =
            parameters.iter().map(|p| Layout::of(&p.tensor, &mut devices)).collect();
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
            let metadata = Metadata::of(tensor);
            let (count, device) = (metadata.count(), metadata.device());
            let elements = usize::try_from(count).unwrap_or(usize::MAX);
            let bytes = elements.saturating_mul(kind.elt_size_in_bytes());
            if kind == own && bytes >= ALONE.min(options.bucket_bytes) {
                list.push(Bucket::of_one(i, kind, &metadata));
                continue;
            }
            let is_alike = |bucket: &Open| bucket.kind == kind && bucket.device == device;
            let place = open.iter().position(is_alike).unwrap_or_else(|| {
                open.push(Open { kind, device, members: Vec::new(), bytes: 0 });
                open.len() - 1
            });
            open[place].members.push(i);
            open[place].bytes += bytes;
            if open[place].bytes >= limit {
                let Open { kind, device, members, .. } = open.swap_remove(place);
                list.push(Bucket::of_several(members, (kind, device), parameters)?);
                limit = options.bucket_bytes;
            }
        }
        for Open { kind, device, members, .. } in open {
            list.push(Bucket::of_several(members, (kind, device), parameters)?);
        }
        // A bucket is complete with the parameter that was created first.
        list.sort_by_key(|bucket| Reverse(bucket.members.iter().min().copied()));
        let mut of_parameter = vec![None; parameters.len()];
        for (bucket, Bucket { members, .. }) in list.iter().enumerate() {
            for &i in members {
                of_parameter[i] = Some(bucket);
            }
        }
        let mut hasher = DefaultHasher::new();
        (&layout, format!("{options:?}")).hash(&mut hasher);
        Ok(Self { list, of_parameter, layout, devices, hash: hasher.finish() })
    }

    /// Whether they are those of the parameters as these are now: kinds or shapes may have changed,
    /// or whether gradients are required.
    pub(super) fn fit(&self, parameters: &[Variable]) -> bool {
        let is_same =
            |(layout, p): (&Layout, &Variable)| layout.is_that_of(&p.tensor, &self.devices);
        self.layout.iter().zip(parameters).all(is_same)
    }
}
