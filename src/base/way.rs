//! [`Way`]: whether a call is made by MPI's blocking function, and at once or in pieces.

/// How a call is made once the ranks agree. All ranks make it the same way, since MPI does not
/// match blocking collectives with nonblocking ones. Of what the ranks ask for, the last of these is
/// done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// By MPI's blocking function.
    Waits,
    /// As [`Waits`](Self::Waits), and in pieces if each element is treated by itself: some rank copies
    /// its tensor from a device, or to it, while others of its pieces are sent.
    Pieces,
    /// By the nonblocking function, whose end is then polled for: some rank has other threads or
    /// started calls that must go on meanwhile.
    Polls,
}

impl Way {
    /// The way whose number this is: as an integer, a later way is larger.
    pub(crate) fn of_number(number: u64) -> Self {
        let ways = [Self::Waits, Self::Pieces];
        ways.into_iter().find(|&way| way as u64 == number).unwrap_or(Self::Polls)
    }
}
