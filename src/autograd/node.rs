//! Nodes of the autograd graph whose pullbacks are Rust closures.

use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch::Tensor;

use super::{Recording, check, own, pointers, shim};
use crate::base::error::{Error, Result};

/// The arguments of a pullback.
pub(crate) struct Backward {
    /// One cotangent per output, zeros if libtorch has none. They may be shared with other branches
    /// of the graph: never change them in place.
    pub(crate) cotangents: Vec<Tensor>,
    /// The tensors saved with the node; an error if one was changed in place or has been freed. A
    /// pullback that communicates must then still tell the other ranks, which wait for it.
    pub(crate) saved: Result<Vec<Tensor>>,
}

/// Makes `outputs`, new tensors without history, the outputs of a new node with these `inputs`.
///
/// The node keeps `saved` for the pullback, without a reference cycle where an output is among
/// them. If one is changed in place before the pullback runs, that is an error of the backward
/// pass. The pullback returns one gradient per input, or `None` for an input that gets none; its
/// `Err`s and panics come out of the backward pass as errors. The node lives until no graph refers
/// to it.
///
/// See `torch/csrc/autograd/function.h`.
pub(crate) fn add_node<'x, F>(
    call: &'static str,
    inputs: impl IntoIterator<Item = &'x Tensor>,
    outputs: impl IntoIterator<Item = &'x Tensor>,
    saved: &[&'x Tensor],
    pullback: F,
) -> Result<()>
where
    F: Fn(Backward) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    let name = CString::new(call).unwrap_or_default();
    let pullback = boxed(call, pullback);
    let (inputs, outputs) = (pointers(inputs), pointers(outputs));
    let saved = pointers(saved.iter().copied());
    // SAFETY: all tensors are valid at::Tensors that outlive the call. The two callbacks are made
    // for the closure's type, which is Send and Sync, as libtorch may call it on its own threads.
    let error = unsafe {
        shim::mpi4tch_record(
            name.as_ptr(),
            pullback,
            inputs.as_ptr(),
            inputs.len(),
            outputs.as_ptr(),
            outputs.len(),
            saved.as_ptr(),
            saved.len(),
        )
    };
    check(call, error)
}

/// A change of a tensor in place, which torch's rules allow.
#[derive(Clone, Copy)]
pub(crate) struct InPlace {
    call: &'static str,
    data: *mut c_void,
    view: bool,
}

impl InPlace {
    /// An error where torch forbids the change: for a leaf that requires grad, for some views, and
    /// for elements that overlap in memory.
    pub(crate) fn new(call: &'static str, x: &Tensor) -> Result<Self> {
        let (mut data, mut view) = (ptr::null_mut(), false);
        // SAFETY: `x` is a valid at::Tensor that outlives the call, as do the results.
        let error =
            unsafe { shim::mpi4tch_check_in_place(x.as_ptr().cast(), &mut data, &mut view) };
        check(call, error)?;
        Ok(Self { call, data, view })
    }

    /// Whether the tensor is a view: the change must then be recorded in its base's history, too.
    pub(crate) fn is_view(self) -> bool {
        self.view
    }

    /// A pointer for writing to the first element; null if the tensor is not strided and in host
    /// memory.
    pub(crate) fn data(self) -> *mut c_void {
        self.data
    }

    /// To be called after the change: bumps the version counter, so that a node that saved the
    /// tensor notices.
    pub(crate) fn bump_version(self, x: &mut Tensor) -> Result<()> {
        self.rebase(x, ptr::null())
    }

    /// To be called after the change: bumps the version counter, and makes the tensor the output of
    /// a new node, as [`add_node`] does, whose input is the tensor before the change.
    pub(crate) fn record<F>(self, x: &mut Tensor, pullback: F) -> Result<()>
    where
        F: Fn(Backward) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
    {
        self.rebase(x, &boxed(self.call, pullback))
    }

    fn rebase(self, x: &mut Tensor, pullback: *const shim::mpi4tch_pullback) -> Result<()> {
        let name = CString::new(self.call).unwrap_or_default();
        // SAFETY: `x` is a valid at::Tensor; the pullback is null or valid, and owned by the shim
        // from here on.
        let error =
            unsafe { shim::mpi4tch_record_in_place(name.as_ptr(), pullback, x.as_ptr().cast()) };
        check(self.call, error)
    }
}

/// Boxes the closure for the shim, which owns it from then on.
fn boxed<F>(call: &'static str, pullback: F) -> shim::mpi4tch_pullback
where
    F: Fn(Backward) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    let node = Box::new(Pullback { call, pullback, live: Live::new() });
    shim::mpi4tch_pullback {
        state: Box::into_raw(node).cast(),
        call: Some(call_pullback::<F>),
        drop: Some(drop_pullback::<F>),
    }
}

/// The number of this crate's nodes that graphs in this process still hold.
pub(crate) fn live_pullbacks() -> usize {
    LIVE.load(Ordering::Relaxed)
}

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Counts itself in [`LIVE`] from creation to drop.
struct Live;

impl Live {
    fn new() -> Self {
        LIVE.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Pullback<F> {
    call: &'static str,
    pullback: F,
    #[expect(dead_code, reason = "held for its Drop")]
    live: Live,
}

/// Runs the closure behind `state`; returns an error text if it fails or panics.
///
/// # Safety
/// `state` is the `Pullback<F>` that [`boxed`] made, and `backward` is as `wrapper.h` describes it.
unsafe extern "C" fn call_pullback<F>(
    state: *mut c_void,
    backward: *const shim::mpi4tch_backward,
) -> *mut c_char
where
    F: Fn(Backward) -> Result<Vec<Option<Tensor>>>,
{
    // SAFETY: both pointers are valid for the call; the shim makes no call after it drops the
    // state.
    let (node, backward) = unsafe { (&*state.cast::<Pullback<F>>(), &*backward) };
    let _recording = Recording::kept();
    // Unwind safety: after a panic the closure's state is only read again or dropped, and it has
    // no invariant between calls.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the shim hands over ownership of `outputs` cotangents and `saved_count` tensors.
        let (cotangents, saved) = unsafe {
            (
                own_all(backward.cotangents, backward.outputs),
                own_all(backward.saved, backward.saved_count),
            )
        };
        let saved = if backward.error.is_null() {
            Ok(saved)
        } else {
            // SAFETY: the shim's error is a C string that outlives the call.
            let message = unsafe { CStr::from_ptr(backward.error) };
            let message = message.to_string_lossy().into_owned();
            Err(Error::Autograd { call: node.call, message })
        };
        let gradients = (node.pullback)(Backward { cotangents, saved })?;
        assert_eq!(gradients.len(), backward.inputs, "one gradient per input");
        for (i, gradient) in gradients.into_iter().enumerate() {
            let pointer = gradient.map_or(ptr::null_mut(), give);
            // SAFETY: `gradients` has room for `inputs` pointers, and `i < inputs`.
            unsafe { *backward.gradients.add(i) = pointer };
        }
        Ok::<(), Error>(())
    }));
    let text = match outcome {
        Ok(Ok(())) => return ptr::null_mut(),
        Ok(Err(error)) => format!("backward of {}: {error}", node.call),
        Err(panic) => format!("backward of {} panicked: {}", node.call, panic_text(&*panic)),
    };
    // SAFETY: the text is copied before the call returns.
    unsafe { shim::mpi4tch_text(text.as_ptr().cast(), text.len()) }
}

/// Drops the closure behind `state`.
///
/// # Safety
/// `state` is the `Pullback<F>` that [`boxed`] made; nothing uses it afterwards.
unsafe extern "C" fn drop_pullback<F>(state: *mut c_void) {
    // SAFETY: the shim drops a pullback once, with its node.
    let node = unsafe { Box::from_raw(state.cast::<Pullback<F>>()) };
    let _recording = Recording::kept();
    // A panic in a destructor cannot be returned from here; the panic hook has printed it.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(node)));
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "unknown panic"
    }
}

/// # Safety
/// `list` holds `count` tensors that the caller may take ownership of.
unsafe fn own_all(list: *const shim::mpi4tch_tensor, count: usize) -> Vec<Tensor> {
    // SAFETY: as required; `add` stays within the list.
    (0..count).filter_map(|i| own(unsafe { *list.add(i) })).collect()
}

pub(super) fn give(tensor: Tensor) -> shim::mpi4tch_tensor {
    std::mem::ManuallyDrop::new(tensor).as_ptr().cast_mut().cast()
}
