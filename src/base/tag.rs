//! [`Tag`]: tells messages between the same ranks apart.

/// A number, 0 or larger, that tells messages between the same ranks apart.
///
/// # Examples
/// ```
/// use mpi4tch::Tag;
/// use tch::Tensor;
///
/// const ROW: Tag = 1;
/// const COLUMN: Tag = 2;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let (row, column) = (Tensor::from_slice(&[1, 2]), Tensor::from_slice(&[3, 4]));
/// let this = world.rank();
/// let requests = [world.isend(&row, this, ROW)?, world.isend(&column, this, COLUMN)?];
/// assert_eq!(world.recv(&column, this, COLUMN)?, column);
/// assert_eq!(world.recv(&row, this, ROW)?, row);
/// mpi4tch::wait_all(requests)?;
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[doc(alias = "MPI_TAG_UB")]
pub type Tag = i32;
