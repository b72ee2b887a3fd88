//! Times the same work done by raw MPI and by this crate, in one run, and prints the ratio.

use std::error::Error;
use std::time::Instant;

use mpi4tch::{Communicator, Result, ThreadLevel, initialize_with};

/// Something to measure.
pub type Run<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

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
        println!(
            "median per call; above is the median difference of runs that follow each other\n"
        );
        println!(
            "     bytes  {:<32}{:>12}{:>15}{:>15}{:>8}",
            "work", "raw", "ours", "above", "ratio"
        );
    }
    for case in cases {
        measure(&world, case)?;
    }
    Ok(())
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
    let mut times = vec![(Vec::new(), Vec::new(), Vec::new()); pairs.len()];
    for _ in 0..ROUNDS {
        for (pair, (raws, ours, aboves)) in pairs.iter_mut().zip(&mut times) {
            let raw = time(world, calls, &mut pair.raw)?;
            let our = time(world, calls, &mut pair.ours)?;
            raws.push(raw);
            ours.push(our);
            aboves.push(our - raw);
        }
    }
    if world.rank() == 0 {
        for (pair, (raws, ours, aboves)) in pairs.iter().zip(&mut times) {
            let (raw, our, above) = (median(raws), median(ours), median(aboves));
            println!(
                "{bytes:>10}  {:<32}{raw:>9.2} µs{our:>12.2} µs{above:>12.2} µs{:>8.2}",
                pair.work,
                our / raw
            );
        }
    }
    Ok(())
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

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
