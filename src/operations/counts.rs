//! Each rank's extent along an axis: known to all, or to be told.

use std::sync::Arc;

use crate::base::error::{Error, Result};
use crate::base::rank::index;
use crate::communicator::Communicator;
use crate::engine::agreement::{Agreed, Told};

/// Each rank's extent along an axis.
#[derive(Clone, Debug)]
pub(super) enum Counts {
    /// The extent of the rank's own tensor, which the others are told.
    Own,
    /// What the rank asks for, which the others are told.
    Wanted(i64),
    /// All ranks know them all.
    Known(Arc<[i64]>),
}

impl Counts {
    pub(super) fn known(counts: &[i64]) -> Self {
        Self::Known(counts.into())
    }

    pub(super) fn are_exchanged(&self) -> bool {
        !matches!(self, Self::Known(_))
    }

    /// The counts that every rank was given.
    pub(super) fn given(&self) -> Option<&[i64]> {
        match self {
            Self::Known(counts) => Some(counts),
            _ => None,
        }
    }

    /// The rank's own count, where its tensor has `extent` along the axis.
    pub(super) fn own(&self, comm: &Communicator, extent: i64) -> i64 {
        match self {
            Self::Own => extent,
            Self::Wanted(count) => *count,
            Self::Known(counts) => counts[index(comm.rank())],
        }
    }

    /// What the others are told, where the rank's tensor has `extent` along the axis.
    pub(super) fn told(&self, extent: i64) -> Option<Told<'static>> {
        let count = match self {
            Self::Own => extent,
            Self::Wanted(count) => *count,
            Self::Known(_) => return None,
        };
        Some(Told { counts: [count, 0], shape: &[] })
    }

    /// All ranks' counts, the `i`th of what they told.
    pub(super) fn resolve(&self, agreed: &Agreed, i: usize) -> Arc<[i64]> {
        match self {
            Self::Known(counts) => Arc::clone(counts),
            _ => agreed.counts(i).into(),
        }
    }

    /// Checks that there is a count for each rank and none is negative.
    pub(super) fn check(&self, call: &'static str, comm: &Communicator) -> Result<()> {
        let message = match self {
            Self::Own => return Ok(()),
            Self::Wanted(count) if *count < 0 => format!("count {count} is negative"),
            Self::Wanted(_) => return Ok(()),
            Self::Known(counts) if counts.len() != index(comm.size()) => {
                format!("{} counts were given for {} ranks", counts.len(), comm.size())
            }
            Self::Known(counts) if counts.iter().any(|&count| count < 0) => {
                format!("counts {counts:?} include a negative one")
            }
            Self::Known(_) => return Ok(()),
        };
        Err(Error::Counts { call, message })
    }

    /// [`check`](Self::check), and that the rank's own count is its tensor's extent.
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
        // Wide enough for any counts.
        let sum: i128 = counts.iter().map(|&count| i128::from(count)).sum();
        if sum == i128::from(extent) {
            return Ok(());
        }
        let message = format!("counts {counts:?} sum to {sum}, but the extent to cut is {extent}");
        Err(Error::Counts { call, message })
    }
}
