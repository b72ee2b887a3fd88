//! MPI calls under way: who waits for them, and who does if nobody does.
//!
//! MPI reads and writes a call's buffers until the call has ended, whatever becomes of the request.
//! So from its start on a call is in a list, which keeps its buffers: a [`Flight`] only refers to
//! it. One that is dropped is looked at again whenever another call starts, and what is still under
//! way at MPI's end is ended then. One that is forgotten stays in the list.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::buffer::Pinned;
use crate::call::{Arrival, Made, is_truncation};
use crate::communicator::Communicator;
use crate::error::{Error, Result, check};
use crate::site::Site;
use crate::status::Status;

/// A call under way.
pub(crate) struct Flight(Arc<Call>);

/// What is under way, from its start to its end.
struct Call {
    site: Site,
    /// Keeps the contexts alive.
    comm: Communicator,
    /// Whether it is a receive, which can be cancelled.
    receives: bool,
    number: u64,
    /// Whether nobody waits for it any more.
    dropped: AtomicBool,
    progress: Mutex<Progress>,
}

struct Progress {
    /// With the requests of what has not ended.
    made: Option<Made>,
    /// Whether it was MPI's end that ended it.
    was_ended: bool,
    /// What MPI reads and writes.
    _buffers: [Pinned; 2],
}

/// How often a call is looked at before its thread lets others run: about 100 µs.
const SPINS: u32 = 1000;

/// How long calls that nobody waited for may take at MPI's end.
const PATIENCE: Duration = Duration::from_secs(2);

impl Flight {
    pub(crate) fn new(
        site: Site,
        comm: &Communicator,
        made: Made,
        buffers: [Pinned; 2],
        receives: bool,
    ) -> Self {
        let flights = comm.environment().flights();
        flights.sweep();
        let progress =
            Mutex::new(Progress { made: Some(made), was_ended: false, _buffers: buffers });
        Self(flights.add(|number| Call {
            site,
            comm: comm.off_tape(),
            receives,
            number,
            dropped: AtomicBool::new(false),
            progress,
        }))
    }

    pub(crate) fn site(&self) -> Site {
        self.0.site
    }

    /// Whether it has ended. Gives MPI a chance to go on with all calls.
    pub(crate) fn test(&self) -> Result<bool> {
        self.0.test()
    }

    /// Waits for its end at `site`, in turn with other threads' calls. Returns what it left behind.
    pub(crate) fn landed(self, site: Site) -> Result<Made> {
        let _waiting = self.0.comm.environment().watch(site);
        let mut spins = 0;
        while !self.test()? {
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let mut progress = self.0.progress();
        if progress.was_ended {
            return Err(Error::Finalized { call: site.call });
        }
        let made = progress.made.take();
        drop(progress);
        Ok(made.unwrap_or_else(|| unreachable!("a flight lands once")))
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let flights = self.0.comm.environment().flights();
        if self.0.has_ended() {
            flights.remove(self.0.number);
        } else {
            flights.orphans.fetch_add(1, Ordering::Relaxed);
            self.0.dropped.store(true, Ordering::Release);
        }
    }
}

impl Call {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        self.progress().has_ended()
    }

    fn test(&self) -> Result<bool> {
        if self.has_ended() {
            return Ok(true);
        }
        // In this order: who ends MPI has the leave, and takes the progress.
        let _guard = self.comm.environment().enter(self.site.call)?;
        // SAFETY: `enter` gave leave to call MPI.
        unsafe { self.progress().test() }
    }
}

impl Progress {
    fn has_ended(&self) -> bool {
        let requests = self.made.as_ref().and_then(|made| made.started.as_ref());
        requests.is_none_or(Vec::is_empty)
    }

    /// # Safety
    /// MPI can be called.
    unsafe fn test(&mut self) -> Result<bool> {
        let Some(made) = &mut self.made else { return Ok(true) };
        let Some(requests) = &mut made.started else { return Ok(true) };
        while let Some(request) = requests.first_mut() {
            let mut done = 0;
            let mut status = Status::none();
            // SAFETY: the request is of a call that has not ended, whose buffers are kept; the
            // others outlive the call.
            let code = unsafe { mpi_sys::MPI_Test(request, &mut done, &mut status) };
            if done == 0 && code == mpi_sys::MPI_SUCCESS {
                return Ok(false);
            }
            requests.remove(0);
            // What stays is the last call's: where messages go both ways, of the one received.
            made.arrival = Some(Arrival::of(&status, code));
            if !is_truncation(code) {
                check("MPI_Test", code)?;
            }
        }
        Ok(true)
    }
}

/// The calls under way, in order of their starts.
#[derive(Default)]
pub(crate) struct Flights {
    list: Mutex<List>,
    /// How many of them nobody waits for any more.
    orphans: AtomicUsize,
}

#[derive(Default)]
struct List {
    next: u64,
    calls: BTreeMap<u64, Arc<Call>>,
}

impl Flights {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, call: impl FnOnce(u64) -> Call) -> Arc<Call> {
        let mut list = self.list();
        let number = list.next;
        let call = Arc::new(call(number));
        list.next += 1;
        list.calls.insert(number, Arc::clone(&call));
        call
    }

    fn remove(&self, number: u64) {
        self.list().calls.remove(&number);
    }

    /// Lets go of calls that nobody waits for and that have ended.
    fn sweep(&self) {
        if self.orphans.load(Ordering::Relaxed) == 0 {
            return;
        }
        let dropped: Vec<_> = {
            let list = self.list();
            let dropped = list.calls.values().filter(|call| call.dropped.load(Ordering::Acquire));
            dropped.map(Arc::clone).collect()
        };
        for call in dropped {
            // Nobody is left to be told of an error; a call that may not be made tells nothing.
            let _ = call.test();
            if call.has_ended() {
                self.remove(call.number);
                self.orphans.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Ends all calls, or says which do not end. For MPI's end, when no other call is made.
    ///
    /// # Safety
    /// MPI can be called.
    pub(crate) unsafe fn end(&self) {
        let calls = std::mem::take(&mut self.list().calls);
        let mut left: Vec<Arc<Call>> = calls.into_values().collect();
        for call in left.iter().filter(|call| !call.has_ended()) {
            call.progress().was_ended = true;
        }
        for call in left.iter().filter(|call| call.receives && !call.has_ended()) {
            // What it was to receive is not wanted any more.
            let mut progress = call.progress();
            let requests = progress.made.as_mut().and_then(|made| made.started.as_mut());
            for request in requests.into_iter().flatten() {
                // SAFETY: the request of a receive that has not been seen to end.
                unsafe { mpi_sys::MPI_Cancel(request) };
            }
        }
        let start = Instant::now();
        report(left.iter().filter(|call| !call.has_ended()), "was never waited for");
        loop {
            left.retain(|call| {
                // SAFETY: passed on to the caller.
                let _ = unsafe { call.progress().test() };
                !call.has_ended()
            });
            if left.is_empty() {
                return;
            }
            if start.elapsed() > PATIENCE {
                break;
            }
            std::thread::yield_now();
        }
        report(left.iter(), "has no counterpart on other ranks, and does not end");
        // MPI may still write their buffers.
        std::mem::forget(left);
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = self.list();
        f.debug_list().entries(list.calls.values().map(|call| call.site.to_string())).finish()
    }
}

/// Names the calls, each line of the program once: a call and its comparison are two.
fn report<'c>(calls: impl Iterator<Item = &'c Arc<Call>>, what: &str) {
    let mut lines: Vec<String> = Vec::new();
    for call in calls {
        let (rank, size) = (call.comm.rank(), call.comm.size());
        let site = call.site;
        let line = format!("mpi4tch: rank {rank} of {size}: {site}, started there, {what}\n");
        if !lines.contains(&line) {
            // At once: other ranks report too.
            eprint!("{line}");
            lines.push(line);
        }
    }
}
