//! Calls that are started: a [`Launch`] starts one, and a [`Completion`] makes its result.

use std::ffi::c_void;
use std::sync::Arc;

use tch::Tensor;

use super::buffer::Pinned;
use super::buffers::Buffers;
use super::exchange::UnderWay;
use super::finish::Home;
use super::made::Kept;
use super::plan::InPlaceMemory;
use super::staging::Memory;
use super::{Call, Finish, Made, Plan};
use crate::autograd::{self, Current, Device, Event, Metadata};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::base::way::Way;
use crate::communicator::Handle;
use crate::environment::datatype::Datatype;
use crate::environment::status::Pattern;

/// A call that can be started at any time from when it [is ready](Self::is_ready) on.
pub(crate) struct Launch {
    buffers: Buffers,
    call: Call,
    kept: Kept,
    /// An exchange that a device packs.
    exchange: Option<UnderWay>,
    /// Passes when MPI may read and write the buffers.
    ready: Option<Arc<Event>>,
    /// The device whose memory they are in.
    direct: Option<Device>,
}

impl Launch {
    /// Waits until it [is ready](Self::is_ready).
    pub(crate) fn wait_until_ready(&self, call: &'static str) -> Result<()> {
        self.ready.as_ref().map_or(Ok(()), |ready| ready.wait(call))
    }

    /// Whether MPI may read and write the buffers: a device may still be at work on them.
    pub(crate) fn is_ready(&self, call: &'static str) -> Result<bool> {
        self.ready.as_ref().map_or(Ok(true), |ready| ready.has_passed(call))
    }

    /// Whether it is a receive, which can be cancelled.
    pub(crate) fn receives(&self) -> bool {
        matches!(self.call, Call::Receive(_))
    }

    /// The messages that the receive takes, and whether it is worth its probing; `None` if the call is no
    /// receive.
    pub(crate) fn pattern(&self) -> Option<(Pattern, bool)> {
        let Call::Receive(message) = &self.call else { return None };
        let Buffers { context, size, .. } = self.buffers;
        Some((message.pattern(context), message.is_worth_probing(size)))
    }

    /// Starts the call.
    ///
    /// # Safety
    /// MPI can be called, the call [is ready](Self::is_ready), and `made` is kept until the call has
    /// ended.
    pub(crate) unsafe fn run(self, made: &mut Made) -> Result<()> {
        made.keep_tensors(self.kept);
        made.keep_exchange(self.exchange);
        let call = "start";
        let _current = self.direct.map(|device| Current::set(call, device)).transpose()?;
        // SAFETY: MPI can be called. The buffers are as large as the plan says, and the output is
        // new, so it does not overlap the input. Both are kept for as long as `made` is.
        unsafe { self.buffers.call(&self.call, made) }
    }
}

/// Makes the result of a call that was started, once it has ended.
pub(crate) struct Completion {
    written: Tensor,
    home: Home,
    finish: Finish,
    datatype: Datatype,
    /// The tensor that the call was given, unless it is a receive, and its version at the start.
    given: Option<(Tensor, i64)>,
}

impl Completion {
    /// The tensor that the result will be in, if it is made by MPI alone.
    pub(crate) fn written(&self) -> &Tensor {
        self.home.tensor.as_ref().unwrap_or(&self.written)
    }

    /// The result of the call, which was started at `start` and has ended; an error if the tensor
    /// that it was given has been changed in place since.
    pub(crate) fn result(self, start: Site, made: &Made) -> Result<Tensor> {
        if let Some((x, version)) = self.given
            && autograd::version(&x) != version
        {
            return Err(Error::InFlight { call: start.call, at: start.at });
        }
        let result = self.finish.apply(start, self.written, self.home, self.datatype, made)?;
        // The wait may be on another stream than the start, on which the result was allocated.
        autograd::record_use(start.call, &result)?;
        Ok(result)
    }
}

impl Plan<'_> {
    /// The call, to be started later, and what makes the result when it has ended. `x` is the
    /// tensor that was planned for.
    pub(crate) fn into_launch(
        self,
        site: Site,
        comm: &Handle,
        x: &Tensor,
    ) -> Result<(Launch, Completion)> {
        let memory = self.memory(site, comm, Way::Polls)?;
        let Memory { staged, busy, send, output, home, ready, free, direct, exchange, .. } = memory;
        let buffers = self.buffers(comm, send, output.data());
        // A receive does not read the tensor that it is given, and MPI does not if there is a copy.
        let reads = !matches!(self.call, Call::Receive(_)) && home.is_none() && exchange.is_none();
        let input = reads.then(|| Pinned::new(site.call, self.input.sent())).transpose()?;
        let kept = Kept { input, staged, busy, output: output.tensor().shallow_clone() };
        let datatype = self.input.datatype();
        let launch = Launch { buffers, call: self.call, kept, exchange, ready, direct };
        // Of the tensor that a receive is given, only the shape and kind are used.
        let given = (!launch.receives()).then(|| (x.shallow_clone(), autograd::version(x)));
        let written = output.into_tensor();
        let home = Home { tensor: home, is_filled: false, free };
        Ok((launch, Completion { written, home, finish: self.finish, datatype, given }))
    }

    /// As [`into_launch`](Self::into_launch), but the call changes `x`, the tensor that was planned
    /// for, which is contiguous. `data` is its first element.
    pub(crate) fn into_launch_in_place(
        self,
        site: Site,
        comm: &Handle,
        x: &Tensor,
        data: *mut c_void,
    ) -> Result<(Launch, Completion)> {
        assert_eq!(self.input.data(), data.cast_const(), "the tensor itself is sent");
        let access = self.access(comm, Way::Polls);
        let InPlaceMemory { staged, busy, ready } = self.memory_in_place(site, access, None)?;
        let written = staged.as_ref().unwrap_or(x).shallow_clone();
        let data = if staged.is_some() { Metadata::of(&written).data().cast_mut() } else { data };
        let buffers = self.buffers(comm, mpi_sys::MPI_IN_PLACE.cast_const(), data);
        let tensor = staged.as_ref().map(|_| x.shallow_clone());
        let home = Home { tensor, is_filled: false, free: ready.clone() };
        let input = Some(Pinned::new(site.call, x)?);
        let kept = Kept { input, staged, busy, output: x.shallow_clone() };
        let datatype = self.input.datatype();
        let (call, direct) = (self.call, access.direct());
        let launch = Launch { buffers, call, kept, exchange: None, ready, direct };
        Ok((launch, Completion { written, home, finish: self.finish, datatype, given: None }))
    }
}
