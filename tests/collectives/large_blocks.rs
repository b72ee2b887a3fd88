//! Sums of blocks that are so large that this crate adds them up.

use mpi4tch::{Communicator, Op, Result, testing};
use tch::{Kind, Tensor};

use crate::common::kinds::{KINDS, is_defined, is_floating};
use crate::common::{Context, serial};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![every_kind, blocks_of_several_pieces, blocks_of_any_sizes]
}

/// `reduce_scatter` with these counts and blocks of so many columns, and `all_gather`, whose adjoint
/// it is; blocking and started.
fn check(
    comm: &Communicator,
    kind: Kind,
    op: Op,
    (axis, columns): (i64, i64),
    counts: &[i64],
) -> Result<()> {
    let own = counts[comm.rank().unsigned_abs() as usize];
    let shape = |extent| if axis == 0 { [extent, columns] } else { [columns, extent] };
    // A view whose first element need not be aligned as vectors of numbers are.
    let random = |extent: i64| -> Result<Tensor> {
        let count = extent * columns;
        let x = testing::random(comm, &[count + 1], kind)?.narrow(0, 1, count);
        Ok(x.view(shape(extent)))
    };
    let (part, whole) = (random(own)?, random(counts.iter().sum())?);
    let expected = |xs: &[Tensor]| serial::reduce_scatter(xs, axis, counts, op);
    let blocking = |x: &Tensor| comm.reduce_scatter(x, axis, counts, op);
    let started = |x: &Tensor| comm.ireduce_scatter(x, axis, counts, op)?.wait();
    testing::assert_serial(comm, &whole, blocking, expected)?;
    testing::assert_serial(comm, &whole, started, expected)?;
    if is_floating(kind) {
        testing::assert_adjoint(comm, &whole, blocking)?;
        testing::assert_adjoint(comm, &whole, started)?;
        testing::assert_adjoint(comm, &part, |x| comm.all_gather_with_counts(x, axis, counts))?;
        let started = |x: &Tensor| comm.iall_gather_with_counts(x, axis, counts)?.wait();
        testing::assert_adjoint(comm, &part, started)?;
    }
    Ok(())
}

/// Counts that are nearly equal, by rank.
fn counts(comm: &Communicator, least: i64) -> Vec<i64> {
    (0..i64::from(comm.size())).map(|rank| least + rank % 2).collect()
}

fn every_kind(context: &Context) -> Result<()> {
    let world = &context.world;
    for kind in KINDS {
        // A block of 2 rows has 4 KiB or more.
        let columns = 2048 / i64::try_from(kind.elt_size_in_bytes()).unwrap() + 3;
        for op in [Op::Sum, Op::Mean] {
            if is_defined(op, kind) {
                check(world, kind, op, (0, columns), &counts(world, 2))?;
                check(world, kind, op, (1, columns), &counts(world, 3))?;
            }
        }
    }
    Ok(())
}

fn blocks_of_several_pieces(context: &Context) -> Result<()> {
    let world = &context.world;
    // More than one piece, of which some ranks have more than others.
    check(world, Kind::Double, Op::Sum, (0, 50_001), &counts(world, 3))?;
    // One piece exactly; and some ranks have another of one row.
    check(world, Kind::Float, Op::Sum, (0, 64), &counts(world, 4096))
}

/// Those of very different sizes are left to MPI.
fn blocks_of_any_sizes(context: &Context) -> Result<()> {
    let world = &context.world;
    let ranks = i64::from(world.size());
    for counts in [
        (0..ranks).collect::<Vec<_>>(),
        (0..ranks).map(|rank| if rank == 0 { 10 } else { 0 }).collect(),
        (0..ranks).map(|rank| 10 + 5 * i64::from(rank == ranks - 1)).collect(),
        (0..ranks).map(|rank| 10 + 6 * i64::from(rank == 0)).collect(),
    ] {
        check(world, Kind::Double, Op::Sum, (0, 700), &counts)?;
    }
    Ok(())
}
