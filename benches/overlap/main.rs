//! How much of the time that communication takes on a wire between two hosts is hidden behind
//! computation: for started operations, forward and backward, by this crate and by raw MPI, and for
//! `DataParallel`.
//!
//! ```text
//! make bench-overlap                       # as root: see scripts/two_hosts.sh
//! ```
//!
//! The results are in benches/results/overlap.md, .json and .png. MPI4TCH_BENCH_ROUNDS is the number of
//! rounds, 21 unless set.
//!
//! The share that is hidden is (communication + computation − both) / min(communication,
//! computation), of the times of the communication alone, of the computation alone, and of both. All
//! take turns in one loop. The computation is made to take about as long as the communication.

mod computation;
mod operations;
#[path = "../common/panels.rs"]
#[allow(dead_code, reason = "growth draws lines")]
mod panels;
#[path = "../../examples/common/picture.rs"]
#[allow(dead_code, reason = "examples use all of it")]
mod picture;
mod raw;
#[path = "../common/record.rs"]
mod record;
mod report;
mod thread;
mod timing;
mod training;
#[path = "../side_by_side/turns.rs"]
#[allow(dead_code, reason = "times differ here, as some work is not timed")]
mod turns;

use std::error::Error;

use operations::CASES;

/// What joins the hosts, in words.
const WIRE: &str = "MPI4TCH_WIRE";

fn main() -> Result<(), Box<dyn Error>> {
    let Ok(wire) = std::env::var(WIRE) else {
        println!("overlap: left out, as it needs two hosts: make bench-overlap");
        return Ok(());
    };
    tch::set_num_threads(1);
    let mut measured = None;
    turns::on_ranks(2, |world| {
        let mut rows = Vec::new();
        for case in CASES {
            if world.rank() == 0 {
                eprintln!("{}", case.name);
            }
            rows.extend(operations::forward(world, case)?);
            rows.extend(operations::backward(world, case)?);
        }
        rows.extend(training::measure(world)?);
        if world.rank() == 0 {
            measured = Some((mpi4tch::initialize()?.library().version().to_owned(), rows));
        }
        Ok(())
    })?;
    measured.map_or(Ok(()), |(library, rows)| report::write(wire, &library, rows))
}
