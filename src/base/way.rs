//! [`Way`]: whether a call is made by MPI's blocking function.

/// How a call is made once the ranks agree. All ranks make it the same way, since MPI does not
/// match blocking collectives with nonblocking ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// By MPI's blocking function.
    Waits,
    /// By the nonblocking function, whose end is then polled for: some rank has other threads or
    /// started calls that must go on meanwhile.
    Polls,
}
