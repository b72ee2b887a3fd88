//! Tensors on devices: how MPI gets at their elements.
//!
//! Such a tensor is *staged*: its elements are copied to host memory on the current stream of the device,
//! MPI reads them once an event after the copy has passed, and what MPI has written is copied to the
//! result on the stream that is current then. Or MPI gets pointers to the memory of the device, if it
//! takes them, once the stream has done with that memory.

use std::ffi::c_void;
use std::sync::Arc;

use parking_lot::Mutex;
use tch::Tensor;

use super::buffer::{Input, Output, Place};
use super::{Call, Plan};
use crate::autograd::{self, Device, Event, Metadata, Recording};
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
    /// What MPI sends; null if it sends nothing.
    pub(super) send: *const c_void,
    pub(super) output: Output,
    /// The result on the device, if the output is in host memory.
    pub(super) home: Option<Tensor>,
    /// Passes when the device has done with all of this memory.
    pub(super) ready: Option<Arc<Event>>,
    /// The device whose memory MPI gets pointers to.
    pub(super) direct: Option<Device>,
}

/// Whether collective calls that are made in this way may get pointers to the memory of devices, if MPI
/// takes them at all. Open MPI takes them in blocking ones only: `MPI_Iallreduce` and its kin read the
/// memory on the host, and crash (open-mpi/ompi#9845, #12045).
fn takes_pointers(way: Way) -> bool {
    way == Way::Waits || mpi_sys::loaded_vendor() != mpi_sys::Vendor::OpenMpi
}

impl Call {
    /// Whether MPI reads the input on this rank.
    pub(super) fn reads(&self, rank: Rank) -> bool {
        match self {
            Self::Nothing | Self::Barrier | Self::Receive(_) => false,
            // The root sends from the output.
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
            Self::ReduceScatter { op, sums, .. } => !sums && !ops.handles().contains(op),
            Self::Send(message) => message.is_plain(),
            Self::Receive(message) => message.is_received_plainly(),
            Self::SendReceive { send, receive } => send.is_plain() && receive.is_received_plainly(),
            // Regions are packed on the host.
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
        if is_direct { Access::Direct(device) } else { Access::Staged(device) }
    }

    /// The memory for the call, made in this way, as MPI finds it once the event has passed.
    #[inline]
    pub(super) fn memory(&self, site: Site, comm: &Handle, way: Way) -> Result<Memory> {
        let access = self.access(comm, way);
        let output = self.output(site, comm, access)?;
        match access {
            Access::Host => Ok(Memory {
                staged: None,
                send: self.input.data(),
                output,
                home: None,
                ready: None,
                direct: None,
            }),
            Access::Direct(device) => {
                let is_called = !matches!(self.call, Call::Nothing);
                let ready = is_called.then(|| Event::record(site.call, device)).transpose()?;
                let (send, ready) = (self.input.data(), ready.map(Arc::new));
                let direct = is_called.then_some(device);
                Ok(Memory { staged: None, send, output, home: None, ready, direct })
            }
            Access::Staged(device) => {
                let reads = self.call.reads(comm.rank());
                let staged = reads.then(|| stage(site, &self.input)).transpose()?;
                let send =
                    staged.as_ref().map_or(std::ptr::null(), |staged| Metadata::of(staged).data());
                let shape = Metadata::of(output.tensor()).shape();
                let home = Output::at(Place::On(device), site.call, shape, self.input.datatype())?;
                let ready = Some(Arc::new(Event::record(site.call, device)?));
                let home = Some(home.into_tensor());
                Ok(Memory { staged, send, output, home, ready, direct: None })
            }
        }
    }
}

/// Queues a copy of what the input sends to new host memory. The copy is there when an event has passed
/// that is recorded after this; until then the input is to be kept.
pub(super) fn stage(site: Site, input: &Input) -> Result<Tensor> {
    let place = Place::Near(input.device());
    let staged = Output::at(place, site.call, input.shape(), input.datatype())?.into_tensor();
    autograd::queue_copy(site.call, input.sent(), &staged)?;
    Ok(staged)
}

/// Copies that are on their way to a device, with the host memory that they are made from.
static RETURNING: Mutex<Vec<(Event, Tensor)>> = Mutex::new(Vec::new());

/// Queues the copy of what MPI has written to its place on the device.
pub(super) fn bring_home(site: Site, written: Tensor, home: &Tensor) -> Result<()> {
    let device = Metadata::of(home).device();
    let _recording = Recording::off();
    autograd::queue_copy(site.call, &written, home)?;
    let copied = Event::record(site.call, device)?;
    let mut returning = RETURNING.lock();
    // A copy whose event cannot be asked for is kept.
    returning.retain(|(copied, _)| !copied.has_passed(site.call).unwrap_or(false));
    returning.push((copied, written));
    Ok(())
}
