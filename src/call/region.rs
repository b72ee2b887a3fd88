//! [`Region`]: a part of a tensor that is sent or received.

use std::ffi::c_void;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::autograd;
use crate::base::error::Result;

/// A part of a contiguous tensor: a range of each axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// The place of its first element.
    start: i64,
    pub(crate) shape: Vec<i64>,
    strides: Vec<i64>,
    /// The number of elements of the tensor.
    pub(super) whole: i64,
}

impl Region {
    /// These ranges of the axes of a tensor of shape `whole`.
    pub(crate) fn new(whole: &[i64], ranges: &[Range<i64>]) -> Self {
        let strides = strides_of(whole);
        let starts = ranges.iter().zip(&strides).map(|(range, stride)| range.start * stride);
        let start = starts.sum();
        let shape = ranges.iter().map(|range| range.end - range.start).collect();
        let all = ranges.iter().zip(whole).all(|(range, extent)| {
            0 <= range.start && range.start <= range.end && range.end <= *extent
        });
        assert!(all && ranges.len() == whole.len(), "{ranges:?} are within {whole:?}");
        Self {
            start,
            shape,
            strides,
            whole: if whole.contains(&0) { 0 } else { whole.iter().product() },
        }
    }

    /// All of a tensor of this shape.
    pub(crate) fn all(whole: &[i64]) -> Self {
        let ranges: Vec<Range<i64>> = whole.iter().map(|extent| 0..*extent).collect();
        Self::new(whole, &ranges)
    }

    /// The elements of a region of this shape one after another, from this place on in a list of so many.
    pub(super) fn listed(shape: &[i64], start: i64, whole: i64) -> Self {
        let listed = Self { start, shape: shape.to_vec(), strides: strides_of(shape), whole };
        assert!(0 <= start && start + listed.count() <= whole, "the list has room for the region");
        listed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The number of its elements, which fits, as they are those of a tensor.
    pub(super) fn count(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Whether its elements are consecutive in memory.
    pub(super) fn is_consecutive(&self) -> bool {
        let mut next = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&extent, &stride)| {
            let fits = extent == 1 || stride == next;
            next *= extent;
            fits
        })
    }

    /// The first element of the region, in a tensor whose elements begin at `data` and have so many
    /// bytes.
    pub(super) fn first(&self, data: *mut c_void, size: usize) -> *mut c_void {
        data.wrapping_byte_add(usize::try_from(self.start).unwrap_or(0) * size)
    }

    /// Copies the region of one tensor to one of another, which has the same shape.
    ///
    /// libtorch's copy takes 2 µs before it copies anything, which is more than most regions take.
    ///
    /// # Safety
    /// `from` and `to` point to the elements of the regions' tensors, of `size` bytes each. The regions
    /// do not overlap.
    pub(super) unsafe fn copy(
        &self,
        from: *const c_void,
        target: &Self,
        to: *mut c_void,
        size: usize,
    ) {
        assert_eq!(self.shape, target.shape, "both regions have the same shape");
        if self.is_empty() {
            return;
        }
        let (from, to) = (self.first(from.cast_mut(), size).cast_const(), target.first(to, size));
        let strides = (&self.strides[..], &target.strides[..]);
        // SAFETY: the caller vouches for the tensors, in which the regions lie. No type needs more
        // alignment than a byte, as elements are read and written unaligned.
        unsafe {
            match size {
                1 => copy::<u8>(&self.shape, strides, from.cast(), to.cast()),
                2 => copy::<u16>(&self.shape, strides, from.cast(), to.cast()),
                4 => copy::<u32>(&self.shape, strides, from.cast(), to.cast()),
                8 => copy::<u64>(&self.shape, strides, from.cast(), to.cast()),
                16 => copy::<u128>(&self.shape, strides, from.cast(), to.cast()),
                _ => unreachable!("no kind has elements of {size} bytes"),
            }
        }
    }

    /// A view of the region in a contiguous tensor, wherever that is. It has no history.
    pub(super) fn view(&self, call: &'static str, x: &Tensor) -> Result<Tensor> {
        autograd::view(call, x, self.start, &self.shape, &self.strides)
    }

    /// A view of the region in a tensor of the host whose elements begin at `data`.
    ///
    /// # Safety
    /// `data` points to the elements of the region's tensor, of this kind, which outlive the view.
    pub(super) unsafe fn view_at(&self, data: *mut c_void, kind: Kind) -> Result<Tensor> {
        if self.is_empty() {
            return Ok(Tensor::f_zeros(&self.shape[..], (kind, Device::Cpu))?);
        }
        let first = self.first(data, kind.elt_size_in_bytes()).cast_const().cast();
        // SAFETY: passed on to the caller.
        let view =
            unsafe { Tensor::f_from_blob(first, &self.shape, &self.strides, kind, Device::Cpu) };
        Ok(view?)
    }
}

/// The strides of a contiguous tensor of this shape.
fn strides_of(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1_i64; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

/// Copies elements of a shape from places with these strides to places with those.
///
/// # Safety
/// All places are valid, and none is read as well as written.
unsafe fn copy<T>(
    shape: &[i64],
    (from_strides, to_strides): (&[i64], &[i64]),
    from: *const T,
    to: *mut T,
) {
    let Some((extent, shape)) = shape.split_first() else {
        // SAFETY: passed on to the caller.
        return unsafe { to.write_unaligned(from.read_unaligned()) };
    };
    let place = |stride: i64, i: i64| usize::try_from(stride * i).unwrap_or(0);
    let steps = (from_strides[0], to_strides[0]);
    if shape.is_empty() && steps == (1, 1) {
        let count = place(1, *extent) * size_of::<T>();
        // SAFETY: as above; the elements are consecutive in both places.
        return unsafe { to.cast::<u8>().copy_from_nonoverlapping(from.cast(), count) };
    }
    let strides = (&from_strides[1..], &to_strides[1..]);
    for i in 0..*extent {
        let (from, to) = (from.wrapping_add(place(steps.0, i)), to.wrapping_add(place(steps.1, i)));
        // SAFETY: as above.
        unsafe { copy(shape, strides, from, to) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(x: &Tensor) -> i64 {
        x.flatten(0, -1).int64_value(&[0])
    }

    #[test]
    fn regions_are_copied_from_one_tensor_to_another() {
        let kinds = [Kind::Bool, Kind::Half, Kind::Float, Kind::Double, Kind::ComplexDouble];
        for kind in kinds {
            let x = Tensor::arange(60, (Kind::Int64, Device::Cpu)).to_kind(kind).view([3, 4, 5]);
            let size = kind.elt_size_in_bytes();
            for (ranges, to) in [
                ([0..3, 0..4, 0..5], [0..3, 1..5, 2..7]),
                ([1..2, 0..4, 0..5], [2..3, 0..4, 1..6]),
                ([0..3, 1..3, 4..5], [0..3, 3..5, 0..1]),
                ([2..2, 0..4, 0..5], [0..0, 0..4, 0..5]),
            ] {
                let [from, target] =
                    [Region::new(&[3, 4, 5], &ranges), Region::new(&[3, 5, 7], &to)];
                let y = Tensor::zeros([3, 5, 7], (kind, Device::Cpu));
                let cut = |x: &Tensor, ranges: &[Range<i64>; 3]| {
                    let cut = (0..).zip(ranges);
                    cut.fold(x.shallow_clone(), |x, (axis, range)| {
                        x.narrow(axis, range.start, range.end - range.start)
                    })
                };
                let expected = y.copy();
                cut(&expected, &to).copy_(&cut(&x, &ranges));
                // SAFETY: the regions are of these tensors.
                unsafe { from.copy(x.data_ptr(), &target, y.data_ptr(), size) };
                assert_eq!(y, expected, "{kind:?}");
                // SAFETY: as above.
                let view = unsafe { target.view_at(y.data_ptr(), kind) }.unwrap();
                assert_eq!(view, cut(&x, &ranges));
                assert_eq!(from.view("test", &x).unwrap(), cut(&x, &ranges));
                let list = Tensor::zeros([200], (kind, Device::Cpu));
                let listed = Region::listed(&from.shape, 20, 200).view("test", &list).unwrap();
                listed.shallow_clone().copy_(&cut(&x, &ranges));
                let end = 20 + from.count();
                assert_eq!(list.narrow(0, 20, from.count()).view_as(&listed), listed);
                assert_eq!(list.narrow(0, end, 200 - end).any().int64_value(&[]), 0);
            }
        }
    }

    #[test]
    fn regions_are_those_of_narrow() {
        let x = Tensor::arange(60, (Kind::Int64, Device::Cpu)).view([3, 4, 5]);
        for (a, b, c) in
            [(0..3, 0..4, 0..5), (1..2, 0..4, 0..5), (0..3, 1..3, 0..5), (2..3, 1..2, 2..5)]
        {
            let region = Region::new(&[3, 4, 5], &[a.clone(), b.clone(), c.clone()]);
            let narrow = x
                .narrow(0, a.start, a.end - a.start)
                .narrow(1, b.start, b.end - b.start)
                .narrow(2, c.start, c.end - c.start);
            assert_eq!(region.shape, narrow.size());
            assert_eq!(region.start, first(&narrow));
            assert_eq!(region.is_consecutive(), narrow.is_contiguous());
            assert_eq!(region.count(), i64::try_from(narrow.numel()).unwrap());
        }
    }
}
