//! What an MPI call leaves behind: what was started, and what has come.

use std::any::Any;

use mpi_sys::MPI_Request;

use super::message::{Arrival, Header, Look, is_truncation};
use crate::base::error::Result;
use crate::base::way::Way;
use crate::call::buffer::Pinned;
use crate::environment::error_code::check;
use crate::environment::status::Status;

/// What a call leaves behind.
pub(crate) struct Made {
    way: Way,
    /// Of the calls that were started and have not ended.
    requests: Vec<MPI_Request>,
    /// Whether a message may be looked at before it is received: where the call waits for it.
    pub(super) looks: bool,
    /// The message that is to be received when it has been looked at.
    pub(super) look: Option<Look>,
    /// Of the message that came.
    pub(super) arrival: Option<Arrival>,
    /// What was sent along with that message.
    pub(super) header: Option<Box<Header>>,
    /// What MPI reads until the end of what was started.
    lists: Vec<Box<dyn Any + Send>>,
    /// The tensors that it reads and writes until then, where nobody else keeps them.
    pinned: Option<[Pinned; 2]>,
}

impl Made {
    /// For a call that is made in this way.
    pub(crate) fn new(way: Way) -> Self {
        Self {
            way,
            requests: Vec::new(),
            looks: false,
            look: None,
            arrival: None,
            header: None,
            lists: Vec::new(),
            pinned: None,
        }
    }

    /// For a call that is started and then waited for at once.
    pub(crate) fn looking() -> Self {
        Self { looks: true, ..Self::new(Way::Polls) }
    }

    pub(crate) fn way(&self) -> Way {
        self.way
    }

    /// Notes a call that was started.
    pub(crate) fn started(&mut self, request: MPI_Request) {
        self.requests.push(request);
    }

    /// Keeps the tensors that the call reads and writes.
    pub(super) fn pin(&mut self, pinned: [Pinned; 2]) {
        self.pinned = Some(pinned);
    }

    /// Keeps what MPI reads until the end of the call, however that is made.
    pub(super) fn keep<T: Send + 'static>(&mut self, kept: Vec<T>) -> *const T {
        let pointer = kept.as_ptr();
        self.lists.push(Box::new(kept));
        pointer
    }

    /// Whether all that was started has been seen to end.
    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.requests.is_empty() && self.look.is_none()
    }

    /// Looks whether all that was started has ended.
    ///
    /// # Safety
    /// MPI can be called, and the buffers of what was started are still there.
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
            // SAFETY: the request is of a call that has not ended, whose buffers are kept; the
            // others outlive the call.
            let code = unsafe { mpi_sys::MPI_Test(request, &mut done, &mut status) };
            if done == 0 && code == mpi_sys::MPI_SUCCESS {
                return Ok(false);
            }
            self.requests.remove(0);
            // What stays is the last call's: where messages go both ways, of the one received.
            self.arrival = Some(Arrival::of(&status, code));
            if !is_truncation(code) {
                check("MPI_Test", code)?;
            }
        }
        Ok(self.look.is_none())
    }

    /// Gives up what was started, if it is a receive.
    ///
    /// # Safety
    /// MPI can be called.
    pub(crate) unsafe fn cancel(&mut self) {
        self.look = None;
        for request in &mut self.requests {
            // SAFETY: the request of a receive that has not been seen to end.
            unsafe { mpi_sys::MPI_Cancel(request) };
        }
    }
}
