//! Memory and time of `Tape::checkpoint_steps`: a loop of 1000 steps on a state of 1 MiB, which goes to
//! the next rank in each step, forward and back, with few states in memory and with the whole graph.
//! Each setting has a job of its own, so that each has its own peak of memory.
//!
//! ```text
//! cargo bench --bench checkpoint           # on 2 ranks
//! ```

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mpi4tch::Communicator;
use tch::{Kind, Tensor};

const STEPS: usize = 1000;
const ELEMENTS: i64 = 1 << 17;
/// The setting of a rank's job: the number of slots, or 0 for the whole graph.
const SLOTS: &str = "MPI4TCH_BENCH_SLOTS";

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(slots) = std::env::var(SLOTS) {
        return measure(slots.parse()?);
    }
    println!("| states kept | peak of memory | time | steps run |");
    println!("| --- | --- | --- | --- |");
    for slots in ["10", "30", "100", "0"] {
        let mut job = harness::mpiexec(2);
        let status = job.arg(std::env::current_exe()?).env(SLOTS, slots).status()?;
        assert!(status.success(), "{status}");
    }
    Ok(())
}

fn measure(slots: usize) -> Result<(), Box<dyn Error>> {
    let universe = mpi4tch::initialize()?;
    let tape = universe.world().tape();
    tch::set_num_threads(1);
    let x = mpi4tch::testing::random(&tape, &[ELEMENTS], Kind::Double)?.set_requires_grad(true);
    let runs = Arc::new(AtomicUsize::new(0));
    let (comm, counted) = (Communicator::clone(&tape), Arc::clone(&runs));
    let step = move |_: usize, state: &[Tensor]| {
        counted.fetch_add(1, Ordering::Relaxed);
        let other = 1 - comm.rank();
        let received = comm.sendrecv(&state[0], other, &state[0], other, 0)?;
        Ok(vec![(received * 0.5 + &state[0]).sin()])
    };
    tape.barrier()?;
    let before = memory()?;
    let start = Instant::now();
    let last = if slots == 0 {
        (0..STEPS).try_fold(vec![x.shallow_clone()], |state, i| step(i, &state))?
    } else {
        tape.checkpoint_steps(&[&x], STEPS, slots, step)?
    };
    tape.backward(&last[0].sum(Kind::Double))?;
    tape.barrier()?;
    let (seconds, memory) = (start.elapsed().as_secs_f64(), memory()? - before);
    if tape.rank() == 0 {
        let kept = if slots == 0 { "the whole graph".to_owned() } else { slots.to_string() };
        let runs = runs.load(Ordering::Relaxed);
        println!("| {kept} | {memory} MiB | {seconds:.2} s | {runs} |");
    }
    Ok(())
}

/// The most memory that this process has used, in MiB.
fn memory() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).ok_or("no VmHWM")?;
    let kibibytes: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kibibytes / 1024)
}
