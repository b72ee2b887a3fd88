//! Fields that are distributed over a grid of ranks, and collected from it.

use tch::Tensor;

use super::cartesian::Cartesian;
use crate::base::error::{Error, Result};
use crate::base::rank::{Rank, index};
use crate::base::site::Site;
use crate::call::Bulk;
use crate::call::blocks::{axis_of, balanced_block};
use crate::call::buffer::Input;
use crate::engine::agreement::{Admission, Agreed, Terms, Told, agree, refuse};
use crate::engine::communicator::Communicator;
use crate::engine::operator::note_arguments;

impl Cartesian {
    /// Cuts the `x` of `root` into blocks, one for each rank: axis `axes[i]` of the tensor along axis
    /// i of the grid, as [`block`](Self::block) does. Each rank receives its own.
    ///
    /// Wraps `MPI_Scatterv`. Collective: every rank must call it. The shape of the root's `x` travels
    /// first, in one small message.
    ///
    /// - Shape: on the root, at least the axes that are cut. On the other ranks any; only the kind of
    ///   `x` matters, and whether it requires grad. Extents along the other axes are not cut.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: [`collect`](Self::collect); zeros off root.
    ///
    /// # Errors
    /// [`Error::Rank`] if there is no rank `root`; [`Error::Axis`] or [`Error::Argument`] if `axes`
    /// has not one axis of the tensor for each axis of the grid; [`Error::Mismatch`] on the other
    /// ranks then, and on all ranks if root, axes or kinds differ; and the errors
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use tch::{Device, Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let grid = universe.world().cartesian(&[0, 0], &[false; 2], false)?.expect("all ranks");
    /// let whole = Tensor::arange(5 * 7, (Kind::Double, Device::Cpu)).view([5, 7]);
    /// let own = grid.distribute(&whole, &[0, 1], 0)?;
    /// let (rows, columns) = (grid.block(0, 5), grid.block(1, 7));
    /// assert_eq!(own.size(), [rows.end - rows.start, columns.end - columns.start]);
    /// let again = grid.collect(&own, &[0, 1], 0)?;
    /// assert!(grid.rank() != 0 || again == whole);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Scatterv")]
    #[doc(alias = "MPI_Type_create_darray")]
    #[track_caller]
    pub fn distribute(&self, x: &Tensor, axes: &[i64], root: Rank) -> Result<Tensor> {
        let site = self.site("distribute");
        let is_root = self.rank() == root;
        self.note((|| {
            let cut = if is_root { Some(x) } else { None };
            let (agreed, comm) = self.agree_on_fields(site, x, cut, axes, root)?;
            let whole = agreed.shape_of(root);
            let axes = self.axes_of(site.call, axes, whole)?;
            let blocks: Vec<Vec<i64>> = (0..self.size())
                .map(|rank| {
                    let ranges = self.ranges(rank, &axes, whole)?;
                    let mut shape = whole.to_vec();
                    for (axis, (_, length)) in axes.iter().zip(&ranges) {
                        shape[*axis] = *length;
                    }
                    Ok(shape)
                })
                .collect::<Result<_>>()?;
            let counts: Vec<i64> = blocks.iter().map(|shape| shape.iter().product()).collect();
            let packed = if is_root {
                let parts: Vec<Tensor> = (0..self.size())
                    .map(|rank| {
                        let mut part = x.shallow_clone();
                        for (axis, (start, length)) in
                            axes.iter().zip(self.ranges(rank, &axes, whole)?)
                        {
                            part = part.f_narrow(dimension(*axis), start, length)?;
                        }
                        Ok(part.f_reshape([-1])?)
                    })
                    .collect::<Result<_>>()?;
                Tensor::f_cat(&parts, 0)?
            } else {
                // Its gradient is zeros in the shape of x.
                x.f_reshape([-1])?.f_narrow(0, 0, 0)?
            };
            let own = comm.scatter(&packed, 0, &counts[..], root)?;
            Ok(own.f_view(&blocks[index(self.rank())][..])?)
        })())
    }

    /// Joins the blocks of all ranks to a whole on `root`: the inverse of
    /// [`distribute`](Self::distribute).
    ///
    /// Wraps `MPI_Gatherv`. Collective: every rank must call it. The shapes travel first, in one
    /// small message.
    ///
    /// - Shape: extents along `axes[i]` are equal on ranks that have the same coordinate along axis i
    ///   of the grid; extents along the other axes are equal on all ranks. Off root the result has
    ///   size 0 along the axes.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: [`distribute`](Self::distribute), in the same blocks.
    ///
    /// # Errors
    /// As for [`distribute`](Self::distribute); [`Error::Counts`] on all ranks if the blocks do not
    /// fit together.
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let line = universe.world().cartesian(&[0], &[false], false)?.expect("all ranks");
    /// let own = Tensor::from_slice(&[line.rank()]);
    /// let whole = line.collect(&own, &[0], 0)?;
    /// if line.rank() == 0 {
    ///     assert_eq!(whole, Tensor::from_slice(&(0..line.size()).collect::<Vec<_>>()));
    /// } else {
    ///     assert_eq!(whole.size(), [0]);
    /// }
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Gatherv")]
    #[track_caller]
    pub fn collect(&self, x: &Tensor, axes: &[i64], root: Rank) -> Result<Tensor> {
        let site = self.site("collect");
        self.note((|| {
            let (agreed, comm) = self.agree_on_fields(site, x, Some(x), axes, root)?;
            let axes = self.axes_of(site.call, axes, &x.size())?;
            let shapes: Vec<&[i64]> = (0..self.size()).map(|rank| agreed.shape_of(rank)).collect();
            self.check_blocks(site.call, &axes, &shapes)?;
            let counts: Vec<i64> = shapes.iter().map(|shape| shape.iter().product()).collect();
            let packed = comm.gather_with_counts(&x.f_reshape([-1])?, 0, &counts, root)?;
            if self.rank() != root {
                let mut shape = x.size();
                axes.iter().for_each(|axis| shape[*axis] = 0);
                // A grid without axes has one rank, the root.
                return Ok(packed.f_view(&shape[..])?);
            }
            let mut blocks: Vec<Tensor> = packed
                .f_split_with_sizes(&counts[..], 0)?
                .iter()
                .zip(shapes)
                .map(|(block, shape)| Ok(block.f_view(shape)?))
                .collect::<Result<_>>()?;
            // Ranks are in row-major order, so the last axis of the grid is joined first.
            for (axis, extent) in axes.iter().zip(self.dims()).rev() {
                let rows = blocks.chunks(index(*extent));
                blocks = rows
                    .map(|row| Ok(Tensor::f_cat(row, dimension(*axis))?))
                    .collect::<Result<_>>()?;
            }
            Ok(blocks.swap_remove(0))
        })())
    }

    /// Agrees on a call that cuts or joins a field, and exchanges the ranks' shapes. Returns the
    /// communicator on which its parts are made. `cut` is the tensor whose axes are cut, if this rank
    /// has it.
    fn agree_on_fields(
        &self,
        site: Site,
        x: &Tensor,
        cut: Option<&Tensor>,
        axes: &[i64],
        root: Rank,
    ) -> Result<(Agreed, Communicator)> {
        let comm: &Communicator = self;
        let input = match Input::new(site.call, x) {
            Ok(input) => input,
            Err(error) => return Err(refuse(site, comm, error, true)),
        };
        let shape = cut.map(|_| input.shape());
        let checked = comm.check_root(site.call, root).and_then(|()| {
            let shape = shape.unwrap_or_default();
            if cut.is_some() { self.axes_of(site.call, axes, shape).map(drop) } else { Ok(()) }
        });
        let asked = format!("{axes:?}");
        let terms = checked.map(|()| Terms {
            root: Some(root),
            further: Some(("axes", &asked)),
            told: Some(Told { counts: [0; 2], shape: shape.unwrap_or_default() }),
            ..Terms::default()
        });
        note_arguments(comm, &input, &terms, false);
        let subject = Some((input.datatype(), comm.records(input.view())));
        // Of the calls that are its parts. They have fewer pieces if there is less to cut.
        let bulk = || Bulk::Blocks(input.count().saturating_mul(comm.size().into()));
        let way = comm.environment().way().max(input.way(comm.handle(), bulk));
        let (agreed, turn) = agree(site, comm, subject, terms, true, way)?;
        Ok((agreed, comm.at(site).admitted(Admission::Granted(turn))))
    }

    /// The axes of a tensor that are cut, counted from the start: one for each axis of the grid.
    fn axes_of(&self, call: &'static str, axes: &[i64], shape: &[i64]) -> Result<Vec<usize>> {
        let needed = self.dims().len();
        if axes.len() != needed {
            let message = format!(
                "axes has {} entries; one for each of {needed} axes of the grid is needed",
                axes.len()
            );
            return Err(Error::Argument { call, message });
        }
        let found: Vec<usize> =
            axes.iter().map(|axis| axis_of(call, *axis, shape)).collect::<Result<_>>()?;
        match (1..found.len()).find(|i| found[..*i].contains(&found[*i])) {
            Some(i) => {
                let message = format!("axis {} of the tensor is listed twice", found[i]);
                Err(Error::Argument { call, message })
            }
            None => Ok(found),
        }
    }

    /// Start and length of a rank's block along each axis that is cut.
    fn ranges(&self, rank: Rank, axes: &[usize], whole: &[i64]) -> Result<Vec<(i64, i64)>> {
        let coordinates = self.coordinates_of(rank)?;
        let cut = axes.iter().zip(self.dims().iter().zip(coordinates));
        Ok(cut
            .map(|(axis, (blocks, place))| balanced_block(whole[*axis], *blocks, place))
            .map(|range| (range.start, range.end - range.start))
            .collect())
    }

    /// Checks that blocks of these shapes fit together. All ranks have the same shapes, so that all
    /// get the same error.
    fn check_blocks(&self, call: &'static str, axes: &[usize], shapes: &[&[i64]]) -> Result<()> {
        for (rank, shape) in (0..).zip(shapes) {
            let coordinates = self.coordinates_of(rank)?;
            let fits = shape.len() == shapes[0].len()
                && (0..shape.len()).all(|axis| {
                    // The first rank with the same coordinate along the axis of the grid.
                    let along = axes.iter().position(|cut| *cut == axis);
                    let first = along.map_or(Ok(0), |along| {
                        let mut first = vec![0; coordinates.len()];
                        first[along] = coordinates[along];
                        self.rank_at(&first)
                    });
                    first.is_ok_and(|first| shapes[index(first)].get(axis) == Some(&shape[axis]))
                });
            if !fits {
                let message = format!(
                    "the block of rank {rank}, at {coordinates:?}, has shape {shape:?}, which does \
                     not fit to the blocks beside it"
                );
                return Err(Error::Counts { call, message });
            }
        }
        Ok(())
    }
}

fn dimension(axis: usize) -> i64 {
    i64::try_from(axis).unwrap_or(i64::MAX)
}
