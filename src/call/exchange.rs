//! An [`Exchange`]: messages between several pairs of ranks, as one call. The exchange of a halo is
//! one, and that between neighbours.
//!
//! It consists of stages; each begins when all messages of the one before it have arrived, so that it
//! can pass on what came. A message carries a [`Region`] of a tensor. In host memory, regions that are not
//! consecutive are packed into a copy before they are sent, and unpacked when they have come. Those of a
//! tensor on a device are packed and unpacked by the device, and only the messages are copied to the host
//! and back: see [`Parcels`]. The messages are the same, so that ranks may differ in it.
//!
//! MPI could do that itself, by derived datatypes. Measured by `cargo bench --bench halo`, on 2 ranks of
//! one machine with Open MPI 4.1.4, an exchange of two columns of an array of n² doubles, packed and by
//! `MPI_Type_vector`: n = 64, 2.4 and 4.5 µs; 512, 11.4 and 11.9 µs; 2048, 62 and 31 µs. So a datatype is
//! worth its while for large blocks only, where the copy of the block takes 1700 µs.

use std::ffi::c_void;
use std::sync::Arc;

use tch::Tensor;

use super::Made;
use super::buffers::Buffers;
use super::message::Layout;
use super::parcels::Parcels;
use super::region::Region;
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::base::tag::Tag;
use crate::call::buffer::Output;
use crate::environment::datatype::Datatype;
use crate::environment::error_code::checked;

/// A message: the other rank, and what is sent or received.
#[derive(Clone, Debug)]
pub(crate) struct Edge {
    pub(crate) peer: Rank,
    pub(crate) tag: Tag,
    pub(crate) region: Region,
}

/// The tensor that regions are sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Input,
    Output,
}

/// Messages that are under way at the same time. Two of them have different tags if they have the
/// same sender and the same receiver.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) source: Source,
    pub(crate) sends: Vec<Edge>,
    /// Regions of the output.
    pub(crate) receives: Vec<Edge>,
}

/// Messages between several pairs of ranks, and what is copied on this rank.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    pub(crate) stages: Vec<Stage>,
    /// Whether what comes is added to the output.
    pub(crate) adds: bool,
    /// A region of the input that is copied to one of the output.
    pub(crate) copied: Option<[Region; 2]>,
    /// Regions of the output that are zeros before anything comes.
    pub(crate) zeros: Vec<Region>,
}

impl Exchange {
    /// Checks that the regions are of tensors with so many elements as the input and the output have.
    pub(super) fn check(&self, input: i64, output: i64) {
        let stages = self.stages.iter().flat_map(|stage| {
            let sent_from = if stage.source == Source::Input { input } else { output };
            let sends = stage.sends.iter().map(move |edge| (&edge.region, sent_from));
            sends.chain(stage.receives.iter().map(move |edge| (&edge.region, output)))
        });
        let copied = self.copied.iter().flat_map(|[from, to]| [(from, input), (to, output)]);
        let zeros = self.zeros.iter().map(|region| (region, output));
        for (region, count) in stages.chain(copied).chain(zeros) {
            assert_eq!(region.whole, count, "a region is of the tensor that it is used with");
        }
    }

    /// The messages that are sent, in all stages.
    pub(crate) fn sends(&self) -> impl Iterator<Item = &Edge> {
        self.stages.iter().flat_map(|stage| &stage.sends)
    }

    /// The messages that are received, in all stages.
    pub(crate) fn receives(&self) -> impl Iterator<Item = &Edge> {
        self.stages.iter().flat_map(|stage| &stage.receives)
    }
}

impl Buffers {
    /// Starts the first stage. In host memory, makes the local copy while its messages are under way.
    pub(super) fn exchange(&self, made: &mut Made, exchange: &Arc<Exchange>) -> Result<()> {
        let on_host = || UnderWay::new(*self, exchange, Carrier::Host { arrivals: Vec::new() });
        let mut under_way = made.exchange.take().unwrap_or_else(on_host);
        let begun = under_way.hand_over(made).and_then(|()| under_way.copy_locally());
        // It has memory that MPI may be using, even after an error.
        made.exchange = Some(under_way);
        begun
    }
}

/// An [`Exchange`] that was begun.
pub(super) struct UnderWay {
    buffers: Buffers,
    exchange: Arc<Exchange>,
    /// The stage whose messages are under way, or are being packed.
    stage: usize,
    state: State,
    carrier: Carrier,
}

/// What an exchange waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// For a device, which packs what the stage sends; in host memory for nothing.
    Packing,
    /// For the messages of the stage.
    Messages,
    /// For nothing: it has ended, or it has failed.
    Over,
}

/// Takes regions out of the tensors into messages, and from messages into the output.
enum Carrier {
    /// The host, as the tensors are in its memory.
    Host {
        /// What the stage receives other than in its place: the number of the message, and the copy.
        arrivals: Vec<(usize, Tensor)>,
    },
    /// A device that the tensors are on.
    Device(Box<Parcels>),
}

impl UnderWay {
    fn new(buffers: Buffers, exchange: &Arc<Exchange>, carrier: Carrier) -> Self {
        let exchange = Arc::clone(exchange);
        Self { buffers, exchange, stage: 0, state: State::Packing, carrier }
    }

    /// An exchange of tensors on a device, which packs the first stage.
    pub(super) fn on_device(buffers: Buffers, exchange: &Arc<Exchange>, parcels: Parcels) -> Self {
        Self::new(buffers, exchange, Carrier::Device(Box::new(parcels)))
    }

    /// Whether nothing but messages that were handed to MPI may still be under way.
    pub(super) fn has_ended(&self) -> bool {
        self.state == State::Over
    }

    /// Hands the messages of the stage to MPI. What it sends has been packed.
    fn hand_over(&mut self, made: &mut Made) -> Result<()> {
        self.state = State::Over;
        let exchange = Arc::clone(&self.exchange);
        let Some(stage) = exchange.stages.get(self.stage) else { return Ok(()) };
        let buffers = self.buffers;
        for (number, edge) in stage.receives.iter().enumerate() {
            if edge.region.is_empty() {
                continue;
            }
            let place = self.place_to_receive(number, edge)?;
            let Layout { start, count, datatype, _made: _held } =
                buffers.layout(place, edge.region.count(), None)?;
            let mut request = mpi_sys::MPI_REQUEST_NULL;
            // SAFETY: the place has room for the region, and is kept until the message has come; the
            // request outlives the call.
            unsafe {
                checked!(MPI_Irecv(
                    start,
                    count,
                    datatype,
                    edge.peer,
                    edge.tag,
                    buffers.context,
                    &mut request,
                ))
            }?;
            made.started(request);
        }
        for (number, edge) in stage.sends.iter().enumerate() {
            if edge.region.is_empty() {
                continue;
            }
            let place = self.place_to_send(made, stage.source, number, edge)?;
            let Layout { start, count, datatype, _made: _held } =
                buffers.layout(place, edge.region.count(), None)?;
            let mut request = mpi_sys::MPI_REQUEST_NULL;
            // SAFETY: the place holds the region, and is kept until the message is sent; the request
            // outlives the call.
            unsafe {
                checked!(MPI_Isend(
                    start.cast_const(),
                    count,
                    datatype,
                    edge.peer,
                    edge.tag,
                    buffers.context,
                    &mut request,
                ))
            }?;
            made.started(request);
        }
        self.state = State::Messages;
        Ok(())
    }

    /// Where MPI receives a message of the stage.
    fn place_to_receive(&mut self, number: usize, edge: &Edge) -> Result<*mut c_void> {
        let Buffers { receive, size, elements, .. } = self.buffers;
        match &mut self.carrier {
            Carrier::Device(parcels) => Ok(parcels.place_to_receive(self.stage, number)),
            Carrier::Host { arrivals } if self.exchange.adds || !edge.region.is_consecutive() => {
                let packed = packed(&edge.region, elements)?;
                let place = packed.data_ptr();
                arrivals.push((number, packed));
                Ok(place)
            }
            Carrier::Host { .. } => Ok(edge.region.first(receive, size)),
        }
    }

    /// Where MPI finds a message of the stage, to send it.
    fn place_to_send(
        &self,
        made: &mut Made,
        source: Source,
        number: usize,
        edge: &Edge,
    ) -> Result<*mut c_void> {
        let Buffers { send, receive, size, elements, .. } = self.buffers;
        if let Carrier::Device(parcels) = &self.carrier {
            return Ok(parcels.place_to_send(self.stage, number));
        }
        let from = match source {
            Source::Input => send.cast_mut(),
            Source::Output => receive,
        };
        if edge.region.is_consecutive() {
            return Ok(edge.region.first(from, size));
        }
        let packed = packed(&edge.region, elements)?;
        let (place, all) = (packed.data_ptr(), Region::all(&edge.region.shape));
        // SAFETY: the region is of this tensor; the copy is new.
        unsafe { edge.region.copy(from, &all, place, size) };
        made.keep(vec![packed]);
        Ok(place)
    }

    /// What this rank does in its own memory, unless a device does it.
    fn copy_locally(&self) -> Result<()> {
        if matches!(self.carrier, Carrier::Device(_)) {
            return Ok(());
        }
        let Buffers { send, receive, size, elements, .. } = self.buffers;
        for region in &self.exchange.zeros {
            // SAFETY: the region is of the output, which outlives the view.
            let _ = unsafe { region.view_at(receive, elements.kind) }?.f_zero_()?;
        }
        if let Some([from, to]) = &self.exchange.copied {
            // SAFETY: the regions are of the input and of the output, which do not overlap.
            unsafe { from.copy(send, to, receive, size) };
        }
        Ok(())
    }

    /// Goes on as far as possible without waiting. After an error nothing further is begun.
    ///
    /// # Safety
    /// MPI can be called, the buffers are valid, and all messages that were handed to MPI have ended.
    pub(super) unsafe fn go_on(&mut self, made: &mut Made) -> Result<()> {
        let before = std::mem::replace(&mut self.state, State::Over);
        let has_stage = match before {
            State::Packing => true,
            State::Messages => self.next_stage()?,
            State::Over => false,
        };
        if has_stage {
            if self.is_packed()? {
                return self.hand_over(made);
            }
            self.state = State::Packing;
        }
        Ok(())
    }

    /// Unpacks what the stage has received, and packs what the next one sends. If there is none, returns
    /// false, and what a device is to unpack is left to the [result](Self::bring).
    fn next_stage(&mut self) -> Result<bool> {
        let exchange = Arc::clone(&self.exchange);
        let stage = &exchange.stages[self.stage];
        self.stage += 1;
        let has_next = self.stage < exchange.stages.len();
        match (&mut self.carrier, has_next) {
            (Carrier::Host { arrivals }, _) => {
                for (number, packed) in arrivals.drain(..) {
                    unpack(&self.buffers, &packed, &stage.receives[number].region, exchange.adds)?;
                }
            }
            (Carrier::Device(parcels), true) => parcels.go_on(self.stage, &exchange)?,
            (Carrier::Device(_), false) => (),
        }
        Ok(has_next)
    }

    /// Whether what the stage sends has been packed.
    fn is_packed(&self) -> Result<bool> {
        match &self.carrier {
            Carrier::Host { .. } => Ok(true),
            Carrier::Device(parcels) => parcels.are_packed(),
        }
    }

    /// Completes the output, which is used on the device's current stream, if it is on one. The exchange
    /// has ended.
    pub(super) fn bring(&self) -> Result<()> {
        let Carrier::Device(parcels) = &self.carrier else { return Ok(()) };
        parcels.bring(&self.exchange)
    }
}

/// Memory for a copy of the region.
fn packed(region: &Region, datatype: Datatype) -> Result<Tensor> {
    Ok(Output::new("exchange", &region.shape, datatype)?.into_tensor())
}

/// Puts a message in its place in the output, or adds it.
fn unpack(buffers: &Buffers, packed: &Tensor, region: &Region, adds: bool) -> Result<()> {
    let Buffers { receive, size, elements, .. } = *buffers;
    if adds {
        // SAFETY: the region is of the output, which outlives the view.
        let mut place = unsafe { region.view_at(receive, elements.kind) }?;
        let _ = place.f_add_(packed)?;
    } else {
        let (all, data) = (Region::all(&region.shape), packed.data_ptr());
        // SAFETY: the packed copy has the region's elements, and the region is of the output.
        unsafe { all.copy(data, region, receive, size) };
    }
    Ok(())
}
