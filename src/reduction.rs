//! [`Op`] and MPI's op for it, with our own ops where MPI has none.
//!
//! MPI defines no op for 16-bit floating point; its `MPI_MAX` and `MPI_MIN` lose a NaN or keep it
//! depending on the order of the ranks; and sums of 8 and 16 bits wrap in some libraries and
//! saturate in others, in Open MPI 4.1 depending on the index. For these, `MPI_Op_create` takes the
//! functions below.

use std::ffi::{c_int, c_void};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use mpi_sys::{MPI_Datatype, MPI_Op};
use tch::{Kind, Scalar, Tensor};

use crate::autograd::View;
use crate::buffer::Input;
use crate::communicator::{Communicator, Rank};
use crate::datatype::{Class, Datatype};
use crate::error::{Error, Result, check};
use crate::operator::{Mode, Operator, apply};

/// How values of different ranks are combined.
///
/// # Kinds
///
/// | op | `Uint8` … `Int64` | `Half`, `BFloat16` | `Float`, `Double` | `ComplexFloat`, `ComplexDouble` | `Bool` |
/// | --- | --- | --- | --- | --- | --- |
/// | `Sum`, `Prod` | yes, wraps | yes | yes | yes | – |
/// | `Mean` | – | yes | yes | yes | – |
/// | `Max`, `Min` | yes | yes | yes | – | yes (or, and) |
/// | `LogicalAnd`, `LogicalOr`, `LogicalXor` | yes, gives 0 or 1 | – | – | – | yes |
/// | `BitwiseAnd`, `BitwiseOr`, `BitwiseXor` | yes | – | – | – | yes |
///
/// Every other pair is an [`Error::OpKind`]. With the 16-bit kinds each combination of two values
/// is computed in `f32` and rounded to the kind, and a `Mean` is computed in `Float` throughout. `Max` and `Min` of floating-point kinds propagate
/// NaN, as `torch.max` does.
///
/// # Derivatives
///
/// `Sum`, `Mean`, `Prod`, `Max` and `Min` have derivatives of every order. The logical and bitwise
/// ops have none: with a tensor that requires grad they are an [`Error::NoAdjoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[doc(alias = "MPI_Op")]
pub enum Op {
    /// The sum.
    #[doc(alias = "MPI_SUM")]
    Sum,
    /// The product.
    #[doc(alias = "MPI_PROD")]
    Prod,
    /// The largest value; NaN if any is.
    #[doc(alias = "MPI_MAX")]
    Max,
    /// The smallest value; NaN if any is.
    #[doc(alias = "MPI_MIN")]
    Min,
    /// The sum divided by the number of ranks.
    Mean,
    /// Whether all values are non-zero.
    #[doc(alias = "MPI_LAND")]
    LogicalAnd,
    /// Whether any value is non-zero.
    #[doc(alias = "MPI_LOR")]
    LogicalOr,
    /// Whether an odd number of values is non-zero.
    #[doc(alias = "MPI_LXOR")]
    LogicalXor,
    /// The bits that all values have.
    #[doc(alias = "MPI_BAND")]
    BitwiseAnd,
    /// The bits that any value has.
    #[doc(alias = "MPI_BOR")]
    BitwiseOr,
    /// The bits that an odd number of values has.
    #[doc(alias = "MPI_BXOR")]
    BitwiseXor,
}

impl Op {
    /// Every op.
    pub const ALL: [Self; 11] = [
        Self::Sum,
        Self::Prod,
        Self::Max,
        Self::Min,
        Self::Mean,
        Self::LogicalAnd,
        Self::LogicalOr,
        Self::LogicalXor,
        Self::BitwiseAnd,
        Self::BitwiseOr,
        Self::BitwiseXor,
    ];

    /// Whether the op has a derivative.
    #[must_use]
    pub fn is_differentiable(self) -> bool {
        matches!(self, Self::Sum | Self::Prod | Self::Max | Self::Min | Self::Mean)
    }

    /// Whether the reduction is a linear map.
    pub(crate) fn is_linear(self) -> bool {
        matches!(self, Self::Sum | Self::Mean)
    }

    /// Whether a reduction can change `x` in place by one MPI call.
    pub(crate) fn changes_in_place(self, comm: &Communicator, x: &Tensor) -> bool {
        match self {
            Self::Sum => true,
            Self::Mean => false,
            // The derivative needs what x was.
            _ => !comm.records(&View::of(x)),
        }
    }

    /// MPI's handle for the op on `input`, after checking that the op may be used on it.
    #[inline]
    pub(crate) fn check(
        self,
        call: &'static str,
        comm: &Communicator,
        input: &Input,
    ) -> Result<MPI_Op> {
        if input.requires_grad() && !self.is_differentiable() {
            return Err(Error::NoAdjoint { call, op: self });
        }
        self.mpi(call, input.datatype(), &comm.environment().handles().ops)
    }

    /// What MPI is to be sent. A logical op gives 0 or 1, but where MPI has nothing to combine, its
    /// result is what a rank sent.
    #[inline]
    pub(crate) fn operand(self, input: Input<'_>) -> Result<Input<'_>> {
        match (self, input.datatype().class) {
            (Self::LogicalAnd | Self::LogicalOr | Self::LogicalXor, Class::Integer) => {
                let kind = input.datatype().kind;
                input.replaced(|x| x.f_not_equal(0)?.f_to_kind(kind))
            }
            _ => Ok(input),
        }
    }

    /// The value that changes nothing when combined with it.
    pub(crate) fn identity(self, kind: Kind) -> Scalar {
        let least = match kind {
            Kind::Uint8 | Kind::Bool => Scalar::int(0),
            Kind::Int8 => i64::from(i8::MIN).into(),
            Kind::Int16 => i64::from(i16::MIN).into(),
            Kind::Int => i64::from(i32::MIN).into(),
            Kind::Int64 => i64::MIN.into(),
            _ => f64::NEG_INFINITY.into(),
        };
        let most = match kind {
            Kind::Uint8 => i64::from(u8::MAX).into(),
            Kind::Bool => Scalar::int(1),
            Kind::Int8 => i64::from(i8::MAX).into(),
            Kind::Int16 => i64::from(i16::MAX).into(),
            Kind::Int => i64::from(i32::MAX).into(),
            Kind::Int64 => i64::MAX.into(),
            _ => f64::INFINITY.into(),
        };
        let all_ones = match kind {
            Kind::Uint8 => i64::from(u8::MAX),
            Kind::Bool => 1,
            _ => -1,
        };
        match self {
            Self::Max => least,
            Self::Min => most,
            Self::Prod | Self::LogicalAnd => Scalar::int(1),
            Self::BitwiseAnd => all_ones.into(),
            Self::Sum
            | Self::Mean
            | Self::LogicalOr
            | Self::LogicalXor
            | Self::BitwiseOr
            | Self::BitwiseXor => Scalar::int(0),
        }
    }

    /// MPI's handle for the op on `datatype`; for `Mean` that of the sum.
    #[inline]
    fn mpi(self, call: &'static str, datatype: Datatype, own: &OwnOps) -> Result<MPI_Op> {
        use Class::{Bool, Complex, Half, Integer, Real};
        Ok(match (self, datatype.class) {
            (Self::Sum, Integer) => own.wrapping_sum(datatype.kind).unwrap_or(mpi_sys::MPI_SUM),
            (Self::Sum | Self::Mean, Real | Complex) => mpi_sys::MPI_SUM,
            (Self::Prod, Integer | Real | Complex) => mpi_sys::MPI_PROD,
            (Self::Max, Integer) => mpi_sys::MPI_MAX,
            (Self::Min, Integer) => mpi_sys::MPI_MIN,
            (Self::Sum | Self::Mean | Self::Prod | Self::Max | Self::Min, Half)
            | (Self::Max | Self::Min, Real) => own.get(self, datatype.kind),
            (Self::LogicalAnd, Integer | Bool) | (Self::BitwiseAnd | Self::Min, Bool) => {
                mpi_sys::MPI_LAND
            }
            (Self::LogicalOr, Integer | Bool) | (Self::BitwiseOr | Self::Max, Bool) => {
                mpi_sys::MPI_LOR
            }
            (Self::LogicalXor, Integer | Bool) | (Self::BitwiseXor, Bool) => mpi_sys::MPI_LXOR,
            (Self::BitwiseAnd, Integer) => mpi_sys::MPI_BAND,
            (Self::BitwiseOr, Integer) => mpi_sys::MPI_BOR,
            (Self::BitwiseXor, Integer) => mpi_sys::MPI_BXOR,
            _ => {
                return Err(Error::OpKind { call, op: self, kind: datatype.kind });
            }
        })
    }
}

/// Carries out a reduction that is linear, or not differentiable, over `ranks` ranks: for a `Mean`,
/// the sum, and the division, which MPI has no op for.
#[track_caller]
#[inline]
pub(crate) fn reduce<M: Mode>(
    operator: &dyn Operator,
    op: Op,
    ranks: Rank,
    comm: &Communicator,
    x: &Tensor,
) -> Result<M::Output> {
    if op != Op::Mean {
        return apply::<M>(operator, comm, x);
    }
    let kind = match Datatype::of(View::of(x).scalar_type()) {
        // The sum of 16-bit kinds can overflow where the mean does not.
        Some(Datatype { kind, class: Class::Half, .. }) => {
            // The call that follows does not compare the kind.
            M::check(operator, comm, x)?;
            Some(kind)
        }
        _ => None,
    };
    let sum = match kind {
        Some(_) => apply::<M>(operator, comm, &x.f_to_kind(Kind::Float)?)?,
        None => apply::<M>(operator, comm, x)?,
    };
    M::then([sum], move |[mut sum]| {
        let mean = sum.f_div_scalar_(i64::from(ranks))?;
        Ok(match kind {
            Some(kind) => mean.f_to_kind(kind)?,
            None => mean,
        })
    })
}

/// The ops that MPI lacks, made at initialization.
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

    #[inline]
    fn get(&self, op: Op, kind: Kind) -> MPI_Op {
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

    #[inline]
    fn wrapping_sum(&self, kind: Kind) -> Option<MPI_Op> {
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
    let code = unsafe { mpi_sys::MPI_Op_create(Some(function), 1, &mut op) };
    check("MPI_Op_create", code)?;
    Ok(op)
}

/// A commutative and associative combination of two values.
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
    // used with, and `OwnOps::get` gives this one out for `T` only.
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

/// Combines in blocks, which `half` converts with vector instructions.
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
