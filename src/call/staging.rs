//! Tensors on devices: how MPI gets at their elements.
//!
//! Such a tensor is *staged*: its elements are copied to host memory on the current stream of the device,
//! MPI reads them once an event after the copy has passed, and what MPI has written is copied to the
//! result on the stream that is current then. Of an exchange, the same is done with its messages: see
//! [`Parcels`]. Or MPI gets pointers to the memory of the device, if it takes them, once the stream has
//! done with that memory.

use std::ffi::c_void;
use std::sync::Arc;

use parking_lot::Mutex;
use tch::Tensor;

use super::buffer::{Input, Output, Place};
use super::exchange::UnderWay;
use super::parcels::Parcels;
use super::pieces::StagedPiece;
use super::{Call, Plan};
use crate::autograd::{self, Device, Event, Metadata};
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::base::way::Way;
use crate::communicator::Handle;

/// How MPI gets at the elements of a call's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// They are in host memory.
    Host,
    /// They are copied there, and back.
    Staged(Device),
    /// The messages of an exchange are copied there, and back.
    Packed(Device),
    /// By pointers to the memory of the device.
    Direct(Device),
}

impl Access {
    /// The device whose memory MPI gets pointers to.
    pub(super) fn direct(self) -> Option<Device> {
        match self {
            Self::Direct(device) => Some(device),
            _ => None,
        }
    }
}

/// The memory that MPI reads and writes in a call.
pub(super) struct Memory {
    /// The copy of the input in host memory, if it is staged.
    pub(super) staged: Option<Tensor>,
    /// What the device is at work on.
    pub(super) busy: Option<Busy>,
    /// What MPI sends; null if it sends nothing.
    pub(super) send: *const c_void,
    pub(super) output: Output,
    /// The result on the device, if the output is in host memory.
    pub(super) home: Option<Tensor>,
    /// Passes when MPI may use the memory; of a call in pieces each has an event of its own.
    pub(super) ready: Option<Arc<Event>>,
    /// Passes when `home` may be written on another stream than the one that it was made on.
    pub(super) free: Option<Arc<Event>>,
    /// The device whose memory MPI gets pointers to.
    pub(super) direct: Option<Device>,
    /// The pieces in which the call is made; `None` if it is made at once.
    pub(super) pieces: Option<Vec<StagedPiece>>,
    /// An exchange that the device packs.
    pub(super) exchange: Option<UnderWay>,
}

/// Whether collective calls that are made in this way may get pointers to the memory of devices, if MPI
/// takes them at all. Open MPI takes them in blocking ones only: `MPI_Iallreduce` and its kin read the
/// memory on the host, and crash (open-mpi/ompi#9845, #12045).
fn takes_pointers(way: Way) -> bool {
    way != Way::Polls || mpi_sys::loaded_vendor() != mpi_sys::Vendor::OpenMpi
}

impl Call {
    /// Whether MPI reads the input on this rank.
    pub(super) fn reads(&self, rank: Rank) -> bool {
        match self {
            Self::Nothing | Self::Barrier | Self::Receive(_) => false,
            Self::Broadcast { .. } => false,
            Self::Scatter { root, .. } => *root == rank,
            _ => true,
        }
    }

    fn is_message(&self) -> bool {
        matches!(self, Self::Send(_) | Self::Receive(_) | Self::SendReceive { .. })
    }

    /// Whether MPI does all the work on the elements, and no function of this crate.
    fn is_left_to_mpi(&self, comm: &Handle) -> bool {
        let ops = &comm.environment().handles().ops;
        match self {
            Self::AllReduce { op }
            | Self::Scan { op }
            | Self::Exscan { op }
            | Self::Reduce { op, .. } => !ops.handles().contains(op),
            // All ranks make the sums alike, wherever their tensors are.
            Self::ReduceScatter { op, summing, .. } => {
                summing.is_none() && !ops.handles().contains(op)
            }
            Self::Send(message) => message.is_plain(),
            Self::Receive(message) => message.is_received_plainly(),
            Self::SendReceive { send, receive } => send.is_plain() && receive.is_received_plainly(),
            // Its messages are sent from host memory: see `Parcels`.
            Self::Exchange(_) => false,
            _ => true,
        }
    }
}

impl Plan<'_> {
    /// How MPI gets at the elements. It may differ from rank to rank, as the same functions are called.
    #[inline]
    pub(super) fn access(&self, comm: &Handle, way: Way) -> Access {
        let device = self.input.device();
        if device.is_cpu() {
            return Access::Host;
        }
        // Without a call nothing is to be copied.
        let is_direct = matches!(self.call, Call::Nothing)
            || comm.environment().reaches(device.kind())
                && self.call.is_left_to_mpi(comm)
                && (self.call.is_message() || takes_pointers(way));
        match &self.call {
            _ if is_direct => Access::Direct(device),
            Call::Exchange(_) => Access::Packed(device),
            _ => Access::Staged(device),
        }
    }

    /// The memory for the call, made in this way, as MPI finds it once the event has passed.
    #[inline]
    pub(super) fn memory(&self, site: Site, comm: &Handle, way: Way) -> Result<Memory> {
        let access = self.access(comm, way);
        let output = self.output(site, access)?;
        let mut memory = Memory {
            staged: None,
            busy: None,
            send: self.input.data(),
            output,
            home: None,
            ready: None,
            free: None,
            direct: access.direct(),
            pieces: self.cut(way, comm),
            exchange: None,
        };
        // What MPI sends is in the output of the root, as MPI_Bcast has one buffer.
        let fills = matches!(self.call, Call::Broadcast { root } if root == comm.rank());
        let device = match access {
            Access::Host => {
                if fills {
                    memory.output.copy_from(&self.input)?;
                }
                return Ok(memory);
            }
            Access::Direct(device) => {
                if fills {
                    memory.output.copy_from(&self.input)?;
                }
                if !matches!(self.call, Call::Nothing) {
                    memory.ready = Some(Arc::new(Event::record(site.call, device)?));
                }
                return Ok(memory);
            }
            Access::Packed(_) => {
                let Call::Exchange(exchange) = &self.call else {
                    unreachable!("it is an exchange")
                };
                let parcels = Parcels::new(site, exchange, &self.input, memory.output.tensor())?;
                memory.ready = parcels.packed();
                let buffers = self.buffers(comm, std::ptr::null(), std::ptr::null_mut());
                memory.exchange = Some(UnderWay::on_device(buffers, exchange, parcels));
                return Ok(memory);
            }
            Access::Staged(device) => device,
        };
        let shape = Metadata::of(memory.output.tensor()).shape();
        let home = Output::at(Place::On(device), site.call, shape, self.input.datatype())?;
        memory.home = Some(home.into_tensor());
        memory.send = std::ptr::null();
        let filled = if fills {
            Some(memory.output.tensor().shallow_clone())
        } else if self.call.reads(comm.rank()) {
            let staged = room_for(site, &self.input)?;
            memory.send = Metadata::of(&staged).data();
            Some(memory.staged.insert(staged).shallow_clone())
        } else {
            None
        };
        match filled {
            // Host memory that MPI only writes is ready at once.
            None => memory.free = Some(Arc::new(Event::record(site.call, device)?)),
            Some(filled) => {
                let busy = stage(site, &self.input, filled, memory.pieces.as_deref_mut())?;
                memory.ready = memory.pieces.is_none().then(|| busy.until());
                memory.free = Some(busy.until());
                memory.busy = Some(busy);
            }
        }
        Ok(memory)
    }
}

/// Host memory for a copy of what the input sends.
pub(super) fn room_for(site: Site, input: &Input) -> Result<Tensor> {
    let place = Place::Near(input.device());
    Ok(Output::at(place, site.call, Metadata::of(input.sent()).shape(), input.datatype())?
        .into_tensor())
}

/// Queues a copy of what the input sends to host memory, as a whole or in pieces, of which each tells when
/// it has come.
pub(super) fn stage(
    site: Site,
    input: &Input,
    room: Tensor,
    pieces: Option<&mut [StagedPiece]>,
) -> Result<Busy> {
    let from = input.sent();
    let copied = match pieces {
        None => autograd::queue_copy(site.call, from, &room),
        Some(pieces) => pieces.iter_mut().try_for_each(|piece| piece.stage(site, input, &room)),
    };
    let busy = Busy::record(site, input.device(), room)?;
    copied.map(|()| busy)
}

/// Host memory that a device is at work on: it is kept until the device has done with it. That of the
/// device itself need not be kept, as its next use comes later in the order of the stream.
pub(super) struct Busy {
    memory: Tensor,
    until: Arc<Event>,
}

/// Host memory that is kept only until the devices have done with it.
static KEPT: Mutex<Vec<Busy>> = Mutex::new(Vec::new());

impl Busy {
    /// Until all has been done that the current stream of the device has been given so far.
    pub(super) fn record(site: Site, device: Device, memory: Tensor) -> Result<Self> {
        // Without an event it is not known how long it is needed.
        match Event::record(site.call, device) {
            Ok(event) => Ok(Self { memory, until: Arc::new(event) }),
            Err(error) => {
                std::mem::forget(memory);
                Err(error)
            }
        }
    }

    /// Passes when the device has done with it.
    pub(super) fn until(&self) -> Arc<Event> {
        Arc::clone(&self.until)
    }

    /// If the event cannot be asked for, the memory is kept.
    fn is_over(&self) -> bool {
        self.until.has_passed("staging").unwrap_or(false)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if !self.is_over() {
            keep(Self { memory: self.memory.shallow_clone(), until: self.until() });
        }
    }
}

fn keep(busy: Busy) {
    let over: Vec<Busy> = {
        let mut kept = KEPT.lock();
        kept.push(busy);
        kept.extract_if(.., |busy| busy.is_over()).collect()
    };
    drop(over);
}

/// Queues the copy of what MPI has written to its place on the device.
pub(super) fn bring_home(site: Site, written: Tensor, home: &Tensor) -> Result<()> {
    let copied = autograd::queue_copy(site.call, &written, home);
    keep_until_copied(site, written, home)?;
    copied
}

/// Keeps host memory until the copies from it that have been queued are made.
pub(super) fn keep_until_copied(site: Site, written: Tensor, home: &Tensor) -> Result<()> {
    let device = Metadata::of(home).device();
    drop(Busy::record(site, device, written)?);
    Ok(())
}
