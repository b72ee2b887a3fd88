//! The buffers that MPI reads and writes: tensors, checked, as (pointer, count, datatype).
//!
//! All result and staging memory comes from [`Output`], so that its source can change in one place.

use std::collections::BTreeMap;
use std::ffi::c_void;

use parking_lot::Mutex;

use tch::{TchError, Tensor};

use crate::autograd::{self, Device, Metadata, Recording};
use crate::base::error::{Error, Result};
use crate::call::blocks::{Blocks, elements};
use crate::environment::datatype::Datatype;

/// A tensor to send, which has been checked. MPI may read it only after
/// [`contiguous`](Self::contiguous), [`packed`](Self::packed) or [`replaced`](Self::replaced), and if
/// it is on a device as `staging` says.
pub(crate) struct Input<'x> {
    call: &'static str,
    view: Metadata<'x>,
    /// The tensor that is sent instead of the user's, if any.
    copy: Option<Tensor>,
    data: *const c_void,
    datatype: Datatype,
}

impl<'x> Input<'x> {
    #[inline]
    pub(crate) fn new(call: &'static str, x: &'x Tensor) -> Result<Self> {
        let view = Metadata::of(x);
        if !view.is_defined() {
            return Err(Error::Undefined { call });
        }
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
        let input = Self { call, view, copy: None, data: view.data(), datatype };
        if !view.device().is_cpu() {
            input.check_device(&view)?;
        }
        Ok(input)
    }

    /// An error if the elements are nowhere, as those of a tensor on the device `meta`, or libtorch lacks
    /// the interfaces by which they can be copied.
    #[cold]
    fn check_device(&self, view: &Metadata) -> Result<()> {
        let is_nowhere = view.count() != 0 && view.data().is_null() && view.is_contiguous();
        if is_nowhere || !view.device().is_reached() {
            return Err(Error::Device { call: self.call, device: view.device().to_string() });
        }
        Ok(())
    }

    /// Makes the elements contiguous: sends a copy of the tensor, unless they are already.
    #[inline]
    pub(crate) fn contiguous(self) -> Result<Self> {
        // A copy is always contiguous.
        if self.copy.is_some() || self.view.is_contiguous() {
            return Ok(self);
        }
        self.replaced(|x| Ok(x.shallow_clone()))
    }

    /// Makes the blocks consecutive: sends a packed copy of the tensor, unless they are already.
    pub(crate) fn packed(self, blocks: &Blocks) -> Result<Self> {
        if blocks.are_consecutive(self.shape()) {
            return self.contiguous();
        }
        let packed = blocks.pack(self.call, self.sent(), self.datatype)?;
        Ok(self.sending(packed))
    }

    /// Sends the tensor that `f` returns instead; it has the same number of elements and kind.
    pub(crate) fn replaced(
        self,
        f: impl FnOnce(&Tensor) -> std::result::Result<Tensor, TchError>,
    ) -> Result<Self> {
        let recording = Recording::off();
        let other = f(self.view.tensor())?.f_resolve_conj()?.f_resolve_neg()?.f_contiguous()?;
        drop(recording);
        let view = Metadata::of(&other);
        if view.count() != 0 && view.data().is_null() {
            if !self.device().is_cpu() {
                self.check_device(&view)?;
            }
            // Zeros that torch keeps without storage: MPI needs them in memory.
            let place = self.device().into();
            let zeros = Output::at(place, self.call, self.shape(), self.datatype)?;
            let mut zeros = zeros.into_tensor();
            let _ = zeros.f_zero_()?;
            return Ok(self.sending(zeros));
        }
        Ok(self.sending(other))
    }

    fn sending(self, copy: Tensor) -> Self {
        let data = Metadata::of(&copy).data();
        Self { data, copy: Some(copy), ..self }
    }

    pub(crate) fn shape(&self) -> &'x [i64] {
        self.view.shape()
    }

    pub(crate) fn datatype(&self) -> Datatype {
        self.datatype
    }

    #[inline]
    pub(crate) fn device(&self) -> Device {
        self.view.device()
    }

    pub(crate) fn view(&self) -> &Metadata<'x> {
        &self.view
    }

    pub(crate) fn requires_grad(&self) -> bool {
        self.view.requires_grad()
    }

    /// The tensor that [`data`](Self::data) points into.
    pub(crate) fn sent(&self) -> &Tensor {
        self.copy.as_ref().unwrap_or_else(|| self.view.tensor())
    }

    /// The first of [`count`](Self::count) elements, in the memory of the tensor's device, valid as long
    /// as `self`.
    #[inline]
    pub(crate) fn data(&self) -> *const c_void {
        self.data
    }

    pub(crate) fn count(&self) -> i64 {
        self.view.count()
    }
}

/// Where a new tensor is made.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// In host memory.
    Host,
    /// On a device.
    On(Device),
    /// In host memory that a device can copy from and to while the host goes on.
    Near(Device),
}

impl From<Device> for Place {
    #[inline]
    fn from(device: Device) -> Self {
        if device.is_cpu() { Self::Host } else { Self::On(device) }
    }
}

/// A contiguous tensor that MPI or this crate writes.
pub(crate) struct Output {
    tensor: Tensor,
    data: *mut c_void,
}

impl Output {
    /// A new tensor with undefined content, made in this place.
    #[inline]
    pub(crate) fn at(
        place: Place,
        call: &'static str,
        shape: &[i64],
        datatype: Datatype,
    ) -> Result<Self> {
        let scalar_type = datatype.scalar_type();
        let (tensor, data) = match place {
            Place::Host => return Self::new(call, shape, datatype),
            Place::On(device) => autograd::empty_on(device, call, shape, scalar_type)?,
            Place::Near(device) => autograd::empty_near(device, call, shape, scalar_type)?,
        };
        Ok(Self { tensor, data })
    }

    /// A new tensor with undefined content, in host memory.
    #[inline]
    pub(crate) fn new(call: &'static str, shape: &[i64], datatype: Datatype) -> Result<Self> {
        let (tensor, data) = autograd::empty(call, shape, datatype.scalar_type())?;
        // torch has allocated the tensor, so its size fits.
        let count = usize::try_from(elements(call, shape)?).unwrap_or(0);
        let bytes = count.saturating_mul(datatype.kind.elt_size_in_bytes());
        if bytes >= HUGE {
            ask_for_huge_pages(data, bytes);
        }
        Ok(Self { tensor, data })
    }

    /// Copies the tensor that `input` sends, which has as many elements and is on the same device.
    pub(crate) fn copy_from(&self, input: &Input) -> Result<()> {
        let _recording = Recording::off();
        Ok(self.tensor.shallow_clone().f_copy_(input.sent())?)
    }

    /// Zeros of this shape, in the storage of one element.
    pub(crate) fn zeros(
        device: Device,
        call: &'static str,
        shape: &[i64],
        datatype: Datatype,
    ) -> Result<Tensor> {
        let mut zero = Self::at(device.into(), call, &[], datatype)?.into_tensor();
        let _ = zero.f_zero_()?;
        Ok(zero.f_expand(shape, false)?)
    }

    /// The first element, valid as long as the tensor.
    #[inline]
    pub(crate) fn data(&self) -> *mut c_void {
        self.data
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    pub(crate) fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

/// Memory that MPI reads or writes while a call is under way. It is not freed, and not moved by a
/// resize, whatever the program does with the tensor.
pub(crate) struct Pinned {
    tensor: Tensor,
    storage: usize,
}

/// The number of `Pinned` for each storage, by its address, of the storages that could be resized
/// before they were pinned.
static PINS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

impl Pinned {
    pub(crate) fn new(call: &'static str, tensor: &Tensor) -> Result<Self> {
        let mut pins = PINS.lock();
        let (tensor, storage, resizable) = autograd::pin(call, tensor)?;
        if resizable || pins.contains_key(&storage) {
            *pins.entry(storage).or_default() += 1;
        }
        Ok(Self { tensor, storage })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut pins = PINS.lock();
        let Some(count) = pins.get_mut(&self.storage) else { return };
        *count -= 1;
        if *count == 0 {
            pins.remove(&self.storage);
            autograd::unpin(&self.tensor);
        }
    }
}

/// The size in bytes from which on a new tensor's cost is mostly that of its pages, of which there
/// are far fewer if they are huge.
const HUGE: usize = 4 << 20;

/// Asks the kernel to back the memory with huge pages. Nothing depends on whether it does.
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
