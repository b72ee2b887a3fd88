//! Finalizing MPI.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Environment, is_finalized, watch};
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::environment::error_code::checked;

impl Environment {
    /// Waits until all ranks of the program have called this, and prints a line if that takes long.
    /// Collective over `MPI_COMM_WORLD`: on this crate's communicators, the ranks may have started
    /// different calls.
    pub(crate) fn meet(&self, site: Site, rank: Rank) -> Result<()> {
        let mut request = mpi_sys::MPI_REQUEST_NULL;
        self.call(site, || {
            // SAFETY: `call` gives permission to call MPI; the request outlives the call.
            unsafe { checked!(MPI_Ibarrier(mpi_sys::MPI_COMM_WORLD, &mut request)) }
        })?;
        let mut patience = Some((Instant::now(), self.watch().patience()));
        self.wait_until(site, || {
            let mut done = 0;
            // SAFETY: the request is the barrier's, and `done` outlives the call.
            unsafe { checked!(MPI_Test(&mut request, &mut done, mpi_sys::MPI_STATUS_IGNORE)) }?;
            if let Some((start, longest)) = patience
                && done == 0
                && start.elapsed() > longest
            {
                patience = None;
                let last = self.last_error();
                let last = last.map_or(String::new(), |e| format!(" Its last error was: {e}"));
                watch::say(&format!(
                    "mpi4tch: rank {rank} is at the end of its universe and waits for ranks that are not. \
                     If it returned an error, they may be waiting for it in a call.{last}\n"
                ));
            }
            Ok(done != 0)
        })
    }

    /// Closes the environment, and finalizes MPI if this crate initialized it. Returns a line for
    /// each message or started call that was left over.
    ///
    /// Called at the end of a universe only, and so on the thread that initialized MPI: a universe
    /// is not `Send`, and `initialize` returns none on another thread.
    pub(crate) fn finalize(&self, site: Site) -> Vec<String> {
        self.close(site, || {
            if self.owner {
                // SAFETY: MPI is initialized, and this is the thread that did it. No call of this
                // crate is under way, and none follows.
                unsafe { mpi_sys::MPI_Finalize() };
            }
        })
    }

    /// Frees the MPI objects that this crate made, then calls `finish`. From then on
    /// [`enter`](Self::enter) returns an error. Returns a line for each message or started call
    /// that was left over.
    fn close(&self, site: Site, finish: impl FnOnce()) -> Vec<String> {
        // Not watched while the timeline is written, which may take its time on other ranks.
        let watched = self.watch.enter(site);
        let _guard = self.alone();
        drop(watched);
        if self.finalized.swap(true, Ordering::Relaxed) {
            return Vec::new();
        }
        if is_finalized().unwrap_or(true) {
            // The program itself has finalized MPI, so nothing may be freed any more.
            self.flush_timeline();
            return Vec::new();
        }
        // A rank that panics would wait for ranks that wait for it.
        match &self.timeline {
            Some(timeline) if !std::thread::panicking() => timeline.merge(),
            _ => self.flush_timeline(),
        }
        let _watched = self.watch.enter(site);
        // SAFETY: MPI is not finalized, and `enter` lets no other call of this crate in any more.
        let mut left = unsafe { self.started.end() };
        left.append(&mut self.left.lock());
        let kept = std::mem::take(&mut *self.freed_at_end.lock());
        for kept in kept {
            // SAFETY: as above; all ranks free what they have in common, in order of creation.
            unsafe { kept.free(&mut left) };
        }
        // SAFETY: as above; this is done once, and no call uses the handles any more.
        unsafe { self.handles.free() };
        finish();
        left
    }

    /// Makes MPI close the environment when the program itself finalizes MPI. `MPI_Finalize` begins
    /// by deleting the attributes of `MPI_COMM_SELF`, while MPI can still be called (MPI 4.0,
    /// section 11.2.4).
    pub(crate) fn close_at_finalize(self: &Arc<Self>) -> Result<()> {
        let mut key = 0;
        // SAFETY: the callback has the signature that MPI calls it with, and lives as long as the
        // program; `key` outlives the call.
        unsafe {
            checked!(MPI_Comm_create_keyval(
                mpi_sys::MPI_COMM_NULL_COPY_FN,
                Some(close_environment),
                &mut key,
                std::ptr::null_mut(),
            ))
        }?;
        let environment = Arc::into_raw(Arc::clone(self)).cast_mut().cast();
        // SAFETY: the attribute owns a reference to the environment, which the callback takes back.
        unsafe { checked!(MPI_Comm_set_attr(mpi_sys::MPI_COMM_SELF, key, environment)) }
    }
}

/// Closes the environment that an attribute refers to: an `MPI_Comm_delete_attr_function`.
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
