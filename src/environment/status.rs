//! Where messages come from, their tags and sizes: [`Source`], [`TagMatch`], [`Status`].

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use mpi_sys::{MPI_Comm, MPI_Status};
use tch::Kind;

use crate::base::rank::Rank;
use crate::base::tag::Tag;

/// The rank of no process. A send to it does nothing, and a receive from it returns zeros at once.
/// In a shift along a line of ranks it is the neighbour that the ranks at both ends lack.
///
/// # Examples
/// ```
/// use mpi4tch::PROC_NULL;
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let x = Tensor::from_slice(&[1.5]);
/// world.send(&x, PROC_NULL, 0)?;
/// assert_eq!(world.recv(&x, PROC_NULL, 0)?, Tensor::from_slice(&[0.0]));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[doc(alias = "MPI_PROC_NULL")]
pub const PROC_NULL: Rank = mpi_sys::MPI_PROC_NULL;

/// The rank that a message is received from.
///
/// # Examples
/// ```
/// use mpi4tch::Source;
///
/// assert_eq!(Source::from(3), Source::Rank(3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// This rank.
    Rank(Rank),
    /// Any rank.
    #[doc(alias = "MPI_ANY_SOURCE")]
    Any,
}

impl From<Rank> for Source {
    fn from(rank: Rank) -> Self {
        Self::Rank(rank)
    }
}

/// The tag of the message that is received.
///
/// # Examples
/// ```
/// use mpi4tch::TagMatch;
///
/// assert_eq!(TagMatch::from(7), TagMatch::Tag(7));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TagMatch {
    /// This tag.
    Tag(Tag),
    /// Any tag.
    #[doc(alias = "MPI_ANY_TAG")]
    Any,
}

impl From<Tag> for TagMatch {
    fn from(tag: Tag) -> Self {
        Self::Tag(tag)
    }
}

/// The source, tag and size of a message that has arrived.
///
/// # Examples
/// ```
/// use mpi4tch::{Source, TagMatch};
/// use tch::{Kind, Tensor};
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let x = Tensor::from_slice(&[1.0, 2.0]);
/// let request = world.isend(&x, world.rank(), 7)?;
/// let (_, status) = world.recv_with_status(&x, Source::Any, TagMatch::Any)?;
/// request.wait()?;
/// assert_eq!((status.source(), status.tag()), (world.rank(), 7));
/// assert_eq!(status.count(Kind::Double), Some(2));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "MPI_Status")]
pub struct Status {
    pub(crate) source: Rank,
    pub(crate) tag: Tag,
    pub(crate) bytes: i64,
}

impl Status {
    /// A status for MPI to write to.
    pub(crate) fn none() -> MPI_Status {
        // SAFETY: a status is integers, for which zeros are values.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    /// Reads a status of MPI's, with permission to call MPI.
    pub(crate) fn of(status: &MPI_Status) -> Self {
        let mut bytes = 0;
        // SAFETY: MPI, or `none`, has written the status; `bytes` outlives the call.
        unsafe { mpi_sys::MPI_Get_elements_x(status, mpi_sys::MPI_BYTE, &mut bytes) };
        Self { source: status.MPI_SOURCE, tag: status.MPI_TAG, bytes: bytes.max(0) }
    }

    /// The status without `extra` bytes that this crate added to the message.
    pub(crate) fn without(self, extra: i64) -> Self {
        Self { bytes: (self.bytes - extra).max(0), ..self }
    }

    /// The rank that sent the message.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Source;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let (rank, size) = (world.rank(), world.size());
    /// let x = Tensor::from_slice(&[rank]);
    /// let request = world.isend(&x, (rank + 1) % size, 0)?;
    /// let (y, status) = world.recv_with_status(&x, Source::Any, 0)?;
    /// request.wait()?;
    /// assert_eq!(y, Tensor::from_slice(&[status.source()]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    pub fn source(&self) -> Rank {
        self.source
    }

    /// The message's tag.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::TagMatch;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let x = Tensor::from_slice(&[1.5]);
    /// let request = world.isend(&x, world.rank(), 7)?;
    /// let (_, status) = world.recv_with_status(&x, world.rank(), TagMatch::Any)?;
    /// request.wait()?;
    /// assert_eq!(status.tag(), 7);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// How many elements of this kind the message has; `None` if its size is not that of a whole
    /// number.
    ///
    /// # Examples
    /// ```
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let x = Tensor::from_slice(&[1_f32, 2.0, 3.0]);
    /// let request = world.isend(&x, world.rank(), 0)?;
    /// let (_, status) = world.recv_with_status(&x, world.rank(), 0)?;
    /// request.wait()?;
    /// assert_eq!(status.count(Kind::Float), Some(3));
    /// assert_eq!(status.count(Kind::Double), None); // 12 bytes are no whole number of doubles
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Get_count")]
    pub fn count(&self, kind: Kind) -> Option<i64> {
        let size = i64::try_from(kind.elt_size_in_bytes()).ok().filter(|&size| size > 0)?;
        (self.bytes % size == 0).then_some(self.bytes / size)
    }
}

/// The messages that a receive takes: those in a context, of a rank or of any, with a tag or with any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) context: MPI_Comm,
    /// A rank or `MPI_ANY_SOURCE`.
    pub(crate) source: Rank,
    /// A tag or `MPI_ANY_TAG`.
    pub(crate) tag: Tag,
}

// SAFETY: the handle is only compared, and passed to MPI.
unsafe impl Send for Pattern {}

impl Pattern {
    /// Whether some message is taken by both. A pattern without wildcards stands for the messages with
    /// its source and tag. None is of `MPI_PROC_NULL`.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let any = |a, b, any| a == b || a == any || b == any;
        self.context == other.context
            && ![self.source, other.source].contains(&PROC_NULL)
            && any(self.source, other.source, mpi_sys::MPI_ANY_SOURCE)
            && any(self.tag, other.tag, mpi_sys::MPI_ANY_TAG)
    }
}

/// The rank at the other end of a message, and its tag. For a receive either may be a wildcard;
/// once the message has arrived, all clones know what the wildcards matched.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    source: Source,
    tag: TagMatch,
    /// `None` if there is nothing to be known any more.
    resolved: Option<Arc<Resolved>>,
}

#[derive(Debug, Default)]
struct Resolved {
    status: OnceLock<Status>,
    /// Whether the message did not match the tensor that it was to be received into.
    refused: AtomicBool,
}

impl Envelope {
    pub(crate) fn new(source: Source, tag: TagMatch) -> Self {
        Self { source, tag, resolved: Some(Arc::default()) }
    }

    pub(crate) fn source(&self) -> Source {
        self.source
    }

    pub(crate) fn tag(&self) -> TagMatch {
        self.tag
    }

    /// The arguments for MPI to receive the message.
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
        // A message arrives only once, so nothing is set before.
        let _ = self.resolved.as_ref().map(|resolved| resolved.status.set(status));
    }

    /// Notes that the message did not match the tensor that it was to be received into.
    pub(crate) fn refuse(&self) {
        if let Some(resolved) = &self.resolved {
            resolved.refused.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.resolved.as_ref().is_some_and(|resolved| resolved.refused.load(Ordering::Relaxed))
    }

    pub(crate) fn status(&self) -> Option<Status> {
        self.resolved.as_ref()?.status.get().copied()
    }

    /// The same, without memory of its own, if this message of a call that is over has arrived or, as
    /// a message to send, is known.
    pub(crate) fn finished(&self, sends: bool) -> Self {
        match self.known().filter(|_| !self.is_refused() && (sends || self.status().is_some())) {
            Some((rank, tag)) => Self { source: rank.into(), tag: tag.into(), resolved: None },
            None => self.clone(),
        }
    }

    /// The rank and the tag, if they are known.
    pub(crate) fn known(&self) -> Option<(Rank, Tag)> {
        match (self.source, self.tag, self.status()) {
            (Source::Rank(rank), TagMatch::Tag(tag), _) => Some((rank, tag)),
            (_, _, Some(status)) => Some((status.source, status.tag)),
            // No message comes, so any tag will do.
            (Source::Rank(PROC_NULL), TagMatch::Any, None) => Some((PROC_NULL, 0)),
            _ => None,
        }
    }
}
