//! [`Parcels`]: the messages of an exchange of tensors on a device.
//!
//! What a stage sends is packed by the device, one region after another, and copied to host memory near
//! it, from where MPI sends it. What comes is received in such memory, copied to the device, and unpacked
//! there. Nothing else of the tensors is copied between the device and the host.
//!
//! All this is put in the stream that is current, and the host goes on. The stream need not be the same
//! each time, as a started exchange may be tested or waited for on another one than it was started on. So
//! what is put in a stream first waits for what was put in one before.
//!
//! MPI gets no pointers to the device's memory here, though some libraries take them: that has not been
//! tried for such messages, and with Open MPI no tensor on a device is received directly (see
//! [`Message`](super::Message)).

use std::ffi::c_void;
use std::sync::Arc;

use tch::Tensor;

use super::buffer::{Input, Output, Place};
use super::exchange::{Edge, Exchange, Source, Stage};
use super::region::Region;
use super::staging::{Busy, keep_until_copied};
use crate::autograd::{self, Device, Event, Metadata};
use crate::base::error::Result;
use crate::base::site::Site;
use crate::environment::datatype::Datatype;

/// The messages of an exchange whose tensors are on a device.
pub(super) struct Parcels {
    site: Site,
    device: Device,
    datatype: Datatype,
    input: Tensor,
    output: Tensor,
    /// Passes when the device has done what it was given for the exchange.
    queued: Option<Event>,
    /// What the stage sends, and what the device is at work on for it.
    sent: Option<(Bundle, Busy)>,
    /// What the stage receives.
    received: Option<Bundle>,
}

/// The messages of a stage in host memory near the device.
struct Bundle {
    memory: Tensor,
    /// The place of each message in it.
    places: Vec<Region>,
}

impl Bundle {
    fn place(&self, number: usize, datatype: Datatype) -> *mut c_void {
        let data = Metadata::of(&self.memory).data().cast_mut();
        self.places[number].first(data, datatype.kind.elt_size_in_bytes())
    }
}

impl Parcels {
    /// Packs what the first stage sends, and does what this rank does in its own memory.
    pub(super) fn new(
        site: Site,
        exchange: &Exchange,
        input: &Input,
        output: &Tensor,
    ) -> Result<Self> {
        let mut parcels = Self {
            site,
            device: input.device(),
            datatype: input.datatype(),
            input: Region::listed(&[input.count()], 0, input.count())
                .view(site.call, input.sent())?,
            output: output.shallow_clone(),
            queued: None,
            sent: None,
            received: None,
        };
        if let Some(stage) = exchange.stages.first() {
            parcels.pack(stage)?;
        }
        // After the messages, which are so on their way earlier.
        for region in &exchange.zeros {
            autograd::queue_zeros(site.call, &region.view(site.call, output)?)?;
        }
        if let Some([from, to]) = &exchange.copied {
            let from = from.view(site.call, &parcels.input)?;
            autograd::queue_copy(site.call, &from, &to.view(site.call, output)?)?;
        }
        parcels.note_queued()?;
        Ok(parcels)
    }

    /// Where MPI finds this message of the stage, to send it.
    pub(super) fn place_to_send(&self, number: usize) -> *mut c_void {
        let Some((sent, _)) = &self.sent else { unreachable!("a message is sent") };
        sent.place(number, self.datatype)
    }

    /// Where MPI receives this message of the stage.
    pub(super) fn place_to_receive(&self, number: usize) -> *mut c_void {
        let Some(received) = &self.received else { unreachable!("a message is received") };
        received.place(number, self.datatype)
    }

    /// Passes when what the stage sends has been packed.
    pub(super) fn packed(&self) -> Option<Arc<Event>> {
        self.sent.as_ref().map(|(_, busy)| busy.until())
    }

    /// Whether what the stage sends has been packed.
    pub(super) fn are_packed(&self) -> Result<bool> {
        self.packed().map_or(Ok(true), |packed| packed.has_passed(self.site.call))
    }

    /// Unpacks what a stage has received, and packs what the next one sends.
    pub(super) fn go_on(&mut self, stage: &Stage, next: &Stage, adds: bool) -> Result<()> {
        self.wait_for_queued()?;
        self.unpack(stage, adds)?;
        self.pack(next)?;
        self.note_queued()
    }

    /// Unpacks what the last stage has received into the output, which is used on the current stream.
    pub(super) fn bring(&self, last: Option<&Stage>, adds: bool) -> Result<()> {
        self.wait_for_queued()?;
        last.map_or(Ok(()), |stage| self.unpack(stage, adds))
    }

    /// Makes the current stream wait for what was queued before, on whichever.
    fn wait_for_queued(&self) -> Result<()> {
        let queued = self.queued.as_ref();
        queued.map_or(Ok(()), |queued| queued.queue_wait(self.site.call, self.device))
    }

    fn note_queued(&mut self) -> Result<()> {
        self.queued = Some(Event::record(self.site.call, self.device)?);
        Ok(())
    }

    /// Queues the packing of what the stage sends, and makes room for what it receives.
    fn pack(&mut self, stage: &Stage) -> Result<()> {
        (self.sent, self.received) = (None, self.bundle(&stage.receives, false)?);
        let Some(bundle) = self.bundle(&stage.sends, true)? else { return Ok(()) };
        let queued = self.queue_packing(stage, &bundle);
        let busy = Busy::record(self.site, self.device, bundle.memory.shallow_clone())?;
        self.sent = Some((bundle, busy));
        queued
    }

    fn queue_packing(&self, stage: &Stage, bundle: &Bundle) -> Result<()> {
        let call = self.site.call;
        let source = match stage.source {
            Source::Input => &self.input,
            Source::Output => &self.output,
        };
        let packed = self.packing(&stage.sends, bundle)?;
        let mut before = None;
        for (Edge { region, .. }, place) in messages(&stage.sends, bundle) {
            // Several messages may have the same place.
            if before.replace(place) != Some(place) {
                let packed = packed.as_ref().unwrap_or(&bundle.memory);
                let place = place.view(call, packed)?;
                autograd::queue_copy(call, &region.view(call, source)?, &place)?;
            }
        }
        packed.map_or(Ok(()), |packed| autograd::queue_copy(call, &packed, &bundle.memory))
    }

    /// Queues the unpacking of what the stage has received.
    fn unpack(&self, stage: &Stage, adds: bool) -> Result<()> {
        let Some(bundle) = &self.received else { return Ok(()) };
        let queued = self.queue_unpacking(stage, bundle, adds);
        keep_until_copied(self.site, bundle.memory.shallow_clone(), &self.output)?;
        queued
    }

    fn queue_unpacking(&self, stage: &Stage, bundle: &Bundle, adds: bool) -> Result<()> {
        let call = self.site.call;
        let packed =
            if adds { Some(self.room(bundle)?) } else { self.packing(&stage.receives, bundle)? };
        if let Some(packed) = &packed {
            autograd::queue_copy(call, &bundle.memory, packed)?;
        }
        for (Edge { region, .. }, place) in messages(&stage.receives, bundle) {
            let from = place.view(call, packed.as_ref().unwrap_or(&bundle.memory))?;
            let to = region.view(call, &self.output)?;
            let queue = if adds { autograd::queue_add } else { autograd::queue_copy };
            queue(call, &from, &to)?;
        }
        Ok(())
    }

    /// Memory for the messages; `None` if they have no elements. Equal regions one after another have the
    /// same place if they are `shared`.
    fn bundle(&self, edges: &[Edge], shared: bool) -> Result<Option<Bundle>> {
        let (mut count, mut starts) = (0, Vec::with_capacity(edges.len()));
        for (i, Edge { region, .. }) in edges.iter().enumerate() {
            if shared && i > 0 && edges[i - 1].region == *region {
                starts.push(starts[i - 1]);
            } else {
                starts.push(count);
                count += region.count();
            }
        }
        if count == 0 {
            return Ok(None);
        }
        let memory = Output::at(Place::Near(self.device), self.site.call, &[count], self.datatype)?;
        let place = |(edge, start): (&Edge, i64)| Region::listed(&edge.region.shape, start, count);
        let places = edges.iter().zip(starts).map(place).collect();
        Ok(Some(Bundle { memory: memory.into_tensor(), places }))
    }

    /// Memory on the device in which the messages are packed; `None` if each is copied between its region
    /// and the host, as all regions are consecutive.
    fn packing(&self, edges: &[Edge], bundle: &Bundle) -> Result<Option<Tensor>> {
        let at_once = messages(edges, bundle).all(|(edge, _)| edge.region.is_consecutive());
        (!at_once).then(|| self.room(bundle)).transpose()
    }

    /// Memory on the device for as many elements.
    fn room(&self, bundle: &Bundle) -> Result<Tensor> {
        let shape = Metadata::of(&bundle.memory).shape();
        let room = Output::at(Place::On(self.device), self.site.call, shape, self.datatype)?;
        Ok(room.into_tensor())
    }
}

/// The messages that have elements, and their places.
fn messages<'m>(
    edges: &'m [Edge],
    bundle: &'m Bundle,
) -> impl Iterator<Item = (&'m Edge, &'m Region)> {
    edges.iter().zip(&bundle.places).filter(|(edge, _)| !edge.region.is_empty())
}
