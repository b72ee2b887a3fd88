//! libtorch's switch for recording operations on tensors, which each thread has.

use std::ffi::c_int;
use std::marker::PhantomData;

use super::shim;

/// Whether operations are being recorded. In a pullback: whether the user asked for a graph of the
/// derivative (`create_graph`), which all ranks or none must do.
pub(crate) fn is_recording() -> bool {
    // SAFETY: reads a thread-local flag of libtorch.
    unsafe { shim::mpi4tch_grad_enabled() }
}

/// A guard that switches recording on or off until it is dropped.
///
/// tch's `no_grad` and `with_grad` do not switch it back if their closure panics, and a panic may
/// be caught: by this crate, around a pullback, or by its user.
#[must_use]
pub(crate) struct Recording {
    before: bool,
    /// The switch belongs to the thread.
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

    /// Leaves recording as it is now, and restores that after code which may panic with it
    /// switched.
    pub(crate) fn kept() -> Self {
        Self { before: is_recording(), not_send: PhantomData }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        switch(self.before);
    }
}

/// Switches recording; returns whether it was on before.
fn switch(records: bool) -> bool {
    // SAFETY: writes a thread-local flag of libtorch, and returns its value before.
    unsafe { torch_sys::at_grad_set_enabled(c_int::from(records)) != 0 }
}
