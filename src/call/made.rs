//! [`Made`]: what must be kept of an MPI call after it has been made.

use std::any::Any;

use mpi_sys::MPI_Request;

use super::exchange::UnderWay;
use super::message::{Arrival, Header, Look, is_truncation};
use crate::base::error::Result;
use crate::base::way::Way;
use crate::call::buffer::Pinned;
use crate::environment::error_code::check;
use crate::environment::status::Status;

/// What must be kept of a call after it has been made: the requests of nonblocking functions, the
/// memory that they use, and the status of a message.
pub(crate) struct Made {
    way: Way,
    /// The requests that have not completed.
    requests: Vec<MPI_Request>,
    /// Whether a receive may probe for the message first, as the call waits for it anyway.
    pub(super) looks: bool,
    /// The receive that is yet to be started, when its message has been probed.
    pub(super) look: Option<Look>,
    /// The exchange whose stage is under way.
    pub(super) exchange: Option<UnderWay>,
    /// The status of the message that was received.
    pub(super) arrival: Option<Arrival>,
    /// The header that was sent along with that message.
    pub(super) header: Option<Box<Header>>,
    /// Lists of counts and the like, which MPI reads until the requests have completed.
    lists: Vec<Box<dyn Any + Send>>,
    /// The tensors that MPI reads and writes until then, unless the caller keeps them.
    pinned: Option<[Pinned; 2]>,
}

impl Made {
    /// For a call that is about to be made in this way.
    pub(crate) fn new(way: Way) -> Self {
        Self {
            way,
            requests: Vec::new(),
            looks: false,
            look: None,
            exchange: None,
            arrival: None,
            header: None,
            lists: Vec::new(),
            pinned: None,
        }
    }

    /// For messages that are started and then waited for at once.
    pub(crate) fn looking() -> Self {
        Self { looks: true, ..Self::new(Way::Polls) }
    }

    pub(crate) fn way(&self) -> Way {
        self.way
    }

    /// Keeps the request of a call that was started.
    pub(crate) fn started(&mut self, request: MPI_Request) {
        self.requests.push(request);
    }

    /// Keeps the tensors that the call reads and writes.
    pub(super) fn pin(&mut self, pinned: [Pinned; 2]) {
        self.pinned = Some(pinned);
    }

    /// Keeps a list that MPI reads until the end of the call, whether it is blocking or not.
    pub(super) fn keep<T: Send + 'static>(&mut self, kept: Vec<T>) -> *const T {
        let pointer = kept.as_ptr();
        self.lists.push(Box::new(kept));
        pointer
    }

    /// Whether all that was started has ended, as far as [`test`](Self::test) has seen.
    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.requests.is_empty() && self.look.is_none() && self.exchange.is_none()
    }

    /// Tests whether all that was started has ended.
    ///
    /// # Safety
    /// MPI can be called, and the buffers of the started calls are still valid.
    pub(crate) unsafe fn test(&mut self) -> Result<bool> {
        if let Some(look) = self.look.take() {
            // SAFETY: passed on to the caller.
            if !unsafe { look.receive(self) }? {
                self.look = Some(look);
            }
        }
        while let Some(request) = self.requests.first_mut() {
            let mut done = 0;
            let mut status = Status::none();
            // SAFETY: the request has not completed, and its buffers are valid; the others outlive
            // the call.
            let code = unsafe { mpi_sys::MPI_Test(request, &mut done, &mut status) };
            if done == 0 && code == mpi_sys::MPI_SUCCESS {
                return Ok(false);
            }
            self.requests.remove(0);
            // The last request's status stays: of a sendrecv, that is the receive's.
            self.arrival = Some(Arrival::of(&status, code));
            if self.exchange.is_some() || !is_truncation(code) {
                check("MPI_Test", code)?;
            }
        }
        if let Some(mut exchange) = self.exchange.take() {
            // SAFETY: passed on to the caller; the requests of the stage have completed.
            if !unsafe { exchange.go_on(self) }? {
                self.exchange = Some(exchange);
            }
        }
        Ok(self.has_ended())
    }

    /// Cancels the receive that was started.
    ///
    /// # Safety
    /// MPI can be called.
    pub(crate) unsafe fn cancel(&mut self) {
        self.look = None;
        for request in &mut self.requests {
            // SAFETY: the request of a receive, which has not completed yet.
            unsafe { mpi_sys::MPI_Cancel(request) };
        }
    }
}
