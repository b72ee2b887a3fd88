//! Messages from rank to rank: what arrives, what goes back in the backward pass, and what is wrong
//! with a message.

#[path = "../common/mod.rs"]
mod common;
mod receives;
mod refused;
mod shifts;
mod started;
mod ways;

use std::process::ExitCode;

use common::start;

fn main() -> ExitCode {
    let tests = [shifts::tests(), receives::tests(), refused::tests(), started::tests()];
    harness::run(start, tests.into_iter().flatten().collect())
}
