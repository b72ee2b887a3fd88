//! [`Rank`]: which process of a communicator.

/// The number of a process in a communicator, from 0.
pub type Rank = i32;

/// The index of the rank's entry in a list with one entry per rank.
#[inline]
pub(crate) fn index(rank: Rank) -> usize {
    rank.unsigned_abs() as usize
}
