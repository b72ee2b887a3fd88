//! Runs a benchmark on several ranks, and times what takes turns.

use std::error::Error;
use std::time::Instant;

use mpi4tch::{Communicator, Op, Result, ThreadLevel, initialize_with};
use tch::Tensor;

/// Something to measure.
pub type Run<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

/// Calls `measure` on as many ranks as `MPI4TCH_BENCH_RANKS` says, by default `ranks`.
pub fn on_ranks(
    ranks: usize,
    measure: impl FnOnce(&Communicator) -> Result<()>,
) -> std::result::Result<(), Box<dyn Error>> {
    if std::env::var_os("MPI4TCH_BENCH_RANK").is_none() {
        let ranks = std::env::var("MPI4TCH_BENCH_RANKS").map_or(Ok(ranks), |n| n.parse())?;
        let status = harness::mpiexec(ranks)
            .arg(std::env::current_exe()?)
            .env("MPI4TCH_BENCH_RANK", "")
            .status()?;
        std::process::exit(status.code().unwrap_or(1));
    }
    let universe = initialize_with(ThreadLevel::Serialized)?;
    let world = universe.world();
    if world.rank() == 0 {
        println!("{}, {} ranks", universe.library().version(), world.size());
    }
    Ok(measure(&world)?)
}

/// Times `rounds` rounds of `calls` calls, in which the runs take turns. Returns the microseconds that
/// a call took on the slowest rank, for each run and round.
pub fn in_turns(
    world: &Communicator,
    rounds: usize,
    calls: u32,
    runs: &mut [&mut Run<'_>],
) -> Result<Vec<Vec<f64>>> {
    let mut times = vec![Vec::with_capacity(rounds); runs.len()];
    for _ in 0..rounds {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            times.push(time(world, calls, run)?);
        }
    }
    let slowest = |times: Vec<f64>| -> Result<Vec<f64>> {
        let slowest = world.all_reduce(&Tensor::from_slice(&times), Op::Max)?;
        Ok(slowest.iter::<f64>()?.collect())
    };
    times.into_iter().map(slowest).collect()
}

/// The time of a call in microseconds.
fn time(world: &Communicator, calls: u32, run: &mut Run<'_>) -> Result<f64> {
    world.barrier()?;
    let start = Instant::now();
    for _ in 0..calls {
        run()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(calls))
}

pub fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The median of the differences between runs of the same round.
#[allow(dead_code, reason = "each benchmark uses some of it")]
pub fn median_difference(times: &[f64], base: &[f64]) -> f64 {
    median(&times.iter().zip(base).map(|(time, base)| time - base).collect::<Vec<_>>())
}
