//! [`Runtime`]: what all communicators of the program share.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::base::error::{Error, Result};
use crate::base::thread_level::ThreadLevel;
use crate::engine::flight::Flights;
use crate::environment::{self, Environment};

/// What all communicators of the program share.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    pub(crate) environment: Arc<Environment>,
    /// The calls that were started. The environment has them too, not knowing what they are.
    pub(crate) flights: Arc<Flights>,
}

/// The runtime of the universe, which communicators keep alive beyond its end. Whoever takes it does
/// not become the one that finalizes MPI.
static CURRENT: Mutex<(Weak<Environment>, Weak<Flights>)> = Mutex::new((Weak::new(), Weak::new()));

impl Runtime {
    /// Starts MPI, or finds it started: see [`Environment::start`].
    pub(crate) fn start(level: ThreadLevel) -> Result<Self> {
        let flights = Arc::new(Flights::default());
        let environment = Arc::new(Environment::start(level, flights.clone())?);
        Ok(Self { environment, flights })
    }

    /// Lets [`current`](Self::current) find it.
    pub(crate) fn make_current(&self) {
        *CURRENT.lock() = (Arc::downgrade(&self.environment), Arc::downgrade(&self.flights));
    }

    /// The runtime of the universe, for calls that start from none.
    pub(crate) fn current(call: &'static str) -> Result<Self> {
        let (environment, flights) = &*CURRENT.lock();
        if let (Some(environment), Some(flights)) = (environment.upgrade(), flights.upgrade()) {
            return Ok(Self { environment, flights });
        }
        let finalized = environment::is_finalized()?;
        Err(if finalized { Error::Finalized { call } } else { Error::Uninitialized { call } })
    }
}
