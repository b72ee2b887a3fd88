//! Times of ways that take turns.

use std::time::Instant;

use mpi4tch::{Communicator, Op, Result};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::turns::median;

/// Something to time: returns the seconds of the part that counts.
pub type Way<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// The variable for the number of rounds.
const ROUNDS: &str = "MPI4TCH_BENCH_ROUNDS";

fn rounds() -> usize {
    std::env::var(ROUNDS).ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(21)
}

/// The seconds that `f` takes, after all ranks have come.
pub fn timed(world: &Communicator, f: impl FnOnce() -> Result<()>) -> Result<f64> {
    world.barrier()?;
    let start = Instant::now();
    f()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The median of each way's times, where the time of a round is that of the slowest rank. The first
/// round does not count.
pub fn in_turns(world: &Communicator, ways: &mut [Way<'_>]) -> Result<Vec<f64>> {
    let mut times = vec![Vec::new(); ways.len()];
    for round in 0..=rounds() {
        for (way, times) in ways.iter_mut().zip(&mut times) {
            let seconds = way()?;
            if round != 0 {
                times.push(seconds);
            }
        }
    }
    let slowest = |times: Vec<f64>| -> Result<f64> {
        let slowest = world.all_reduce(&Tensor::from_slice(&times), Op::Max)?;
        Ok(median(&slowest.iter::<f64>()?.collect::<Vec<_>>()))
    };
    times.into_iter().map(slowest).collect()
}

/// The median of a few runs, equal on all ranks.
pub fn roughly(world: &Communicator, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let times: Result<Vec<f64>> = (0..5).map(|_| timed(world, &mut f)).collect();
    let time = world.all_reduce(&Tensor::from(median(&times?)), Op::Max)?;
    Ok(time.double_value(&[]))
}

/// What was measured of one way to communicate beside a computation, in seconds.
#[derive(Serialize, Deserialize)]
pub struct Row {
    pub operation: String,
    pub pass: Pass,
    pub by: String,
    pub communication: f64,
    pub computation: f64,
    pub both: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pass {
    Forward,
    Backward,
}

/// Makes a row for each entry of `by`: a name, and the places in `times` of the communication alone and
/// of both. The first of `times` is that of the computation.
pub fn rows(operation: &str, pass: Pass, times: &[f64], by: &[(&str, usize, usize)]) -> Vec<Row> {
    let row = |&(by, communication, both): &(&str, usize, usize)| Row {
        operation: operation.to_owned(),
        pass,
        by: by.to_owned(),
        communication: times[communication],
        computation: times[0],
        both: times[both],
    };
    by.iter().map(row).collect()
}

impl Row {
    /// The share of the communication, or of the computation if that is shorter, that took no time
    /// of its own.
    pub fn hidden(&self) -> f64 {
        let alone = self.communication.min(self.computation);
        (self.communication + self.computation - self.both) / alone
    }
}
