//! The maps from and to replicated tensors that communicate, in one of the two passes.

use tch::Tensor;

use super::Replicated;
use crate::autograd;
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::engine::communicator::Communicator;
use crate::engine::operator::Blocking;
use crate::operations::replication;

impl Replicated {
    /// The sum of all ranks' `x`.
    ///
    /// Wraps `MPI_Allreduce`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's. Any layout.
    /// - Kinds: as the [table of `Op`](crate::Op#kinds) says of `Sum`; equal on all ranks.
    /// - Adjoint: `x̄ = ȳ` on every rank, no call.
    ///
    /// # Errors
    /// [`Error::OpKind`](crate::Error::OpKind) if `Sum` is not defined for the kind; and the errors
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let x = Tensor::from_slice(&[2.0]).set_requires_grad(true);
    /// let loss = Replicated::sum(&universe.world(), &x.square().sum(Kind::Double))?;
    /// loss.backward()?;
    /// assert_eq!(x.grad(), Tensor::from_slice(&[4.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Allreduce")]
    #[doc(alias = "psum")]
    #[track_caller]
    pub fn sum(comm: &Communicator, x: &Tensor) -> Result<Self> {
        Ok(Self::on(comm, replication::sum::<Blocking>(comm, x)?))
    }

    /// The mean of all ranks' `x`: their sum divided by the number of ranks.
    ///
    /// Wraps `MPI_Allreduce`. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so is the result's. Any layout.
    /// - Kinds: as the [table of `Op`](crate::Op#kinds) says of `Mean`; equal on all ranks.
    /// - Adjoint: `x̄ = ȳ / p` on every rank of p, no call.
    ///
    /// # Errors
    /// [`Error::OpKind`](crate::Error::OpKind) if `Mean` is not defined for the kind; and the
    /// errors [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let x = Tensor::from_slice(&[2.0]).set_requires_grad(true);
    /// let loss = Replicated::mean(&world, &x.square().sum(Kind::Double))?;
    /// loss.backward()?;
    /// assert_eq!(x.grad(), Tensor::from_slice(&[4.0 / f64::from(world.size())]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Allreduce")]
    #[track_caller]
    pub fn mean(comm: &Communicator, x: &Tensor) -> Result<Self> {
        Ok(Self::on(comm, replication::mean::<Blocking>(comm, x)?))
    }

    /// All ranks' `x` joined along `axis`, in order of the ranks.
    ///
    /// Wraps `MPI_Allgather`, or `MPI_Allgatherv` if the blocks differ. Collective: every rank must
    /// call it. The block sizes travel first, in one small message.
    ///
    /// - Shape: at least one axis. Extents along `axis` may differ from rank to rank, and may be
    ///   zero; the other extents are equal. The result's extent along `axis` is the sum.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: `x̄` is this rank's block of `ȳ`, no call.
    ///
    /// # Errors
    /// [`Error::Axis`](crate::Error::Axis) if there is no such axis; and the errors
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let all = Replicated::concat(&world, &Tensor::from_slice(&[world.rank()]), 0)?;
    /// let ranks: Vec<_> = (0..world.size()).collect();
    /// assert_eq!(*all.tensor(), Tensor::from_slice(&ranks));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Allgather")]
    #[doc(alias = "MPI_Allgatherv")]
    #[track_caller]
    pub fn concat(comm: &Communicator, x: &Tensor, axis: i64) -> Result<Self> {
        Ok(Self::on(comm, replication::concat::<Blocking>(comm, x, axis)?))
    }

    /// The `x` of `root`, as one variable. Its gradient is retained: [`grad`](Self::grad) returns
    /// it on every rank.
    ///
    /// Wraps `MPI_Bcast`. Collective: every rank must call it. One small message travels first, by
    /// which every rank knows whether the `x` of `root` requires grad. If it does, the result
    /// requires grad on all ranks; if it does not, on none, except on a [`Tape`](crate::Tape).
    ///
    /// - Shape: any, equal on all ranks; so is the result's. Only the content of the `x` of `root`
    ///   matters; on the other ranks `x` gives the shape and the kind.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: `x̄ = ȳ` on `root`, zeros elsewhere, no call.
    ///
    /// # Errors
    /// [`Error::Rank`](crate::Error::Rank) if there is no rank `root`; and the errors
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let x = Tensor::from_slice(&[3.0]).set_requires_grad(world.rank() == 0);
    /// let w = Replicated::broadcast(&world, &x, 0)?;
    /// Replicated::mean(&world, &w.vary()?.square().sum(Kind::Double))?.backward()?;
    /// assert_eq!(w.grad(), Tensor::from_slice(&[6.0]));
    /// if world.rank() == 0 {
    ///     assert_eq!(x.grad(), w.grad());
    /// }
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Bcast")]
    #[track_caller]
    pub fn broadcast(comm: &Communicator, x: &Tensor, root: Rank) -> Result<Self> {
        let y = replication::broadcast::<Blocking>(comm, x, root)?;
        Self::on(comm, y).with_gradient("Replicated::broadcast")
    }

    /// The tensor as one of this rank, for work that differs between the ranks.
    ///
    /// Makes no MPI call. Its adjoint is collective: every rank must call it, and its backward pass
    /// must reach the call.
    ///
    /// - Shape, kind: those of the tensor.
    /// - Adjoint: `x̄ = Σ ȳ_r` over all ranks, one all_reduce. If the tensor is used several times,
    ///   use one result of `vary` several times.
    /// - The result shares its memory with the tensor. While one of them is still to be used, the
    ///   other must not be changed in place: torch refuses either the change or the later use. If
    ///   gradients are not recorded, the other changes as well.
    ///
    /// # Errors
    /// [`Error::Kind`](crate::Error::Kind) and the like if MPI could not take the tensor. The
    /// backward pass returns those of an all_reduce.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let w = Replicated::assume(&world, &w)?;
    /// let own = w.vary()? * f64::from(world.rank());
    /// Replicated::sum(&world, &own.sum(Kind::Double))?.backward()?;
    /// let ranks: f64 = (0..world.size()).map(f64::from).sum();
    /// assert_eq!(w.grad(), Tensor::from_slice(&[ranks]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "pvary")]
    #[track_caller]
    pub fn vary(&self) -> Result<Tensor> {
        replication::vary::<Blocking>(&self.comm, &self.value)
    }

    /// This rank's block of the tensor along `axis`, as a tensor of this rank. The blocks are as
    /// equal as possible: if the extent does not divide, the first ranks have one more.
    ///
    /// Makes no MPI call. Its adjoint is collective: every rank must call it, and its backward pass
    /// must reach the call.
    ///
    /// - Shape: at least one axis. Blocks are empty on the last ranks if there are fewer elements
    ///   along `axis` than ranks.
    /// - Kinds: every kind of [`datatype`](crate::datatype).
    /// - Adjoint: `x̄` is all ranks' blocks of `ȳ` joined, one all_gather, with the sizes known.
    /// - The result shares its memory with the tensor, as that of [`vary`](Self::vary).
    ///
    /// # Errors
    /// [`Error::Axis`](crate::Error::Axis) if there is no such axis. The backward pass returns the
    /// errors of an all_gather.
    ///
    /// # Examples
    /// Each rank applies a part of the rows of a matrix:
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let matrix = Tensor::from_slice2(&[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
    /// let matrix = Replicated::assume(&world, &matrix.set_requires_grad(true))?;
    /// let rows = matrix.shard(0)?;
    /// let product = rows.matmul(&Tensor::from_slice(&[1.0, 1.0]));
    /// let product = Replicated::concat(&world, &product, 0)?;
    /// assert_eq!(product.tensor().detach(), Tensor::from_slice(&[3.0, 7.0, 11.0]));
    /// product.map(|y| y.sum(Kind::Double))?.backward()?;
    /// assert_eq!(matrix.grad(), matrix.tensor().ones_like());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn shard(&self, axis: i64) -> Result<Tensor> {
        replication::shard::<Blocking>(&self.comm, &self.value, axis)
    }

    /// The result of a map on `comm`, which is the same on all its ranks.
    pub(super) fn on(comm: &Communicator, value: Tensor) -> Self {
        Self { comm: comm.clone(), value }
    }

    /// The same, with its gradient retained.
    pub(super) fn with_gradient(self, call: &'static str) -> Result<Self> {
        if self.value.requires_grad() {
            autograd::retain_grad(call, &self.value)?;
        }
        Ok(self)
    }
}
