//! What `all_reduce` costs above raw MPI: forward against one `MPI_Allreduce`, forward and
//! backward against two, side by side in one run.
//!
//! ```text
//! cargo bench --bench all_reduce           # on 2 ranks
//! MPI4TCH_BENCH_RANKS=4 cargo bench --bench all_reduce
//! ```

use std::time::{Duration, Instant};

use mpi4tch::mpi_sys::{self, MPI_Allreduce};
use mpi4tch::{Communicator, Op, ThreadLevel, initialize_with};
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::var_os("MPI4TCH_BENCH_RANK").is_none() {
        let ranks = std::env::var("MPI4TCH_BENCH_RANKS").map_or(Ok(2), |n| n.parse())?;
        let status = harness::mpiexec(ranks)
            .arg(std::env::current_exe()?)
            .env("MPI4TCH_BENCH_RANK", "")
            .status()?;
        std::process::exit(status.code().unwrap_or(1));
    }
    let universe = initialize_with(ThreadLevel::Serialized)?;
    let world = universe.world();
    if world.rank() == 0 {
        println!("{}, {} ranks, MPI_DOUBLE, MPI_SUM", universe.library().version(), world.size());
        println!(
            "median per call; the difference is the median over pairs of neighbouring rounds\n"
        );
        println!("     bytes        raw       ours      above   ratio  | 2 × raw  fwd+bwd  ratio");
    }
    for (count, calls) in [(1, 2000), (1 << 13, 200), (1 << 20, 4), (10_000_000, 1)] {
        measure(&world, count, calls)?;
    }
    Ok(())
}

/// One row: rounds of `calls` calls each, taking turns.
fn measure(world: &Communicator, count: i64, calls: u32) -> mpi4tch::Result<()> {
    const ROUNDS: usize = 41;
    let x = Tensor::ones([count], (Kind::Double, Device::Cpu));
    let variable = x.copy().set_requires_grad(true);
    let mut received = vec![0.0_f64; x.numel()];
    let mut raw = || {
        let count = i32::try_from(received.len()).expect("fits in an int");
        // SAFETY: both buffers hold `count` doubles and do not overlap.
        unsafe {
            MPI_Allreduce(
                x.data_ptr(),
                received.as_mut_ptr().cast(),
                count,
                mpi_sys::MPI_DOUBLE,
                mpi_sys::MPI_SUM,
                mpi_sys::MPI_COMM_WORLD,
            )
        };
    };
    let time = |f: &mut dyn FnMut() -> mpi4tch::Result<()>| -> mpi4tch::Result<Duration> {
        world.barrier()?;
        let start = Instant::now();
        for _ in 0..calls {
            f()?;
        }
        Ok(start.elapsed() / calls)
    };
    let ones = Tensor::ones_like(&x);
    let (mut raws, mut forwards, mut aboves, mut boths) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let raw = time(&mut || {
            raw();
            Ok(())
        })?;
        let forward = time(&mut || world.all_reduce(&x, Op::Sum).map(drop))?;
        let both = time(&mut || {
            let y = world.all_reduce(&variable, Op::Sum)?;
            let _ = mpi4tch::testing::vjp(&[&y], &[&ones], &[&variable], false)?;
            Ok(())
        })?;
        raws.push(raw.as_secs_f64());
        forwards.push(forward.as_secs_f64());
        aboves.push(forward.as_secs_f64() - raw.as_secs_f64());
        boths.push(both.as_secs_f64());
    }
    if world.rank() == 0 {
        let micros = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2] * 1e6
        };
        let (raw, forward) = (micros(&mut raws), micros(&mut forwards));
        let (above, both) = (micros(&mut aboves), micros(&mut boths));
        println!(
            "{:>10} {raw:>7.2} µs {forward:>7.2} µs {above:>7.2} µs {:>7.2}  | {:>7.2} {both:>7.2} {:>6.2}",
            count * 8,
            forward / raw,
            2.0 * raw,
            both / (2.0 * raw)
        );
    }
    Ok(())
}
