//! Who may call MPI, and when: between its start and its end, on the threads that it allows.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ThreadId;

use mpi_sys::MPI_Datatype;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::base::check::Check;
use crate::base::error::{Error, Result, check};
use crate::base::site::Site;
use crate::base::tag::Tag;
use crate::base::thread_level::ThreadLevel;
use crate::reduction::OwnOps;
use crate::watch::{self, Watch};

/// What every communicator refers to: whether MPI may be called, and by whom, and the handles
/// that were made at the start.
///
/// The order of locks: leave to call MPI ([`Environment::enter`]) comes before all others, as whoever
/// has it may take any of them, and nobody who holds another may ask for leave. Of the others, that
/// of the list of calls under way comes before that of a single call, and that before the order of a
/// communicator's calls; and that of a communicator's children before those of the children. While
/// any of the rest is held, nothing waits.
#[derive(Debug)]
pub(crate) struct Environment {
    handles: Handles,
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

/// Handles that MPI has not, but makes.
#[derive(Debug)]
pub(crate) struct Handles {
    /// The datatype of the 16-bit floating-point kinds.
    pub(crate) two_bytes: MPI_Datatype,
    pub(crate) ops: OwnOps,
}

impl Environment {
    pub(crate) fn create(
        settings: (Check, Arc<Watch>),
        started: Arc<dyn StartedCalls>,
    ) -> Result<Self> {
        let (check_level, watch) = settings;
        let mut level = 0;
        // SAFETY: MPI is initialized; `level` outlives the call.
        check("MPI_Query_thread", unsafe { mpi_sys::MPI_Query_thread(&mut level) })?;
        let level = ThreadLevel::from_mpi(level);
        if level < ThreadLevel::Serialized
            && !flag("MPI_Is_thread_main", mpi_sys::MPI_Is_thread_main)?
        {
            let needed = "initialize on the main thread";
            return Err(Error::Thread { call: "initialize", level, needed });
        }
        let mut two_bytes = mpi_sys::MPI_DATATYPE_NULL;
        // SAFETY: MPI is initialized; `two_bytes` outlives the call.
        check("MPI_Type_contiguous", unsafe {
            mpi_sys::MPI_Type_contiguous(2, mpi_sys::MPI_BYTE, &mut two_bytes)
        })?;
        // SAFETY: a datatype that was just made.
        check("MPI_Type_commit", unsafe { mpi_sys::MPI_Type_commit(&mut two_bytes) })?;
        Ok(Self {
            handles: Handles { two_bytes, ops: OwnOps::create()? },
            level,
            check: check_level,
            main: std::thread::current().id(),
            calls: RwLock::new(()),
            finalized: AtomicBool::new(false),
            freed_at_end: Mutex::default(),
            started,
            queued: AtomicUsize::new(0),
            watch,
            has_threads: AtomicBool::new(false),
            left: Mutex::default(),
            last_error: Mutex::default(),
            largest_tag: largest_tag()?,
        })
    }

    pub(super) fn level(&self) -> ThreadLevel {
        self.level
    }

    pub(crate) fn handles(&self) -> &Handles {
        &self.handles
    }

    /// Which calls the ranks compare before they make them.
    #[inline]
    pub(crate) fn check(&self) -> Check {
        self.check
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

    pub(crate) fn largest_tag(&self) -> Tag {
        self.largest_tag
    }

    #[inline]
    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Whether a thread that waits inside MPI, as this one may, would keep others waiting.
    #[inline]
    pub(super) fn has_waiting_threads(&self) -> bool {
        if self.level != ThreadLevel::Serialized {
            return false;
        }
        if std::thread::current().id() != self.main {
            self.has_threads.store(true, Ordering::Relaxed);
        }
        self.has_threads.load(Ordering::Relaxed)
    }

    /// Whether MPI has not been finalized.
    pub(crate) fn is_open(&self) -> bool {
        !self.finalized.load(Ordering::Relaxed)
    }

    /// Remembers what failed, to tell it where other ranks wait for this one in vain.
    #[cold]
    pub(crate) fn note(&self, error: &Error) {
        *self.last_error.lock() = Some(error.to_string());
    }

    pub(super) fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// Whether this thread may call MPI, as things stand.
    #[inline]
    pub(crate) fn allows(&self, call: &'static str) -> Result<()> {
        if self.level < ThreadLevel::Serialized && std::thread::current().id() != self.main {
            let needed = "call from the main thread, or initialize with ThreadLevel::Serialized";
            return Err(Error::Thread { call, level: self.level, needed });
        }
        if self.is_open() { Ok(()) } else { Err(Error::Finalized { call }) }
    }

    /// Leave to call MPI, for as long as the guard lives.
    #[inline]
    pub(crate) fn enter(&self, call: &'static str) -> Result<Leave<'_>> {
        // A panic between two MPI calls leaves nothing half done: poisoning does not matter.
        let leave = match self.level {
            ThreadLevel::Serialized => Leave::Alone(self.alone()),
            _ => Leave::Shared(self.shared()),
        };
        // The end is set by who is alone.
        self.allows(call)?;
        Ok(leave)
    }

    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.calls.read()
    }

    fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.calls.write()
    }

    /// Keeps something, to free it at the end.
    pub(crate) fn free_at_end(&self, kept: Arc<dyn FreedAtEnd>) {
        self.freed_at_end.lock().push(kept);
    }

    /// Frees what was made, and then calls `finish`; from then on [`enter`](Self::enter) refuses.
    /// Returns a line for each thing that was left over.
    pub(super) fn close(&self, site: Site, finish: impl FnOnce()) -> Vec<String> {
        let _watched = self.watch.enter(site);
        let _guard = self.alone();
        if self.finalized.swap(true, Ordering::Relaxed) {
            return Vec::new();
        }
        if flag("MPI_Finalized", mpi_sys::MPI_Finalized).unwrap_or(true) {
            // Whoever initialized MPI has finalized it under us; nothing may be freed any more.
            return Vec::new();
        }
        // SAFETY: MPI is there, and no call of this crate reaches it any more.
        let mut left = unsafe { self.started.end() };
        left.append(&mut self.left.lock());
        let kept = std::mem::take(&mut *self.freed_at_end.lock());
        for kept in kept {
            // SAFETY: MPI is there, and no call of this crate reaches it any more; all ranks free
            // what is left.
            unsafe { kept.free(&mut left) };
        }
        for mut op in self.handles.ops.handles() {
            // SAFETY: an op that this crate made, freed once; no call uses it any more.
            let _ = unsafe { mpi_sys::MPI_Op_free(&mut op) };
        }
        let mut two_bytes = self.handles.two_bytes;
        // SAFETY: a datatype that this crate made, freed once; no call uses it any more.
        let _ = unsafe { mpi_sys::MPI_Type_free(&mut two_bytes) };
        finish();
        left
    }

    /// Keeps lines of what was left over, to be told at the end.
    pub(crate) fn leave(&self, lines: Vec<String>) {
        let mut left = self.left.lock();
        for line in lines {
            if !left.contains(&line) {
                left.push(line);
            }
        }
    }

    /// Closes when MPI is finalized by who initialized it, while MPI can still be called: MPI begins
    /// its end by deleting the attributes of `MPI_COMM_SELF` (MPI 4.0, section 11.2.4).
    pub(super) fn close_at_finalize(self: &Arc<Self>) -> Result<()> {
        let mut key = 0;
        // SAFETY: the callback has the signature that MPI calls it with, and lives as long as the
        // program; `key` outlives the call.
        check("MPI_Comm_create_keyval", unsafe {
            mpi_sys::MPI_Comm_create_keyval(
                mpi_sys::MPI_COMM_NULL_COPY_FN,
                Some(close_environment),
                &mut key,
                std::ptr::null_mut(),
            )
        })?;
        let environment = Arc::into_raw(Arc::clone(self)).cast_mut().cast();
        // SAFETY: the attribute is a reference of its own, which the callback takes back.
        check("MPI_Comm_set_attr", unsafe {
            mpi_sys::MPI_Comm_set_attr(mpi_sys::MPI_COMM_SELF, key, environment)
        })
    }
}

/// `MPI_Comm_delete_attr_function` of an environment.
unsafe extern "C" fn close_environment(
    _comm: mpi_sys::MPI_Comm,
    _key: c_int,
    environment: *mut c_void,
    _extra: *mut c_void,
) -> c_int {
    // SAFETY: `close_at_finalize` made the attribute from an Arc; it is deleted once.
    let environment = unsafe { Arc::from_raw(environment.cast_const().cast::<Environment>()) };
    for line in environment.close(Site::new("finalize"), || ()) {
        watch::say(&format!("mpi4tch: {line}\n"));
    }
    mpi_sys::MPI_SUCCESS
}

/// Leave to call MPI: alone, or beside other threads.
pub(crate) enum Leave<'a> {
    Alone(#[expect(dead_code, reason = "held for its Drop")] RwLockWriteGuard<'a, ()>),
    Shared(#[expect(dead_code, reason = "held for its Drop")] RwLockReadGuard<'a, ()>),
}

/// `MPI_TAG_UB`.
fn largest_tag() -> Result<Tag> {
    let (mut value, mut found) = (std::ptr::null_mut::<c_int>(), 0);
    // SAFETY: the value of this attribute is a pointer to an int; both outlive the call.
    check("MPI_Comm_get_attr", unsafe {
        mpi_sys::MPI_Comm_get_attr(
            mpi_sys::MPI_COMM_WORLD,
            mpi_sys::MPI_TAG_UB,
            (&raw mut value).cast(),
            &mut found,
        )
    })?;
    // SAFETY: where it was found, MPI has pointed the value at an int of its own.
    let value = unsafe { value.as_ref() }.filter(|_| found != 0);
    // What every MPI allows (MPI 3.1, section 8.1.2).
    Ok(value.copied().unwrap_or(32767))
}

pub(super) fn flag(
    call: &'static str,
    query: unsafe extern "C" fn(*mut c_int) -> c_int,
) -> Result<bool> {
    let mut flag = 0;
    // SAFETY: the queries passed here write one int.
    check(call, unsafe { query(&mut flag) })?;
    Ok(flag != 0)
}
