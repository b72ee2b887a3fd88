//! Backward passes that differ: all ranks have recorded the same calls, and go back through
//! different ones.

use mpi4tch::{Communicator, Result};
use tch::Tensor;

use crate::Test;
use crate::calls::{
    Afterwards, Call, DIFFERENCES, Difference, are_alike, collectives, pairs, stem,
};
use crate::common::Context;
use crate::table::Operation;

pub const TESTS: [Test; 8] = [
    ("sizes_backward", |context| differences(context, "sizes")),
    ("kinds_backward", |context| differences(context, "kinds")),
    ("ops_backward", |context| differences(context, "ops")),
    ("roots_backward", |context| differences(context, "roots")),
    ("axes_backward", |context| differences(context, "axes")),
    ("counts_backward", |context| differences(context, "counts")),
    ("calls_backward", calls),
    ("passes", passes),
];

/// Through one operation, which was made differently.
fn differences(context: &Context, what: &str) -> Result<()> {
    let comm = context.world.duplicate()?;
    let afterwards = Afterwards::new(&comm);
    for Difference { width, change, backward, .. } in
        DIFFERENCES.iter().filter(|difference| difference.what == what)
    {
        let matter = collectives().filter(|operation| backward(operation));
        for (most, odd) in pairs(&comm, 1, matter).filter(are_alike) {
            let [most, odd] = [most, odd].map(|operation| Call::new(operation, &comm, *width));
            refused(&comm, &most, &odd.with(*change), &afterwards)?;
        }
    }
    Ok(())
}

/// Through another operation.
fn calls(context: &Context) -> Result<()> {
    let comm = context.world.duplicate()?;
    let afterwards = Afterwards::new(&comm);
    let operations = collectives();
    let widths = [(600, 600), (1, 4096), (4096, 1)].iter().cycle();
    let differ =
        pairs(&comm, 4, operations).filter(|(a, b)| without_counts(a) != without_counts(b));
    for ((most, odd), (width, other)) in differ.zip(widths) {
        let most = Call::new(most, &comm, *width);
        refused(&comm, &most, &Call::new(odd, &comm, *other), &afterwards)?;
    }
    Ok(())
}

/// What knows the counts has the same adjoint as what does not.
fn without_counts(operation: &Operation) -> &str {
    stem(operation).trim_end_matches("_with_counts")
}

fn recorded(comm: &Communicator, call: &Call) -> Result<Tensor> {
    Ok(call.make(comm, &call.input(comm).set_requires_grad(true))?.sum(call.kind))
}

/// The last rank goes back through one call, and the others through the other: all are refused.
fn refused(comm: &Communicator, most: &Call, odd: &Call, afterwards: &Afterwards) -> Result<()> {
    if comm.size() == 1 {
        return Ok(());
    }
    println!("{}, and {} on the last rank", most.name(), odd.name());
    let [most, odd] = [recorded(comm, most)?, recorded(comm, odd)?];
    let own = if comm.rank() + 1 < comm.size() { most } else { odd };
    let error = own.f_backward().expect_err("the passes differ").to_string();
    assert!(error.contains("the ranks disagree on a call:"), "{error}");
    afterwards.works(comm)
}

/// The last rank goes back through a call, and the others make it once more.
fn passes(context: &Context) -> Result<()> {
    let comm = context.world.duplicate()?;
    if comm.size() == 1 {
        return Ok(());
    }
    let afterwards = Afterwards::new(&comm);
    for operation in collectives() {
        for width in [1, 4096] {
            println!("{}", operation.name);
            let call = Call::new(operation, &comm, width);
            let loss = recorded(&comm, &call)?;
            let error = if comm.rank() + 1 < comm.size() {
                recorded(&comm, &call).expect_err("the last is going back").to_string()
            } else {
                loss.f_backward().expect_err("the others go on").to_string()
            };
            assert!(error.contains("the ranks disagree on a call:"), "{error}");
            afterwards.works(&comm)?;
        }
    }
    Ok(())
}
