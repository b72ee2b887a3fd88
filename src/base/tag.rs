//! [`Tag`]: which of the messages between two ranks.

/// The number by which messages between the same ranks are told apart, from 0.
#[doc(alias = "MPI_TAG_UB")]
pub type Tag = i32;
