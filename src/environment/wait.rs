//! Waiting for other ranks, watched, and so that other threads and started calls can go on. All
//! operations wait by the functions here.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Environment;
use crate::base::error::Result;
use crate::base::site::Site;
use crate::base::thread_level::ThreadLevel;
use crate::base::way::Way;

/// How often a wait polls before it yields to other processes: for about 100 µs.
const SPINS: u32 = 500;

impl Environment {
    /// Polls until `poll` returns a value, for the call at `site`. `poll` is called with permission
    /// to call MPI; in between, other threads can call MPI, and started calls go on.
    #[inline]
    pub(crate) fn wait<T>(
        &self,
        site: Site,
        mut poll: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let _watched = self.watch().enter(site);
        let _traced = self.note_wait(site);
        let mut spins = 0;
        loop {
            {
                let _permission = self.enter(site.call)?;
                // SAFETY: `enter` gave permission to call MPI.
                unsafe { self.advance() };
                if let Some(result) = poll()? {
                    return Ok(result);
                }
            }
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Polls until `has_come` returns true: see [`wait`](Self::wait).
    #[inline]
    pub(crate) fn wait_until(
        &self,
        site: Site,
        mut has_come: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        self.wait(site, || Ok(has_come()?.then_some(())))
    }

    /// Makes one MPI call. It may wait inside MPI for other ranks, but only if they are certain to
    /// make the same call without anything that this rank would have to do first.
    #[inline]
    pub(crate) fn call<T>(&self, site: Site, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let _watched = self.watch().enter(site);
        let _permission = self.enter(site.call)?;
        call()
    }

    /// Begins a blocking call that the ranks agree on. Returns how this rank wants to make it: by MPI's
    /// blocking function, unless `least` is a later way, or that would keep other threads or started
    /// calls of this rank from going on. What else is returned is kept to the end of the call.
    ///
    /// While a thread waits inside MPI at [`ThreadLevel::Serialized`], no other can call MPI. So of the
    /// calls that the threads of a rank make at the same time only one waits there. If there were two,
    /// of which one rank enters the one and another rank the other, neither would end.
    #[inline]
    pub(crate) fn begin_blocking(&self, least: Way) -> (Way, Option<BlockingCall>) {
        if least == Way::Polls || self.are_queued() {
            return (Way::Polls, None);
        }
        if self.level != ThreadLevel::Serialized {
            return (least, None);
        }
        let is_alone = BLOCKING_CALLS.fetch_add(1, Ordering::AcqRel) == 0;
        (if is_alone { least } else { Way::Polls }, Some(BlockingCall))
    }
}

/// The number of [`BlockingCall`]s.
static BLOCKING_CALLS: AtomicUsize = AtomicUsize::new(0);

/// A blocking call at [`ThreadLevel::Serialized`], from before the agreement on it to its end.
#[derive(Debug)]
pub(crate) struct BlockingCall;

impl Drop for BlockingCall {
    fn drop(&mut self) {
        BLOCKING_CALLS.fetch_sub(1, Ordering::AcqRel);
    }
}
