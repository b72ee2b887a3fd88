//! The two nodes of a started operation.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tch::Tensor;

use super::{Nonblocking, Request};
use crate::autograd::{self, Recording};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::call::buffer::Output;
use crate::engine::agreement::Admission;
use crate::engine::communicator::Communicator;
use crate::engine::operator::Derivative;
use crate::engine::tape::{self, Pulled, Traffic};
use crate::environment::datatype::Datatype;

/// The node of a wait that is to be recorded.
pub(super) struct WaitNode {
    /// The start's end of the graph.
    pub(super) handle: Tensor,
    pub(super) x: Tensor,
    pub(super) nodes: Arc<dyn Wait>,
    /// What a tape is told of the wait.
    pub(super) traffic: Traffic,
}

impl WaitNode {
    /// Makes `y` the result of the wait, whether or not the waiter records: the start did.
    pub(super) fn add(self, site: Site, comm: &Communicator, y: &Tensor) -> Result<()> {
        let _recording = Recording::on();
        self.nodes.add_wait(site, comm, self.traffic, (&self.handle, &self.x, y))
    }
}

/// What the two nodes of a started operation share.
pub(super) struct Nodes<D> {
    derivative: D,
    /// The result's shape and kind.
    result: (Vec<i64>, Datatype),
    /// The adjoints under way, by backward pass.
    slots: Mutex<HashMap<i32, Request>>,
    /// The result without its history, where the derivative needs it and it has been waited for.
    waited: Mutex<Option<Tensor>>,
}

/// Adds the node of the wait, whatever the derivative is.
pub(super) trait Wait: Send + Sync {
    fn add_wait(
        self: Arc<Self>,
        site: Site,
        comm: &Communicator,
        traffic: Traffic,
        tensors: (&Tensor, &Tensor, &Tensor),
    ) -> Result<()>;
}

impl<D: Derivative> Nodes<D> {
    pub(super) fn new(derivative: D, result: (Vec<i64>, Datatype)) -> Arc<Self> {
        let (slots, waited) = (Mutex::default(), Mutex::default());
        Arc::new(Self { derivative, result, slots, waited })
    }

    pub(super) fn add_start(
        self: Arc<Self>,
        site: Site,
        comm: &Communicator,
        traffic: Traffic,
        x: &Tensor,
    ) -> Result<WaitNode> {
        let datatype = self.result.1;
        let handle = Output::new(site.call, &[0], datatype)?.into_tensor();
        let saved: &[&Tensor] = if D::READS { &[x] } else { &[] };
        let nodes = Arc::clone(&self);
        let collective = traffic.is_collective();
        let number = tape::add_node(
            site,
            comm,
            traffic,
            [&[x], &[&handle]],
            saved,
            move |comm, mut pulled| {
                let request = match nodes.take() {
                    Some(request) => request,
                    None => nodes.start_unreached(site, comm, &mut pulled)?,
                };
                let request = request.join_dummies(&[pulled.cotangent()]);
                Ok(vec![Some(request.complete(site, Some(comm))?)])
            },
        )?;
        // Messages may be waited for in any order.
        let traffic = if collective { Traffic::Wait(number) } else { Traffic::Local };
        Ok(WaitNode { handle, x: x.shallow_clone(), nodes: self, traffic })
    }

    /// The adjoint for a result that nobody asked for: other ranks count on this one.
    fn start_unreached(
        &self,
        site: Site,
        comm: &Communicator,
        pulled: &mut Pulled,
    ) -> Result<Request> {
        let saved = pulled.saved_to_start(site, comm)?;
        let (shape, datatype) = &self.result;
        let options = (datatype.kind, tch::Device::Cpu);
        let zeros = Tensor::f_zeros(&shape[..], options)?;
        let comm = &compared::<D>(comm);
        if !D::READS {
            return self.derivative.pull::<Nonblocking>(comm, &[], &zeros);
        }
        let waited = self.waited.lock().take();
        if let Some(y) = waited {
            let saved = [saved[0].shallow_clone(), y.shallow_clone()];
            *self.waited.lock() = Some(y);
            return self.derivative.pull::<Nonblocking>(comm, &saved, &zeros);
        }
        // The derivative needs a result, and there is none on this rank.
        let nowhere = Tensor::f_full(&shape[..], f64::NAN, options)?;
        let saved = [saved[0].shallow_clone(), nowhere];
        let _ = self.derivative.pull::<Nonblocking>(comm, &saved, &zeros)?.wait()?;
        Err(Error::Unreached { call: site.call, at: site.at })
    }

    fn take(&self) -> Option<Request> {
        let mut slots = self.slots.lock();
        slots.remove(&autograd::graph_task())
    }

    fn put(&self, request: Request) {
        let mut slots = self.slots.lock();
        slots.insert(autograd::graph_task(), request);
    }
}

impl<D: Derivative> Wait for Nodes<D> {
    fn add_wait(
        self: Arc<Self>,
        site: Site,
        comm: &Communicator,
        traffic: Traffic,
        (handle, x, y): (&Tensor, &Tensor, &Tensor),
    ) -> Result<()> {
        if D::READS {
            *self.waited.lock() = Some(y.f_detach()?);
        }
        let saved: &[&Tensor] = if D::READS { &[x, y] } else { &[] };
        let nodes = Arc::clone(&self);
        tape::add_node(site, comm, traffic, [&[handle], &[y]], saved, move |comm, mut pulled| {
            let saved = pulled.saved_to_start(site, comm)?;
            let comm = &compared::<D>(comm);
            let request = nodes.derivative.pull::<Nonblocking>(comm, &saved, pulled.cotangent())?;
            // What lies between wait and start depends on the adjoint's start, where that is
            // recorded: it is recorded too then.
            let dummy = request.dummy();
            nodes.put(request);
            Ok(vec![dummy.requires_grad().then_some(dummy)])
        })?;
        Ok(())
    }
}

/// The communicator of a pullback, for the adjoint to be started at once where it is certain to be
/// the same on all ranks: the tape has compared the calls, their sizes are those that the ranks
/// agreed on in the forward pass, and no rank can have lost a saved tensor. What a pullback of the
/// user's own has started is not among the calls that the tape has compared.
fn compared<D: Derivative>(comm: &Communicator) -> Communicator {
    let is_certain = !D::READS && comm.record().is_some() && !comm.is_of_pullback();
    if is_certain { comm.admitted(Admission::Compared) } else { comm.clone() }
}
