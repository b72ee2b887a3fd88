//! [`Finish`]: how a call's result is made from what MPI has written.

use std::sync::Arc;

use tch::{Kind, Scalar, Tensor};

use super::blocks::Blocks;
use super::buffer::Output;
use super::{Made, message, staging};
use crate::autograd::{Event, Metadata};
use crate::base::error::Result;
use crate::base::op::Op;
use crate::base::site::Site;
use crate::environment::datatype::Datatype;
use crate::environment::status::Envelope;

/// How the result is made from the output, once MPI has written it.
#[derive(Debug)]
pub(crate) enum Finish {
    /// The output is the result.
    Nothing,
    /// The output holds the blocks one after another; they are unpacked into the result.
    Unpack(Blocks),
    /// MPI writes no result on this rank; the output is filled with zeros.
    Zero,
    /// MPI writes no result on this rank; the output is filled with the op's identity element.
    Identity(Op),
    /// MPI writes no result on any rank; it is zeros of this shape, in the storage of one element.
    Zeros(Vec<i64>),
    /// The message that was received is checked, and its envelope resolved.
    Receive { envelope: Envelope, recorded: bool },
    /// The result is known without a call.
    Given(Tensor),
}

impl Finish {
    /// For a result of `shape` whose blocks MPI writes one after another.
    pub(crate) fn unpacked(blocks: Blocks, shape: &[i64]) -> Self {
        if blocks.are_consecutive(shape) { Self::Nothing } else { Self::Unpack(blocks) }
    }

    /// The constant that fills the output where MPI writes no result.
    pub(super) fn filling(&self, kind: Kind) -> Option<Scalar> {
        match self {
            Self::Zero => Some(0.into()),
            Self::Identity(op) => Some(op.identity(kind)),
            _ => None,
        }
    }

    /// Makes the result from the output. If that is staged, `home` is its place on the device.
    pub(super) fn apply(
        self,
        site: Site,
        written: Tensor,
        home: Home,
        datatype: Datatype,
        made: &Made,
    ) -> Result<Tensor> {
        made.bring()?;
        if let Some(value) = self.filling(datatype.kind) {
            let mut result = home.place(site)?.unwrap_or(written);
            let _ = result.f_fill_(value)?;
            return Ok(result);
        }
        match self {
            Self::Nothing | Self::Zero | Self::Identity(_) => home.bring(site, written),
            Self::Unpack(blocks) => {
                let written = home.bring(site, written)?;
                blocks.unpack(site.call, &written.f_view([-1])?, &written.size(), datatype)
            }
            Self::Zeros(shape) => {
                let device = Metadata::of(home.tensor.as_ref().unwrap_or(&written)).device();
                Output::zeros(device, site.call, &shape, datatype)
            }
            Self::Receive { envelope, recorded } => {
                message::check_received(site, &envelope, recorded, &written, datatype, made)?;
                home.bring(site, written)
            }
            Self::Given(result) => Ok(result),
        }
    }
}

/// The tensor on a device that the result of a staged call is copied to.
#[derive(Default)]
pub(super) struct Home {
    pub(super) tensor: Option<Tensor>,
    /// Whether what MPI has written was copied to it in pieces.
    pub(super) is_filled: bool,
    /// Passes when the device has done with the memory of the tensor. It was recorded on the stream that
    /// the tensor was made on, which need not be the current one.
    pub(super) free: Option<Arc<Event>>,
}

impl Home {
    /// The tensor, to be written on the current stream; `None` if the call is not staged.
    fn place(self, site: Site) -> Result<Option<Tensor>> {
        if let (Some(tensor), Some(free)) = (&self.tensor, &self.free) {
            free.queue_wait(site.call, Metadata::of(tensor).device())?;
        }
        Ok(self.tensor)
    }

    /// What MPI has written, copied to the tensor if the call is staged.
    fn bring(self, site: Site, written: Tensor) -> Result<Tensor> {
        let is_filled = self.is_filled;
        let Some(home) = self.place(site)? else { return Ok(written) };
        if !is_filled {
            staging::bring_home(site, written, &home)?;
        }
        Ok(home)
    }
}
