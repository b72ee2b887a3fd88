//! Calls that differ between the ranks, in what they are given or altogether: no rank writes where
//! it may not, each gets an `Err`, and the communicator works afterwards, at both levels of
//! `MPI4TCH_CHECK`.

mod backward;
mod calls;
#[path = "../common/mod.rs"]
mod common;
mod deferred;
mod forward;
mod heap;
mod messages;
#[allow(dead_code, reason = "made for the test of the collectives, which uses all of it")]
#[path = "../collectives/table.rs"]
mod table;

use std::process::ExitCode;

use common::{Context, start};
use mpi4tch::Result;

type Test = (&'static str, fn(&Context) -> Result<()>);

fn main() -> ExitCode {
    if heap::is_to_overrun() {
        return heap::overrun();
    }
    if harness::is_rank() {
        let level = std::env::var("MPI4TCH_CHECK").expect("the job has one");
        return harness::run(start, tests(&level));
    }
    heap::turn_checks_on();
    // What differs shows on two ranks, and on a third that it is the same for all.
    let wanted = std::env::var("MPI4TCH_TEST_RANKS").unwrap_or_else(|_| "2,3".to_owned());
    let few: Vec<_> = wanted.split(',').filter(|count| ["2", "3"].contains(count)).collect();
    let few = if few.is_empty() { "2".to_owned() } else { few.join(",") };
    // SAFETY: there is no other thread yet.
    unsafe { std::env::set_var("MPI4TCH_TEST_RANKS", few) };
    let outcomes = ["local", "collective"].map(|level| {
        // SAFETY: there is no other thread yet, or no longer.
        unsafe { std::env::set_var("MPI4TCH_CHECK", level) };
        harness::run(start, tests(level))
    });
    let failed = outcomes.into_iter().find(|outcome| *outcome != ExitCode::SUCCESS);
    failed.unwrap_or(ExitCode::SUCCESS)
}

/// All tests, by names that say at which level the ranks compare their calls.
fn tests(level: &str) -> Vec<harness::Test<Context>> {
    let groups: [&[Test]; 5] =
        [&heap::TESTS, &forward::TESTS, &backward::TESTS, &messages::TESTS, &deferred::TESTS];
    let tests = groups.into_iter().flatten();
    tests.map(|(name, test)| harness::Test::new(format!("{level}::{name}"), test)).collect()
}
