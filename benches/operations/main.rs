//! The time of every operation, forward, backward, and both, against raw MPI that does the same
//! communication; and against peers, by `make bench-peers`.
//!
//! ```text
//! cargo bench --bench operations                               # on 2 and on 4 ranks
//! cargo bench --bench operations -- all_reduce 8MiB --ranks 2  # a selection
//! ```
//!
//! The first process is the driver. It starts a job of ranks, and for each peer another, and gives turns
//! to them by sockets. A rank that waits for its turn sleeps, so that only one job runs at a time. In a
//! turn, each rank makes a number of calls and reports its time; the slowest rank's counts.

mod arguments;
mod collectives;
mod driver;
mod job;
mod messages;
mod neighbors;
#[allow(dead_code, reason = "the examples use all of it")]
#[path = "../../examples/common/picture.rs"]
mod picture;
mod pictures;
mod protocol;
mod raw;
#[path = "../common/record.rs"]
mod record;
mod report;
mod row;
mod work;
mod worker;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

/// The driver, or a rank if the driver has started this process.
pub fn main() -> ExitCode {
    let outcome = match std::env::var_os(protocol::SOCKET) {
        Some(socket) => worker::serve(Path::new(&socket)),
        None => driver::run(&arguments::Arguments::parse()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
