//! `max_loc` and `min_loc`: the extreme value and the rank that has it.

use tch::Tensor;

use super::all_reduce::AllReduce;
use super::nonlinear;
use crate::autograd::{Metadata, Recording};
use crate::base::error::Result;
use crate::base::op::Op;
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Mode};

impl Communicator {
    /// The largest value over all ranks, and the lowest rank that has it, element by element.
    ///
    /// Does what `MPI_MAXLOC` does, for more kinds: by two calls of `MPI_Allreduce`, and a third
    /// if `x` requires grad. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks. The values and the ranks have the same shape; the ranks
    ///   are of kind `Int64`.
    /// - Kinds: those of [`Op::Max`](Op#kinds), equal on all ranks. A NaN counts as the largest.
    /// - Adjoint: the sum of the values' cotangents goes to the owning rank, zeros to the others.
    ///   The ranks have no gradient.
    ///
    /// # Errors
    /// As for [`all_reduce`](Self::all_reduce) with `Max`.
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let (values, ranks) = world.max_loc(&Tensor::from_slice(&[world.rank(), 7]))?;
    /// assert_eq!(values, Tensor::from_slice(&[world.size() - 1, 7]));
    /// assert_eq!(ranks, Tensor::from_slice(&[i64::from(world.size() - 1), 0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_MAXLOC")]
    #[track_caller]
    pub fn max_loc(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.extremum_location("max_loc", x, Op::Max)
    }

    /// The smallest value over all ranks, and the lowest rank that has it, element by element.
    ///
    /// Does what `MPI_MINLOC` does; otherwise as [`max_loc`](Self::max_loc).
    ///
    /// # Errors
    /// As for [`all_reduce`](Self::all_reduce) with `Min`.
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let (values, ranks) = world.min_loc(&Tensor::from_slice(&[world.rank(), 7]))?;
    /// assert_eq!((values, ranks), (Tensor::from_slice(&[0, 7]), Tensor::from_slice(&[0_i64, 0])));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_MINLOC")]
    #[track_caller]
    pub fn min_loc(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.extremum_location("min_loc", x, Op::Min)
    }

    #[track_caller]
    fn extremum_location(
        &self,
        call: &'static str,
        x: &Tensor,
        op: Op,
    ) -> Result<(Tensor, Tensor)> {
        // Compares requires_grad, which the calls without grad that follow do not.
        let (_, comm) = Blocking::agree(&AllReduce::of(call, op), self, x)?;
        let recording = Recording::off();
        let y = comm.all_reduce(x, op)?;
        let owners = nonlinear::owners(&comm, x, &y)?;
        drop(recording);
        if !self.records(&Metadata::of(x)) {
            return Ok((y, owners));
        }
        // For fixed owners the values are linear in x: each is the sum of its owner's value and of
        // zeros from the other ranks.
        let mine = owners.f_eq(i64::from(self.rank()))?;
        let values = comm.all_reduce(&x.f_where_self(&mine, &x.f_zeros_like()?)?, Op::Sum)?;
        Ok((values, owners))
    }
}
