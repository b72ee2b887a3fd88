//! [`Runtime`]: the state that all communicators of the program share.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::base::error::{Error, Result};
use crate::base::thread_level::ThreadLevel;
use crate::engine::flight::Flights;
use crate::environment::{self, Environment};

/// The state that all communicators of the program share.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    pub(crate) environment: Arc<Environment>,
    /// The calls that were started. The environment has them too, as a trait object.
    pub(crate) flights: Arc<Flights>,
}

/// The runtime of the universe. Communicators may keep it alive after the universe has been
/// dropped.
static CURRENT: Mutex<(Weak<Environment>, Weak<Flights>)> = Mutex::new((Weak::new(), Weak::new()));

impl Runtime {
    /// Starts MPI, or uses it as it is if it has been started: see [`Environment::start`].
    pub(crate) fn start(level: ThreadLevel) -> Result<Self> {
        let flights = Arc::new(Flights::default());
        let environment = Arc::new(Environment::start(level, flights.clone())?);
        Ok(Self { environment, flights })
    }

    /// Makes this the runtime that [`current`](Self::current) returns.
    pub(crate) fn make_current(&self) {
        *CURRENT.lock() = (Arc::downgrade(&self.environment), Arc::downgrade(&self.flights));
    }

    /// The runtime of the universe, for calls that are not methods of a communicator.
    pub(crate) fn current(call: &'static str) -> Result<Self> {
        let (environment, flights) = &*CURRENT.lock();
        if let (Some(environment), Some(flights)) = (environment.upgrade(), flights.upgrade()) {
            return Ok(Self { environment, flights });
        }
        let finalized = environment::is_finalized()?;
        Err(if finalized { Error::Finalized { call } } else { Error::Uninitialized { call } })
    }
}
