//! The default generator of random numbers on the CPU.

use std::ptr;

use tch::Tensor;

use super::{check, shim};
use crate::base::error::Result;

/// The state of the default generator.
pub(crate) fn generator(call: &'static str) -> Result<Tensor> {
    let mut state = ptr::null_mut();
    // SAFETY: the result is written before the call returns.
    check(call, unsafe { shim::mpi4tch_generator(&mut state) })?;
    // SAFETY: without an error, `state` is a new at::Tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(state.cast()) })
}

/// Puts the default generator into a state until it is dropped, and then into the one before.
pub(crate) struct Generator {
    before: Tensor,
}

impl Generator {
    pub(crate) fn at(call: &'static str, state: &Tensor) -> Result<Self> {
        let before = generator(call)?;
        // SAFETY: `state` is a valid at::Tensor that outlives the call.
        check(call, unsafe { shim::mpi4tch_set_generator(state.as_ptr().cast()) })?;
        Ok(Self { before })
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // A state that the generator had is never refused.
        // SAFETY: `before` is a valid at::Tensor that outlives the call.
        let _ =
            check("Generator", unsafe { shim::mpi4tch_set_generator(self.before.as_ptr().cast()) });
    }
}
