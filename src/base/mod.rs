//! The words that all layers use: they know nothing of MPI's calls or of tensors' graphs.

pub(crate) mod check;
pub(crate) mod error;
pub(crate) mod op;
pub(crate) mod rank;
pub(crate) mod site;
pub(crate) mod tag;
pub(crate) mod thread_level;
pub(crate) mod way;
