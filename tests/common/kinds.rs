//! Kinds and ops, and which of them go together: the tables of the documentation, written once
//! more.

use mpi4tch::Op;
use tch::Kind;

/// Every kind of the table of `datatype`.
pub const KINDS: [Kind; 12] = [
    Kind::Uint8,
    Kind::Int8,
    Kind::Int16,
    Kind::Int,
    Kind::Int64,
    Kind::Half,
    Kind::BFloat16,
    Kind::Float,
    Kind::Double,
    Kind::ComplexFloat,
    Kind::ComplexDouble,
    Kind::Bool,
];

/// The ops that have an adjoint.
pub const DIFFERENTIABLE: [Op; 5] = [Op::Sum, Op::Mean, Op::Prod, Op::Max, Op::Min];

/// Whether the kind carries gradients.
pub fn is_floating(kind: Kind) -> bool {
    KINDS[5..11].contains(&kind)
}

/// The table of `Op`.
pub fn is_defined(op: Op, kind: Kind) -> bool {
    match kind {
        Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double => DIFFERENTIABLE.contains(&op),
        Kind::ComplexFloat | Kind::ComplexDouble => matches!(op, Op::Sum | Op::Mean | Op::Prod),
        Kind::Bool => !matches!(op, Op::Sum | Op::Mean | Op::Prod),
        _ => op != Op::Mean,
    }
}
