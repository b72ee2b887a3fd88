//! The default generators of random numbers: that of the CPU, and those of the other devices.

use std::ptr;

use tch::Tensor;

use super::{check, own, shim};
use crate::base::error::Result;

/// The states of the default generators.
#[derive(Debug)]
pub(crate) struct Generators(Vec<Tensor>);

impl Generators {
    /// As they are now.
    pub(crate) fn now(call: &'static str) -> Result<Self> {
        // SAFETY: the call has no arguments.
        let count = unsafe { shim::mpi4tch_generator_count() };
        let states = (0..count).map(|place| {
            let mut state = ptr::null_mut();
            // SAFETY: there are so many generators; the result outlives the call.
            check(call, unsafe { shim::mpi4tch_generator(place, &mut state) })?;
            Ok(own(state).unwrap_or_else(|| unreachable!("no error, so a state")))
        });
        states.collect::<Result<_>>().map(Self)
    }

    /// As [`now`](Self::now); if they are equal to the last ones, they share the memory of those.
    pub(crate) fn now_or(call: &'static str, last: &Self) -> Result<Self> {
        let now = Self::now(call)?;
        Ok(if now == *last { last.clone() } else { now })
    }

    /// Puts the generators into these states until what is returned is dropped, and then into those
    /// before.
    pub(crate) fn restore(&self, call: &'static str) -> Result<Restored> {
        let restored = Restored { before: Self::now(call)? };
        self.set(call)?;
        Ok(restored)
    }

    fn set(&self, call: &'static str) -> Result<()> {
        for (place, state) in self.0.iter().enumerate() {
            // SAFETY: `state` is a valid at::Tensor that outlives the call.
            check(call, unsafe { shim::mpi4tch_set_generator(place, state.as_ptr().cast()) })?;
        }
        Ok(())
    }
}

impl Clone for Generators {
    fn clone(&self) -> Self {
        Self(self.0.iter().map(Tensor::shallow_clone).collect())
    }
}

impl PartialEq for Generators {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// The generators are in other states until this is dropped.
pub(crate) struct Restored {
    before: Generators,
}

impl Drop for Restored {
    fn drop(&mut self) {
        // A state that a generator had is never refused.
        let _ = self.before.set("Restored");
    }
}
