//! What MPI reads and writes: a tensor, checked, as (pointer, count, datatype).
//!
//! All result memory comes from [`Output::new`], so that its source can change in one place.

use std::ffi::c_void;

use tch::{TchError, Tensor};

use crate::autograd::{self, View};
use crate::datatype::Datatype;
use crate::error::{Error, Result};

/// A tensor to send: checked, contiguous, in host memory.
pub(crate) struct Input<'x> {
    view: View<'x>,
    /// What is sent instead of a tensor that is not contiguous.
    copy: Option<(Tensor, *const c_void)>,
    datatype: Datatype,
}

impl<'x> Input<'x> {
    /// Any layout is fine: what MPI could not read as it lies is copied.
    #[inline]
    pub(crate) fn new(call: &'static str, x: &'x Tensor) -> Result<Self> {
        let view = View::of(x);
        let Some(datatype) = Datatype::of(view.scalar_type()) else {
            let kind = x.f_kind().map_or_else(
                |_| format!("of scalar type {}", view.scalar_type()),
                |kind| format!("{kind:?}"),
            );
            return Err(Error::Kind { call, kind });
        };
        if !view.is_strided() {
            return Err(Error::Layout { call });
        }
        if !view.is_on_cpu() {
            return Err(Error::Device { call, device: view.device() });
        }
        let copy = if view.is_contiguous() { None } else { Some(contiguous(x)?) };
        Ok(Self { view, copy, datatype })
    }

    /// Sends what `f` makes of the tensor instead, of the same shape and kind.
    pub(crate) fn replaced(
        self,
        f: impl FnOnce(&Tensor) -> std::result::Result<Tensor, TchError>,
    ) -> Result<Self> {
        let other = tch::no_grad(|| f(self.view.tensor()))?;
        Ok(Self { copy: Some(contiguous(&other)?), ..self })
    }

    pub(crate) fn shape(&self) -> &'x [i64] {
        self.view.shape()
    }

    pub(crate) fn datatype(&self) -> Datatype {
        self.datatype
    }

    pub(crate) fn requires_grad(&self) -> bool {
        self.view.requires_grad()
    }

    /// The first of [`count`](Self::count) elements, valid as long as `self`.
    pub(crate) fn data(&self) -> *const c_void {
        self.copy.as_ref().map_or_else(|| self.view.data(), |&(_, data)| data)
    }

    pub(crate) fn count(&self) -> i64 {
        self.view.count()
    }
}

/// A dense copy without lazy conjugation or negation, and where its first element is.
fn contiguous(x: &Tensor) -> Result<(Tensor, *const c_void)> {
    let copy = tch::no_grad(|| x.f_resolve_conj()?.f_resolve_neg()?.f_contiguous())?;
    let data = View::of(&copy).data();
    Ok((copy, data))
}

/// A new tensor that MPI writes: contiguous, in host memory, nobody else's storage.
pub(crate) struct Output {
    tensor: Tensor,
    data: *mut c_void,
}

impl Output {
    #[inline]
    pub(crate) fn new(call: &'static str, shape: &[i64], datatype: Datatype) -> Result<Self> {
        let (tensor, data) = autograd::empty(call, shape, datatype.scalar_type())?;
        let elements: i64 = shape.iter().product();
        let elements = usize::try_from(elements).unwrap_or(0);
        let bytes = elements * datatype.kind.elt_size_in_bytes();
        if bytes >= HUGE {
            ask_for_huge_pages(data, bytes);
        }
        Ok(Self { tensor, data })
    }

    /// The first element, valid as long as the tensor.
    pub(crate) fn data(&self) -> *mut c_void {
        self.data
    }

    pub(crate) fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

/// From this size on, what a new tensor costs is its pages: huge ones are far fewer.
const HUGE: usize = 4 << 20;

/// Asks the kernel to back the memory with huge pages. It is a wish: nothing depends on the answer.
#[cold]
fn ask_for_huge_pages(data: *mut c_void, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let skipped = data.align_offset(PAGE).min(bytes);
        // SAFETY: the range lies within an allocation of this size; the advice changes no content.
        unsafe { libc::madvise(data.byte_add(skipped), bytes - skipped, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (data, bytes);
}
