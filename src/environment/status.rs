//! Who a message is from and what it is: [`Source`], [`TagMatch`], [`Status`].

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use mpi_sys::MPI_Status;
use tch::Kind;

use crate::base::rank::Rank;
use crate::base::tag::Tag;

/// The rank that does not exist: what is sent to it goes nowhere, and what is received from it is
/// nothing. A shift along ranks that do not form a ring names it at both ends.
#[doc(alias = "MPI_PROC_NULL")]
pub const PROC_NULL: Rank = mpi_sys::MPI_PROC_NULL;

/// Whose message is received.
///
/// # Examples
/// ```
/// use mpi4tch::Source;
///
/// assert_eq!(Source::from(3), Source::Rank(3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// This rank's.
    Rank(Rank),
    /// Whichever comes.
    #[doc(alias = "MPI_ANY_SOURCE")]
    Any,
}

impl From<Rank> for Source {
    fn from(rank: Rank) -> Self {
        Self::Rank(rank)
    }
}

/// Which message is received.
///
/// # Examples
/// ```
/// use mpi4tch::TagMatch;
///
/// assert_eq!(TagMatch::from(7), TagMatch::Tag(7));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TagMatch {
    /// The next with this tag.
    Tag(Tag),
    /// The next.
    #[doc(alias = "MPI_ANY_TAG")]
    Any,
}

impl From<Tag> for TagMatch {
    fn from(tag: Tag) -> Self {
        Self::Tag(tag)
    }
}

/// What is known of a message that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "MPI_Status")]
pub struct Status {
    pub(crate) source: Rank,
    pub(crate) tag: Tag,
    pub(crate) bytes: i64,
}

impl Status {
    /// What MPI writes the status of a message to.
    pub(crate) fn none() -> MPI_Status {
        // SAFETY: a status is integers, for which zeros are values.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    /// What MPI says, by one who may call it.
    pub(crate) fn of(status: &MPI_Status) -> Self {
        let mut bytes = 0;
        // SAFETY: MPI, or `none`, has written the status; `bytes` outlives the call.
        unsafe { mpi_sys::MPI_Get_elements_x(status, mpi_sys::MPI_BYTE, &mut bytes) };
        Self { source: status.MPI_SOURCE, tag: status.MPI_TAG, bytes: bytes.max(0) }
    }

    /// Without `extra` bytes that are not the user's.
    pub(crate) fn without(self, extra: i64) -> Self {
        Self { bytes: (self.bytes - extra).max(0), ..self }
    }

    /// The rank that sent it.
    #[must_use]
    pub fn source(&self) -> Rank {
        self.source
    }

    /// Its tag.
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// How many elements of this kind it has, if they fill it.
    #[must_use]
    #[doc(alias = "MPI_Get_count")]
    pub fn count(&self, kind: Kind) -> Option<i64> {
        let size = i64::try_from(kind.elt_size_in_bytes()).ok().filter(|&size| size > 0)?;
        (self.bytes % size == 0).then_some(self.bytes / size)
    }
}

/// The other end of a message. What wildcards stand for is known once the message has come, to all
/// clones.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    source: Source,
    tag: TagMatch,
    resolved: Arc<Resolved>,
}

#[derive(Debug, Default)]
struct Resolved {
    status: OnceLock<Status>,
    /// Whether the message was not what it was to be received into.
    refused: AtomicBool,
}

impl Envelope {
    pub(crate) fn new(source: Source, tag: TagMatch) -> Self {
        Self { source, tag, resolved: Arc::default() }
    }

    pub(crate) fn source(&self) -> Source {
        self.source
    }

    pub(crate) fn tag(&self) -> TagMatch {
        self.tag
    }

    /// As MPI takes it for a receive.
    pub(crate) fn to_mpi(&self) -> (Rank, Tag) {
        if let Some(known) = self.known() {
            return known;
        }
        let source = match self.source {
            Source::Rank(rank) => rank,
            Source::Any => mpi_sys::MPI_ANY_SOURCE,
        };
        let tag = match self.tag {
            TagMatch::Tag(tag) => tag,
            TagMatch::Any => mpi_sys::MPI_ANY_TAG,
        };
        (source, tag)
    }

    pub(crate) fn resolve(&self, status: Status) {
        // A message comes once.
        let _ = self.resolved.status.set(status);
    }

    /// Notes that the message was received in vain.
    pub(crate) fn refuse(&self) {
        self.resolved.refused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.resolved.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn status(&self) -> Option<Status> {
        self.resolved.status.get().copied()
    }

    /// The rank and the tag, if they are known.
    pub(crate) fn known(&self) -> Option<(Rank, Tag)> {
        match (self.source, self.tag, self.status()) {
            (Source::Rank(rank), TagMatch::Tag(tag), _) => Some((rank, tag)),
            (_, _, Some(status)) => Some((status.source, status.tag)),
            // What nobody sends has no tag.
            (Source::Rank(PROC_NULL), TagMatch::Any, None) => Some((PROC_NULL, 0)),
            _ => None,
        }
    }
}
