//! [`Rank`]: which process of a communicator.

/// The number of a process in a communicator, from 0.
///
/// # Examples
/// ```
/// use mpi4tch::Rank;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let next: Rank = (world.rank() + 1) % world.size();
/// assert!((0..world.size()).contains(&next));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
pub type Rank = i32;

/// The index of the rank's entry in a list with one entry per rank.
#[inline]
pub(crate) fn index(rank: Rank) -> usize {
    rank.unsigned_abs() as usize
}
