//! Times the same work done by raw MPI and by this crate, in one run, and prints the ratio.

mod turns;

use std::error::Error;

use mpi4tch::{Communicator, Result};
pub use turns::Run;
use turns::{in_turns, median, median_difference, on_ranks};

/// The same work, done by raw MPI and by this crate.
pub struct Pair<'a> {
    pub work: &'static str,
    pub raw: Run<'a>,
    pub ours: Run<'a>,
}

/// Measures each of the `cases`, on as many ranks as `MPI4TCH_BENCH_RANKS` says, by default
/// `ranks`.
pub fn run<T>(
    ranks: usize,
    cases: impl IntoIterator<Item = T>,
    measure: impl Fn(&Communicator, T) -> Result<()>,
) -> std::result::Result<(), Box<dyn Error>> {
    on_ranks(ranks, |world| {
        if world.rank() == 0 {
            println!(
                "median per call; above is the median difference of runs that follow each other\n"
            );
            println!(
                "     bytes  {:<32}{:>12}{:>15}{:>15}{:>8}",
                "work", "raw", "ours", "above", "ratio"
            );
        }
        cases.into_iter().try_for_each(|case| measure(world, case))
    })
}

/// Prints a line per pair, for messages of `bytes`. Times rounds of `calls` calls; in each round,
/// the raw and our calls of all pairs take turns.
pub fn compare(
    world: &Communicator,
    bytes: usize,
    calls: u32,
    pairs: &mut [Pair<'_>],
) -> Result<()> {
    const ROUNDS: usize = 41;
    let mut runs: Vec<_> =
        pairs.iter_mut().flat_map(|pair| [&mut pair.raw, &mut pair.ours]).collect();
    let times = in_turns(world, ROUNDS, calls, &mut runs)?;
    if world.rank() == 0 {
        for (pair, times) in pairs.iter().zip(times.chunks_exact(2)) {
            let (raw, our) = (median(&times[0]), median(&times[1]));
            let above = median_difference(&times[1], &times[0]);
            println!(
                "{bytes:>10}  {:<32}{raw:>9.2} µs{our:>12.2} µs{above:>12.2} µs{:>8.2}",
                pair.work,
                our / raw
            );
        }
    }
    Ok(())
}
