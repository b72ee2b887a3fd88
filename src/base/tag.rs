//! [`Tag`]: tells messages between the same ranks apart.

/// A number, 0 or larger, that tells messages between the same ranks apart.
#[doc(alias = "MPI_TAG_UB")]
pub type Tag = i32;
