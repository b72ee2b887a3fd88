//! Fields that are cut over the ranks, as argmin's vectors.
//!
//! Each rank has its own cells only. Sums of fields and multiples need no communication, inner products
//! and norms are summed over all ranks: so all ranks run the same optimizer on one long vector.

use argmin_math::{
    ArgminAdd, ArgminDot, ArgminL1Norm, ArgminL2Norm, ArgminMinMax, ArgminMul, ArgminSignum,
    ArgminSub, ArgminZeroLike,
};
use mpi4tch::tch::{Kind, Tensor};
use mpi4tch::{Communicator, Op};

/// This rank's cells of a field.
pub struct Field {
    comm: Communicator,
    pub cells: Tensor,
}

impl Field {
    pub fn new(comm: &Communicator, cells: &Tensor) -> Self {
        Self { comm: comm.clone(), cells: cells.detach() }
    }

    fn with(&self, cells: Tensor) -> Self {
        Self { comm: self.comm.clone(), cells }
    }

    /// The sum over the cells of all ranks, equal on all of them.
    fn total(&self, cells: &Tensor) -> f64 {
        let sum = self.comm.all_reduce(&cells.sum(Kind::Double), Op::Sum);
        // argmin's traits have no errors.
        sum.expect("all ranks compute the same sum").double_value(&[])
    }
}

impl Clone for Field {
    fn clone(&self) -> Self {
        self.with(self.cells.copy())
    }
}

impl ArgminDot<Self, f64> for Field {
    fn dot(&self, other: &Self) -> f64 {
        self.total(&(&self.cells * &other.cells))
    }
}

impl ArgminL2Norm<f64> for Field {
    fn l2_norm(&self) -> f64 {
        self.dot(self).sqrt()
    }
}

impl ArgminL1Norm<f64> for Field {
    fn l1_norm(&self) -> f64 {
        self.total(&self.cells.abs())
    }
}

/// The operations of two fields, or of a field and a number, cell by cell.
macro_rules! cell_by_cell {
    ($($trait:ident, $method:ident, $operator:tt;)*) => {$(
        impl $trait<Self, Self> for Field {
            fn $method(&self, other: &Self) -> Self {
                self.with(&self.cells $operator &other.cells)
            }
        }

        impl $trait<f64, Self> for Field {
            fn $method(&self, other: &f64) -> Self {
                self.with(&self.cells $operator *other)
            }
        }
    )*};
}

cell_by_cell! {
    ArgminAdd, add, +;
    ArgminSub, sub, -;
    ArgminMul, mul, *;
}

impl ArgminMul<Field, Field> for f64 {
    fn mul(&self, field: &Field) -> Field {
        field.mul(self)
    }
}

impl ArgminZeroLike for Field {
    fn zero_like(&self) -> Self {
        self.with(self.cells.zeros_like())
    }
}

impl ArgminSignum for Field {
    fn signum(self) -> Self {
        self.with(self.cells.sign())
    }
}

impl ArgminMinMax for Field {
    fn min(x: &Self, y: &Self) -> Self {
        x.with(x.cells.minimum(&y.cells))
    }

    fn max(x: &Self, y: &Self) -> Self {
        x.with(x.cells.maximum(&y.cells))
    }
}
