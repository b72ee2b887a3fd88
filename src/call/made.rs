//! [`Made`]: what must be kept of an MPI call after it has been made.

use std::any::Any;

use mpi_sys::MPI_Request;
use tch::Tensor;

use super::exchange::UnderWay;
use super::message::{Arrival, Awaited, Header, is_truncation};
use super::staging::Busy;
use crate::base::error::Result;
use crate::base::way::Way;
use crate::call::buffer::Pinned;
use crate::environment::error_code::check;
use crate::environment::status::{Pattern, Status};

/// What must be kept of a call after it has been made: the requests of nonblocking functions, the
/// memory that they use, and the status of a message.
pub(crate) struct Made {
    way: Way,
    /// The requests that have not completed.
    requests: Vec<MPI_Request>,
    /// Whether a receive may wait for its message before it is handed to MPI.
    pub(super) probes: bool,
    /// The receive that waits for its message.
    pub(super) awaited: Option<Awaited>,
    /// The exchange that is under way, or that a device packs.
    pub(super) exchange: Option<UnderWay>,
    /// Local work that is left when the requests have completed.
    then: Option<Box<dyn FnOnce() + Send>>,
    /// The status of the message that was received.
    pub(super) arrival: Option<Arrival>,
    /// The header that was sent along with that message.
    pub(super) header: Option<Box<Header>>,
    /// Lists of counts and the like, which MPI reads until the requests have completed.
    lists: Vec<Box<dyn Any + Send>>,
    /// The tensors that MPI reads and writes until then, unless the caller keeps them.
    kept: Option<Kept>,
}

/// The tensors that a started call reads and writes.
#[expect(dead_code, reason = "held for its Drop")]
pub(super) struct Kept {
    /// What it reads, if it does. The program has it, too.
    pub(super) input: Option<Pinned>,
    /// Its copy in host memory, which MPI reads instead.
    pub(super) staged: Option<Tensor>,
    /// What a device is at work on before MPI.
    pub(super) busy: Option<Busy>,
    /// What it writes. If it is not the input, nobody else has it until the call has ended.
    pub(super) output: Tensor,
}

impl Made {
    /// For a call that is about to be made in this way.
    pub(crate) fn new(way: Way) -> Self {
        Self {
            way,
            requests: Vec::new(),
            probes: false,
            awaited: None,
            exchange: None,
            then: None,
            arrival: None,
            header: None,
            lists: Vec::new(),
            kept: None,
        }
    }

    /// For messages whose receive is handed to MPI when [`probe`](Self::probe) finds that its message
    /// has come, if the library may write beyond its buffer otherwise.
    pub(crate) fn probing() -> Self {
        Self { probes: true, ..Self::new(Way::Polls) }
    }

    pub(crate) fn way(&self) -> Way {
        self.way
    }

    /// Keeps the request of a call that was started.
    pub(crate) fn started(&mut self, request: MPI_Request) {
        self.requests.push(request);
    }

    /// Keeps local work, to be done when what was started has completed.
    pub(super) fn then(&mut self, work: impl FnOnce() + Send + 'static) {
        self.then = Some(Box::new(work));
    }

    /// Keeps an exchange that a device packs, until its result is made.
    pub(super) fn keep_exchange(&mut self, exchange: Option<UnderWay>) {
        self.exchange = exchange;
    }

    /// Completes the output of an exchange, which has ended.
    pub(super) fn bring(&self) -> Result<()> {
        self.exchange.as_ref().map_or(Ok(()), UnderWay::bring)
    }

    /// Keeps the tensors that the call reads and writes.
    pub(super) fn keep_tensors(&mut self, kept: Kept) {
        self.kept = Some(kept);
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
        self.requests.is_empty()
            && self.awaited.is_none()
            && self.exchange.as_ref().is_none_or(UnderWay::has_ended)
            && self.then.is_none()
    }

    /// Probes for the message that is awaited, and starts to receive it if it has come. Returns whether
    /// no message is awaited any more. If other receives come before this one, `is_free` tells which
    /// messages none of them takes.
    ///
    /// # Safety
    /// MPI can be called, and the buffers are still valid.
    pub(crate) unsafe fn probe(
        &mut self,
        is_free: Option<&dyn Fn(&Pattern) -> bool>,
    ) -> Result<bool> {
        let Some(awaited) = self.awaited.take() else { return Ok(true) };
        // SAFETY: passed on to the caller.
        let has_come = unsafe { awaited.receive(self, is_free) }?;
        if !has_come {
            self.awaited = Some(awaited);
        }
        Ok(has_come)
    }

    /// Hands the receive to MPI, even if its message has not come.
    ///
    /// # Safety
    /// As for [`probe`](Self::probe).
    pub(crate) unsafe fn post(&mut self) -> Result<()> {
        // SAFETY: passed on to the caller.
        self.awaited.take().map_or(Ok(()), |awaited| unsafe { awaited.post(self) })
    }

    /// Tests whether all that was started has ended. It does not [probe](Self::probe).
    ///
    /// # Safety
    /// MPI can be called, and the buffers of the started calls are still valid.
    pub(crate) unsafe fn test(&mut self) -> Result<bool> {
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
            let gone_on = unsafe { exchange.go_on(self) };
            // It has memory that MPI may be using, even after an error.
            self.exchange = Some(exchange);
            gone_on?;
        }
        if let Some(work) = self.then.take() {
            work();
        }
        Ok(self.has_ended())
    }

    /// Cancels the receive that was started.
    ///
    /// # Safety
    /// MPI can be called.
    pub(crate) unsafe fn cancel(&mut self) {
        self.awaited = None;
        for request in &mut self.requests {
            // SAFETY: the request of a receive, which has not completed yet.
            unsafe { mpi_sys::MPI_Cancel(request) };
        }
    }
}
