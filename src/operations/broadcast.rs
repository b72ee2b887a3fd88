//! `MPI_Bcast`.

use std::sync::Arc;

use tch::Tensor;

use super::reduce::Reduce;
use crate::base::error::Result;
use crate::base::op::Op;
use crate::base::rank::Rank;
use crate::call::buffer::Input;
use crate::call::{Call, Finish, Plan};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Operator, apply, apply_in_place};
use crate::engine::request::{Nonblocking, Request};

impl Communicator {
    /// Sends the `x` of `root` to all ranks.
    ///
    /// Wraps `MPI_Bcast`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's. Only the content of the `x` of `root`
    ///   matters; on the other ranks `x` gives the shape and the kind.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: `x̄ = reduce(ȳ, Sum, root)`: the sum on `root`, zeros elsewhere.
    ///
    /// Every rank's result is a variable of its own. That of
    /// [`Replicated::broadcast`](crate::Replicated::broadcast) is one on all ranks.
    ///
    /// # Errors
    /// [`Error::Rank`](crate::Error::Rank) if there is no rank `root`; and the errors
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let y = world.broadcast(&Tensor::from_slice(&[world.rank()]), 0)?;
    /// assert_eq!(y, Tensor::from_slice(&[0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Bcast")]
    #[track_caller]
    pub fn broadcast(&self, x: &Tensor, root: Rank) -> Result<Tensor> {
        apply::<Blocking>(&Broadcast::new(root), self, x)
    }

    /// Starts a [`broadcast`](Self::broadcast).
    ///
    /// Wraps `MPI_Ibcast`. Collective: every rank must call it. Shape, kinds: as there.
    ///
    /// - Adjoint: the wait's pullback starts that of `broadcast`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = world.ibroadcast(&Tensor::from_slice(&[world.rank()]), 0)?;
    /// assert_eq!(request.wait()?, Tensor::from_slice(&[0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ibcast")]
    #[track_caller]
    pub fn ibroadcast(&self, x: &Tensor, root: Rank) -> Result<Request> {
        apply::<Nonblocking>(&Broadcast::new(root), self, x)
    }

    /// [`broadcast`](Self::broadcast) in place: every rank's `x` becomes `root`'s.
    ///
    /// Wraps `MPI_Bcast`. Collective: every rank must call it. It follows torch's rules for changes
    /// in place, as [`all_reduce_`](Self::all_reduce_) does.
    ///
    /// - Shape, kinds, adjoint: as for [`broadcast`](Self::broadcast).
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast); [`Error::Autograd`](crate::Error::Autograd) if
    /// torch's rules forbid the change.
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let mut x = Tensor::from_slice(&[world.rank()]);
    /// world.broadcast_(&mut x, 0)?;
    /// assert_eq!(x, Tensor::from_slice(&[0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    /// Gives all ranks the same parameters. They are leaves, so `no_grad` is needed:
    /// ```
    /// use tch::{Device, Kind, nn};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let store = nn::VarStore::new(Device::Cpu);
    /// let layer = nn::linear(store.root(), 2, 3, nn::LinearConfig::default());
    /// for parameter in &mut store.trainable_variables() {
    ///     tch::no_grad(|| universe.world().broadcast_(parameter, 0))?;
    /// }
    /// # let _ = layer;
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Bcast")]
    #[track_caller]
    pub fn broadcast_(&self, x: &mut Tensor, root: Rank) -> Result<()> {
        apply_in_place(&Broadcast::new(root), self, x)
    }
}

/// The adjoint of [`Reduce`] with `Sum`.
#[derive(Debug)]
pub(super) struct Broadcast {
    pub(super) root: Rank,
    call: &'static str,
}

impl Broadcast {
    pub(super) fn new(root: Rank) -> Self {
        Self { root, call: "broadcast" }
    }

    /// For another call, whose name it has in errors.
    pub(super) fn of(call: &'static str, root: Rank) -> Self {
        Self { root, call }
    }
}

impl Operator for Broadcast {
    fn name(&self) -> &'static str {
        self.call
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        comm.check_root(self.name(), self.root)?;
        Ok(Terms { root: Some(self.root), shape: Some((input.shape(), None)), ..Terms::default() })
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let input = input.contiguous()?;
        let shape = input.shape().into();
        let call = Call::Broadcast { root: self.root };
        Ok(Plan { input, shape, call, context: comm.context(), finish: Finish::Nothing })
    }

    fn adjoint(&self, _shape: &[i64], _agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(Reduce { op: Op::Sum, root: self.root })
    }
}
