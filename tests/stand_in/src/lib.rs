//! A device of libtorch for tests on machines that have none: `PrivateUse1` with the name
//! `stand_in`, and two devices of it.
//!
//! It is as strict as a device can be:
//!
//! - The host cannot reach the memory of a tensor. It is mapped at two addresses: that of the
//!   tensor, where every access traps, and another one for the device itself.
//! - All work is done later, by the threads of its streams, each of which has a queue of tasks:
//!   [`set_delay`] says how much later. What the host reads before it has waited is a wrong value.
//! - Memory that a tensor frees is overwritten, and is at once the memory of the next tensor, as
//!   with CUDA: only the order of the stream's tasks protects it. A host that writes to a new
//!   tensor without waiting has its values overwritten.
//! - The same holds for pinned memory after [`set_forgetful`], when copies do not keep it.
//!
//! Operations are computed by the host. They wait for their arguments, and copy the result to the
//! device by a task, for which they do not wait.

mod border;
mod stream;

use std::ffi::CStr;
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

pub use stream::{Event, on_new_stream, record_stream, synchronize};

/// Registers the device with libtorch, as `stand_in`, with two devices. If called again, does
/// nothing.
///
/// The first call must come before the process's first backward pass, in which libtorch starts a
/// thread for each device that it knows.
pub fn register() {
    // SAFETY: It may be called at any time, by any thread.
    unsafe { border::stand_in_register() }
}

/// Returns torch's `to`: a copy of the tensor on the device `stand_in:index`, which autograd
/// records, or the tensor itself if it is there.
///
/// # Panics
/// Panics if there is no such device, or if [`register`] has not been called.
pub fn to_device(x: &Tensor, index: i32) -> Tensor {
    assert!(index >= 0, "stand_in: there is no device {index}");
    to(x, index)
}

/// Returns torch's `cpu`: a copy of the tensor in the memory of the host, which autograd records,
/// or the tensor itself if it is there.
pub fn to_host(x: &Tensor) -> Tensor {
    to(x, -1)
}

/// Whether the tensor is on one of these devices. tch's `Tensor::device` panics then.
pub fn is_on_device(x: &Tensor) -> bool {
    // SAFETY: The tensor is alive.
    unsafe { border::stand_in_is_on_device(x.as_ptr()) }
}

/// The number of the device that the tensor is on, if it is one of these.
pub fn device_of(x: &Tensor) -> Option<i32> {
    // SAFETY: The tensor is alive.
    let index = unsafe { border::stand_in_device_of(x.as_ptr()) };
    (index >= 0).then_some(index)
}

/// Returns a tensor like `x` on libtorch's device `meta`, which has no elements. tch has no name for
/// it.
pub fn meta(x: &Tensor) -> Tensor {
    // SAFETY: The tensor is alive, and can be moved there.
    let tensor = unsafe { border::stand_in_meta(x.as_ptr()) };
    // SAFETY: It is a new tensor.
    unsafe { Tensor::from_ptr(tensor.cast::<C_tensor>()) }
}

/// Sets how long a task waits after it has been submitted to its queue: not at all at first. Tests
/// set some milliseconds, so that a result that is not waited for is a wrong one. Tasks that were
/// submitted before keep their delay, so that a test can let a stream fall behind another one.
pub fn set_delay(delay: Duration) {
    let nanoseconds = u64::try_from(delay.as_nanos()).expect("a delay is short");
    // SAFETY: It may be called at any time, by any thread.
    unsafe { border::stand_in_set_delay(nanoseconds) }
}

/// Makes the memory of tensors made from now on readable and writable by the host, as that of a
/// device that MPI can reach is.
pub fn set_reachable(reachable: bool) {
    // SAFETY: It may be called at any time, by any thread.
    unsafe { border::stand_in_set_reachable(reachable) }
}

/// Lets only so many more tensors be allocated on the devices and in pinned memory, on all together, `None`
/// any number; after that, libtorch's error is that of a lack of memory.
pub fn set_tensors_left(count: Option<u64>) {
    // SAFETY: It may be called at any time, by any thread.
    unsafe { border::stand_in_set_blocks_left(count.unwrap_or(u64::MAX)) }
}

/// Returns how many copies between the host and the devices have been made so far: see
/// [`bytes_copied`].
pub fn copies_made() -> u64 {
    // SAFETY: It may be called at any time, by any thread.
    unsafe { border::stand_in_copies_made() }
}

/// Returns how many bytes have been copied between the host and the devices so far, in both directions.
/// What is copied for an operation that the host computes does not count.
pub fn bytes_copied() -> u64 {
    // SAFETY: It may be called at any time, by any thread.
    unsafe { border::stand_in_bytes_copied() }
}

/// Makes queued copies forget that they use a tensor in pinned memory: if it is dropped before, its
/// memory is overwritten, and used for the next pinned tensor, as that of a tensor would be that
/// libtorch's allocator does not know. At first, copies keep the memory, as those of CUDA do.
pub fn set_forgetful(forgetful: bool) {
    // SAFETY: It may be called at any time, by any thread.
    unsafe { border::stand_in_set_forgetful(forgetful) }
}

/// Calls `function` on the thread that computes the gradient of `x` in a backward pass.
pub fn on_gradient(x: &Tensor, function: extern "C" fn()) {
    // SAFETY: The tensor is alive, and the function is there as long as the process.
    unsafe { border::stand_in_on_gradient(x.as_ptr(), function) }
}

fn to(x: &Tensor, index: i32) -> Tensor {
    let mut error = std::ptr::null_mut();
    // SAFETY: The tensor is alive, and the result, if there is one, is owned by nobody else.
    let tensor = unsafe { border::stand_in_to(x.as_ptr(), index, &raw mut error) };
    assert!(!tensor.is_null(), "stand_in: {}", text(error));
    // SAFETY: It is a new tensor.
    unsafe { Tensor::from_ptr(tensor.cast::<C_tensor>()) }
}

fn text(error: *mut std::ffi::c_char) -> String {
    // SAFETY: It is a string that strdup made.
    let text = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
    // SAFETY: strdup allocates with malloc, and nobody else has the pointer.
    unsafe { border::free(error.cast()) };
    text
}
