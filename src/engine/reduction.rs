//! Reductions: the MPI op for each [`Op`], which is one of our own where MPI has none that fits.
//!
//! MPI defines no op for 16-bit floating point. Whether its `MPI_MAX` and `MPI_MIN` keep a NaN
//! depends on the order of the ranks. Sums of 8-bit and 16-bit integers wrap in some libraries and
//! saturate in others, and in Open MPI 4.1 it depends on the index. For these cases `MPI_Op_create`
//! takes the functions of [`own_ops`](crate::environment::own_ops).

use mpi_sys::MPI_Op;
use tch::{Kind, Tensor};

use crate::autograd::Metadata;
use crate::base::error::{Error, Result};
use crate::base::op::Op;
use crate::base::rank::Rank;
use crate::call::buffer::Input;
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Mode, Operator, apply};
use crate::environment::datatype::{Class, Datatype};
use crate::environment::own_ops::OwnOps;

impl Op {
    /// Whether a reduction of `x` in place can be one MPI call in place.
    pub(crate) fn changes_in_place(self, comm: &Communicator, x: &Tensor) -> bool {
        match self {
            Self::Sum => true,
            Self::Mean => false,
            // The derivative needs the old value of x.
            _ => !comm.records(&Metadata::of(x)),
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

    /// The tensor that is sent. For a logical op on integers it has 0 and 1 only: where MPI has
    /// nothing to combine, on one rank or on the first of a scan, its result is the number sent.
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

    /// MPI's handle for the op on `datatype`; for `Mean` it is that of the sum.
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

/// Carries out a reduction over `ranks` ranks whose op is linear or not differentiable. A `Mean` is
/// a sum and a division, as MPI has no op for it.
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
    let (kind, sum) = match Datatype::of(Metadata::of(x).scalar_type()) {
        // The sum of 16-bit kinds can overflow where the mean does not.
        Some(Datatype { kind, class: Class::Half, .. }) => {
            // The agreement compares the kind that the user gave; the sum is of kind Float.
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
