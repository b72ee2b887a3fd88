//! What was started, and waiting for it: in both passes, in any order, or not at all.

mod backward;
#[path = "../common/mod.rs"]
mod common;
mod disagreement;
mod dummies;
mod memory;
mod waiting;

use std::process::ExitCode;

use common::start;

fn main() -> ExitCode {
    let tests = [
        waiting::tests(),
        dummies::tests(),
        backward::tests(),
        memory::tests(),
        disagreement::tests(),
    ];
    harness::run(start, tests.into_iter().flatten().collect())
}
