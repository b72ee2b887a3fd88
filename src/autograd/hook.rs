//! Hooks of leaves, which libtorch calls after it has added to their gradients.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use tch::Tensor;

use super::node::panic_text;
use super::{Recording, check, shim};
use crate::base::error::Result;

/// A closure that libtorch calls after it has added to the gradient of a leaf. When this is dropped,
/// it is not called any more.
///
/// See `torch::autograd::impl::set_post_acc_grad_hooks` in `torch/csrc/autograd/variable.h`.
#[derive(Debug)]
pub(crate) struct LeafHook {
    leaf: Tensor,
    /// The address of the closure, by which the leaf's hook is known to be this one.
    state: usize,
}

/// A closure with an address of its own, even if it captures nothing.
struct Closure<F> {
    closure: F,
    _address: u8,
}

impl LeafHook {
    /// Adds the hook; `None` if the leaf has a hook already, as it has room for one. The `Err`s and
    /// panics of the closure come out of the backward pass as errors.
    pub(crate) fn new<F>(call: &'static str, leaf: &Tensor, closure: F) -> Result<Option<Self>>
    where
        F: Fn() -> Result<()> + Send + Sync + 'static,
    {
        let boxed = Box::new(Closure { closure, _address: 0 });
        let state: *mut c_void = Box::into_raw(boxed).cast();
        let hook =
            shim::mpi4tch_hook { state, call: Some(call_hook::<F>), drop: Some(drop_hook::<F>) };
        let mut occupied = false;
        // SAFETY: `leaf` is a valid at::Tensor. The shim owns the closure from here on, which is
        // Send and Sync, as libtorch may call it on its own threads.
        let error = unsafe { shim::mpi4tch_add_hook(leaf.as_ptr().cast(), hook, &mut occupied) };
        check(call, error)?;
        Ok((!occupied).then(|| Self { leaf: leaf.shallow_clone(), state: state.addr() }))
    }
}

impl Drop for LeafHook {
    fn drop(&mut self) {
        let state = ptr::without_provenance(self.state);
        // SAFETY: `leaf` is a valid at::Tensor; the state is only compared.
        unsafe { shim::mpi4tch_remove_hook(self.leaf.as_ptr().cast(), state) };
    }
}

/// Whether the leaf has a hook.
pub(crate) fn has_hook(leaf: &Tensor) -> bool {
    // SAFETY: `leaf` is a valid at::Tensor that outlives the call.
    unsafe { shim::mpi4tch_has_hook(leaf.as_ptr().cast()) }
}

/// Makes `gradient`, which is of the leaf's kind and shape, the leaf's gradient.
pub(crate) fn set_grad(leaf: &Tensor, gradient: &Tensor) {
    // SAFETY: both are valid at::Tensors that outlive the call.
    unsafe { shim::mpi4tch_set_grad(leaf.as_ptr().cast(), gradient.as_ptr().cast()) };
}

/// Runs the closure behind `state`; returns an error text if it fails or panics.
///
/// # Safety
/// `state` is the `Closure<F>` that [`LeafHook::new`] boxed.
unsafe extern "C" fn call_hook<F>(state: *mut c_void) -> *mut c_char
where
    F: Fn() -> Result<()>,
{
    // SAFETY: the shim keeps the closure while it calls it, and until then it is only shared.
    let Closure { closure, .. } = unsafe { &*state.cast::<Closure<F>>() };
    let _recording = Recording::kept();
    let text = match catch_unwind(AssertUnwindSafe(closure)) {
        Ok(Ok(())) => return ptr::null_mut(),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("a hook panicked: {}", panic_text(&*panic)),
    };
    // SAFETY: the text is copied before the call returns.
    unsafe { shim::mpi4tch_text(text.as_ptr().cast(), text.len()) }
}

/// Drops the closure behind `state`.
///
/// # Safety
/// `state` is the `Closure<F>` that [`LeafHook::new`] boxed; nothing uses it afterwards.
unsafe extern "C" fn drop_hook<F>(state: *mut c_void) {
    // SAFETY: the shim drops a closure once, with its hook.
    let closure = unsafe { Box::from_raw(state.cast::<Closure<F>>()) };
    let _recording = Recording::kept();
    // A panic in a destructor cannot be returned from here; the panic hook has printed it.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(closure)));
}
