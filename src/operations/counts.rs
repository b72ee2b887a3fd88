//! [`Counts`]: each rank's extent along an axis, known to all ranks or to be exchanged.

use std::sync::Arc;

use crate::base::error::{Error, Result};
use crate::base::rank::index;
use crate::engine::agreement::{Agreed, Told};
use crate::engine::communicator::Communicator;

/// The extents along an axis that the ranks are to receive.
///
/// - An `i64` is this rank's own extent. The ranks exchange theirs before the data, in one small
///   message.
/// - A slice, or a reference to a `Vec` or an array, has the extents of all ranks, in their order,
///   and must be equal on all ranks. Nothing is exchanged before the data.
///
/// # Examples
/// ```
/// use mpi4tch::Op;
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let ones = vec![1; world.size() as usize];
/// let x = Tensor::from_slice(&ones);
/// // One element for each rank, said in two ways.
/// let y = world.reduce_scatter(&x, 0, 1, Op::Sum)?;
/// assert_eq!(y, world.reduce_scatter(&x, 0, &ones, Op::Sum)?);
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts(Given);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Given {
    /// The extent of this rank's own tensor; to be exchanged.
    Extent,
    /// This rank's own count; to be exchanged.
    Own(i64),
    /// The counts of all ranks, which every rank was given.
    All(Arc<[i64]>),
}

impl From<i64> for Counts {
    fn from(count: i64) -> Self {
        Self(Given::Own(count))
    }
}

impl From<Arc<[i64]>> for Counts {
    fn from(counts: Arc<[i64]>) -> Self {
        Self(Given::All(counts))
    }
}

impl From<&[i64]> for Counts {
    fn from(counts: &[i64]) -> Self {
        Self(Given::All(counts.into()))
    }
}

impl From<&Vec<i64>> for Counts {
    fn from(counts: &Vec<i64>) -> Self {
        counts.as_slice().into()
    }
}

impl<const N: usize> From<&[i64; N]> for Counts {
    fn from(counts: &[i64; N]) -> Self {
        counts.as_slice().into()
    }
}

impl Counts {
    /// The extent of each rank's own tensor.
    pub(super) const EXTENT: Self = Self(Given::Extent);

    pub(super) fn are_exchanged(&self) -> bool {
        !matches!(self.0, Given::All(_))
    }

    /// The counts of all ranks, if every rank was given them.
    pub(super) fn given(&self) -> Option<&[i64]> {
        match &self.0 {
            Given::All(counts) => Some(counts),
            _ => None,
        }
    }

    /// This rank's own count, if it was given; 0 otherwise.
    pub(super) fn of_this_rank(&self) -> i64 {
        match &self.0 {
            Given::Own(count) => *count,
            _ => 0,
        }
    }

    /// This rank's own count, if its tensor has `extent` along the axis.
    pub(super) fn own(&self, comm: &Communicator, extent: i64) -> i64 {
        match &self.0 {
            Given::Extent => extent,
            Given::Own(count) => *count,
            Given::All(counts) => counts[index(comm.rank())],
        }
    }

    /// The sizes to tell the others, if this rank's tensor has `extent` along the axis.
    pub(super) fn told(&self, extent: i64) -> Option<Told<'static>> {
        let count = match self.0 {
            Given::Extent => extent,
            Given::Own(count) => count,
            Given::All(_) => return None,
        };
        Some(Told { counts: [count, 0], shape: &[] })
    }

    /// All ranks' counts: as given, or the `i`th of the counts that each rank told.
    pub(super) fn resolve(&self, agreed: &Agreed, i: usize) -> Arc<[i64]> {
        match &self.0 {
            Given::All(counts) => Arc::clone(counts),
            _ => agreed.counts(i).into(),
        }
    }

    /// Checks that there is a count for each rank, and that none is negative.
    pub(super) fn check(&self, call: &'static str, comm: &Communicator) -> Result<()> {
        let message = match &self.0 {
            Given::Extent => return Ok(()),
            Given::Own(count) if *count < 0 => format!("count {count} is negative"),
            Given::Own(_) => return Ok(()),
            Given::All(counts) if counts.len() != index(comm.size()) => {
                format!("{} counts were given for {} ranks", counts.len(), comm.size())
            }
            Given::All(counts) if counts.iter().any(|&count| count < 0) => {
                format!("counts {counts:?} include a negative one")
            }
            Given::All(_) => return Ok(()),
        };
        Err(Error::Counts { call, message })
    }

    /// As [`check`](Self::check), and checks that this rank's count is its tensor's extent.
    pub(super) fn check_own(
        &self,
        call: &'static str,
        comm: &Communicator,
        extent: i64,
    ) -> Result<()> {
        self.check(call, comm)?;
        let own = self.own(comm, extent);
        if own == extent {
            return Ok(());
        }
        let message =
            format!("the count of rank {} is {own}, but its extent is {extent}", comm.rank());
        Err(Error::Counts { call, message })
    }

    /// Checks that the counts sum to the extent that they cut.
    pub(super) fn check_sum(call: &'static str, counts: &[i64], extent: i64) -> Result<()> {
        // An i128 cannot overflow here.
        let sum: i128 = counts.iter().map(|&count| i128::from(count)).sum();
        if sum == i128::from(extent) {
            return Ok(());
        }
        let message = format!("counts {counts:?} sum to {sum}, but the extent to cut is {extent}");
        Err(Error::Counts { call, message })
    }
}
