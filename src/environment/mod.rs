//! MPI on this rank: its start and end, who may call it, how a call waits, and what is the same for
//! all communicators.

mod access;
pub mod datatype;
mod end;
pub(crate) mod error_code;
pub(crate) mod library;
pub(crate) mod own_ops;
mod start;
pub(crate) mod status;
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
use library::Library;
use watch::Watch;

/// What every communicator refers to: whether MPI may be called, and by whom, and the handles
/// that were made at the start.
///
/// The order of locks: permission to call MPI ([`Environment::enter`]) comes before all others, as whoever
/// has it may take any of them, and nobody who holds another may ask for it. Of the others, that
/// of the list of calls under way comes before that of a single call, and that before the order of a
/// communicator's calls; and that of a communicator's children before those of the children. While
/// any of the rest is held, nothing waits.
#[derive(Debug)]
pub(crate) struct Environment {
    handles: Handles,
    library: Library,
    /// Whether it was this crate that initialized MPI.
    owner: bool,
    level: ThreadLevel,
    check: Check,
    /// The thread that initialized: the one that may call MPI below [`ThreadLevel::Serialized`].
    main: ThreadId,
    /// Held during each call, so that the end waits for those under way.
    calls: RwLock<()>,
    finalized: AtomicBool,
    /// What is freed at the end, in order of creation.
    freed_at_end: Mutex<Vec<Arc<dyn FreedAtEnd>>>,
    /// The calls that were started and have not ended.
    started: Arc<dyn StartedCalls>,
    /// How many of them wait for their turn.
    queued: AtomicUsize,
    watch: Arc<Watch>,
    /// Whether other threads than `main` have called MPI.
    has_threads: AtomicBool,
    /// What was left over of communicators that have been freed.
    left: Mutex<Vec<String>>,
    /// What failed last.
    last_error: Mutex<Option<String>>,
    /// The largest tag.
    largest_tag: Tag,
}

/// The calls that were started and have not ended.
pub(crate) trait StartedCalls: fmt::Debug + Send + Sync {
    /// Lets those that wait for their turn go on.
    ///
    /// # Safety
    /// MPI can be called.
    unsafe fn advance(&self);

    /// Ends all of them, when no other call is made. Returns a line for each that does not end.
    ///
    /// # Safety
    /// MPI can be called.
    unsafe fn end(&self) -> Vec<String>;
}

/// What this crate made of MPI's and keeps until the end.
pub(crate) trait FreedAtEnd: fmt::Debug + Send + Sync {
    /// Frees it. Adds a line to `left` for each thing that was left over.
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

    /// Whether it was this crate that initialized MPI.
    pub(crate) fn is_owner(&self) -> bool {
        self.owner
    }

    pub(crate) fn handles(&self) -> &Handles {
        &self.handles
    }

    /// Which calls the ranks compare before they make them.
    #[inline]
    pub(crate) fn check(&self) -> Check {
        self.check
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

    /// Whether started calls wait for their turn, so that nobody may wait inside MPI.
    #[inline]
    pub(super) fn are_queued(&self) -> bool {
        self.queued.load(Ordering::Relaxed) != 0
    }

    /// Notes that a started call waits for its turn.
    pub(crate) fn note_queued(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that one waits no more.
    pub(crate) fn note_unqueued(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// Lets the started calls that wait for their turn go on.
    ///
    /// # Safety
    /// MPI can be called.
    #[inline]
    pub(crate) unsafe fn advance(&self) {
        if self.are_queued() {
            // SAFETY: passed on to the caller.
            unsafe { self.started.advance() };
        }
    }

    /// Remembers what failed, to tell it where other ranks wait for this one in vain.
    #[cold]
    pub(crate) fn note(&self, error: &Error) {
        *self.last_error.lock() = Some(error.to_string());
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// Keeps lines of what was left over, to be told at the end.
    pub(crate) fn note_left(&self, lines: Vec<String>) {
        let mut left = self.left.lock();
        for line in lines {
            if !left.contains(&line) {
                left.push(line);
            }
        }
    }

    /// Keeps something, to free it at the end.
    pub(crate) fn free_at_end(&self, kept: Arc<dyn FreedAtEnd>) {
        self.freed_at_end.lock().push(kept);
    }
}

/// Whether MPI has been finalized.
pub(crate) fn is_finalized() -> Result<bool> {
    flag("MPI_Finalized", mpi_sys::MPI_Finalized)
}

/// Lets MPI return the errors of a communicator instead of aborting.
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
