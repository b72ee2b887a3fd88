//! [`Op`] and MPI's op for it, with our own ops where MPI has none.
//!
//! MPI defines no op for 16-bit floating point; its `MPI_MAX` and `MPI_MIN` lose a NaN or keep it
//! depending on the order of the ranks; and sums of 8 and 16 bits wrap in some libraries and
//! saturate in others, in Open MPI 4.1 depending on the index. For these, `MPI_Op_create` takes the
//! functions of [`own_ops`].

mod own_ops;

use mpi_sys::MPI_Op;
use tch::{Kind, Scalar, Tensor};

use crate::autograd::View;
use crate::buffer::Input;
use crate::communicator::{Communicator, Rank};
use crate::datatype::{Class, Datatype};
use crate::error::{Error, Result};
use crate::operator::{Mode, Operator, apply};
pub(crate) use own_ops::OwnOps;

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
    let (kind, sum) = match Datatype::of(View::of(x).scalar_type()) {
        // The sum of 16-bit kinds can overflow where the mean does not.
        Some(Datatype { kind, class: Class::Half, .. }) => {
            // The call that follows does not compare the kind.
            let (_, comm) = M::agree(operator, comm, x)?;
            let sum = apply::<M>(operator, &comm, &x.f_to_kind(Kind::Float)?)?;
            (Some(kind), sum)
        }
        _ => (None, apply::<M>(operator, comm, x)?),
    };
    M::then([sum], move |[mut sum]| {
        let mean = sum.f_div_scalar_(i64::from(ranks))?;
        Ok(match kind {
            Some(kind) => mean.f_to_kind(kind)?,
            None => mean,
        })
    })
}
