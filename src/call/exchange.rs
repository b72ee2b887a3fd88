//! An [`Exchange`]: messages between several pairs of ranks, as one call. The exchange of a halo is
//! one, and that between neighbours.
//!
//! It consists of stages; each begins when all messages of the one before it have arrived, so that it
//! can pass on what came. A message carries a [`Region`] of a tensor. Regions that are not
//! consecutive in memory are packed into a copy before they are sent, and unpacked when they have
//! come.
//!
//! MPI could do that itself, by derived datatypes. Measured by `cargo bench --bench halo`, on 2 ranks of
//! one machine with Open MPI 4.1.4, an exchange of two columns of an array of n² doubles, packed and by
//! `MPI_Type_vector`: n = 64, 2.4 and 4.5 µs; 512, 11.4 and 11.9 µs; 2048, 62 and 31 µs. So a datatype is
//! worth its while for large blocks only, where the copy of the block takes 1700 µs.

use std::sync::Arc;

use tch::Tensor;

use super::Made;
use super::buffers::Buffers;
use super::message::Layout;
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
    /// Starts the first stage, and makes the local copy while its messages are under way.
    pub(super) fn exchange(&self, made: &mut Made, exchange: &Arc<Exchange>) -> Result<()> {
        let mut under_way = UnderWay {
            buffers: *self,
            exchange: Arc::clone(exchange),
            stage: 0,
            arrivals: Vec::new(),
        };
        under_way.begin_stage(made)?;
        for region in &exchange.zeros {
            // SAFETY: the region is of the output, which outlives the view.
            let _ = unsafe { region.view(self.receive, self.elements.kind) }?.f_zero_()?;
        }
        if let Some([from, to]) = &exchange.copied {
            // SAFETY: the regions are of the input and of the output, which do not overlap.
            unsafe { from.copy(self.send, to, self.receive, self.size) };
        }
        made.exchange = Some(under_way);
        Ok(())
    }
}

/// An [`Exchange`] that was begun.
pub(super) struct UnderWay {
    buffers: Buffers,
    exchange: Arc<Exchange>,
    /// The stage whose messages are under way.
    stage: usize,
    /// What the stage receives other than in its place: the number of the message, and the copy.
    arrivals: Vec<(usize, Tensor)>,
}

impl UnderWay {
    fn begin_stage(&mut self, made: &mut Made) -> Result<()> {
        let exchange = Arc::clone(&self.exchange);
        let Some(stage) = exchange.stages.get(self.stage) else { return Ok(()) };
        let buffers = self.buffers;
        for (number, edge) in stage.receives.iter().enumerate() {
            if edge.region.is_empty() {
                continue;
            }
            let place = if exchange.adds || !edge.region.is_consecutive() {
                let packed = packed(&edge.region, buffers.elements)?;
                let place = packed.data_ptr();
                self.arrivals.push((number, packed));
                place
            } else {
                edge.region.first(buffers.receive, buffers.size)
            };
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
        let from = match stage.source {
            Source::Input => buffers.send.cast_mut(),
            Source::Output => buffers.receive,
        };
        for edge in stage.sends.iter().filter(|edge| !edge.region.is_empty()) {
            let place = if edge.region.is_consecutive() {
                edge.region.first(from, buffers.size)
            } else {
                let packed = packed(&edge.region, buffers.elements)?;
                let (place, all) = (packed.data_ptr(), Region::all(&edge.region.shape));
                // SAFETY: the region is of this tensor; the copy is new.
                unsafe { edge.region.copy(from, &all, place, buffers.size) };
                made.keep(vec![packed]);
                place
            };
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
        Ok(())
    }

    /// Unpacks what the stage has received, and begins the next one. Returns whether there is none.
    ///
    /// # Safety
    /// MPI can be called, the buffers are valid, and all messages of the stage have ended.
    pub(super) unsafe fn go_on(&mut self, made: &mut Made) -> Result<bool> {
        let Some(stage) = self.exchange.stages.get(self.stage) else { return Ok(true) };
        for (number, packed) in self.arrivals.drain(..) {
            let (region, output) = (&stage.receives[number].region, self.buffers.receive);
            if self.exchange.adds {
                // SAFETY: the region is of the output, which outlives the view.
                let mut place = unsafe { region.view(output, self.buffers.elements.kind) }?;
                let _ = place.f_add_(&packed)?;
            } else {
                let (all, data) = (Region::all(&region.shape), packed.data_ptr());
                // SAFETY: the packed copy has the region's elements, and the region is of the output.
                unsafe { all.copy(data, region, output, self.buffers.size) };
            }
        }
        self.stage += 1;
        self.begin_stage(made)?;
        Ok(self.stage >= self.exchange.stages.len())
    }
}

/// Memory for a copy of the region.
fn packed(region: &Region, datatype: Datatype) -> Result<Tensor> {
    Ok(Output::new("exchange", &region.shape, datatype)?.into_tensor())
}
