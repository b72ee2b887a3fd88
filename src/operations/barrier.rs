//! `MPI_Barrier`.

use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::base::error::Result;
use crate::call::buffer::Input;
use crate::call::{Call, Finish, Plan};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Mode, Operator, apply};
use crate::engine::request::{Nonblocking, Request};

impl Communicator {
    /// Waits until every rank has called it.
    ///
    /// Wraps `MPI_Barrier`. Collective: every rank must call it.
    ///
    /// - Adjoint: a barrier on a [`Tape`](crate::Tape); without one, it has no part in the backward
    ///   pass.
    ///
    /// # Errors
    /// The errors [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// universe.world().barrier()?;
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Barrier")]
    #[track_caller]
    pub fn barrier(&self) -> Result<()> {
        barrier::<Blocking>(self).map(|_| ())
    }

    /// Starts a [`barrier`](Self::barrier): the request's wait returns once every rank has started
    /// it. Its result has no elements.
    ///
    /// Wraps `MPI_Ibarrier`. Collective: every rank must call it.
    ///
    /// # Errors
    /// As for [`barrier`](Self::barrier), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let request = universe.world().ibarrier()?;
    /// request.wait()?;
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ibarrier")]
    #[track_caller]
    pub fn ibarrier(&self) -> Result<Request> {
        barrier::<Nonblocking>(self)
    }
}

#[track_caller]
fn barrier<M: Mode>(comm: &Communicator) -> Result<M::Output> {
    // A tape records it because a tensor of kind Float carries gradients.
    let nothing = Tensor::f_zeros([0_i64; 1], (Kind::Float, tch::Device::Cpu))?;
    apply::<M>(&Barrier, comm, &nothing)
}

/// Its own adjoint. Its input and its result have no elements.
#[derive(Debug)]
struct Barrier;

impl Operator for Barrier {
    fn name(&self) -> &'static str {
        "barrier"
    }

    fn terms<'a>(&'a self, _: &Communicator, _: &Input<'a>) -> Result<Terms<'a>> {
        Ok(Terms::default())
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let (shape, finish) = (input.shape().into(), Finish::Nothing);
        Ok(Plan { input, shape, call: Call::Barrier, context: comm.context(), finish })
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Self)
    }
}
