//! [`Way`]: whether a call waits inside MPI.

/// How a call is made once the ranks agree. All ranks make it the same way, as MPI's blocking
/// functions do not match those that start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// By MPI's blocking function.
    Waits,
    /// By the function that starts: some rank has other work that must go on meanwhile.
    Polls,
}
