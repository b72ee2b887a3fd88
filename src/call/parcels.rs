//! [`Parcels`]: the messages of an exchange of tensors on a device.
//!
//! What a stage sends is packed by the device, one region after another, and copied to host memory near
//! it, from where MPI sends it. What comes is received in such memory, copied to the device, and unpacked
//! there. Nothing else of the tensors is copied between the device and the host.
//!
//! The memory for all stages is allocated at the start, so that a rank that has too little takes no part in
//! the exchange at all. Others wait for its messages; where calls are compared, it counts as one that did
//! not make the call.
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
    /// What each stage sends and receives.
    bundles: Vec<Bundles>,
    /// What the device is at work on for the messages that the stage sends.
    busy: Option<Busy>,
}

/// What a stage sends and receives; `None` if that has no elements.
struct Bundles {
    sent: Option<Bundle>,
    received: Option<Bundle>,
}

/// Messages that are under way at the same time.
struct Bundle {
    /// Host memory near the device.
    memory: Tensor,
    /// Memory of the device in which they are packed, and unpacked; `None` if each is copied between its
    /// region and the host.
    packed: Option<Tensor>,
    /// The place of each message in either.
    places: Vec<Region>,
}

impl Bundles {
    /// Memory for the messages of the stage.
    fn new(site: Site, input: &Input, stage: &Stage, adds: bool) -> Result<Self> {
        let received = if adds { Use::Added } else { Use::Copied };
        Ok(Self {
            sent: Bundle::new(site, input, &stage.sends, Use::Sent)?,
            received: Bundle::new(site, input, &stage.receives, received)?,
        })
    }
}

/// What becomes of messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Sent,
    /// Copied to the output.
    Copied,
    /// Added to the output, by the device.
    Added,
}

impl Bundle {
    /// Memory for messages; `None` if they have no elements.
    fn new(site: Site, input: &Input, edges: &[Edge], usage: Use) -> Result<Option<Self>> {
        let (mut count, mut starts) = (0, Vec::with_capacity(edges.len()));
        for (i, Edge { region, .. }) in edges.iter().enumerate() {
            // What goes to several ranks is packed once.
            if usage == Use::Sent && i > 0 && edges[i - 1].region == *region {
                starts.push(starts[i - 1]);
            } else {
                starts.push(count);
                count += region.count();
            }
        }
        if count == 0 {
            return Ok(None);
        }
        let is_whole = |Edge { region, .. }: &Edge| region.is_empty() || region.is_consecutive();
        let packs = usage == Use::Added || !edges.iter().all(is_whole);
        let memory = |place| -> Result<Tensor> {
            Ok(Output::at(place, site.call, &[count], input.datatype())?.into_tensor())
        };
        let place = |(edge, start): (&Edge, i64)| Region::listed(&edge.region.shape, start, count);
        Ok(Some(Self {
            memory: memory(Place::Near(input.device()))?,
            packed: packs.then(|| memory(Place::On(input.device()))).transpose()?,
            places: edges.iter().zip(starts).map(place).collect(),
        }))
    }

    fn place(&self, number: usize, datatype: Datatype) -> *mut c_void {
        let data = Metadata::of(&self.memory).data().cast_mut();
        self.places[number].first(data, datatype.kind.elt_size_in_bytes())
    }

    /// Where the device puts the messages, or finds them.
    fn on_device(&self) -> &Tensor {
        self.packed.as_ref().unwrap_or(&self.memory)
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
        let bundles =
            exchange.stages.iter().map(|stage| Bundles::new(site, input, stage, exchange.adds));
        let mut parcels = Self {
            site,
            device: input.device(),
            datatype: input.datatype(),
            input: Region::listed(&[input.count()], 0, input.count())
                .view(site.call, input.sent())?,
            output: output.shallow_clone(),
            queued: None,
            bundles: bundles.collect::<Result<_>>()?,
            busy: None,
        };
        if let Some(first) = exchange.stages.first() {
            parcels.pack(0, first)?;
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

    /// Where MPI finds a message of this stage, to send it.
    pub(super) fn place_to_send(&self, stage: usize, number: usize) -> *mut c_void {
        let Some(sent) = &self.bundles[stage].sent else { unreachable!("a message is sent") };
        sent.place(number, self.datatype)
    }

    /// Where MPI receives a message of this stage.
    pub(super) fn place_to_receive(&self, stage: usize, number: usize) -> *mut c_void {
        let Some(received) = &self.bundles[stage].received else {
            unreachable!("a message is received")
        };
        received.place(number, self.datatype)
    }

    /// Passes when what the stage sends has been packed.
    pub(super) fn packed(&self) -> Option<Arc<Event>> {
        self.busy.as_ref().map(Busy::until)
    }

    /// Whether what the stage sends has been packed.
    pub(super) fn are_packed(&self) -> Result<bool> {
        self.packed().map_or(Ok(true), |packed| packed.has_passed(self.site.call))
    }

    /// Unpacks what the stage before this one has received, and packs what this one sends.
    pub(super) fn go_on(&mut self, stage: usize, exchange: &Exchange) -> Result<()> {
        self.wait_for_queued()?;
        self.unpack(stage - 1, exchange)?;
        self.pack(stage, &exchange.stages[stage])?;
        self.note_queued()
    }

    /// Unpacks what the last stage has received into the output, which is used on the current stream.
    pub(super) fn bring(&self, exchange: &Exchange) -> Result<()> {
        self.wait_for_queued()?;
        self.bundles.len().checked_sub(1).map_or(Ok(()), |last| self.unpack(last, exchange))
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

    /// Queues the packing of what the stage sends.
    fn pack(&mut self, number: usize, stage: &Stage) -> Result<()> {
        self.busy = None;
        let Some(bundle) = &self.bundles[number].sent else { return Ok(()) };
        let queued = self.queue_packing(stage, bundle);
        let busy = Busy::record(self.site, self.device, bundle.memory.shallow_clone())?;
        self.busy = Some(busy);
        queued
    }

    fn queue_packing(&self, stage: &Stage, bundle: &Bundle) -> Result<()> {
        let call = self.site.call;
        let source = match stage.source {
            Source::Input => &self.input,
            Source::Output => &self.output,
        };
        let mut before = None;
        for (Edge { region, .. }, place) in messages(&stage.sends, bundle) {
            // Several messages may have the same place.
            if before.replace(place) != Some(place) {
                let place = place.view(call, bundle.on_device())?;
                autograd::queue_copy(call, &region.view(call, source)?, &place)?;
            }
        }
        let packed = bundle.packed.as_ref();
        packed.map_or(Ok(()), |packed| autograd::queue_copy(call, packed, &bundle.memory))
    }

    /// Queues the unpacking of what the stage has received.
    fn unpack(&self, number: usize, exchange: &Exchange) -> Result<()> {
        let Some(bundle) = &self.bundles[number].received else { return Ok(()) };
        let queued = self.queue_unpacking(&exchange.stages[number], bundle, exchange.adds);
        keep_until_copied(self.site, bundle.memory.shallow_clone(), &self.output)?;
        queued
    }

    fn queue_unpacking(&self, stage: &Stage, bundle: &Bundle, adds: bool) -> Result<()> {
        let call = self.site.call;
        if let Some(packed) = &bundle.packed {
            autograd::queue_copy(call, &bundle.memory, packed)?;
        }
        for (Edge { region, .. }, place) in messages(&stage.receives, bundle) {
            let from = place.view(call, bundle.on_device())?;
            let to = region.view(call, &self.output)?;
            let queue = if adds { autograd::queue_add } else { autograd::queue_copy };
            queue(call, &from, &to)?;
        }
        Ok(())
    }
}

/// The messages that have elements, and their places.
fn messages<'m>(
    edges: &'m [Edge],
    bundle: &'m Bundle,
) -> impl Iterator<Item = (&'m Edge, &'m Region)> {
    edges.iter().zip(&bundle.places).filter(|(edge, _)| !edge.region.is_empty())
}
