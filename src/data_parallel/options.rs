//! [`DataParallelOptions`].

use tch::Kind;

use crate::base::error::{Error, Result};

/// Options of [`DataParallel`](super::DataParallel): how gradients are grouped and summed. They must
/// be equal on all ranks. [`DataParallel::with_options`](super::DataParallel::with_options) takes them.
///
/// # Examples
/// ```
/// use mpi4tch::DataParallelOptions;
/// use tch::Kind;
///
/// // Sums in 16 bits; the other options have their defaults.
/// let options = DataParallelOptions { reduce_in: Some(Kind::BFloat16), ..Default::default() };
/// assert_eq!((options.first_bucket_bytes, options.bucket_bytes), (256 << 10, 1 << 20));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataParallelOptions {
    /// How many bytes of small gradients are collected in a buffer before they are summed.
    pub bucket_bytes: usize,
    /// The same for the first buffer. The smaller it is, the sooner communication begins.
    pub first_bucket_bytes: usize,
    /// The kind in which gradients are summed, if not their own: `BFloat16` sends half as much as
    /// `Float`, and rounds. `Half`, `BFloat16`, `Float` or `Double`.
    pub reduce_in: Option<Kind>,
}

impl Default for DataParallelOptions {
    fn default() -> Self {
        Self { bucket_bytes: 1 << 20, first_bucket_bytes: 256 << 10, reduce_in: None }
    }
}

impl DataParallelOptions {
    pub(super) fn check(&self, call: &'static str) -> Result<()> {
        let refuse = |message: String| Err(Error::Argument { call, message });
        for (name, bytes) in
            [("bucket_bytes", self.bucket_bytes), ("first_bucket_bytes", self.first_bucket_bytes)]
        {
            if bytes == 0 {
                return refuse(format!("{name} is 0; at least 1 is needed"));
            }
        }
        use Kind::{BFloat16, Double, Float, Half};
        match self.reduce_in {
            None | Some(Half | BFloat16 | Float | Double) => Ok(()),
            Some(kind) => {
                refuse(format!("reduce_in is {kind:?}; Half, BFloat16, Float or Double is needed"))
            }
        }
    }
}
