//! Waiting for other ranks. Every wait of this crate is made by one of the functions here, so each
//! is watched, and none keeps other threads, or other calls that were started, from going on.

use super::Environment;
use crate::base::error::Result;
use crate::base::site::Site;
use crate::base::way::Way;

/// How often a wait looks before it lets other processes run: for about 100 µs.
const SPINS: u32 = 500;

impl Environment {
    /// Waits until `poll` gives something, at `site`. Calls it with permission to call MPI, and lets
    /// other threads make their calls in between.
    #[inline]
    pub(crate) fn wait<T>(
        &self,
        site: Site,
        mut poll: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let _watched = self.watch().enter(site);
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

    /// As [`wait`](Self::wait), until `has_come` says so.
    #[inline]
    pub(crate) fn wait_until(
        &self,
        site: Site,
        mut has_come: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        self.wait(site, || Ok(has_come()?.then_some(())))
    }

    /// Makes one call of MPI's, which may wait inside MPI: for other ranks that are certain to make
    /// the same call, whatever this one does meanwhile.
    #[inline]
    pub(crate) fn call<T>(&self, site: Site, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let _watched = self.watch().enter(site);
        let _permission = self.enter(site.call)?;
        call()
    }

    /// How a blocking call can be made, as far as this rank is concerned: inside MPI, unless
    /// that would keep other threads or other calls from going on.
    #[inline]
    pub(crate) fn way(&self) -> Way {
        if self.has_waiting_threads() || self.are_queued() { Way::Polls } else { Way::Waits }
    }
}
