//! [`Cartesian`]: ranks in a grid.

use std::ops::{Deref, Range};
use std::sync::Arc;

use super::communicators::null;
use super::graph::Graph;
use super::grid::Grid;
use super::neighbors::Neighbors;
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::call::blocks::balanced_block;
use crate::communicator::topology::{create_grid, create_part, place};
use crate::engine::agreement::Terms;
use crate::engine::communicator::Communicator;

/// A communicator whose ranks form a grid. It dereferences to the [`Graph`] of neighbours in the grid,
/// and that to the communicator, so that all operations can be called on it.
///
/// Each rank has coordinates, one along each axis of the grid. Ranks are numbered in row-major
/// order: the last coordinate varies fastest. Along a periodic axis the last rank is the neighbour
/// of the first.
///
/// If the communicator that it was made from is on a [`Tape`](crate::Tape), so is the grid.
///
/// # Examples
/// ```
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// // MPI chooses the extents; along the second axis the grid is periodic.
/// let grid = world.cartesian(&[0, 0], &[false, true], true)?;
/// let grid = grid.expect("all ranks are in the grid");
/// assert_eq!(grid.dims().iter().product::<i32>(), world.size());
/// let [i, j] = grid.coordinates() else { unreachable!("two axes") };
/// assert_eq!(grid.rank_at(&[*i, *j + grid.dims()[1]])?, grid.rank());
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Clone, Debug)]
#[doc(alias = "MPI_Cart_get")]
pub struct Cartesian {
    graph: Graph,
    pub(super) grid: Arc<Grid>,
}

impl Deref for Cartesian {
    type Target = Graph;

    fn deref(&self) -> &Graph {
        &self.graph
    }
}

impl Communicator {
    /// A grid of the ranks, with `dims[i]` ranks along axis i, which is periodic or not. MPI
    /// chooses extents that are 0, as equal as possible. The result is `None` on ranks that are left
    /// over, if the grid has fewer places than there are ranks. With `reorder` MPI may give the ranks
    /// other numbers in the grid, which suit the machine. If this communicator is on a
    /// [`Tape`](crate::Tape), so is the grid.
    ///
    /// Wraps `MPI_Dims_create` and `MPI_Cart_create`. Collective: every rank must call it, with the
    /// same arguments.
    ///
    /// # Errors
    /// [`Error::Argument`] if an extent is negative, if the lists differ in length, if the grid has
    /// more places than there are ranks, or if the extents that are given do not divide the number
    /// of ranks while MPI is to choose others, and then [`Error::Mismatch`] on the other ranks;
    /// [`Error::Mismatch`] if the arguments differ or other ranks make another call; [`Error::Mpi`]
    /// if MPI fails; [`Error::Finalized`] after the universe's end.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let grid = world.cartesian(&[0, 0], &[false; 2], false)?.expect("all ranks");
    /// assert_eq!(grid.dims().iter().product::<i32>(), world.size());
    /// // A grid of one place leaves over all ranks but one.
    /// let single = world.cartesian(&[1], &[false], false)?;
    /// assert_eq!(single.is_some(), world.rank() == 0);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Cart_create")]
    #[doc(alias = "MPI_Dims_create")]
    #[track_caller]
    pub fn cartesian(
        &self,
        dims: &[i32],
        periodic: &[bool],
        reorder: bool,
    ) -> Result<Option<Cartesian>> {
        let site = self.site("cartesian");
        let asked = format!("dims {dims:?}, periodic {periodic:?}, reorder {reorder}");
        let (dims, terms) = match self.chosen_dims(site.call, dims, periodic) {
            Ok(dims) => (dims, Ok(Terms { further: Some(("grid", &asked)), ..Terms::default() })),
            Err(error) => (Vec::new(), Err(error)),
        };
        let comm = self.make(site, terms, "MPI_Cart_create", |parent, made| {
            // SAFETY: `make` gives a live communicator, and room for the new one; the lists have
            // been checked.
            unsafe { create_grid(parent, &dims, periodic, reorder, made) }
        })?;
        Ok(comm.map(|comm| Cartesian::new(comm, dims, periodic.to_vec())))
    }

    /// Checks the extents of a grid, and has MPI choose those that are 0.
    fn chosen_dims(&self, call: &'static str, dims: &[i32], periodic: &[bool]) -> Result<Vec<i32>> {
        let refuse = |message: String| Err(Error::Argument { call, message });
        if dims.len() != periodic.len() {
            return refuse(format!(
                "dims has {} entries, and periodic {}; one for each axis is needed in both",
                dims.len(),
                periodic.len()
            ));
        }
        if let Some(extent) = dims.iter().find(|extent| **extent < 0) {
            return refuse(format!("dims has the extent {extent}; 0 lets MPI choose"));
        }
        let given = dims.iter().filter(|extent| **extent != 0).map(|extent| i64::from(*extent));
        let places = given.fold(1_i64, i64::saturating_mul);
        let size = i64::from(self.size());
        if places > size {
            return refuse(format!(
                "a grid with dims {dims:?} has at least {places} places, for {size} ranks"
            ));
        }
        let mut dims = dims.to_vec();
        if dims.contains(&0) {
            if size % places != 0 {
                return refuse(format!(
                    "{size} ranks cannot be put in a grid with dims {dims:?}: {places} does not \
                     divide {size}"
                ));
            }
            self.handle().choose_dims(call, &mut dims)?;
        }
        Ok(dims)
    }
}

impl Cartesian {
    fn new(comm: Communicator, dims: Vec<i32>, periodic: Vec<bool>) -> Self {
        let grid = Grid::new(comm.rank(), dims, periodic);
        let graph = Graph::new(comm, Neighbors::of_grid(&grid));
        Self { graph, grid: Arc::new(grid) }
    }

    /// The number of ranks along each axis.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let line = universe.world().cartesian(&[0], &[false], false)?.expect("all ranks");
    /// assert_eq!(line.dims(), [line.size()]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    pub fn dims(&self) -> &[i32] {
        &self.grid.dims
    }

    /// Whether each axis is periodic.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let tube = universe.world().cartesian(&[0, 0], &[false, true], false)?.expect("all ranks");
    /// assert_eq!(tube.periodic(), [false, true]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    pub fn periodic(&self) -> &[bool] {
        &self.grid.periodic
    }

    /// This rank's coordinates.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let grid = universe.world().cartesian(&[0, 0], &[false; 2], false)?.expect("all ranks");
    /// let [row, column] = grid.coordinates() else { unreachable!("two axes") };
    /// assert_eq!(row * grid.dims()[1] + column, grid.rank()); // row-major order
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Cart_coords")]
    pub fn coordinates(&self) -> &[i32] {
        &self.grid.coordinates
    }

    /// The coordinates of a rank.
    ///
    /// As `MPI_Cart_coords`. Local.
    ///
    /// # Errors
    /// [`Error::Rank`] if there is no such rank.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let line = universe.world().cartesian(&[0], &[true], false)?.expect("all ranks");
    /// assert_eq!(line.coordinates_of(0)?, [0]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Cart_coords")]
    pub fn coordinates_of(&self, rank: Rank) -> Result<Vec<i32>> {
        if !self.has_rank(rank) {
            let (call, size) = ("coordinates_of", self.size());
            return Err(Error::Rank { call, role: "rank", rank, size });
        }
        Ok(place(rank, self.dims()))
    }

    /// The rank at these coordinates. Along a periodic axis they may be out of range: they count
    /// modulo the extent.
    ///
    /// As `MPI_Cart_rank`. Local.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not as many coordinates as axes, or if one is out of range.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let ring = universe.world().cartesian(&[0], &[true], false)?.expect("all ranks");
    /// let next = ring.rank_at(&[ring.coordinates()[0] + 1])?;
    /// assert_eq!(next, (ring.rank() + 1) % ring.size());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Cart_rank")]
    pub fn rank_at(&self, coordinates: &[i32]) -> Result<Rank> {
        let refuse = |message: String| Err(Error::Argument { call: "rank_at", message });
        let axes = self.dims().len();
        if coordinates.len() != axes {
            return refuse(format!(
                "{coordinates:?} are not the coordinates in a grid of {axes} axes"
            ));
        }
        self.grid.rank_at(coordinates.iter().copied().map(i64::from)).or_else(|axis| {
            refuse(format!(
                "{coordinates:?} are outside of a grid with dims {:?}, which is not periodic along \
                 axis {axis}",
                self.dims()
            ))
        })
    }

    /// The ranks to receive from and to send to if all ranks send by `displacement` places along
    /// the axis: `(source, destination)`. Beyond an edge that is not periodic it is
    /// [`PROC_NULL`](crate::PROC_NULL), to which messages can be sent, and which never sends.
    ///
    /// As `MPI_Cart_shift`. Local.
    ///
    /// # Errors
    /// [`Error::Argument`] if the grid has no such axis.
    ///
    /// # Examples
    /// Each rank passes a number to the next one of a ring:
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let ring = universe.world().cartesian(&[0], &[true], false)?.expect("all ranks");
    /// let (source, destination) = ring.shift(0, 1)?;
    /// let x = Tensor::from_slice(&[ring.rank()]);
    /// let y = ring.sendrecv(&x, destination, &x, source, 0)?;
    /// assert_eq!(y, Tensor::from_slice(&[source]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Cart_shift")]
    pub fn shift(&self, axis: usize, displacement: i32) -> Result<(Rank, Rank)> {
        self.check_axis("shift", axis)?;
        Ok(self.grid.shift(axis, displacement))
    }

    /// The part of the grid that has this rank's coordinates along the axes that are not kept: a
    /// row, a column, a plane. It has the axes that are kept.
    ///
    /// Wraps `MPI_Cart_sub`. Collective: every rank must call it, with the same argument.
    ///
    /// # Errors
    /// [`Error::Argument`] if `keep` has not one entry for each axis, and then [`Error::Mismatch`]
    /// on the other ranks; [`Error::Mismatch`] if the arguments differ; [`Error::Mpi`] if MPI fails.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let grid = universe.world().cartesian(&[0, 0], &[false; 2], false)?.expect("all ranks");
    /// let row = grid.sub(&[false, true])?;
    /// assert_eq!(row.dims(), &grid.dims()[1..]);
    /// assert_eq!(row.rank(), grid.coordinates()[1]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Cart_sub")]
    #[track_caller]
    pub fn sub(&self, keep: &[bool]) -> Result<Self> {
        let site = self.site("sub");
        let asked = format!("{keep:?}");
        let axes = self.dims().len();
        let terms = if keep.len() == axes {
            Ok(Terms { further: Some(("keep", &asked)), ..Terms::default() })
        } else {
            let message =
                format!("keep has {} entries; one for each of {axes} axes is needed", keep.len());
            Err(Error::Argument { call: site.call, message })
        };
        let comm = self.make(site, terms, "MPI_Cart_sub", |parent, made| {
            // SAFETY: `make` gives a live communicator, which is this grid, and room for the new
            // one; the list has an entry for each axis.
            unsafe { create_part(parent, self.rank(), keep, made) }
        })?;
        let kept = |i: &usize| keep[*i];
        let dims = (0..axes).filter(kept).map(|i| self.dims()[i]).collect();
        let periodic = (0..axes).filter(kept).map(|i| self.periodic()[i]).collect();
        Ok(Self::new(comm.ok_or_else(|| null("sub"))?, dims, periodic))
    }

    /// This rank's part of a global extent that is cut along an axis of the grid, into blocks as
    /// equal as possible: the first ones are longer by one if it does not divide. Along an axis that
    /// the grid does not have, it is all of the extent.
    ///
    /// Local.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let line = universe.world().cartesian(&[0], &[false], false)?.expect("all ranks");
    /// let own = line.block(0, 100);
    /// assert_eq!(own.start == 0, line.rank() == 0);
    /// assert_eq!(own.end == 100, line.rank() == line.size() - 1);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    pub fn block(&self, axis: usize, extent: i64) -> Range<i64> {
        match (self.dims().get(axis), self.coordinates().get(axis)) {
            (Some(blocks), Some(index)) => balanced_block(extent.max(0), *blocks, *index),
            _ => 0..extent.max(0),
        }
    }

    fn check_axis(&self, call: &'static str, axis: usize) -> Result<()> {
        if axis < self.dims().len() {
            return Ok(());
        }
        let axes = self.dims().len();
        let message = format!("axis {axis} is out of range for a grid of {axes} axes");
        Err(Error::Argument { call, message })
    }
}
