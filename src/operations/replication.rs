//! The operators of `Replicated`: the maps between tensors that vary from rank to rank, and
//! replicated tensors, which are one variable on all ranks.
//!
//! The cotangent of a replicated tensor is replicated too, and its product with the tensor counts
//! once, not once per rank. So the adjoints differ from those of the communicator's own operations,
//! and of each map and its adjoint only one makes an MPI call:
//!
//! | map | adjoint |
//! | --- | --- |
//! | [`Sum`]: all_reduce | [`Vary`]: the tensor itself |
//! | [`Concat`]: all_gather | [`Shard`]: the rank's own block |
//! | [`FromRoot`]: broadcast | [`OnRoot`]: the tensor itself on the root, zeros elsewhere |

use std::sync::Arc;

use tch::Tensor;

use super::all_gather::AllGather;
use super::all_reduce::AllReduce;
use super::broadcast::Broadcast;
use super::counts::Counts;
use crate::autograd::{self, Recording};
use crate::base::error::Result;
use crate::base::op::Op;
use crate::base::rank::{Rank, index};
use crate::call::Plan;
use crate::call::blocks::{axis_of, balanced_block};
use crate::call::buffer::{Input, Output};
use crate::engine::agreement::{Agreed, Terms, Told};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Mode, Operator, apply};
use crate::engine::reduction;

#[track_caller]
pub(crate) fn sum<M: Mode>(comm: &Communicator, x: &Tensor) -> Result<M::Output> {
    apply::<M>(&Sum::NEW, comm, x)
}

#[track_caller]
pub(crate) fn mean<M: Mode>(comm: &Communicator, x: &Tensor) -> Result<M::Output> {
    let operator = Sum(AllReduce::of("Replicated::mean", Op::Mean));
    reduction::reduce::<M>(&operator, Op::Mean, comm.size(), comm, x)
}

#[track_caller]
pub(crate) fn vary<M: Mode>(comm: &Communicator, x: &Tensor) -> Result<M::Output> {
    apply::<M>(&Vary, comm, x)
}

#[track_caller]
pub(crate) fn concat<M: Mode>(comm: &Communicator, x: &Tensor, axis: i64) -> Result<M::Output> {
    apply::<M>(&Concat::new(axis, Counts::EXTENT), comm, x)
}

#[track_caller]
pub(crate) fn shard<M: Mode>(comm: &Communicator, x: &Tensor, axis: i64) -> Result<M::Output> {
    apply::<M>(&Shard { axis, cut: Cut::Balanced(comm.size()) }, comm, x)
}

#[track_caller]
pub(crate) fn broadcast<M: Mode>(comm: &Communicator, x: &Tensor, root: Rank) -> Result<M::Output> {
    apply::<M>(&FromRoot::new(root), comm, x)
}

/// From varying to replicated: the sum over all ranks, or, by [`reduction::reduce`], the mean.
#[derive(Debug)]
struct Sum(AllReduce);

impl Sum {
    const NEW: Self = Self(AllReduce::of("Replicated::sum", Op::Sum));
}

impl Operator for Sum {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        self.0.terms(comm, input)
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        self.0.plan(comm, input, agreed)
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Vary)
    }
}

/// From replicated to varying: the tensor itself. The adjoint of [`Sum`].
#[derive(Debug)]
struct Vary;

impl Operator for Vary {
    fn name(&self) -> &'static str {
        "Replicated::vary"
    }

    fn communicates(&self) -> bool {
        false
    }

    fn terms<'a>(&'a self, _: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        Ok(Terms { shape: Some((input.shape(), None)), ..Terms::default() })
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let y = itself(self.name(), comm, &input)?;
        Ok(Plan::without_call(input, y, comm.context()))
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Sum::NEW)
    }
}

/// From varying blocks to replicated: all blocks joined.
#[derive(Debug)]
struct Concat(AllGather);

impl Concat {
    fn new(axis: i64, counts: Counts) -> Self {
        Self(AllGather::of("Replicated::concat", axis, counts))
    }
}

impl Operator for Concat {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        self.0.terms(comm, input)
    }

    fn exchanges_sizes(&self) -> bool {
        self.0.exchanges_sizes()
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        self.0.plan(comm, input, agreed)
    }

    fn adjoint(&self, _shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator> {
        let counts = self.0.counts.resolve(agreed, 0);
        Arc::new(Shard { axis: self.0.axis, cut: Cut::Into(counts) })
    }
}

/// From replicated to varying blocks: this rank's. The adjoint of [`Concat`].
#[derive(Debug)]
struct Shard {
    axis: i64,
    cut: Cut,
}

/// How an extent is cut into blocks.
#[derive(Debug)]
enum Cut {
    /// Into a block for each of so many ranks, as equal as possible.
    Balanced(Rank),
    /// Into blocks of these extents, in order of the ranks.
    Into(Arc<[i64]>),
}

impl Cut {
    fn counts(&self, extent: i64) -> Arc<[i64]> {
        match self {
            Self::Balanced(ranks) => {
                let blocks = (0..*ranks).map(|rank| balanced_block(extent, *ranks, rank));
                blocks.map(|block| block.end - block.start).collect()
            }
            Self::Into(counts) => Arc::clone(counts),
        }
    }
}

impl Operator for Shard {
    fn name(&self) -> &'static str {
        "Replicated::shard"
    }

    fn communicates(&self) -> bool {
        false
    }

    fn terms<'a>(&'a self, _: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let axis = axis_of(self.name(), self.axis, input.shape())?;
        let (axes, shape) = (Terms::axis(axis), Some((input.shape(), None)));
        Ok(Terms { axes, shape, ..Terms::default() })
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let axis = axis_of(self.name(), self.axis, input.shape())?;
        let counts = self.cut.counts(input.shape()[axis]);
        let rank = index(comm.rank());
        let start = counts[..rank].iter().sum();
        let recording = Recording::off();
        let mut block = itself(self.name(), comm, &input)?;
        block = block.f_narrow(self.axis, start, counts[rank])?;
        if !comm.is_forward() {
            // A gradient must not keep the whole cotangent in memory.
            let shape = block.size();
            let place = input.device().into();
            let copy = Output::at(place, self.name(), &shape, input.datatype())?.into_tensor();
            copy.shallow_clone().f_copy_(&block)?;
            block = copy;
        }
        drop(recording);
        Ok(Plan::without_call(input, block, comm.context()))
    }

    fn adjoint(&self, shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        // `terms` has checked the axis.
        let extent = axis_of(self.name(), self.axis, shape).map_or(0, |axis| shape[axis]);
        Arc::new(Concat::new(self.axis, self.cut.counts(extent).into()))
    }
}

/// From varying to replicated: the root's tensor. The root's decides whether the call is recorded:
/// the result is one variable, on all ranks or on none.
#[derive(Debug)]
struct FromRoot(Broadcast);

impl FromRoot {
    fn new(root: Rank) -> Self {
        Self(Broadcast::of("Replicated::broadcast", root))
    }
}

impl Operator for FromRoot {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let records = i64::from(comm.records(input.view()));
        let told = Some(Told { counts: [records, 0], shape: &[] });
        Ok(Terms { told, ..self.0.terms(comm, input)? })
    }

    fn exchanges_sizes(&self) -> bool {
        true
    }

    fn recorded_by(&self) -> Option<Rank> {
        Some(self.0.root)
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        self.0.plan(comm, input, agreed)
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(OnRoot { root: self.0.root })
    }
}

/// From replicated to varying: the tensor itself on the root, zeros elsewhere. The adjoint of
/// [`FromRoot`].
#[derive(Debug)]
struct OnRoot {
    root: Rank,
}

impl Operator for OnRoot {
    fn name(&self) -> &'static str {
        "Replicated::broadcast"
    }

    fn communicates(&self) -> bool {
        false
    }

    fn terms<'a>(&'a self, _: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        Ok(Terms { root: Some(self.root), shape: Some((input.shape(), None)), ..Terms::default() })
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let y = if comm.rank() == self.root {
            itself(self.name(), comm, &input)?
        } else {
            Output::zeros(input.device(), self.name(), input.shape(), input.datatype())?
        };
        Ok(Plan::without_call(input, y, comm.context()))
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(FromRoot::new(self.root))
    }
}

/// The input as a result, with its memory. A result that is to be recorded is an alias, which has a
/// history of its own.
fn itself(call: &'static str, comm: &Communicator, input: &Input) -> Result<Tensor> {
    let x = input.view().tensor();
    if comm.records(input.view()) { autograd::alias(call, x) } else { without_history(x) }
}

/// The tensor if it has no history, and a detached one otherwise. As the gradient of a leaf it must
/// be the tensor itself: libtorch takes the memory of a gradient that nobody else refers to, and it
/// does not see that a detached one shares it.
fn without_history(x: &Tensor) -> Result<Tensor> {
    if x.requires_grad() { Ok(x.f_detach()?) } else { Ok(x.shallow_clone()) }
}
