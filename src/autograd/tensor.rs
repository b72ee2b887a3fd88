//! Queries and operations on a single tensor that tch does not offer.

use std::ffi::c_void;
use std::ptr;

use tch::Tensor;

use super::{Device, check, own, shim};
use crate::base::error::Result;

/// The properties of a tensor that every call needs, read at once.
#[derive(Clone, Copy)]
pub(crate) struct Metadata<'x> {
    raw: shim::mpi4tch_metadata,
    tensor: &'x Tensor,
}

impl<'x> Metadata<'x> {
    pub(crate) fn of(tensor: &'x Tensor) -> Self {
        // SAFETY: tch keeps a valid at::Tensor behind the pointer for as long as `tensor` lives.
        let raw = unsafe { shim::mpi4tch_look(tensor.as_ptr().cast()) };
        Self { raw, tensor }
    }

    pub(crate) fn tensor(&self) -> &'x Tensor {
        self.tensor
    }

    pub(crate) fn shape(&self) -> &'x [i64] {
        if self.raw.dim == 0 {
            return &[];
        }
        // SAFETY: the shim points `sizes` at the tensor's own `dim` extents. They live as long as
        // the tensor, and only operations on `&mut Tensor` change them.
        unsafe { std::slice::from_raw_parts(self.raw.sizes, self.raw.dim) }
    }

    /// Whether the tensor is defined; a gradient that was never computed is not.
    pub(crate) fn is_defined(&self) -> bool {
        self.raw.defined
    }

    /// A pointer to the first element, in the memory of the tensor's device; null if there is none.
    pub(crate) fn data(&self) -> *const c_void {
        self.raw.data
    }

    pub(crate) fn count(&self) -> i64 {
        self.raw.numel
    }

    /// The number that libtorch gives the kind (`c10::ScalarType`).
    pub(crate) fn scalar_type(&self) -> i32 {
        self.raw.kind
    }

    pub(crate) fn is_strided(&self) -> bool {
        self.raw.strided
    }

    #[inline]
    pub(crate) fn device(&self) -> Device {
        Device(self.raw.device)
    }

    /// Whether MPI can read the elements as they lie in memory: contiguous, without a lazy
    /// conjugation or negation.
    pub(crate) fn is_contiguous(&self) -> bool {
        self.raw.contiguous
    }

    /// Whether the tensor requires grad and recording is on.
    pub(crate) fn requires_grad(&self) -> bool {
        self.raw.requires_grad
    }
}

/// A new contiguous CPU tensor with undefined content, and a pointer to its first element.
pub(crate) fn empty(
    call: &'static str,
    shape: &[i64],
    scalar_type: i32,
) -> Result<(Tensor, *mut c_void)> {
    let (mut tensor, mut data) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: `shape` is a valid slice, and the results are written before the call returns.
    let error = unsafe {
        shim::mpi4tch_empty(shape.as_ptr(), shape.len(), scalar_type, &mut tensor, &mut data)
    };
    check(call, error)?;
    // SAFETY: without an error, `tensor` is a new at::Tensor that nobody else owns.
    Ok((unsafe { Tensor::from_ptr(tensor.cast()) }, data))
}

/// torch's version counter: how often a tensor was changed in place. 0 if it has no counter.
pub(crate) fn version(tensor: &Tensor) -> i64 {
    // SAFETY: `tensor` is a valid at::Tensor that outlives the call.
    unsafe { shim::mpi4tch_version(tensor.as_ptr().cast()) }
}

/// A tensor that shares the memory of `tensor`, whose storage cannot be resized until [`unpin`];
/// the address of the storage, 0 if there is none; and whether it could be resized before.
pub(crate) fn pin(call: &'static str, tensor: &Tensor) -> Result<(Tensor, usize, bool)> {
    let (mut alias, mut storage, mut resizable) = (ptr::null_mut(), ptr::null(), false);
    // SAFETY: `tensor` is a valid at::Tensor that outlives the call, as do the results.
    let error = unsafe {
        shim::mpi4tch_pin(tensor.as_ptr().cast(), &mut alias, &mut storage, &mut resizable)
    };
    check(call, error)?;
    // SAFETY: without an error, `alias` is a new at::Tensor that nobody else owns.
    Ok((unsafe { Tensor::from_ptr(alias.cast()) }, storage.addr(), resizable))
}

/// Allows the storage of a tensor that [`pin`] returned to be resized again.
pub(crate) fn unpin(alias: &Tensor) {
    // SAFETY: `alias` is a valid at::Tensor with storage that outlives the call.
    unsafe { shim::mpi4tch_unpin(alias.as_ptr().cast()) };
}

/// A view of all of `tensor`, without history, so that [`add_node`](super::add_node) can give it
/// one.
pub(crate) fn alias(call: &'static str, tensor: &Tensor) -> Result<Tensor> {
    let mut alias = ptr::null_mut();
    // SAFETY: `tensor` is a valid at::Tensor that outlives the call, as does the result.
    check(call, unsafe { shim::mpi4tch_alias(tensor.as_ptr().cast(), &mut alias) })?;
    // SAFETY: without an error, `alias` is a new at::Tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(alias.cast()) })
}

/// A view of a contiguous tensor with this shape and these strides, whose first element is that of number
/// `start` of the tensor. Autograd and the tensor's version know nothing of what is written to it.
pub(crate) fn view(
    call: &'static str,
    tensor: &Tensor,
    start: i64,
    shape: &[i64],
    strides: &[i64],
) -> Result<Tensor> {
    assert_eq!(shape.len(), strides.len(), "an extent and a stride for each axis");
    let mut view = ptr::null_mut();
    // SAFETY: `tensor` is a valid at::Tensor that outlives the call, as do the slices and the result.
    let error = unsafe {
        shim::mpi4tch_view(
            tensor.as_ptr().cast(),
            start,
            shape.as_ptr(),
            strides.as_ptr(),
            shape.len(),
            &mut view,
        )
    };
    check(call, error)?;
    // SAFETY: without an error, `view` is a new at::Tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(view.cast()) })
}

/// Whether both are the same tensor object, and not only equal or of the same memory.
pub(crate) fn is_same(a: &Tensor, b: &Tensor) -> bool {
    // SAFETY: both are valid at::Tensors that outlive the call.
    unsafe { shim::mpi4tch_is_same(a.as_ptr().cast(), b.as_ptr().cast()) }
}

/// Whether several elements of a dense tensor are in the same place in memory.
pub(crate) fn overlaps(tensor: &Tensor) -> bool {
    // SAFETY: `tensor` is a valid at::Tensor that outlives the call.
    unsafe { shim::mpi4tch_overlaps(tensor.as_ptr().cast()) }
}

/// Whether both have the same storage.
pub(crate) fn shares_memory(a: &Tensor, b: &Tensor) -> bool {
    // SAFETY: both are valid at::Tensors that outlive the call.
    unsafe { shim::mpi4tch_shares_memory(a.as_ptr().cast(), b.as_ptr().cast()) }
}

/// Makes backward passes add to the `grad` of a tensor that requires grad and is no leaf. What is
/// added has no graph.
pub(crate) fn retain_grad(call: &'static str, tensor: &Tensor) -> Result<()> {
    // SAFETY: `tensor` is a valid at::Tensor that outlives the call.
    check(call, unsafe { shim::mpi4tch_retain_grad(tensor.as_ptr().cast()) })
}

/// Removes a leaf's gradient, and returns it.
pub(crate) fn take_grad(leaf: &Tensor) -> Option<Tensor> {
    // SAFETY: `leaf` is a valid at::Tensor that outlives the call.
    own(unsafe { shim::mpi4tch_take_grad(leaf.as_ptr().cast()) })
}

/// How many references there are to the tensor object, and how many tensor objects share its
/// storage.
pub(crate) fn owners(tensor: &Tensor) -> (usize, usize) {
    let (mut of_tensor, mut of_storage) = (0, 0);
    // SAFETY: `tensor` is a valid at::Tensor that outlives the call, as do the results.
    unsafe { shim::mpi4tch_owners(tensor.as_ptr().cast(), &mut of_tensor, &mut of_storage) };
    (of_tensor, of_storage)
}
