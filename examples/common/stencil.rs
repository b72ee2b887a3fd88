//! Differences and means of neighbouring cells. Each result is shorter than its argument along an
//! axis, so a halo shrinks to nothing from one to the next.

use mpi4tch::tch::Tensor;

/// The axis of rows and that of columns. A field may have other axes before them.
pub const Y: i64 = -2;
pub const X: i64 = -1;

/// The differences of neighbours along an axis, one fewer than the cells.
pub fn difference(x: &Tensor, axis: i64) -> Tensor {
    x.diff(1, axis, None::<Tensor>, None::<Tensor>)
}

/// The means of neighbours along an axis, one fewer than the cells.
#[allow(dead_code, reason = "each example uses some of it")]
pub fn mean(x: &Tensor, axis: i64) -> Tensor {
    let extent = extent(x, axis) - 1;
    (x.narrow(axis, 0, extent) + x.narrow(axis, 1, extent)) * 0.5
}

/// All cells but the first and the last one along an axis.
pub fn inner(x: &Tensor, axis: i64) -> Tensor {
    x.narrow(axis, 1, extent(x, axis) - 2)
}

/// The second differences along both axes, in the cells that have four neighbours.
#[allow(dead_code, reason = "each example uses some of it")]
pub fn laplacian(x: &Tensor) -> Tensor {
    let along = |axis| difference(&difference(x, axis), axis);
    inner(&along(X), Y) + inner(&along(Y), X)
}

fn extent(x: &Tensor, axis: i64) -> i64 {
    let size = x.size();
    // The axes are counted from the last one.
    size[size.len() - usize::try_from(-axis).unwrap_or(1)]
}
