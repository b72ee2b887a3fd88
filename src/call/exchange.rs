//! An [`Exchange`]: messages between several pairs of ranks, as one call. The exchange of a halo is
//! one, and that between neighbours.
//!
//! It consists of stages; each begins when all messages of the one before it have arrived, so that it
//! can pass on what came. A message carries a [`Region`] of a tensor. Regions that are not
//! consecutive in memory are packed into a copy before they are sent, and unpacked when they have
//! come.
//!
//! MPI could do that itself, by derived datatypes, and takes longer. Measured by `cargo bench --bench
//! halo` on 2 ranks of one machine, for the columns of 512² doubles: PLACEHOLDER

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::Made;
use super::buffers::Buffers;
use super::message::Layout;
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::base::tag::Tag;
use crate::call::buffer::Output;
use crate::environment::datatype::Datatype;
use crate::environment::error_code::checked;

/// A part of a contiguous tensor: a range of each axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// The place of its first element.
    start: i64,
    pub(crate) shape: Vec<i64>,
    strides: Vec<i64>,
    /// The number of elements of the tensor.
    whole: i64,
}

impl Region {
    /// These ranges of the axes of a tensor of shape `whole`.
    pub(crate) fn new(whole: &[i64], ranges: &[Range<i64>]) -> Self {
        let mut strides = vec![1_i64; whole.len()];
        for axis in (1..whole.len()).rev() {
            strides[axis - 1] = strides[axis].saturating_mul(whole[axis].max(1));
        }
        let starts = ranges.iter().zip(&strides).map(|(range, stride)| range.start * stride);
        let start = starts.sum();
        let shape = ranges.iter().map(|range| range.end - range.start).collect();
        let all = ranges.iter().zip(whole).all(|(range, extent)| {
            0 <= range.start && range.start <= range.end && range.end <= *extent
        });
        assert!(all && ranges.len() == whole.len(), "{ranges:?} are within {whole:?}");
        Self {
            start,
            shape,
            strides,
            whole: if whole.contains(&0) { 0 } else { whole.iter().product() },
        }
    }

    /// All of a tensor of this shape.
    pub(crate) fn all(whole: &[i64]) -> Self {
        let ranges: Vec<Range<i64>> = whole.iter().map(|extent| 0..*extent).collect();
        Self::new(whole, &ranges)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The number of its elements, which fits, as they are those of a tensor.
    fn count(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Whether its elements are consecutive in memory.
    fn is_consecutive(&self) -> bool {
        let mut next = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&extent, &stride)| {
            let fits = extent == 1 || stride == next;
            next *= extent;
            fits
        })
    }
}

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
            let _ = self.view(region, self.receive)?.f_zero_()?;
        }
        if let Some([from, to]) = &exchange.copied {
            self.view(to, self.receive)?.f_copy_(&self.view(from, self.send.cast_mut())?)?;
        }
        made.exchange = Some(under_way);
        Ok(())
    }

    /// A region of the buffer, as a tensor that does not own its memory.
    fn view(&self, region: &Region, buffer: *mut c_void) -> Result<Tensor> {
        let (kind, device) = (self.elements.kind, Device::Cpu);
        if region.is_empty() {
            return Ok(Tensor::f_zeros(&region.shape[..], (kind, device))?);
        }
        let start = self.first(region, buffer).cast_const().cast();
        // SAFETY: the region lies within the buffer, which outlives the view: the plan vouches for
        // the one, and the caller of `Buffers::call` for the other.
        Ok(unsafe { Tensor::f_from_blob(start, &region.shape, &region.strides, kind, device) }?)
    }

    /// The first element of a region of the buffer.
    fn first(&self, region: &Region, buffer: *mut c_void) -> *mut c_void {
        let start = usize::try_from(region.start).unwrap_or(0);
        buffer.wrapping_byte_add(start * self.size)
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
                buffers.first(&edge.region, buffers.receive)
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
                buffers.first(&edge.region, from)
            } else {
                let mut packed = packed(&edge.region, buffers.elements)?;
                packed.f_copy_(&buffers.view(&edge.region, from)?)?;
                let place = packed.data_ptr();
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
            let region = &stage.receives[number].region;
            let mut place = self.buffers.view(region, self.buffers.receive)?;
            if self.exchange.adds {
                let _ = place.f_add_(&packed)?;
            } else {
                place.f_copy_(&packed)?;
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

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn first(x: &Tensor) -> i64 {
        x.flatten(0, -1).int64_value(&[0])
    }

    #[test]
    fn regions_are_those_of_narrow() {
        let x = Tensor::arange(60, (Kind::Int64, Device::Cpu)).view([3, 4, 5]);
        for (a, b, c) in
            [(0..3, 0..4, 0..5), (1..2, 0..4, 0..5), (0..3, 1..3, 0..5), (2..3, 1..2, 2..5)]
        {
            let region = Region::new(&[3, 4, 5], &[a.clone(), b.clone(), c.clone()]);
            let narrow = x
                .narrow(0, a.start, a.end - a.start)
                .narrow(1, b.start, b.end - b.start)
                .narrow(2, c.start, c.end - c.start);
            assert_eq!(region.shape, narrow.size());
            assert_eq!(region.start, first(&narrow));
            assert_eq!(region.is_consecutive(), narrow.is_contiguous());
            assert_eq!(region.count(), i64::try_from(narrow.numel()).unwrap());
        }
    }
}
