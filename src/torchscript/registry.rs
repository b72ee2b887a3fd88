//! The communicators and requests that TorchScript and C++ name by a number.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::base::error::{Error, Result};
use crate::engine::communicator::Communicator;
use crate::engine::request::Request;
use crate::engine::runtime::Runtime;

static WORLD: Mutex<Option<Communicator>> = Mutex::new(None);
static COMMUNICATORS: Mutex<Numbered<Communicator>> = Mutex::new(Numbered::new());
static REQUESTS: Mutex<Numbered<Request>> = Mutex::new(Numbered::new());

/// Objects by their numbers, none of which is given twice.
struct Numbered<T> {
    last: i64,
    objects: BTreeMap<i64, T>,
}

impl<T> Numbered<T> {
    const fn new() -> Self {
        Self { last: 0, objects: BTreeMap::new() }
    }

    fn add(&mut self, object: T) -> i64 {
        self.last += 1;
        self.objects.insert(self.last, object);
        self.last
    }
}

/// Makes this the communicator of calls that name none.
pub(super) fn set_world(world: &Communicator) {
    let before = WORLD.lock().replace(world.clone());
    drop(before);
}

/// Forgets this world, and drops the requests that nobody has waited for. Does nothing if another
/// universe has begun meanwhile, on another thread.
pub(super) fn clear(world: &Communicator) {
    // While both exist, no other communicator has the same handle.
    let ended = WORLD.lock().take_if(|current| current.context() == world.context());
    if ended.is_some() {
        let requests = std::mem::take(&mut REQUESTS.lock().objects);
        drop(requests);
    }
}

pub(super) fn add_communicator(comm: Communicator) -> i64 {
    COMMUNICATORS.lock().add(comm)
}

pub(super) fn remove_communicator(number: i64) {
    // Dropped without the lock: an autograd graph that goes with it may hold further handles.
    let comm = COMMUNICATORS.lock().objects.remove(&number);
    drop(comm);
}

/// The communicator of calls that name none.
fn world(call: &'static str) -> Result<Communicator> {
    if let Some(world) = &*WORLD.lock() {
        return Ok(world.clone());
    }
    Runtime::current(call)?;
    Err(Error::Finalized { call })
}

/// The communicator with this number; the world if there is none.
pub(super) fn communicator(call: &'static str, number: Option<i64>) -> Result<Communicator> {
    let Some(number) = number else { return world(call) };
    let found = COMMUNICATORS.lock().objects.get(&number).cloned();
    found.ok_or_else(|| {
        let message = format!(
            "no communicator has the handle {number}; a handle is valid until the \
             torchscript::Handle is dropped"
        );
        Error::Argument { call, message }
    })
}

pub(super) fn add_request(request: Request) -> i64 {
    REQUESTS.lock().add(request)
}

/// Takes the request with this number.
pub(super) fn take_request(call: &'static str, number: i64) -> Result<Request> {
    let taken = REQUESTS.lock().objects.remove(&number);
    if let Some(request) = taken {
        return Ok(request);
    }
    world(call)?;
    let message = format!("no request has the number {number}; it is waited for, or dropped, once");
    Err(Error::Argument { call, message })
}
