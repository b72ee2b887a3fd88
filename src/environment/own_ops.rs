//! MPI ops defined by this crate, where MPI has none or gives other results than torch.

use std::ffi::{c_int, c_void};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use mpi_sys::{MPI_Datatype, MPI_Op};
use tch::Kind;

use crate::base::error::Result;
use crate::base::op::Op;
use crate::environment::error_code::checked;

/// The ops that this crate defines, created at initialization.
#[derive(Debug)]
pub(crate) struct OwnOps {
    half: HalfOps,
    bfloat16: HalfOps,
    float: Extrema,
    double: Extrema,
    uint8_sum: MPI_Op,
    int8_sum: MPI_Op,
    int16_sum: MPI_Op,
}

#[derive(Debug)]
struct HalfOps {
    sum: MPI_Op,
    prod: MPI_Op,
    extrema: Extrema,
}

#[derive(Debug)]
struct Extrema {
    max: MPI_Op,
    min: MPI_Op,
}

impl OwnOps {
    pub(crate) fn create() -> Result<Self> {
        Ok(Self {
            half: HalfOps::create::<f16>()?,
            bfloat16: HalfOps::create::<bf16>()?,
            float: Extrema { max: create(combine::<f32, Max>)?, min: create(combine::<f32, Min>)? },
            double: Extrema {
                max: create(combine::<f64, Max>)?,
                min: create(combine::<f64, Min>)?,
            },
            uint8_sum: create(combine::<u8, Sum>)?,
            int8_sum: create(combine::<i8, Sum>)?,
            int16_sum: create(combine::<i16, Sum>)?,
        })
    }

    /// The op for a floating-point kind, which MPI lacks or gives other results for: of `Float` and
    /// `Double` these are `Max` and `Min` only.
    #[inline]
    pub(crate) fn get(&self, op: Op, kind: Kind) -> MPI_Op {
        let half = match kind {
            Kind::Float => return self.float.get(op),
            Kind::Double => return self.double.get(op),
            Kind::Half => &self.half,
            _ => &self.bfloat16,
        };
        match op {
            Op::Sum | Op::Mean => half.sum,
            Op::Prod => half.prod,
            _ => half.extrema.get(op),
        }
    }

    /// The sum for 8- and 16-bit integers, which some MPI libraries let saturate.
    #[inline]
    pub(crate) fn wrapping_sum(&self, kind: Kind) -> Option<MPI_Op> {
        match kind {
            Kind::Uint8 => Some(self.uint8_sum),
            Kind::Int8 => Some(self.int8_sum),
            Kind::Int16 => Some(self.int16_sum),
            _ => None,
        }
    }

    /// All handles, in order of creation.
    pub(crate) fn handles(&self) -> Vec<MPI_Op> {
        let halves = [&self.half, &self.bfloat16];
        let halves = halves.iter().flat_map(|h| [h.sum, h.prod, h.extrema.max, h.extrema.min]);
        let extrema = [&self.float, &self.double].into_iter().flat_map(|e| [e.max, e.min]);
        halves.chain(extrema).chain([self.uint8_sum, self.int8_sum, self.int16_sum]).collect()
    }
}

impl HalfOps {
    fn create<T: Sixteen>() -> Result<Self> {
        Ok(Self {
            sum: create(combine_16::<T, Sum>)?,
            prod: create(combine_16::<T, Prod>)?,
            extrema: Extrema {
                max: create(combine_16::<T, Max>)?,
                min: create(combine_16::<T, Min>)?,
            },
        })
    }
}

impl Extrema {
    #[inline]
    fn get(&self, op: Op) -> MPI_Op {
        if op == Op::Max { self.max } else { self.min }
    }
}

/// `MPI_User_function`: `inout[i] = in[i] ∘ inout[i]`.
type Function = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_int, *mut MPI_Datatype);

fn create(function: Function) -> Result<MPI_Op> {
    let mut op = mpi_sys::MPI_OP_NULL;
    // SAFETY: the function has the signature of MPI_User_function, lives as long as the program
    // and cannot unwind; `op` is written before the call returns.
    unsafe { checked!(MPI_Op_create(Some(function), 1, &mut op)) }?;
    Ok(op)
}

/// How two values are combined. MPI may combine the ranks' values in any order.
trait Combine<T> {
    fn combine(a: T, b: T) -> T;
}

struct Sum;
struct Prod;
struct Max;
struct Min;

impl Combine<f32> for Sum {
    #[inline]
    fn combine(a: f32, b: f32) -> f32 {
        a + b
    }
}

impl Combine<f32> for Prod {
    #[inline]
    fn combine(a: f32, b: f32) -> f32 {
        a * b
    }
}

macro_rules! wrapping_sums {
    ($($t:ty)*) => {$(
        impl Combine<$t> for Sum {
            #[inline]
            fn combine(a: $t, b: $t) -> $t {
                a.wrapping_add(b)
            }
        }
    )*};
}

wrapping_sums!(u8 i8 i16);

macro_rules! extrema {
    ($($t:ty)*) => {$(
        impl Combine<$t> for Max {
            #[inline]
            fn combine(a: $t, b: $t) -> $t {
                if a > b || a.is_nan() { a } else { b }
            }
        }

        impl Combine<$t> for Min {
            #[inline]
            fn combine(a: $t, b: $t) -> $t {
                if a < b || a.is_nan() { a } else { b }
            }
        }
    )*};
}

extrema!(f32 f64);

/// The two vectors of an `MPI_User_function` as slices.
///
/// # Safety
/// Both point at `*len` values of `T`, which do not overlap, and live through `'a`.
unsafe fn slices<'a, T>(
    input: *const c_void,
    inout: *mut c_void,
    len: *const c_int,
) -> (&'a [T], &'a mut [T]) {
    // SAFETY: as required of the caller; MPI gives an aligned, valid `len`, never negative.
    unsafe {
        let len = usize::try_from(*len).unwrap_or(0);
        if len == 0 {
            return (&[], &mut []);
        }
        (
            std::slice::from_raw_parts(input.cast(), len),
            std::slice::from_raw_parts_mut(inout.cast(), len),
        )
    }
}

unsafe extern "C" fn combine<T: Copy, O: Combine<T>>(
    input: *mut c_void,
    inout: *mut c_void,
    len: *mut c_int,
    _datatype: *mut MPI_Datatype,
) {
    // SAFETY: MPI calls an op with two disjoint vectors of `len` elements of the datatype it is
    // used with, and `OwnOps` returns this op for the kind of `T` only.
    let (input, inout) = unsafe { slices::<T>(input, inout, len) };
    for (b, a) in inout.iter_mut().zip(input) {
        *b = O::combine(*a, *b);
    }
}

/// A 16-bit floating-point number.
trait Sixteen: Copy {
    fn widen(values: &[Self], into: &mut [f32]);
    fn narrow(values: &[f32], into: &mut [Self]);
}

macro_rules! sixteen {
    ($($t:ty)*) => {$(
        impl Sixteen for $t {
            fn widen(values: &[Self], into: &mut [f32]) {
                values.convert_to_f32_slice(into);
            }

            fn narrow(values: &[f32], into: &mut [Self]) {
                into.convert_from_f32_slice(values);
            }
        }
    )*};
}

sixteen!(f16 bf16);

/// Combines blocks of values, which the crate `half` converts with vector instructions.
unsafe extern "C" fn combine_16<T: Sixteen, O: Combine<f32>>(
    input: *mut c_void,
    inout: *mut c_void,
    len: *mut c_int,
    _datatype: *mut MPI_Datatype,
) {
    const BLOCK: usize = 256;
    // SAFETY: as in `combine`.
    let (input, inout) = unsafe { slices::<T>(input, inout, len) };
    let (mut a, mut b) = ([0_f32; BLOCK], [0_f32; BLOCK]);
    for (input, inout) in input.chunks(BLOCK).zip(inout.chunks_mut(BLOCK)) {
        let (a, b) = (&mut a[..input.len()], &mut b[..input.len()]);
        T::widen(input, a);
        T::widen(inout, b);
        for (b, a) in b.iter_mut().zip(a) {
            *b = O::combine(*a, *b);
        }
        T::narrow(b, inout);
    }
}
