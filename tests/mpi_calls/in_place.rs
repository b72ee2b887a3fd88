//! What is in place for the caller is in place for MPI.

use mpi4tch::{Op, Result, mpi_sys, testing};
use tch::{Kind, Tensor};

use crate::common::Context;
use crate::matrix;
use crate::profiling::{calls, names};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![in_place, in_place_of_any_layout]
}

/// MPICH's `MPI_Reduce` cannot.
fn reduces_in_place() -> bool {
    mpi_sys::loaded_vendor() != mpi_sys::Vendor::Mpich
}

/// One call, which reads and writes the tensor itself.
fn in_place(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    let in_place = mpi_sys::MPI_IN_PLACE as usize;
    for kind in [Kind::Double, Kind::Half, Kind::ComplexDouble, Kind::Int, Kind::Uint8] {
        for op in [Op::Sum, Op::Prod, Op::Max, Op::Min, Op::BitwiseOr] {
            // Small integers: MPI may sum in another order in place.
            let mut x = testing::random(world, &[2, 3], Kind::Int)?.to_kind(kind);
            let place = x.data_ptr() as usize;
            let Ok(expected) = world.all_reduce(&x, op) else { continue };
            let (_, made) = calls(|| world.all_reduce_(&mut x, op))?;
            assert_eq!(names(&made), ["MPI_Allreduce"], "{op:?} {kind:?}");
            assert_eq!(made[0].buffers, [in_place, place], "{op:?} {kind:?}");
            assert_eq!(x, expected);

            let (_, made) = calls(|| world.reduce_(&mut x, op, last))?;
            assert_eq!(names(&made), ["MPI_Reduce"], "{op:?} {kind:?}");
            let root = world.rank() == last;
            let buffers = if root { [in_place, place] } else { [place, 0] };
            if reduces_in_place() {
                assert_eq!(made[0].buffers, buffers, "{op:?} {kind:?}");
            }
            let (_, made) = calls(|| world.broadcast_(&mut x, 0))?;
            assert_eq!(names(&made), ["MPI_Bcast"]);
            assert_eq!(made[0].buffers[0], place);
            assert_eq!(x.data_ptr() as usize, place);
        }
    }
    Ok(())
}

/// All ranks give `MPI_IN_PLACE` or none, as MPI wants it, although each chooses its layout.
fn in_place_of_any_layout(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    let in_place = mpi_sys::MPI_IN_PLACE as usize;
    // Recorded, a view goes by a copy; what is no view does not.
    for records in [false, true] {
        let x = matrix(context, 4, 3)?.round().set_requires_grad(records);
        let y = &x * 1.0;
        let layouts: [fn(&Tensor) -> Tensor; 3] = [
            Tensor::copy,
            |y| y.transpose(0, 1).contiguous().transpose(0, 1),
            |y| y.unsqueeze(2).repeat([1, 1, 2]).select(2, 0),
        ];
        let mine = layouts[usize::try_from(world.rank()).unwrap_or(0) % 3];
        let mine = || mine(&y);
        let mut reduced = mine();
        let (_, made) = calls(|| world.all_reduce_(&mut reduced, Op::Sum))?;
        assert_eq!(names(&made), ["MPI_Allreduce"]);
        assert_eq!(made[0].buffers[0], in_place);
        assert_eq!(reduced, world.all_reduce(&y, Op::Sum)?);
        let mut reduced = mine();
        let (_, made) = calls(|| world.reduce_(&mut reduced, Op::Sum, last))?;
        assert_eq!(names(&made), ["MPI_Reduce"]);
        let is_expected = reduces_in_place() && world.rank() == last;
        assert_eq!(made[0].buffers[0] == in_place, is_expected, "on the root alone");
        assert_eq!(reduced, world.reduce(&y, Op::Sum, last)?);
    }
    Ok(())
}
