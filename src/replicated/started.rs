//! The started forms, and [`ReplicatedRequest`].

use tch::Tensor;

use super::Replicated;
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::engine::communicator::Communicator;
use crate::engine::request::{Nonblocking, Request, Test};
use crate::operations::replication;

/// A started operation whose result is [`Replicated`]: a [`Request`] that returns one.
///
/// # Examples
/// ```
/// use mpi4tch::Replicated;
/// use tch::{Kind, Tensor};
///
/// let universe = mpi4tch::initialize()?;
/// let x = Tensor::from_slice(&[2.0]).set_requires_grad(true);
/// let request = Replicated::isum(&universe.world(), &x.sum(Kind::Double))?;
/// let meanwhile = x.square(); // beside the communication
/// let loss = request.wait()?;
/// # drop(meanwhile);
/// loss.backward()?;
/// assert_eq!(x.grad(), Tensor::from_slice(&[1.0]));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[must_use = "a request is to be waited for"]
#[derive(Debug)]
pub struct ReplicatedRequest {
    request: Request,
    comm: Communicator,
    /// The call whose result retains its gradient, if this is one.
    retains: Option<&'static str>,
}

impl ReplicatedRequest {
    fn new(comm: &Communicator, request: Request) -> Self {
        Self { request, comm: comm.clone(), retains: None }
    }

    /// Waits for the operation's end, and returns its result.
    ///
    /// Does what `MPI_Wait` does: see [`Request::wait`].
    ///
    /// - Adjoint: that of the operation, started; it makes no MPI call.
    ///
    /// # Errors
    /// As for [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = Replicated::isum(&world, &Tensor::from_slice(&[1]))?;
    /// assert_eq!(*request.wait()?.tensor(), Tensor::from_slice(&[world.size()]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Wait")]
    #[track_caller]
    pub fn wait(self) -> Result<Replicated> {
        Self::result(&self.comm, self.retains, self.request.wait()?)
    }

    /// Tests whether the operation has ended, and returns its result, or the request if it has not.
    ///
    /// Wraps `MPI_Test`: see [`Request::test`].
    ///
    /// # Errors
    /// As for [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::{Replicated, Test};
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let mut request = Replicated::isum(&world, &Tensor::from_slice(&[1_i64]))?;
    /// let y = loop {
    ///     match request.test()? {
    ///         Test::Done(y) => break y,
    ///         Test::Pending(again) => request = again,
    ///     }
    /// };
    /// assert_eq!(*y.tensor(), Tensor::from_slice(&[i64::from(world.size())]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Test")]
    #[track_caller]
    pub fn test(self) -> Result<Test<Replicated, Self>> {
        let Self { request, comm, retains } = self;
        Ok(match request.test()? {
            Test::Done(y) => Test::Done(Self::result(&comm, retains, y)?),
            Test::Pending(request) => Test::Pending(Self { request, comm, retains }),
        })
    }

    fn result(comm: &Communicator, retains: Option<&'static str>, y: Tensor) -> Result<Replicated> {
        let y = Replicated::on(comm, y);
        match retains {
            Some(call) => y.with_gradient(call),
            None => Ok(y),
        }
    }
}

impl Replicated {
    /// Starts a [`sum`](Self::sum).
    ///
    /// Wraps `MPI_Iallreduce`. Collective: every rank must call it. Shape, kinds, adjoint: as there.
    ///
    /// # Errors
    /// As for [`sum`](Self::sum), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let x = Tensor::from_slice(&[2.0]).set_requires_grad(true);
    /// let request = Replicated::isum(&universe.world(), &x.square().sum(Kind::Double))?;
    /// request.wait()?.backward()?;
    /// assert_eq!(x.grad(), Tensor::from_slice(&[4.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Iallreduce")]
    #[track_caller]
    pub fn isum(comm: &Communicator, x: &Tensor) -> Result<ReplicatedRequest> {
        Ok(ReplicatedRequest::new(comm, replication::sum::<Nonblocking>(comm, x)?))
    }

    /// Starts a [`mean`](Self::mean).
    ///
    /// Wraps `MPI_Iallreduce`. Collective: every rank must call it. Shape, kinds, adjoint: as there.
    ///
    /// # Errors
    /// As for [`mean`](Self::mean), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let request = Replicated::imean(&universe.world(), &Tensor::from_slice(&[0.5]))?;
    /// assert_eq!(*request.wait()?.tensor(), Tensor::from_slice(&[0.5]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Iallreduce")]
    #[track_caller]
    pub fn imean(comm: &Communicator, x: &Tensor) -> Result<ReplicatedRequest> {
        Ok(ReplicatedRequest::new(comm, replication::mean::<Nonblocking>(comm, x)?))
    }

    /// Starts a [`concat`](Self::concat).
    ///
    /// Wraps `MPI_Iallgather(v)`. Collective: every rank must call it. Shape, kinds, adjoint: as
    /// there. The block sizes travel first, so the start waits for the other ranks to start too.
    ///
    /// # Errors
    /// As for [`concat`](Self::concat), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = Replicated::iconcat(&world, &Tensor::from_slice(&[world.rank()]), 0)?;
    /// assert_eq!(request.wait()?.tensor().size(), [i64::from(world.size())]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Iallgatherv")]
    #[track_caller]
    pub fn iconcat(comm: &Communicator, x: &Tensor, axis: i64) -> Result<ReplicatedRequest> {
        Ok(ReplicatedRequest::new(comm, replication::concat::<Nonblocking>(comm, x, axis)?))
    }

    /// Starts a [`broadcast`](Self::broadcast).
    ///
    /// Wraps `MPI_Ibcast`. Collective: every rank must call it. Shape, kinds, adjoint: as there.
    /// Whether the `x` of `root` requires grad travels first, so the start waits for the other
    /// ranks to start too.
    ///
    /// # Errors
    /// As for [`broadcast`](Self::broadcast), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = Replicated::ibroadcast(&world, &Tensor::from_slice(&[world.rank()]), 0)?;
    /// assert_eq!(*request.wait()?.tensor(), Tensor::from_slice(&[0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ibcast")]
    #[track_caller]
    pub fn ibroadcast(comm: &Communicator, x: &Tensor, root: Rank) -> Result<ReplicatedRequest> {
        let request = replication::broadcast::<Nonblocking>(comm, x, root)?;
        let retains = Some("Replicated::broadcast");
        Ok(ReplicatedRequest { retains, ..ReplicatedRequest::new(comm, request) })
    }

    /// Starts a [`vary`](Self::vary), for the sake of its adjoint: in the backward pass, the
    /// pullback of the wait starts the all_reduce, and the pullback of the start waits for it. Work
    /// between start and wait is then beside it.
    ///
    /// Makes no MPI call. Its adjoint is collective, as that of `vary`; it wraps `MPI_Iallreduce`.
    ///
    /// # Errors
    /// As for [`vary`](Self::vary), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let v = Tensor::from_slice(&[4.0]).set_requires_grad(true);
    /// let [w, v] = [w, v].map(|x| Replicated::assume(&world, &x));
    /// let (w, v) = (w?, v?);
    /// let (request, varying) = (w.ivary()?, v.vary()?);
    /// let own = varying.exp(); // its pullback runs while the gradients of w are summed
    /// let loss = Replicated::mean(&world, &(own * request.wait()?).sum(Kind::Double))?;
    /// loss.backward()?;
    /// assert!(w.grad().allclose(&v.tensor().exp(), 1e-9, 0.0, false));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn ivary(&self) -> Result<Request> {
        replication::vary::<Nonblocking>(&self.comm, &self.value)
    }

    /// Starts a [`shard`](Self::shard), for the sake of its adjoint: in the backward pass, the
    /// pullback of the wait starts the all_gather, and the pullback of the start waits for it.
    ///
    /// Makes no MPI call. Its adjoint is collective, as that of `shard`; it wraps
    /// `MPI_Iallgather(v)`.
    ///
    /// # Errors
    /// As for [`shard`](Self::shard), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let ranks: Vec<_> = (0..world.size()).collect();
    /// let ranks = Replicated::assume(&world, &Tensor::from_slice(&ranks))?;
    /// assert_eq!(ranks.ishard(0)?.wait()?, Tensor::from_slice(&[world.rank()]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn ishard(&self, axis: i64) -> Result<Request> {
        replication::shard::<Nonblocking>(&self.comm, &self.value, axis)
    }
}
