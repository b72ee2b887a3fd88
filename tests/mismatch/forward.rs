//! Calls that differ, in the forward pass.

use mpi4tch::{Communicator, Result, testing};
use tch::Kind;

use crate::Test;
use crate::calls::{
    Afterwards, Call, DIFFERENCES, Difference, OTHERS, are_alike, collectives, is_told, pairs,
};
use crate::common::Context;

pub const TESTS: [Test; 9] = [
    ("sizes", |context| differences(context, "sizes")),
    ("kinds", |context| differences(context, "kinds")),
    ("ops", |context| differences(context, "ops")),
    ("roots", |context| differences(context, "roots")),
    ("axes", |context| differences(context, "axes")),
    ("counts", |context| differences(context, "counts")),
    ("refusals", |context| differences(context, "refusals")),
    ("calls", calls),
    ("the_same_call", the_same_call),
];

/// One operation, made differently on one rank.
fn differences(context: &Context, what: &str) -> Result<()> {
    let comm = context.world.duplicate()?;
    let afterwards = Afterwards::new(&comm);
    for Difference { width, change, forward, .. } in
        DIFFERENCES.iter().filter(|difference| difference.what == what)
    {
        let with_locations = collectives().chain(&OTHERS[..2]);
        let matter = with_locations.filter(|operation| forward(operation));
        for (turn, (most, odd)) in pairs(&comm, 1, matter).filter(are_alike).enumerate() {
            let [most, odd] = [most, odd].map(|operation| Call::new(operation, &comm, *width));
            let rank = if turn % 2 == 0 { 0 } else { comm.size() - 1 };
            refused(&comm, &most, &odd.with(*change), rank, &afterwards)?;
        }
    }
    Ok(())
}

/// Another operation on one rank.
fn calls(context: &Context) -> Result<()> {
    let comm = context.world.duplicate()?;
    let afterwards = Afterwards::new(&comm);
    let all = collectives().chain(&OTHERS);
    let widths = [(600, 600), (1, 4096), (4096, 1)].iter().cycle();
    let differ = pairs(&comm, 4, all).filter(|pair| !are_alike(pair));
    for ((most, odd), (width, other)) in differ.zip(widths) {
        let most = Call::new(most, &comm, *width);
        let odd = Call::new(odd, &comm, *other);
        refused(&comm, &most, &odd, comm.size() - 1, &afterwards)?;
    }
    Ok(())
}

/// Makes one call on this rank, which is `odd`, and another on the others: all are refused.
fn refused(
    comm: &Communicator,
    most: &Call,
    odd: &Call,
    rank: i32,
    afterwards: &Afterwards,
) -> Result<()> {
    if comm.size() == 1 {
        return Ok(());
    }
    // Shown if this fails, or does not return.
    println!("{}, and {} on rank {rank}", most.name(), odd.name());
    let own = if comm.rank() == rank { odd } else { most };
    let error = own.make(comm, &own.input(comm)).expect_err("the calls differ");
    assert!(is_told(&error), "{error}");
    afterwards.works(comm)
}

/// The same call, blocking on some ranks and started or in place on the last.
fn the_same_call(context: &Context) -> Result<()> {
    let comm = &context.world;
    for (most, odd) in pairs(comm, 1, collectives()).filter(are_alike) {
        let operation = if comm.rank() + 1 < comm.size() { most } else { odd };
        for width in [1, 600, 4096] {
            let call = Call::new(operation, comm, width);
            println!("{}, and {} on the last rank", most.name, odd.name);
            let x = testing::random(comm, &call.input(comm).size(), Kind::Double)?;
            testing::assert_serial(
                comm,
                &x,
                |x| call.make(comm, x),
                |xs| (call.operation.serial)(xs, &call.arguments),
            )?;
        }
    }
    Ok(())
}
