//! MPI on this rank: its initialization and finalization, permission to call it, waiting for other
//! ranks, and what all communicators share.

mod access;
pub mod datatype;
mod devices;
mod end;
pub(crate) mod error_code;
pub(crate) mod library;
pub(crate) mod own_ops;
mod start;
pub(crate) mod status;
mod threads;
pub(crate) mod trace;
mod wait;
pub(crate) mod watch;

use std::ffi::c_int;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ThreadId;

use parking_lot::{Mutex, RwLock};

use crate::base::check::Check;
use crate::base::error::{Error, Result};
use crate::base::tag::Tag;
use crate::base::thread_level::ThreadLevel;
use crate::environment::error_code::{check, checked};
use datatype::Handles;
use devices::Reach;
use library::Library;
use status::Pattern;
use threads::Threads;
use trace::Timeline;
use watch::Watch;

/// The state of MPI on this rank, which all communicators share: whether and on which threads MPI
/// may be called, the settings, and the handles made at initialization.
///
/// The order in which locks are taken: first the permission to call MPI ([`Environment::enter`]),
/// which a thread must not ask for while it holds another lock. Then the list of started calls,
/// then a single started call, then the order of a communicator's calls. The list of a
/// communicator's children is locked before those of the children. No thread waits for another rank
/// while it holds one of the rest.
#[derive(Debug)]
pub(crate) struct Environment {
    handles: Handles,
    library: Library,
    /// Whether this crate initialized MPI, and so finalizes it.
    owner: bool,
    level: ThreadLevel,
    check: Check,
    reach: Reach,
    /// The thread that initialized this: the only one that may call MPI below
    /// [`ThreadLevel::Serialized`].
    main: ThreadId,
    /// Held during each MPI call: exclusively at [`ThreadLevel::Serialized`], shared otherwise. The
    /// end takes it exclusively, and so waits for the calls under way.
    calls: RwLock<()>,
    finalized: AtomicBool,
    /// The MPI objects that are freed at the end, in order of creation.
    freed_at_end: Mutex<Vec<Arc<dyn FreedAtEnd>>>,
    /// The calls that were started and have not ended.
    started: Arc<dyn StartedCalls>,
    /// How many started calls wait for their turn, or for a device.
    queued: AtomicUsize,
    /// How many started receives wait for their messages, and are not known to MPI.
    expected: AtomicUsize,
    /// Whether the program may make blocking MPI calls of its own, in which no call of this crate goes
    /// on.
    is_shared: AtomicBool,
    watch: Arc<Watch>,
    /// With `MPI4TCH_TRACE`.
    timeline: Option<Arc<Timeline>>,
    threads: Threads,
    /// A line for each message that a communicator had left when it was freed, and for each started
    /// call that failed and was never waited for.
    left: Mutex<Vec<String>>,
    /// The text of the last error.
    last_error: Mutex<Option<String>>,
    /// The largest tag that MPI allows.
    largest_tag: Tag,
}

/// The calls that were started and have not ended.
pub(crate) trait StartedCalls: fmt::Debug + Send + Sync {
    /// Goes on with those that wait for their turn or for a message.
    ///
    /// # Safety
    /// MPI can be called.
    unsafe fn advance(&self);

    /// Whether a receive that waits for its message takes the one that was found.
    fn expects(&self, found: &Pattern) -> bool;

    /// Hands the receives that wait for their messages to MPI, and the calls that wait for a device.
    ///
    /// # Safety
    /// MPI can be called.
    unsafe fn post(&self);

    /// Waits for a moment until all have ended, when no other call is made any more. Returns a line
    /// for each that has not.
    ///
    /// # Safety
    /// MPI can be called.
    unsafe fn end(&self) -> Vec<String>;
}

/// An MPI object, or several, that this crate made and keeps until MPI's end.
pub(crate) trait FreedAtEnd: fmt::Debug + Send + Sync {
    /// Frees it. Adds a line to `left` for each message that was left over.
    ///
    /// # Safety
    /// MPI can be called, no call uses it any more, and all ranks free what they have in common in
    /// one order.
    unsafe fn free(&self, left: &mut Vec<String>);
}

impl Environment {
    /// The MPI library in use.
    pub(crate) fn library(&self) -> &Library {
        &self.library
    }

    /// Whether this crate initialized MPI.
    pub(crate) fn is_owner(&self) -> bool {
        self.owner
    }

    pub(crate) fn handles(&self) -> &Handles {
        &self.handles
    }

    /// How much of their calls the ranks compare.
    #[inline]
    pub(crate) fn check(&self) -> Check {
        self.check
    }

    /// Whether MPI gets pointers to the memory of devices of one of libtorch's types.
    pub(crate) fn reaches(&self, device_type: i8) -> bool {
        self.reach.covers(device_type)
    }

    /// For tests, whose devices have memory that MPI can reach: MPI gets pointers to that of all devices.
    pub(crate) fn reach_all(&self, all: bool) {
        self.reach.cover_all(all);
    }

    pub(crate) fn largest_tag(&self) -> Tag {
        self.largest_tag
    }

    #[inline]
    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Whether MPI has not been finalized.
    pub(crate) fn is_open(&self) -> bool {
        !self.finalized.load(Ordering::Relaxed)
    }

    /// Whether started calls wait for their turn or for a device. They go on only while no thread waits inside MPI.
    #[inline]
    pub(crate) fn are_queued(&self) -> bool {
        self.queued.load(Ordering::Relaxed) != 0
    }

    /// Notes that a started call waits for its turn.
    pub(crate) fn note_queued(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a started call does not wait for its turn any more.
    pub(crate) fn note_unqueued(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether started receives wait for their messages. They go on while other calls wait and start.
    #[inline]
    pub(crate) fn are_expected(&self) -> bool {
        self.expected.load(Ordering::Relaxed) != 0
    }

    /// Notes how many started receives wait for their messages.
    pub(crate) fn note_expected(&self, count: usize) {
        self.expected.store(count, Ordering::Relaxed);
    }

    /// Whether a started receive that waits for its message takes the one that was found.
    pub(crate) fn expects(&self, found: &Pattern) -> bool {
        self.are_expected() && self.started.expects(found)
    }

    /// Notes that the program may make MPI calls of its own. They may wait for ranks that wait for this
    /// one to receive, so from now on every receive is known to MPI when its start returns.
    pub(crate) fn share(&self, call: &'static str) {
        self.is_shared.store(true, Ordering::Relaxed);
        // Where MPI cannot be called, no message can be received either.
        if (self.are_expected() || self.are_queued())
            && let Ok(_permission) = self.enter(call)
        {
            // SAFETY: `enter` gave permission to call MPI.
            unsafe { self.started.post() };
        }
    }

    /// For tests, which know that they make no MPI calls of their own.
    pub(crate) fn unshare(&self) {
        self.is_shared.store(false, Ordering::Relaxed);
    }

    /// Whether the program may make MPI calls of its own.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Goes on with the started calls that wait for their turn or for a message.
    ///
    /// # Safety
    /// MPI can be called.
    #[inline]
    pub(crate) unsafe fn advance(&self) {
        if self.are_queued() || self.are_expected() {
            // SAFETY: passed on to the caller.
            unsafe { self.started.advance() };
        }
    }

    /// Keeps the text of an error, which [`meet`](Self::meet) prints if other ranks do not come.
    #[cold]
    pub(crate) fn note(&self, error: &Error) {
        *self.last_error.lock() = Some(error.to_string());
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// Keeps lines about messages and calls that were left over, to be reported at the end.
    pub(crate) fn note_left(&self, lines: Vec<String>) {
        let mut left = self.left.lock();
        for line in lines {
            if !left.contains(&line) {
                left.push(line);
            }
        }
    }

    /// Keeps an MPI object, to be freed at the end.
    pub(crate) fn free_at_end(&self, kept: Arc<dyn FreedAtEnd>) {
        self.freed_at_end.lock().push(kept);
    }
}

/// Whether MPI has been finalized.
pub(crate) fn is_finalized() -> Result<bool> {
    flag("MPI_Finalized", mpi_sys::MPI_Finalized)
}

/// Makes MPI return the errors of a communicator instead of aborting.
pub(crate) fn return_errors(context: mpi_sys::MPI_Comm) -> Result<()> {
    // SAFETY: a communicator, and one of MPI's own error handlers.
    unsafe { checked!(MPI_Comm_set_errhandler(context, mpi_sys::MPI_ERRORS_RETURN)) }
}

fn flag(call: &'static str, query: unsafe extern "C" fn(*mut c_int) -> c_int) -> Result<bool> {
    let mut flag = 0;
    // SAFETY: the queries passed here write one int.
    check(call, unsafe { query(&mut flag) })?;
    Ok(flag != 0)
}
