//! The MPI datatype for each `Kind` of [tch](https://github.com/LaurentMazare/tch-rs).
//!
//! | kind | MPI datatype |
//! | --- | --- |
//! | `Uint8`, `Int8`, `Int16`, `Int`, `Int64` | `MPI_UINT8_T`, `MPI_INT8_T`, `MPI_INT16_T`, `MPI_INT32_T`, `MPI_INT64_T` |
//! | `Half`, `BFloat16` | a datatype of two bytes each, made at [`initialize`](crate::initialize) |
//! | `Float`, `Double` | `MPI_FLOAT`, `MPI_DOUBLE` |
//! | `ComplexFloat`, `ComplexDouble` | `MPI_C_FLOAT_COMPLEX`, `MPI_C_DOUBLE_COMPLEX` |
//! | `Bool` | `MPI_C_BOOL` |
//!
//! A tensor of any other kind is an [`Error::Kind`](crate::Error::Kind). Which kinds an
//! [`Op`](crate::Op) takes is said [there](crate::Op#kinds).

use mpi_sys::MPI_Datatype;
use tch::Kind;

use super::own_ops::OwnOps;
use crate::base::error::Result;
use crate::environment::error_code::checked;

/// The classes of kinds, which differ in the ops that MPI has for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Integer,
    /// 16-bit floating point, which MPI lacks.
    Half,
    Real,
    Complex,
    Bool,
}

/// A kind for which MPI has a datatype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datatype {
    pub(crate) kind: Kind,
    pub(crate) class: Class,
    scalar_type: i32,
}

impl Datatype {
    /// The datatype for one of libtorch's scalar types (`c10/core/ScalarType.h`).
    #[inline]
    pub(crate) fn of(scalar_type: i32) -> Option<Self> {
        let (kind, class) = match scalar_type {
            0 => (Kind::Uint8, Class::Integer),
            1 => (Kind::Int8, Class::Integer),
            2 => (Kind::Int16, Class::Integer),
            3 => (Kind::Int, Class::Integer),
            4 => (Kind::Int64, Class::Integer),
            5 => (Kind::Half, Class::Half),
            6 => (Kind::Float, Class::Real),
            7 => (Kind::Double, Class::Real),
            9 => (Kind::ComplexFloat, Class::Complex),
            10 => (Kind::ComplexDouble, Class::Complex),
            11 => (Kind::Bool, Class::Bool),
            15 => (Kind::BFloat16, Class::Half),
            _ => return None,
        };
        Some(Self { kind, class, scalar_type })
    }

    /// The datatype for a kind; `None` if MPI has none.
    pub(crate) fn of_kind(kind: Kind) -> Option<Self> {
        (0..=15).filter_map(Self::of).find(|datatype| datatype.kind == kind)
    }

    /// libtorch's number for the kind.
    pub(crate) fn scalar_type(self) -> i32 {
        self.scalar_type
    }

    /// MPI's handle for the datatype.
    #[inline]
    pub(crate) fn mpi(self, handles: &Handles) -> MPI_Datatype {
        match self.kind {
            Kind::Uint8 => mpi_sys::MPI_UINT8_T,
            Kind::Int8 => mpi_sys::MPI_INT8_T,
            Kind::Int16 => mpi_sys::MPI_INT16_T,
            Kind::Int => mpi_sys::MPI_INT32_T,
            Kind::Int64 => mpi_sys::MPI_INT64_T,
            Kind::Float => mpi_sys::MPI_FLOAT,
            Kind::Double => mpi_sys::MPI_DOUBLE,
            Kind::ComplexFloat => mpi_sys::MPI_C_FLOAT_COMPLEX,
            Kind::ComplexDouble => mpi_sys::MPI_C_DOUBLE_COMPLEX,
            Kind::Bool => mpi_sys::MPI_C_BOOL,
            // `Half` and `BFloat16`: `of` returns no others.
            _ => handles.two_bytes,
        }
    }
}

/// Handles of MPI objects that this crate creates, as MPI does not predefine them.
#[derive(Debug)]
pub(crate) struct Handles {
    /// The datatype of the 16-bit floating-point kinds.
    pub(crate) two_bytes: MPI_Datatype,
    pub(crate) ops: OwnOps,
}

impl Handles {
    /// Creates the objects. MPI is initialized.
    pub(super) fn create() -> Result<Self> {
        let mut two_bytes = mpi_sys::MPI_DATATYPE_NULL;
        // SAFETY: MPI is initialized; `two_bytes` outlives the call.
        unsafe { checked!(MPI_Type_contiguous(2, mpi_sys::MPI_BYTE, &mut two_bytes)) }?;
        // SAFETY: a datatype that was just made.
        unsafe { checked!(MPI_Type_commit(&mut two_bytes)) }?;
        Ok(Self { two_bytes, ops: OwnOps::create()? })
    }

    /// Frees the objects.
    ///
    /// # Safety
    /// MPI can be called, this is called once, and no call uses them any more.
    pub(super) unsafe fn free(&self) {
        for mut op in self.ops.handles() {
            // SAFETY: an op that this crate made; the caller vouches for the rest.
            let _ = unsafe { mpi_sys::MPI_Op_free(&mut op) };
        }
        let mut two_bytes = self.two_bytes;
        // SAFETY: a datatype that this crate made; the caller vouches for the rest.
        let _ = unsafe { mpi_sys::MPI_Type_free(&mut two_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_types_are_those_of_libtorch() {
        for scalar_type in 0..64 {
            if let Some(datatype) = Datatype::of(scalar_type) {
                let tensor = tch::Tensor::zeros([1], (datatype.kind, tch::Device::Cpu));
                assert_eq!(crate::autograd::Metadata::of(&tensor).scalar_type(), scalar_type);
            }
        }
    }
}
