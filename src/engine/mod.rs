//! The code that all operations share: the ranks' agreement on a call, its execution, its node in
//! the autograd graph, and the backward pass.

pub(crate) mod agreement;
pub(crate) mod communicator;
mod control;
pub(crate) mod dummies;
pub(crate) mod execution;
pub(crate) mod flight;
pub(crate) mod operator;
pub(crate) mod reduction;
pub(crate) mod request;
pub(crate) mod runtime;
pub(crate) mod tape;
pub(crate) mod trace;
