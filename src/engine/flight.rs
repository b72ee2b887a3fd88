//! Calls that were started: how their buffers are kept, and how they come to their end.
//!
//! MPI reads and writes a call's buffers until the call has ended, even if the request has been
//! dropped. So a list holds each call, with its buffers, from before its start; a [`Flight`] only
//! refers to its entry. If a flight is dropped, the call leaves the list when it has ended, or is
//! ended when MPI is finalized. If a flight is forgotten (`mem::forget`), the call stays in the
//! list.
//!
//! A collective call that the ranks are still agreeing on waits in the queue of its communicator.
//! Every wait and every start of this crate advances the heads of all queues
//! (see [`Flights`]), so that a rank that waits on one communicator does not hold up the
//! ranks of another. The same goes on with receives that wait for their messages ([`expected`]), and
//! with calls that wait for a device ([`departures`]).

mod departures;
mod expected;
mod list;
mod progress;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::call::{Launch, Made};
use crate::engine::agreement::{Proposal, Turn};
use crate::engine::communicator::Communicator;
pub(crate) use list::Flights;
use list::List;
use progress::{Progress, Stage};

/// A call that was started.
pub(crate) struct Flight(Arc<StartedCall>);

/// When a call is handed to MPI.
pub(crate) enum Start {
    /// At once: it needs no turn.
    Now,
    /// At once: the ranks have agreed, and this is its turn.
    InTurn(Arc<Turn>),
    /// When the ranks have agreed and its turn has come.
    Agreed(Box<Proposal>),
}

impl Start {
    /// See [`Turn::seal`].
    pub(crate) fn seal(&self) -> u64 {
        match self {
            Self::Now => 0,
            Self::InTurn(turn) => turn.seal(),
            Self::Agreed(proposal) => proposal.seal(),
        }
    }
}

/// The entry of a call in the list, from before its start to its end.
struct StartedCall {
    site: Site,
    /// The communicator, which keeps the MPI contexts alive.
    comm: Communicator,
    /// Whether it is a receive, which can be cancelled.
    receives: bool,
    number: u64,
    /// Whether its flight has been dropped.
    dropped: AtomicBool,
    progress: Mutex<Progress>,
}

impl Flight {
    /// Starts a call, or queues it for its turn.
    pub(crate) fn start(
        site: Site,
        comm: &Communicator,
        launch: Launch,
        start: Start,
    ) -> Result<Self> {
        let (environment, flights) = (comm.environment(), comm.flights());
        let receives = launch.receives();
        let stage = match start {
            Start::Now => Stage::Granted(launch, None),
            Start::InTurn(turn) => Stage::Granted(launch, Some(turn)),
            Start::Agreed(proposal) => Stage::Proposed(proposal, Some(launch)),
        };
        let is_proposed = matches!(stage, Stage::Proposed(..));
        let call = flights.add(|number| StartedCall {
            site,
            comm: comm.plain(),
            receives,
            number,
            dropped: AtomicBool::new(false),
            progress: Mutex::new(Progress { stage, was_ended: false }),
        });
        let flight = Self(call);
        let _watched = environment.watch().enter(site);
        let _permission = environment.enter(site.call)?;
        // SAFETY: `enter` gave permission to call MPI.
        unsafe { flights.sweep() };
        if is_proposed {
            flights.queue(&flight.0);
        } else {
            flight.0.wait_if_it_must_depart();
            {
                let List { departures, expected, .. } = &mut *flights.list();
                // SAFETY: as above.
                unsafe { departures.add(&flight.0, expected) };
            }
            flight.0.progress().take_error()?;
        }
        // SAFETY: as above.
        unsafe { environment.advance() };
        Ok(flight)
    }

    pub(crate) fn site(&self) -> Site {
        self.0.site
    }

    /// Whether the call has ended. Advances the queues first.
    pub(crate) fn test(&self) -> Result<bool> {
        let environment = self.0.comm.environment();
        let _permission = environment.enter(self.0.site.call)?;
        // SAFETY: `enter` gave permission to call MPI.
        unsafe { environment.advance() };
        // SAFETY: as above.
        Ok(unsafe { self.look() })
    }

    /// Whether the call has ended.
    ///
    /// # Safety
    /// MPI can be called.
    pub(crate) unsafe fn look(&self) -> bool {
        // SAFETY: passed on to the caller.
        unsafe { self.0.progress().test() }
    }

    /// Waits at `site` for the end of the call, and returns what it left behind. Other threads can
    /// make calls meanwhile.
    pub(crate) fn landed(self, site: Site) -> Result<Made> {
        self.0.comm.environment().wait_until(site, || {
            // SAFETY: `wait` gives permission to call MPI.
            Ok(unsafe { self.look() })
        })?;
        let mut progress = self.0.progress();
        if progress.was_ended {
            return Err(Error::Finalized { call: site.call });
        }
        match std::mem::replace(&mut progress.stage, Stage::Over) {
            Stage::UnderWay(made) => Ok(made),
            Stage::Failed(error) => Err(error),
            Stage::Proposed(..) | Stage::Granted(..) | Stage::Over => {
                unreachable!("a flight lands once")
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let flights = self.0.comm.flights();
        if self.0.progress().has_ended() {
            self.0.note_error();
            flights.remove(self.0.number);
        } else {
            self.0.dropped.store(true, Ordering::Release);
            flights.leave(&self.0);
        }
    }
}

impl StartedCall {
    /// Keeps the error of a call that was never waited for, to report it when MPI is finalized.
    fn note_error(&self) {
        if let Stage::Failed(error) = &self.progress().stage {
            let line = format!("rank {}: {}, started there: {error}", self.comm.rank(), self.site);
            self.comm.environment().note_left(vec![line]);
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock()
    }
}
