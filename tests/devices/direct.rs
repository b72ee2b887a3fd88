//! Direct calls: MPI gets pointers to the memory of the device, which the host can reach here, when the
//! stream has done what it was given.

use mpi4tch::{Result, testing};
use stand_in::bytes_copied;

use crate::common::{Context, works};
use crate::order::{self, CALLS, grid, random};
use crate::{OnDrop, leaf, with_pieces};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        nothing_is_copied,
        a_direct_call_reads_what_the_device_has_computed,
        direct_here_and_staged_there,
        a_direct_adjoint_reads_what_the_device_has_computed,
    ]
}

/// Runs `f` while calls are direct on the ranks for which that holds.
fn with_direct<T>(is_direct: bool, f: impl FnOnce() -> Result<T>) -> Result<T> {
    stand_in::set_reachable(true);
    testing::force_direct(is_direct)?;
    let _reset = OnDrop(|| {
        stand_in::set_reachable(false);
        testing::force_direct(false).expect("MPI is there");
    });
    f()
}

fn a_direct_call_reads_what_the_device_has_computed(context: &Context) -> Result<()> {
    with_direct(true, || order::a_call_reads_what_the_device_has_computed(context))
}

fn a_direct_adjoint_reads_what_the_device_has_computed(context: &Context) -> Result<()> {
    with_direct(true, || order::an_adjoint_reads_what_the_device_has_computed(context))
}

fn direct_here_and_staged_there(context: &Context) -> Result<()> {
    let world = &context.world;
    // At once, and in pieces.
    for piece in [4 << 20, 24] {
        for is_direct in [world.rank() == 0, world.rank() != 0] {
            with_pieces(piece, || {
                with_direct(is_direct, || order::a_call_reads_what_the_device_has_computed(context))
            })?;
        }
    }
    works(world)
}

/// In calls that are direct with every MPI.
fn nothing_is_copied(context: &Context) -> Result<()> {
    let grid = grid(&context.world)?;
    let x = random(&grid, 3)?;
    for name in ["all_reduce", "all_reduce_", "broadcast", "all_gather of columns", "scatter"] {
        let (_, call) = CALLS.iter().find(|(other, _)| *other == name).expect("it is there");
        let copied = |is_direct: bool| {
            with_direct(is_direct, || {
                let x = leaf(&x, Some(0)) * 1.0;
                stand_in::synchronize(0);
                let before = bytes_copied();
                let _y = call(&grid, &x)?;
                stand_in::synchronize(0);
                Ok(bytes_copied() - before)
            })
        };
        assert_eq!(copied(true)?, 0, "{name}");
        assert_ne!(copied(false)?, 0, "{name}, staged");
    }
    Ok(())
}
