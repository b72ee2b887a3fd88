//! An MPI call with everything that it reads and writes: a [`Plan`], to be run or started.

use std::borrow::Cow;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI32, Ordering};

use mpi_sys::{MPI_Comm, MPI_Op};
use tch::{Kind, Scalar, Tensor};

use super::buffers::Buffers;
use super::{Made, Message, message};
use crate::autograd::{self, Recording};
use crate::base::error::{Error, Result};
use crate::base::op::Op;
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::call::blocks::{Blocks, Parts};
use crate::call::buffer::{Input, Output, Pinned};
use crate::communicator::Handle;
use crate::environment::datatype::Datatype;
use crate::environment::status::Envelope;

/// An MPI call with everything that it reads and writes.
pub(crate) struct Plan<'x> {
    pub(crate) input: Input<'x>,
    /// The result's.
    pub(crate) shape: Cow<'x, [i64]>,
    pub(crate) call: Call,
    pub(crate) context: MPI_Comm,
    pub(crate) finish: Finish,
}

/// An MPI function and its arguments besides the buffers.
#[derive(Debug)]
pub(crate) enum Call {
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
    /// `MPI_Alltoall(v)`; `largest` is one past the last element of any rank's buffers.
    /// Where `common`, all parts on all ranks have the same count.
    AllToAll { send: Parts, receive: Parts, largest: i64, common: bool },
    /// `MPI_Reduce_scatter(_block)`.
    ReduceScatter { parts: Parts, op: MPI_Op },
    /// `MPI_Barrier`.
    Barrier,
    /// `MPI_Send`.
    Send(Message),
    /// `MPI_Recv`.
    Receive(Message),
    /// `MPI_Sendrecv`.
    SendReceive { send: Message, receive: Message },
}

/// What is left to do with what MPI wrote.
#[derive(Debug)]
pub(crate) enum Finish {
    Nothing,
    /// The blocks have arrived one after another.
    Unpack(Blocks),
    /// MPI has written nothing of use; the result is zeros.
    Zero,
    /// Likewise; the result is what changes nothing under the op.
    Identity(Op),
    /// MPI has written nothing; the result is zeros of this shape, without storage for each.
    Zeros(Vec<i64>),
    /// A message is to be checked, and its envelope resolved.
    Receive {
        envelope: Envelope,
        recorded: bool,
    },
}

impl Finish {
    /// For a result of `shape` whose blocks arrive one after another.
    pub(crate) fn unpacked(blocks: Blocks, shape: &[i64]) -> Self {
        if blocks.are_consecutive(shape) { Self::Nothing } else { Self::Unpack(blocks) }
    }

    /// What a call that the result must be filled by leaves it to be.
    fn filling(&self, kind: Kind) -> Option<Scalar> {
        match self {
            Self::Zero => Some(0.into()),
            Self::Identity(op) => Some(op.identity(kind)),
            _ => None,
        }
    }

    /// The result, of what MPI has written.
    fn apply(
        self,
        site: Site,
        mut written: Tensor,
        datatype: Datatype,
        made: &Made,
    ) -> Result<Tensor> {
        if let Some(value) = self.filling(datatype.kind) {
            let _ = written.f_fill_(value)?;
        }
        match self {
            Self::Nothing | Self::Zero | Self::Identity(_) => Ok(written),
            Self::Unpack(blocks) => {
                blocks.unpack(site.call, &written.f_view([-1])?, &written.size(), datatype)
            }
            Self::Zeros(shape) => {
                let zero = Tensor::f_zeros([0_i64; 0], (datatype.kind, tch::Device::Cpu))?;
                Ok(zero.f_expand(shape, false)?)
            }
            Self::Receive { envelope, recorded } => {
                message::check_received(site, &envelope, recorded, &written, datatype, made)?;
                Ok(written)
            }
        }
    }
}

/// A call that can be made at any time.
pub(crate) struct Launch {
    buffers: Buffers,
    call: Call,
    /// What the call reads and writes.
    pinned: [Pinned; 2],
}

impl Launch {
    /// Whether it is a receive, which can be cancelled.
    pub(crate) fn receives(&self) -> bool {
        matches!(self.call, Call::Receive(_))
    }

    /// Starts the call.
    ///
    /// # Safety
    /// MPI can be called, and `made` is kept until it has ended.
    pub(crate) unsafe fn run(self, made: &mut Made) -> Result<()> {
        made.pin(self.pinned);
        // SAFETY: MPI can be called. The plan laid the buffers out; the output is new, so it does not
        // overlap the input. Both are pinned for as long as `made` is kept.
        unsafe { self.buffers.call(&self.call, made) }
    }
}

/// What becomes of a call that was started, once it has ended.
pub(crate) struct Completion {
    written: Tensor,
    finish: Finish,
    datatype: Datatype,
    /// What the call was given, and its version at the start.
    given: Option<(Tensor, i64)>,
}

impl Completion {
    /// What MPI writes.
    pub(crate) fn written(&self) -> &Tensor {
        &self.written
    }

    /// The result of the call, which was started at `start` and has ended.
    pub(crate) fn result(self, start: Site, made: &Made) -> Result<Tensor> {
        if let Some((x, version)) = self.given
            && autograd::version(&x) != version
        {
            return Err(Error::InFlight { call: start.call, at: start.at });
        }
        self.finish.apply(start, self.written, self.datatype, made)
    }
}

/// The largest count and displacement that an `int` is trusted with; lower in tests only.
static LARGEST: AtomicI32 = AtomicI32::new(c_int::MAX);

/// The most elements that a call counts by an `int`.
pub(crate) fn largest_count() -> i64 {
    LARGEST.load(Ordering::Relaxed).into()
}

/// Lowers [`LARGEST`], so that a test sees with small tensors what large ones meet.
pub(crate) fn set_largest_count(count: c_int) {
    LARGEST.store(count, Ordering::Relaxed);
}

impl<'x> Plan<'x> {
    /// Carries the call out in the way of `made`, and waits for its end. `handed_over` is called once
    /// MPI has been given the call, before its end is waited for.
    #[inline]
    pub(crate) fn run(
        self,
        site: Site,
        comm: &Handle,
        made: Made,
        handed_over: impl FnOnce(),
    ) -> Result<Tensor> {
        let output = self.output(site, comm)?;
        let buffers = self.buffers(comm, self.input.data(), output.data());
        // SAFETY: the output is new, so it does not overlap the input, and has the plan's shape.
        let made =
            unsafe { self.carry_out(site, comm, buffers, output.tensor(), made, handed_over) }?;
        self.finish.apply(site, output.into_tensor(), self.input.datatype(), &made)
    }

    /// The call, to be started later, for `x`, the tensor that was planned for; and what becomes of it.
    pub(crate) fn into_launch(
        self,
        site: Site,
        comm: &Handle,
        x: &Tensor,
    ) -> Result<(Launch, Completion)> {
        let output = self.output(site, comm)?;
        let buffers = self.buffers(comm, self.input.data(), output.data());
        let pinned =
            [Pinned::new(site.call, self.input.sent())?, Pinned::new(site.call, output.tensor())?];
        let datatype = self.input.datatype();
        let launch = Launch { buffers, call: self.call, pinned };
        // What is received into has only a shape.
        let given = (!launch.receives()).then(|| (x.shallow_clone(), autograd::version(x)));
        let written = output.into_tensor();
        Ok((launch, Completion { written, finish: self.finish, datatype, given }))
    }

    pub(crate) fn result_shape(&self) -> &[i64] {
        match &self.finish {
            Finish::Zeros(shape) => shape,
            _ => &self.shape,
        }
    }

    /// Memory for the result; what is broadcast lies there already.
    fn output(&self, site: Site, comm: &Handle) -> Result<Output> {
        let output = Output::new(site.call, &self.shape, self.input.datatype())?;
        if matches!(self.call, Call::Broadcast { root } if root == comm.rank()) {
            // MPI sends from the buffer that it receives into elsewhere.
            output.copy_from(&self.input)?;
        }
        Ok(output)
    }

    /// As [`run`](Self::run), so that `x`, the tensor that was planned for, becomes the result.
    pub(crate) fn run_in_place(
        self,
        site: Site,
        comm: &Handle,
        x: &mut Tensor,
        data: *mut c_void,
        made: Made,
        handed_over: impl FnOnce(),
    ) -> Result<()> {
        let copied = self.input.data() != data.cast_const();
        // What is sent is a copy of x where x does not lie as MPI would write it. The call is then
        // made in place of the copy: all ranks must give MPI_IN_PLACE, or none (MPI 3.1, 5.2.1).
        let data = if copied { self.input.data().cast_mut() } else { data };
        let in_place = (mpi_sys::MPI_IN_PLACE.cast_const(), data);
        let (send, receive) = match self.call {
            // Who receives nothing names what it sends.
            Call::Reduce { root, .. } if root != comm.rank() => {
                (self.input.data(), std::ptr::null_mut())
            }
            _ => in_place,
        };
        let buffers = self.buffers(comm, send, receive);
        // SAFETY: the operators that may be used in place have a result of their input's shape, and
        // allow MPI_IN_PLACE on each rank that writes one.
        unsafe { self.carry_out(site, comm, buffers, x, made, handed_over) }?;
        let _recording = Recording::off();
        match self.finish.filling(self.input.datatype().kind) {
            Some(value) => drop(x.f_fill_(value)?),
            None if copied => x.f_copy_(self.input.sent())?,
            None => (),
        }
        Ok(())
    }

    fn buffers(&self, comm: &Handle, send: *const c_void, receive: *mut c_void) -> Buffers {
        let datatype = self.input.datatype();
        Buffers {
            send,
            receive,
            count: self.input.count(),
            datatype: datatype.mpi(comm.environment().handles()),
            size: datatype.kind.elt_size_in_bytes(),
            context: self.context,
            rank: comm.rank(),
            largest: LARGEST.load(Ordering::Relaxed),
        }
    }

    /// Makes the call and waits for its end; see [`run`](Self::run).
    ///
    /// # Safety
    /// `buffers` has room for what the call writes, which is in `written`, and does not overlap what
    /// it reads, which is in the input.
    #[inline]
    unsafe fn carry_out(
        &self,
        site: Site,
        comm: &Handle,
        buffers: Buffers,
        written: &Tensor,
        mut made: Made,
        handed_over: impl FnOnce(),
    ) -> Result<Made> {
        let environment = comm.environment();
        let outcome = environment.call(site, || {
            // SAFETY: the input is contiguous and holds as many elements of this datatype as the
            // plan says, the output as the caller ensures. The handles are valid, as `call` gives
            // permission.
            unsafe { buffers.call(&self.call, &mut made) }
        });
        if outcome.is_ok() {
            handed_over();
        }
        if made.has_ended() {
            return outcome.map(|()| made);
        }
        let outcome = outcome.and_then(|()| {
            environment.wait_until(site, || {
                // SAFETY: `wait` gives permission to call MPI; the buffers outlive this call.
                unsafe { made.test() }
            })
        });
        if !made.has_ended() {
            // MPI may still use them.
            for tensor in [self.input.sent(), written] {
                std::mem::forget(Pinned::new(site.call, tensor));
            }
            std::mem::forget(made);
            return Err(outcome.err().unwrap_or(Error::Finalized { call: site.call }));
        }
        outcome.map(|()| made)
    }
}
