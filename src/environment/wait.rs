//! Waiting for other ranks, watched, and so that other threads and started calls can go on. All
//! operations wait by the functions here.

use super::Environment;
use crate::base::error::Result;
use crate::base::site::Site;
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

    /// How this rank wants to make a blocking call: by MPI's blocking function, unless that would
    /// keep other threads or started calls of this rank from going on.
    #[inline]
    pub(crate) fn way(&self) -> Way {
        if self.serializes_threads() || self.are_queued() { Way::Polls } else { Way::Waits }
    }
}
