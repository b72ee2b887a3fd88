//! What is written once, for all operations: how one is agreed on, carried out, recorded and gone back
//! through.

pub(crate) mod agreement;
pub(crate) mod communicator;
mod control;
pub(crate) mod dummies;
mod execution;
pub(crate) mod flight;
pub(crate) mod operator;
pub(crate) mod reduction;
pub(crate) mod request;
pub(crate) mod runtime;
pub(crate) mod tape;
