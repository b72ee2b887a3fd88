//! The two nodes of a started operation.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tch::Tensor;

use super::{Nonblocking, Request};
use crate::autograd::{self, Device, Metadata, Recording};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::call::buffer::Output;
use crate::engine::agreement::Admission;
use crate::engine::communicator::Communicator;
use crate::engine::operator::Derivative;
use crate::engine::tape::{self, Pulled, Record, Traffic};
use crate::environment::datatype::Datatype;

/// The node of a wait that is to be recorded.
pub(super) struct WaitNode {
    /// The start's output.
    pub(super) handle: Tensor,
    pub(super) x: Tensor,
    pub(super) nodes: Arc<dyn Wait>,
    /// How a tape records the wait.
    pub(super) traffic: Traffic,
}

impl WaitNode {
    /// Adds the node of the wait, with the output `y`. It is recorded under `tch::no_grad` too, and
    /// in the first run of a checkpoint, because the start was recorded.
    pub(super) fn add(self, site: Site, comm: &Communicator, y: &Tensor) -> Result<()> {
        // The start was in the first run of a checkpoint.
        if !self.handle.requires_grad() {
            tape::note(site, comm, self.traffic);
            return Ok(());
        }
        let _recording = Recording::on();
        let record = comm.record();
        let _outside = record.as_ref().map(Record::outside_first_runs);
        self.nodes.add_wait(site, comm, self.traffic, (&self.handle, &self.x, y))
    }
}

/// The state that the two nodes of a started operation share.
pub(super) struct Nodes<D> {
    derivative: D,
    result: ResultLike,
    /// The requests of the adjoints under way, by libtorch's number of the backward pass.
    slots: Mutex<HashMap<i32, Request>>,
    /// The result without its history, if the derivative reads it, from the wait on.
    waited: Mutex<Option<Tensor>>,
}

/// The result's shape, kind and device.
pub(super) struct ResultLike {
    pub(super) shape: Vec<i64>,
    pub(super) datatype: Datatype,
    pub(super) device: Device,
}

/// [`Nodes`] whose type of derivative is erased.
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
    pub(super) fn new(derivative: D, result: ResultLike) -> Arc<Self> {
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
        let place = Metadata::of(x).device().into();
        let handle = Output::at(place, site.call, &[0], self.result.datatype)?.into_tensor();
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
                Ok(vec![Some(request.complete(Site { backward: true, ..site }, Some(comm))?)])
            },
        )?;
        // Messages may be waited for in any order.
        let traffic = if collective { Traffic::Wait(number) } else { Traffic::Local };
        Ok(WaitNode { handle, x: x.shallow_clone(), nodes: self, traffic })
    }

    /// Starts the adjoint with zeros as the cotangent, if the backward pass has not reached the
    /// wait: other ranks take part in the adjoint, and would wait for this one.
    fn start_unreached(
        &self,
        site: Site,
        comm: &Communicator,
        pulled: &mut Pulled,
    ) -> Result<Request> {
        let saved = pulled.saved_to_start(site, comm)?;
        let ResultLike { shape, datatype, device } = &self.result;
        let full = |value: f64| -> Result<Tensor> {
            let output = Output::at((*device).into(), site.call, shape, *datatype)?;
            Ok(output.into_tensor().f_fill_(value)?)
        };
        let zeros = full(0.0)?;
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
        // The derivative reads a result that this rank never waited for: it takes part in the
        // communication with NaN in its place, and then returns an error.
        let saved = [saved[0].shallow_clone(), full(f64::NAN)?];
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
            // The handle's cotangent is the request's dummy if that is recorded: later pullbacks
            // then depend on the start of the adjoint.
            let dummy = request.dummy();
            nodes.put(request);
            Ok(vec![dummy.requires_grad().then_some(dummy)])
        })?;
        Ok(())
    }
}

/// The communicator of a pullback, on which the adjoint needs no agreement if it is certain to be
/// the same on all ranks. It is for a linear operator in the backward pass of its tape: the tape has
/// compared the calls, the sizes are those that the ranks agreed on in the forward pass, and no saved
/// tensor can be lost.
fn compared<D: Derivative>(comm: &Communicator) -> Communicator {
    let is_certain = !D::READS && comm.is_compared();
    if is_certain { comm.admitted(Admission::Compared) } else { comm.clone() }
}
