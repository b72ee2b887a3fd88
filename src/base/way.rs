//! [`Way`]: whether a call is made by MPI's blocking function, and at once or in pieces.

/// How a call is made once the ranks agree. All ranks make it the same way, since MPI does not
/// match blocking collectives with nonblocking ones. Of what the ranks ask for, the last of these is
/// done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// By MPI's blocking function.
    Waits,
    /// As [`Waits`](Self::Waits), and in so many pieces, more than one, if the call can be cut: some rank
    /// copies its tensor from a device, or to it, while others of its pieces are sent.
    Pieces(u32),
    /// By the nonblocking function, whose end is then polled for: some rank has other threads or
    /// started calls that must go on meanwhile.
    Polls,
}

impl Way {
    /// A number by which the ranks agree on a way: that of a later way is larger.
    #[inline]
    pub(crate) fn number(self) -> u64 {
        match self {
            Self::Waits => 0,
            Self::Pieces(count) => count.into(),
            Self::Polls => u64::MAX,
        }
    }

    /// The way whose number this is.
    #[inline]
    pub(crate) fn of_number(number: u64) -> Self {
        match number {
            0 => Self::Waits,
            _ => u32::try_from(number).map_or(Self::Polls, Self::Pieces),
        }
    }
}
