//! Whether libtorch records what is done with tensors, on this thread.

use std::ffi::c_int;
use std::marker::PhantomData;

use super::shim;

/// Whether operations are being recorded. In a pullback: whether the user asked for a graph of
/// the derivative, which is so on every rank or on none.
pub(crate) fn is_recording() -> bool {
    // SAFETY: reads a thread-local flag of libtorch.
    unsafe { shim::mpi4tch_grad_enabled() }
}

/// Recording, switched on or off until the guard is dropped.
///
/// tch's `no_grad` and `with_grad` do not switch it back where what they run panics, and a panic may
/// be caught: by the crate, in a pullback, or by its user.
#[must_use]
pub(crate) struct Recording {
    before: bool,
    /// The flag is the thread's.
    not_send: PhantomData<*const ()>,
}

impl Recording {
    pub(crate) fn on() -> Self {
        Self::set(true)
    }

    pub(crate) fn off() -> Self {
        Self::set(false)
    }

    pub(crate) fn set(records: bool) -> Self {
        Self { before: switch(records), not_send: PhantomData }
    }

    /// As it is: what is run meanwhile may panic while it is switched.
    pub(crate) fn kept() -> Self {
        Self { before: is_recording(), not_send: PhantomData }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        switch(self.before);
    }
}

/// Returns what it was before.
fn switch(records: bool) -> bool {
    // SAFETY: writes a thread-local flag of libtorch, and returns its value before.
    unsafe { torch_sys::at_grad_set_enabled(c_int::from(records)) != 0 }
}
