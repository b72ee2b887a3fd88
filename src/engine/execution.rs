//! The execution of a [`Plan`]: blocking, in its turn, or started, as a [`Flight`].

use std::ffi::c_void;

use tch::Tensor;

use crate::base::error::Result;
use crate::base::site::Site;
use crate::call::{Completion, Made, Plan};
use crate::engine::agreement::Turn;
use crate::engine::communicator::Communicator;
use crate::engine::flight::{Flight, Start};
use crate::engine::trace::{Traced, UnderWay};

/// Makes the call and waits for its end. `turn` is the turn of a collective call, which is made in
/// the way that the ranks agreed on.
#[inline]
pub(crate) fn run(
    plan: Plan,
    site: Site,
    comm: &Communicator,
    turn: Option<&Turn>,
) -> Result<Tensor> {
    comm.flights().let_depart(site, comm)?;
    match turn {
        Some(turn) => plan.run(site, comm.handle(), Made::new(turn.way()), || turn.made()),
        None => plan.run(site, comm.handle(), Made::probing(), || ()),
    }
}

/// As [`run`], and writes the result to `x`, the tensor that was planned for. `data` points to its
/// elements.
pub(crate) fn run_in_place(
    plan: Plan,
    site: Site,
    comm: &Communicator,
    (x, data): (&mut Tensor, *mut c_void),
    turn: &Turn,
) -> Result<()> {
    comm.flights().let_depart(site, comm)?;
    plan.run_in_place(site, comm.handle(), x, data, Made::new(turn.way()), || turn.made())
}

/// A call that was started, with what is left to do after its end.
pub(crate) struct Started {
    pub(crate) flight: Flight,
    completion: Completion,
    traced: UnderWay,
}

impl Started {
    /// Starts the call, for `x`, the tensor that was planned for.
    pub(crate) fn new(
        plan: Plan,
        site: Site,
        comm: &Communicator,
        x: &Tensor,
        start: Start,
    ) -> Result<Self> {
        let (launch, completion) = plan.into_launch(site, comm.handle(), x)?;
        let flight = Flight::start(site, comm, launch, start)?;
        Ok(Self { flight, completion, traced: UnderWay::untraced() })
    }

    /// Starts the call, to change `x`, the tensor that was planned for, which is contiguous. `data`
    /// points to its elements. The call is part of one that the ranks have agreed on.
    pub(crate) fn in_place(
        plan: Plan,
        site: Site,
        comm: &Communicator,
        (x, data): (&Tensor, *mut c_void),
    ) -> Result<Self> {
        let (launch, completion) = plan.into_launch_in_place(site, comm.handle(), x, data)?;
        let flight = Flight::start(site, comm, launch, Start::Now)?;
        Ok(Self { flight, completion, traced: UnderWay::untraced() })
    }

    /// Ends the start's part of the call's span.
    pub(crate) fn traced_by(self, traced: Traced) -> Self {
        Self { traced: traced.start(), ..self }
    }

    /// The tensor that MPI writes.
    pub(crate) fn written(&self) -> &Tensor {
        self.completion.written()
    }

    /// Waits for the end of the call at `site`, and returns its result.
    pub(crate) fn result(self, site: Site) -> Result<Tensor> {
        let Self { flight, completion, traced } = self;
        let _traced = traced.wait(site);
        let start = flight.site();
        let made = flight.landed(site)?;
        completion.result(start, &made)
    }
}
