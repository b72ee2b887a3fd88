//! Devices other than the CPU: memory on them and near them, copies, and events.

use std::ffi::{c_char, c_void};
use std::fmt;
use std::ptr::{self, NonNull};

use tch::Tensor;

use super::{Metadata, check, own_text, shim};
use crate::base::error::Result;

/// Where a tensor is. tch's own type lacks devices that other libraries register with libtorch.
#[derive(Clone, Copy)]
pub(crate) struct Device(pub(super) shim::mpi4tch_device);

impl Device {
    pub(crate) const CPU: Self = Self(shim::mpi4tch_device { type_: 0, index: 0 });

    #[inline]
    pub(crate) fn is_cpu(self) -> bool {
        self.0.type_ == Self::CPU.0.type_
    }

    /// libtorch's number for the type of device (`c10::DeviceType`).
    pub(crate) fn kind(self) -> i8 {
        self.0.type_
    }

    /// Whether tensors can be copied between the device and the host by the functions here.
    pub(crate) fn is_reached(self) -> bool {
        // SAFETY: the call takes any device.
        unsafe { shim::mpi4tch_device_is_reached(self.0) }
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        (self.0.type_, self.0.index) == (other.0.type_, other.0.index)
    }
}

impl Eq for Device {}

impl fmt::Display for Device {
    /// libtorch's name of the device: `cuda:0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the call takes any device.
        f.write_str(&own_text(unsafe { shim::mpi4tch_device_name(self.0) }))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A new contiguous tensor on a device, with undefined content, and a pointer to its first element.
pub(crate) fn empty_on(
    device: Device,
    call: &'static str,
    shape: &[i64],
    scalar_type: i32,
) -> Result<(Tensor, *mut c_void)> {
    made(shim::mpi4tch_empty_on, device, call, shape, scalar_type)
}

/// As [`empty_on`], in pinned host memory, which the device can copy from and to while the host goes
/// on.
pub(crate) fn empty_near(
    device: Device,
    call: &'static str,
    shape: &[i64],
    scalar_type: i32,
) -> Result<(Tensor, *mut c_void)> {
    made(shim::mpi4tch_empty_near, device, call, shape, scalar_type)
}

/// A function of the shim that makes a tensor.
type Make = unsafe extern "C" fn(
    shim::mpi4tch_device,
    *const i64,
    usize,
    i32,
    *mut shim::mpi4tch_tensor,
    *mut *mut c_void,
) -> *mut c_char;

fn made(
    make: Make,
    device: Device,
    call: &'static str,
    shape: &[i64],
    scalar_type: i32,
) -> Result<(Tensor, *mut c_void)> {
    let (mut tensor, mut data) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: `shape` is a valid slice, and the results are written before the call returns.
    let error =
        unsafe { make(device.0, shape.as_ptr(), shape.len(), scalar_type, &mut tensor, &mut data) };
    check(call, error)?;
    // SAFETY: without an error, `tensor` is a new at::Tensor that nobody else owns.
    Ok((unsafe { Tensor::from_ptr(tensor.cast()) }, data))
}

/// The tensor, or a copy of it on this device if it is elsewhere. Without history.
pub(crate) fn moved(call: &'static str, x: &Tensor, device: Device) -> Result<Tensor> {
    let view = Metadata::of(x);
    if view.device() == device {
        return Ok(x.f_detach()?);
    }
    let (mut copy, _) = empty_on(device, call, view.shape(), view.scalar_type())?;
    copy.f_copy_(&x.f_detach()?)?;
    Ok(copy)
}

/// Copies a tensor on a device to one near it, or back, on the device's current stream. The host does
/// not wait for the copy, so the memory near the device must be kept until an [`Event`] after it has
/// passed.
pub(crate) fn queue_copy(call: &'static str, from: &Tensor, to: &Tensor) -> Result<()> {
    // SAFETY: both are valid at::Tensors that outlive the call; the caller keeps them longer.
    check(call, unsafe { shim::mpi4tch_queue_copy(from.as_ptr().cast(), to.as_ptr().cast()) })
}

/// Adds one tensor on a device to another, on the device's current stream. Autograd knows nothing of it.
pub(crate) fn queue_add(call: &'static str, from: &Tensor, to: &Tensor) -> Result<()> {
    // SAFETY: both are valid at::Tensors that outlive the call.
    check(call, unsafe { shim::mpi4tch_queue_add(from.as_ptr().cast(), to.as_ptr().cast()) })
}

/// Fills a tensor on a device with zeros, on the device's current stream. Autograd knows nothing of it.
pub(crate) fn queue_zeros(call: &'static str, to: &Tensor) -> Result<()> {
    // SAFETY: as above.
    check(call, unsafe { shim::mpi4tch_queue_zeros(to.as_ptr().cast()) })
}

/// Keeps the memory of a tensor on a device, if the tensor is dropped, until the device's current stream
/// has done what it has been given until then: it may be another one than the tensor was made on.
pub(crate) fn record_use(call: &'static str, x: &Tensor) -> Result<()> {
    // SAFETY: `x` is a valid at::Tensor that outlives the call.
    check(call, unsafe { shim::mpi4tch_record_use(x.as_ptr().cast()) })
}

/// Makes a device the current one of its type on this thread until this is dropped.
pub(crate) struct Current {
    before: Device,
}

impl Current {
    /// For a device that a tensor is on.
    pub(crate) fn set(call: &'static str, device: Device) -> Result<Self> {
        let mut before = Device::CPU;
        // SAFETY: libtorch has the interfaces of the device, as there is a tensor on it; the result
        // outlives the call.
        check(call, unsafe { shim::mpi4tch_exchange_device(device.0, &mut before.0) })?;
        Ok(Self { before })
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut ours = Device::CPU;
        // A device that was the current one is not refused.
        // SAFETY: as above.
        let _ =
            check("Current", unsafe { shim::mpi4tch_exchange_device(self.before.0, &mut ours.0) });
    }
}

/// Passes when all has been done that a stream was given before.
#[derive(Debug)]
pub(crate) struct Event(NonNull<c_void>);

// SAFETY: c10::Event is used by shared reference only, from which it reads what it was made with, and
// the functions of the backends that it calls may be called on any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// After all that the device's current stream has been given so far.
    pub(crate) fn record(call: &'static str, device: Device) -> Result<Self> {
        let mut event = ptr::null_mut();
        // SAFETY: the result is written before the call returns.
        check(call, unsafe { shim::mpi4tch_record_event(device.0, &mut event) })?;
        let event = NonNull::new(event).unwrap_or_else(|| unreachable!("no error, so an event"));
        Ok(Self(event))
    }

    pub(crate) fn has_passed(&self, call: &'static str) -> Result<bool> {
        let mut passed = false;
        // SAFETY: the event was made by the shim and not freed; the result outlives the call.
        check(call, unsafe { shim::mpi4tch_has_passed(self.0.as_ptr(), &mut passed) })?;
        Ok(passed)
    }

    /// Waits until it has passed.
    pub(crate) fn wait(&self, call: &'static str) -> Result<()> {
        // SAFETY: as above.
        check(call, unsafe { shim::mpi4tch_wait_for_event(self.0.as_ptr()) })
    }

    /// Makes the device's current stream wait for it.
    pub(crate) fn queue_wait(&self, call: &'static str, device: Device) -> Result<()> {
        // SAFETY: as above.
        check(call, unsafe { shim::mpi4tch_queue_wait(device.0, self.0.as_ptr()) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event was made by the shim, and is freed once.
        unsafe { shim::mpi4tch_drop_event(self.0.as_ptr()) };
    }
}
