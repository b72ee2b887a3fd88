//! An MPI call with everything that it reads and writes: a [`Plan`], to be run or [started](super::launch).

use std::borrow::Cow;
use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use mpi_sys::{MPI_Comm, MPI_Op};
use tch::Tensor;

use super::buffers::Buffers;
use super::exchange::UnderWay;
use super::finish::{Finish, Home};
use super::pieces::StagedPiece;
use super::reduce_scatter::Summing;
use super::staging::{self, Access, Busy, Memory};
use super::{Exchange, Made, Message};
use crate::autograd::{Current, Event, Metadata, Recording};
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::call::blocks::{Parts, elements};
use crate::call::buffer::{Input, Output, Pinned, Place};
use crate::communicator::Handle;
use crate::environment::status::Pattern;

/// An MPI call with everything that it reads and writes.
pub(crate) struct Plan<'x> {
    pub(crate) input: Input<'x>,
    /// The shape of the output, which MPI writes. It is the result's, except with
    /// [`Finish::Zeros`].
    pub(crate) shape: Cow<'x, [i64]>,
    pub(crate) call: Call,
    pub(crate) context: MPI_Comm,
    /// How the result is made from the output.
    pub(crate) finish: Finish,
}

/// An MPI function and its arguments besides the buffers.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    /// No MPI function.
    Nothing,
    /// `MPI_Allreduce`.
    AllReduce { op: MPI_Op },
    /// `MPI_Scan`.
    Scan { op: MPI_Op },
    /// `MPI_Exscan`.
    Exscan { op: MPI_Op },
    /// `MPI_Reduce`.
    Reduce { op: MPI_Op, root: Rank },
    /// `MPI_Bcast` of the output.
    Broadcast { root: Rank },
    /// `MPI_Allgather(v)`.
    AllGather { parts: Parts },
    /// `MPI_Gather(v)`.
    Gather { parts: Parts, root: Rank },
    /// `MPI_Scatter(v)`.
    Scatter { parts: Parts, root: Rank },
    /// `MPI_Alltoall(v)`; `largest` is the number of elements of the largest buffer on any rank. If
    /// `common`, all parts on all ranks have the same count.
    AllToAll { send: Parts, receive: Parts, largest: i64, common: bool },
    /// `MPI_Reduce_scatter(_block)`, or `MPI_Alltoallv` and a sum, if there is one.
    ReduceScatter { parts: Parts, op: MPI_Op, summing: Option<Summing> },
    /// `MPI_Barrier`.
    Barrier,
    /// `MPI_Send`.
    Send(Message),
    /// `MPI_Recv`.
    Receive(Message),
    /// `MPI_Sendrecv`.
    SendReceive { send: Message, receive: Message },
    /// `MPI_Isend` and `MPI_Irecv` for several messages.
    Exchange(Arc<Exchange>),
}

impl Call {
    /// The root, if it has one.
    pub(crate) fn root(&self) -> Option<Rank> {
        match self {
            Self::Reduce { root, .. }
            | Self::Broadcast { root }
            | Self::Gather { root, .. }
            | Self::Scatter { root, .. } => Some(*root),
            _ => None,
        }
    }
}

/// The memory for a call in place.
#[derive(Default)]
pub(super) struct InPlaceMemory {
    /// The copy of the input in host memory, if it is staged.
    pub(super) staged: Option<Tensor>,
    /// What the device is at work on.
    pub(super) busy: Option<Busy>,
    /// Passes when MPI may use the memory.
    pub(super) ready: Option<Arc<Event>>,
}

/// The memory that a call is made with.
struct Used<'u> {
    buffers: Buffers,
    /// The tensors that it is of: what MPI reads, and what it writes.
    tensors: [&'u Tensor; 2],
    pieces: Pieces<'u>,
    /// An exchange that a device has packed.
    exchange: Option<UnderWay>,
}

/// The pieces in which a call is made.
#[derive(Clone, Copy)]
struct Pieces<'p> {
    /// `None` if it is made at once.
    list: Option<&'p [StagedPiece]>,
    /// Where on a device what MPI has written is copied to, piece by piece.
    home: Option<&'p Tensor>,
}

/// The largest count and displacement that is passed to MPI as an `int`; only tests lower it.
static LARGEST: AtomicI32 = AtomicI32::new(c_int::MAX);

/// The largest count and displacement that is passed to MPI as an `int`.
pub(crate) fn largest_count() -> i64 {
    LARGEST.load(Ordering::Relaxed).into()
}

/// Lowers [`LARGEST`], so that tests can cover the calls of large tensors with small ones.
pub(crate) fn set_largest_count(count: c_int) {
    LARGEST.store(count, Ordering::Relaxed);
}

impl<'x> Plan<'x> {
    /// Of a map that makes no MPI call, with its result.
    pub(crate) fn without_call(input: Input<'x>, result: Tensor, context: MPI_Comm) -> Self {
        let shape = result.size().into();
        Self { input, shape, call: Call::Nothing, context, finish: Finish::Given(result) }
    }

    /// Carries the call out in the way of `made`, and waits for its end. `handed_over` is called
    /// once the call has been made or started, before a started one is waited for.
    #[inline]
    pub(crate) fn run(
        self,
        site: Site,
        comm: &Handle,
        made: Made,
        handed_over: impl FnOnce(),
    ) -> Result<Tensor> {
        if let Finish::Given(result) = self.finish {
            return Ok(result);
        }
        let memory = self.memory(site, comm, made.way())?;
        let Memory {
            staged, busy: _busy, send, output, home, ready, direct, pieces, exchange, ..
        } = memory;
        if let Some(ready) = ready {
            ready.wait(site.call)?;
        }
        let _current = direct.map(|device| Current::set(site.call, device)).transpose()?;
        let buffers = self.buffers(comm, send, output.data());
        let tensors = [staged.as_ref().unwrap_or(self.input.sent()), output.tensor()];
        // MPI writes the elements of the result, perhaps in another order.
        let is_written = matches!(self.finish, Finish::Nothing | Finish::Unpack(_));
        let home_of_pieces = home.as_ref().filter(|_| is_written);
        let pieces = Pieces { list: pieces.as_deref(), home: home_of_pieces };
        let is_filled = pieces.list.is_some() && pieces.home.is_some();
        let used = Used { buffers, tensors, pieces, exchange };
        // SAFETY: the output is new, so it does not overlap the input, and has the plan's shape.
        let made = unsafe { self.carry_out(site, comm, used, made, handed_over) }?;
        let home = Home { tensor: home, is_filled, free: None };
        self.finish.apply(site, output.into_tensor(), home, self.input.datatype(), &made)
    }

    /// The memory for a call in place, if it is not that of the host.
    pub(super) fn memory_in_place(
        &self,
        site: Site,
        access: Access,
        pieces: Option<&mut [StagedPiece]>,
    ) -> Result<InPlaceMemory> {
        match access {
            Access::Host => Ok(InPlaceMemory::default()),
            Access::Packed(_) => unreachable!("no exchange is made in place"),
            Access::Staged(_) => {
                let staged = staging::room_for(site, &self.input)?;
                let is_whole = pieces.is_none();
                let busy = staging::stage(site, &self.input, staged.shallow_clone(), pieces)?;
                let ready = is_whole.then(|| busy.until());
                Ok(InPlaceMemory { staged: Some(staged), busy: Some(busy), ready })
            }
            Access::Direct(device) => {
                let ready = Some(Arc::new(Event::record(site.call, device)?));
                Ok(InPlaceMemory { ready, ..InPlaceMemory::default() })
            }
        }
    }

    pub(crate) fn result_shape(&self) -> &[i64] {
        match &self.finish {
            Finish::Zeros(shape) => shape,
            _ => &self.shape,
        }
    }

    /// The output, with undefined content.
    pub(super) fn output(&self, site: Site, access: Access) -> Result<Output> {
        let is_written = !matches!(self.call, Call::Nothing);
        let shape = if is_written { &self.shape[..] } else { &[0][..] };
        let place = match access {
            Access::Host => Place::Host,
            Access::Staged(device) => Place::Near(device),
            Access::Packed(device) | Access::Direct(device) => Place::On(device),
        };
        let output = Output::at(place, site.call, shape, self.input.datatype())?;
        if let Call::Exchange(exchange) = &self.call {
            exchange.check(self.input.count(), elements(site.call, shape)?);
        }
        Ok(output)
    }

    /// As [`run`](Self::run), but changes `x`, the tensor that was planned for, to the result.
    /// `data` is its first element.
    pub(crate) fn run_in_place(
        self,
        site: Site,
        comm: &Handle,
        x: &mut Tensor,
        data: *mut c_void,
        made: Made,
        handed_over: impl FnOnce(),
    ) -> Result<()> {
        let access = self.access(comm, made.way());
        let mut pieces = self.cut(made.way(), comm);
        let memory = self.memory_in_place(site, access, pieces.as_deref_mut())?;
        let InPlaceMemory { staged, busy: _busy, ready } = memory;
        if let Some(ready) = ready {
            ready.wait(site.call)?;
        }
        let _current = access.direct().map(|device| Current::set(site.call, device)).transpose()?;
        // If x is not contiguous, the input is a copy of it. The call is then made in place on the
        // copy, as all ranks must give MPI_IN_PLACE, or none (MPI 3.1, 5.2.1).
        let x_data = data;
        let copied = staged.is_some() || self.input.data() != data.cast_const();
        let sent = staged.as_ref().unwrap_or(self.input.sent());
        let data = if copied { Metadata::of(sent).data().cast_mut() } else { data };
        let in_place = (mpi_sys::MPI_IN_PLACE.cast_const(), data);
        let (send, receive) = match self.call {
            // MPI ignores the receive buffer on ranks other than the root; they pass the send
            // buffer.
            Call::Reduce { root, .. } if root != comm.rank() => {
                (data.cast_const(), std::ptr::null_mut())
            }
            _ => in_place,
        };
        let buffers = self.buffers(comm, send, receive);
        // What MPI writes is the result, and x is as it is in memory.
        let home = matches!(self.finish, Finish::Nothing)
            && staged.is_some()
            && self.input.data() == x_data.cast_const();
        let pieces = Pieces { list: pieces.as_deref(), home: home.then_some(&*x) };
        let is_filled = pieces.list.is_some() && home;
        let tensors = [sent, staged.as_ref().unwrap_or(x)];
        let used = Used { buffers, tensors, pieces, exchange: None };
        // SAFETY: the operators that may be used in place have a result of their input's shape, and
        // allow MPI_IN_PLACE on each rank on which MPI writes one.
        unsafe { self.carry_out(site, comm, used, made, handed_over) }?;
        let _recording = Recording::off();
        match self.finish.filling(self.input.datatype().kind) {
            Some(value) => drop(x.f_fill_(value)?),
            None if is_filled => (),
            None => match staged {
                Some(staged) => staging::bring_home(site, staged, x)?,
                None if copied => x.f_copy_(self.input.sent())?,
                None => (),
            },
        }
        Ok(())
    }

    pub(super) fn buffers(
        &self,
        comm: &Handle,
        send: *const c_void,
        receive: *mut c_void,
    ) -> Buffers {
        let datatype = self.input.datatype();
        Buffers {
            send,
            receive,
            count: self.input.count(),
            datatype: datatype.mpi(comm.environment().handles()),
            elements: datatype,
            size: datatype.kind.elt_size_in_bytes(),
            context: self.context,
            rank: comm.rank(),
            largest: LARGEST.load(Ordering::Relaxed),
        }
    }

    /// Makes the call and waits for its end; see [`run`](Self::run).
    ///
    /// # Safety
    /// The buffers are as large as the plan says, in the memory of the tensors, and MPI may use them. What
    /// MPI writes does not overlap what it reads, unless the call is made in place.
    #[inline]
    unsafe fn carry_out(
        &self,
        site: Site,
        comm: &Handle,
        Used { buffers, tensors, pieces, exchange }: Used,
        mut made: Made,
        handed_over: impl FnOnce(),
    ) -> Result<Made> {
        let environment = comm.environment();
        // If a piece cannot be copied, the others are sent all the same: other ranks wait for them.
        let mut copied = Ok(());
        let outcome = environment.call(site, || {
            made.keep_exchange(exchange);
            let Some(list) = pieces.list else {
                // SAFETY: the input is contiguous and holds as many elements of this datatype as the
                // plan says, the output as the caller ensures. The handles are valid, as `call`
                // gives permission.
                return unsafe { buffers.call(&self.call, &mut made) };
            };
            for piece in list {
                if let (Some(staged), Ok(())) = (&piece.staged, &copied) {
                    copied = staged.wait(site.call);
                }
                // SAFETY: as above. What a piece sends and receives lies within its blocks, and these
                // within the buffers; no two pieces share an element.
                unsafe {
                    buffers.starting_at(piece.starts, piece.count).call(&piece.call, &mut made)
                }?;
                if let (Some(home), Ok(())) = (pieces.home, &copied) {
                    copied = piece.bring(site, tensors[1], home);
                }
            }
            Ok(())
        });
        if let (Some(_), Some(home)) = (pieces.list, pieces.home) {
            let kept = staging::keep_until_copied(site, tensors[1].shallow_clone(), home);
            copied = copied.and(kept);
        }
        if outcome.is_ok() {
            handed_over();
        }
        if made.has_ended() {
            return outcome.and(copied).map(|()| made);
        }
        let outcome = outcome.and_then(|()| {
            environment.wait_until(site, || {
                // SAFETY: `wait_until` gives permission to call MPI; the buffers outlive this call.
                unsafe {
                    let is_free = |found: &Pattern| !environment.expects(found);
                    let others = environment.are_expected();
                    Ok(made.probe(others.then_some(&is_free))? && made.test()?)
                }
            })
        });
        if !made.has_ended() {
            // MPI may still use the buffers, so they are never freed.
            for tensor in tensors {
                std::mem::forget(Pinned::new(site.call, tensor));
            }
            std::mem::forget(made);
            return Err(outcome.err().unwrap_or(Error::Finalized { call: site.call }));
        }
        outcome.map(|()| made)
    }
}
