//! [`Op`]: how values of different ranks are combined.

use tch::{Kind, Scalar};

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
/// Every other pair is an [`Error::OpKind`](crate::Error::OpKind). With the 16-bit kinds each
/// combination of two values is computed in `f32` and rounded to the kind, and a `Mean` is computed
/// in `Float` throughout. `Max` and `Min` of floating-point kinds propagate NaN, as `torch.max`
/// does.
///
/// # Derivatives
///
/// `Sum`, `Mean`, `Prod`, `Max` and `Min` have derivatives of every order. The logical and bitwise
/// ops have none: with a tensor that requires grad they are an
/// [`Error::NoAdjoint`](crate::Error::NoAdjoint).
///
/// # Examples
/// ```
/// use mpi4tch::Op;
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let ranks = world.all_reduce(&Tensor::from_slice(&[1]), Op::Sum)?;
/// assert_eq!(ranks, Tensor::from_slice(&[world.size()]));
/// let is_first = Tensor::from_slice(&[world.rank() == 0]);
/// assert_eq!(world.all_reduce(&is_first, Op::LogicalOr)?, Tensor::from_slice(&[true]));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
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
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    ///
    /// let with_adjoint: Vec<Op> =
    ///     Op::ALL.into_iter().filter(|op| op.is_differentiable()).collect();
    /// assert_eq!(with_adjoint, [Op::Sum, Op::Prod, Op::Max, Op::Min, Op::Mean]);
    /// ```
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
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    ///
    /// assert!(Op::Max.is_differentiable());
    /// assert!(!Op::LogicalAnd.is_differentiable());
    /// ```
    #[must_use]
    pub fn is_differentiable(self) -> bool {
        matches!(self, Self::Sum | Self::Prod | Self::Max | Self::Min | Self::Mean)
    }

    /// Whether the reduction is a linear map.
    pub(crate) fn is_linear(self) -> bool {
        matches!(self, Self::Sum | Self::Mean)
    }

    /// The op's identity element: combining a value with it gives that value.
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
}
