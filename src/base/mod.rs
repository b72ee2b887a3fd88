//! Types that all layers use. They make no MPI calls and know nothing of autograd.

pub(crate) mod check;
pub(crate) mod error;
pub(crate) mod op;
pub(crate) mod rank;
pub(crate) mod site;
pub(crate) mod tag;
pub(crate) mod thread_level;
pub(crate) mod way;
