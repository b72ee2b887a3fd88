//! The operators of messages, which are each other's adjoints.

use std::sync::Arc;

use tch::Tensor;

use crate::autograd::Metadata;
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::tag::Tag;
use crate::call::blocks::elements;
use crate::call::buffer::Input;
use crate::call::{Call, Finish, Message, Plan};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::Operator;
use crate::engine::tape::Traffic;
use crate::environment::status::{Envelope, PROC_NULL, Source};

/// The adjoint of [`Receive`].
#[derive(Debug)]
pub(super) struct Send {
    pub(super) to: Envelope,
    /// The shape of the result, which is zeros.
    pub(super) shape: Vec<i64>,
}

/// The adjoint of [`Send`]. Of its input, only the kind is used.
#[derive(Debug)]
pub(super) struct Receive {
    pub(super) from: Envelope,
    pub(super) shape: Vec<i64>,
}

/// Its own adjoint, with destination and source exchanged.
#[derive(Debug)]
pub(super) struct SendReceive {
    pub(super) to: Envelope,
    pub(super) from: Envelope,
    /// The shape of the result.
    pub(super) shape: Vec<i64>,
}

impl Receive {
    pub(super) fn new(from: Envelope, like: &Tensor) -> Self {
        let view = Metadata::of(like);
        let shape = if view.is_defined() { like.size() } else { Vec::new() };
        Self { from, shape }
    }
}

/// The destination and the tag of a message to send. In the adjoint of a receive from any rank they
/// are those of the message received.
fn known(call: &'static str, envelope: &Envelope) -> Result<(Rank, Tag)> {
    envelope.known().ok_or_else(|| Error::Argument {
        call,
        message: "the message of any rank was never waited for, so its sender is not known"
            .to_owned(),
    })
}

/// The arguments for sending a tensor.
fn outgoing(
    call: &'static str,
    comm: &Communicator,
    input: &Input,
    to: &Envelope,
) -> Result<Message> {
    let records = comm.records(input.view());
    Ok(Message::new(comm.handle(), known(call, to)?, input.datatype(), input.count(), records))
}

/// The arguments for receiving a tensor of `shape`, and the check of the message after it.
fn incoming(
    call: &'static str,
    comm: &Communicator,
    input: &Input,
    from: &Envelope,
    shape: &[i64],
) -> Result<(Message, Finish)> {
    let recorded = comm.records(input.view());
    let count = elements(call, shape)?;
    let message = Message::new(comm.handle(), from.to_mpi(), input.datatype(), count, recorded);
    let finish = match from.source() {
        Source::Rank(PROC_NULL) => Finish::Zero,
        _ => Finish::Receive { envelope: from.clone(), recorded },
    };
    Ok((message, finish))
}

impl Operator for Send {
    fn name(&self) -> &'static str {
        "send"
    }

    fn traffic(&self) -> Traffic {
        Traffic::Messages { send: Some(self.to.clone()), receive: None }
    }

    fn terms<'a>(&'a self, comm: &Communicator, _: &Input<'a>) -> Result<Terms<'a>> {
        comm.check_envelope(self.name(), "dest", &self.to)?;
        Ok(Terms::default())
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let call = Call::Send(outgoing(self.name(), comm, &input, &self.to)?);
        let input = input.contiguous()?;
        let finish = match &self.shape[..] {
            // The result is the tensor that MPI was given, as for any started call, so the wait can
            // be recorded early.
            [0] => Finish::Nothing,
            shape => Finish::Zeros(shape.to_vec()),
        };
        Ok(Plan { input, shape: vec![0].into(), call, context: comm.context(), finish })
    }

    fn adjoint(&self, shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Receive { from: self.to.clone(), shape: shape.to_vec() })
    }
}

impl Operator for Receive {
    fn name(&self) -> &'static str {
        "recv"
    }

    fn traffic(&self) -> Traffic {
        Traffic::Messages { send: None, receive: Some(self.from.clone()) }
    }

    fn terms<'a>(&'a self, comm: &Communicator, _: &Input<'a>) -> Result<Terms<'a>> {
        comm.check_envelope(self.name(), "source", &self.from)?;
        Ok(Terms::default())
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let (message, finish) = incoming(self.name(), comm, &input, &self.from, &self.shape)?;
        let (shape, call) = (self.shape.clone().into(), Call::Receive(message));
        Ok(Plan { input, shape, call, context: comm.context(), finish })
    }

    fn adjoint(&self, shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Send { to: self.from.clone(), shape: shape.to_vec() })
    }
}

impl Operator for SendReceive {
    fn name(&self) -> &'static str {
        "sendrecv"
    }

    fn traffic(&self) -> Traffic {
        Traffic::Messages { send: Some(self.to.clone()), receive: Some(self.from.clone()) }
    }

    fn terms<'a>(&'a self, comm: &Communicator, _: &Input<'a>) -> Result<Terms<'a>> {
        comm.check_envelope(self.name(), "dest", &self.to)?;
        comm.check_envelope(self.name(), "source", &self.from)?;
        Ok(Terms::default())
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let send = outgoing(self.name(), comm, &input, &self.to)?;
        let (receive, finish) = incoming(self.name(), comm, &input, &self.from, &self.shape)?;
        let (shape, call) = (self.shape.clone().into(), Call::SendReceive { send, receive });
        Ok(Plan { input: input.contiguous()?, shape, call, context: comm.context(), finish })
    }

    fn adjoint(&self, shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Self { to: self.from.clone(), from: self.to.clone(), shape: shape.to_vec() })
    }
}
