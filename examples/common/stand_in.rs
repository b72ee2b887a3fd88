//! Temporary: stands in for `Cartesian::halo_exchange`, `Cartesian::ihalo_exchange` and
//! `Tape::checkpoint_steps`. Methods of the library's types take precedence over those of a trait, so
//! once the library has them, `use stand_in::…` becomes `use mpi4tch::Halo` and this file goes.

#![allow(dead_code, reason = "each example uses some of it")]

use mpi4tch::tch::Tensor;
use mpi4tch::{Cartesian, Result, Tape};

#[derive(Clone, Copy, Debug)]
pub struct Halo {
    pub axis: i64,
    pub along: usize,
    pub before: i64,
    pub after: i64,
}

pub struct Started(Tensor);

impl Started {
    pub fn wait(self) -> Result<Tensor> {
        Ok(self.0)
    }
}

pub trait HaloExchange {
    fn halo_exchange(&self, x: &Tensor, halos: &[Halo]) -> Result<Tensor>;

    fn ihalo_exchange(&self, x: &Tensor, halos: &[Halo]) -> Result<Started> {
        Ok(Started(self.halo_exchange(x, halos)?))
    }
}

impl HaloExchange for Cartesian {
    fn halo_exchange(&self, x: &Tensor, halos: &[Halo]) -> Result<Tensor> {
        let mut wide = x.shallow_clone();
        for Halo { axis, along, before, after } in halos.iter().copied() {
            let (lower, upper) = self.shift(along, 1)?;
            let axis = axis.rem_euclid(i64::try_from(wide.dim()).unwrap_or(1));
            let extent = wide.size()[usize::try_from(axis).unwrap_or(0)];
            let last = wide.narrow(axis, extent - before, before);
            let first = wide.narrow(axis, 0, after);
            let below = self.sendrecv(&last, upper, &last.zeros_like(), lower, 0)?;
            let above = self.sendrecv(&first, lower, &first.zeros_like(), upper, 1)?;
            wide = Tensor::cat(&[below, wide, above], axis);
        }
        Ok(wide)
    }
}

pub trait CheckpointSteps {
    fn checkpoint_steps(
        &self,
        state: &[&Tensor],
        steps: usize,
        slots: usize,
        step: impl Fn(usize, &[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    ) -> Result<Vec<Tensor>>;
}

impl CheckpointSteps for Tape {
    fn checkpoint_steps(
        &self,
        state: &[&Tensor],
        steps: usize,
        _slots: usize,
        step: impl Fn(usize, &[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
    ) -> Result<Vec<Tensor>> {
        let state = state.iter().map(|x| x.shallow_clone()).collect();
        (0..steps).try_fold(state, |state: Vec<Tensor>, number| step(number, &state))
    }
}
