//! `max_loc` and `min_loc`: the extreme value and who has it.

use tch::Tensor;

use super::all_reduce::AllReduce;
use super::nonlinear;
use crate::communicator::Communicator;
use crate::error::Result;
use crate::operator::{negotiate, records};
use crate::reduction::Op;

impl Communicator {
    /// The largest value over all ranks, and the lowest rank that has it, element by element.
    ///
    /// What `MPI_MAXLOC` does, for every kind: two calls of `MPI_Allreduce`, and a third
    /// where `x` requires grad. Collective: every rank must call it.
    ///
    /// - Shape: any, equal on all ranks; so are those of the values and of the ranks, which are
    ///   `Int64`.
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
    pub fn max_loc(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.extremum_location(x, Op::Max)
    }

    /// The smallest value over all ranks, and the lowest rank that has it, element by element.
    ///
    /// What `MPI_MINLOC` does, for every kind; all else as [`max_loc`](Self::max_loc).
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
    pub fn min_loc(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.extremum_location(x, Op::Min)
    }

    fn extremum_location(&self, x: &Tensor, op: Op) -> Result<(Tensor, Tensor)> {
        // The calls without grad do not compare requires_grad.
        let _ = negotiate(&AllReduce { op }, self, x)?;
        let y = tch::no_grad(|| self.all_reduce(x, op))?;
        let owners = tch::no_grad(|| nonlinear::owners(self, x, &y))?;
        if !records(x) {
            return Ok((y, owners));
        }
        // Given the owners, the values are linear in x: each is the sum of its owner's and of zeros.
        let mine = owners.f_eq(i64::from(self.rank()))?;
        let values = self.all_reduce(&x.f_where_self(&mine, &x.f_zeros_like()?)?, Op::Sum)?;
        Ok((values, owners))
    }
}
