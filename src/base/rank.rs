//! [`Rank`]: which process of a communicator.

/// The number of a process in a communicator, from 0.
pub type Rank = i32;

/// Where the rank's entry is in a list of one per rank.
#[inline]
pub(crate) fn index(rank: Rank) -> usize {
    rank.unsigned_abs() as usize
}
