//! The clocks of the ranks, compared with that of rank 0.
//!
//! A rank asks rank 0 for its time, several times. If the answer took as long to come as the question,
//! rank 0 read its clock in the middle between question and answer; if not, the estimate is wrong by at
//! most half the time that both took. So the round that took least time is used.

use std::time::{Duration, Instant};

use mpi_sys::MPI_Comm;

use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::environment::error_code::checked;

/// How often a rank asks at most, and for how long, unless it has asked fewer than [`FEWEST`] times.
const MOST: u32 = 50;
const FEWEST: u32 = 5;
const LONGEST: Duration = Duration::from_millis(30);

/// How far the clock of rank 0 is ahead of this rank's, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Offset {
    /// The time of the comparison, on this rank's clock.
    at: f64,
    ahead: f64,
    /// How far `ahead` may be off.
    pub(super) error: f64,
}

/// Compares the clocks, in `context`. Collective, with permission to call MPI.
pub(super) fn compare(
    context: MPI_Comm,
    (rank, size): (Rank, Rank),
    now: impl Fn() -> u64,
) -> Result<Offset> {
    if rank != 0 {
        return ask(context, now);
    }
    for other in 1..size {
        while receive(context, other)? != LAST {
            send(context, other, now().cast_signed())?;
        }
        send(context, other, now().cast_signed())?;
    }
    Ok(Offset::default())
}

/// The questions: whether another follows.
const MORE: i64 = 0;
const LAST: i64 = 1;

fn ask(context: MPI_Comm, now: impl Fn() -> u64) -> Result<Offset> {
    let mut best: Option<Offset> = None;
    let start = Instant::now();
    for round in 1.. {
        let is_last = round == MOST || (round >= FEWEST && start.elapsed() > LONGEST);
        let asked = now() as f64;
        send(context, 0, if is_last { LAST } else { MORE })?;
        let theirs = receive(context, 0)? as f64;
        let answered = now() as f64;
        let (at, error) = ((asked + answered) / 2.0, (answered - asked) / 2.0);
        if best.is_none_or(|best| error < best.error) {
            best = Some(Offset { at, ahead: theirs - at, error });
        }
        if is_last {
            break;
        }
    }
    Ok(best.unwrap_or_default())
}

fn send(context: MPI_Comm, to: Rank, word: i64) -> Result<()> {
    let word = std::ptr::from_ref(&word).cast();
    // SAFETY: a word that outlives the call; the caller has permission to call MPI.
    unsafe { checked!(MPI_Send(word, 1, mpi_sys::MPI_INT64_T, to, 0, context)) }
}

fn receive(context: MPI_Comm, from: Rank) -> Result<i64> {
    let mut word = 0_i64;
    // SAFETY: as above.
    unsafe {
        checked!(MPI_Recv(
            std::ptr::from_mut(&mut word).cast(),
            1,
            mpi_sys::MPI_INT64_T,
            from,
            0,
            context,
            mpi_sys::MPI_STATUS_IGNORE,
        ))
    }?;
    Ok(word)
}

/// Takes times on this rank's clock to rank 0's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alignment {
    first: Offset,
    last: Offset,
}

impl Alignment {
    pub(super) fn new(first: Offset, last: Offset) -> Self {
        // If the clocks may have gone at the same rate, the better estimate is that of all times.
        if (last.ahead - first.ahead).abs() <= first.error + last.error {
            let better = if first.error <= last.error { first } else { last };
            return Self { first: better, last: better };
        }
        Self { first, last }
    }

    /// The time on rank 0's clock, in microseconds.
    pub(super) fn align(&self, microseconds: f64) -> f64 {
        let Self { first, last } = self;
        let length = last.at - first.at;
        let part = if length > 0.0 { (microseconds * 1e3 - first.at) / length } else { 0.0 };
        microseconds + (first.ahead + part.clamp(0.0, 1.0) * (last.ahead - first.ahead)) / 1e3
    }

    /// How far the clock may be off, in microseconds.
    pub(super) fn error(&self) -> f64 {
        self.first.error.max(self.last.error) / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_between_two_comparisons_are_interpolated() {
        let first = Offset { at: 1000.0, ahead: 5000.0, error: 10.0 };
        let last = Offset { at: 3000.0, ahead: 5200.0, error: 20.0 };
        let alignment = Alignment::new(first, last);
        for (time, aligned) in [(0.5, 5.5), (1.0, 6.0), (2.0, 7.1), (3.0, 8.2), (4.0, 9.2)] {
            assert!((alignment.align(time) - aligned).abs() < 1e-9, "{time}");
        }
        assert_eq!(alignment.error(), 0.02);
    }

    #[test]
    fn clocks_that_may_be_equally_fast_are_only_shifted() {
        let first = Offset { at: 1000.0, ahead: 5000.0, error: 100.0 };
        let last = Offset { at: 1010.0, ahead: 5090.0, error: 10.0 };
        let alignment = Alignment::new(first, last);
        assert!((alignment.align(1.0) - 6.09).abs() < 1e-9);
        assert!((alignment.align(7.0) - 12.09).abs() < 1e-9);
        assert_eq!(alignment.error(), 0.01);
    }
}
