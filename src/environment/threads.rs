//! [`Threads`]: whether several threads call MPI.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::autograd::{self, Thread};

/// The threads that have called MPI.
///
/// libtorch runs the pullbacks of tensors on a device on a thread of the device. While it does, the thread
/// that began the backward pass waits, or runs pullbacks of tensors on the host. So if the main thread
/// begins all passes, and all pullbacks that communicate are of one device, there is only one thread at a
/// time that may call MPI.
#[derive(Debug)]
pub(super) struct Threads {
    /// The thread that initialized MPI.
    main: Thread,
    /// The thread of the first device whose pullbacks have called MPI.
    device: OnceLock<Thread>,
    /// A set of [`PULLBACKS_ON_MAIN`] and so on.
    seen: AtomicU8,
}

/// Pullbacks have called MPI on the main thread.
const PULLBACKS_ON_MAIN: u8 = 1;
/// Pullbacks of a device have called MPI, in passes that the main thread began.
const PULLBACKS_ON_DEVICE: u8 = 2;
/// Another thread has called MPI.
const OTHERS: u8 = 4;

impl Threads {
    /// This thread initializes MPI.
    pub(super) fn new() -> Self {
        Self { main: Thread::current(), device: OnceLock::new(), seen: AtomicU8::new(0) }
    }

    /// Notes that this thread calls MPI. Returns whether another one may do so meanwhile.
    pub(super) fn note(&self) -> bool {
        let seen = self.seen.load(Ordering::Relaxed);
        let caller = self.caller();
        // Most calls add nothing.
        let seen = if seen & caller == caller {
            seen
        } else {
            self.seen.fetch_or(caller, Ordering::Relaxed) | caller
        };
        seen & OTHERS != 0 || seen == PULLBACKS_ON_MAIN | PULLBACKS_ON_DEVICE
    }

    /// What the call of this thread adds to what has been seen.
    fn caller(&self) -> u8 {
        let thread = Thread::current();
        if thread == self.main {
            return if autograd::graph_task() == -1 { 0 } else { PULLBACKS_ON_MAIN };
        }
        let is_of_main = Thread::of_pass() == Some(self.main);
        if is_of_main && *self.device.get_or_init(|| thread) == thread {
            PULLBACKS_ON_DEVICE
        } else {
            OTHERS
        }
    }
}
