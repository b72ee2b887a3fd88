//! [`Grid`]: the places of ranks in a grid.

use crate::base::rank::Rank;
use crate::communicator::topology::place;
use crate::environment::status::PROC_NULL;

/// A grid of ranks, and this rank's place in it.
#[derive(Debug)]
pub(super) struct Grid {
    pub(super) dims: Vec<i32>,
    pub(super) periodic: Vec<bool>,
    pub(super) coordinates: Vec<i32>,
}

impl Grid {
    pub(super) fn new(rank: Rank, dims: Vec<i32>, periodic: Vec<bool>) -> Self {
        let coordinates = place(rank, &dims);
        Self { dims, periodic, coordinates }
    }

    /// The rank at these coordinates, which count modulo the extent along a periodic axis; or the first
    /// axis along which they are outside of the grid.
    pub(super) fn rank_at(
        &self,
        coordinates: impl IntoIterator<Item = i64>,
    ) -> Result<Rank, usize> {
        let mut rank = 0;
        for (axis, coordinate) in coordinates.into_iter().enumerate() {
            let extent = self.dims[axis];
            if !self.periodic[axis] && !(0..extent.into()).contains(&coordinate) {
                return Err(axis);
            }
            let place = coordinate.rem_euclid(extent.into());
            rank = rank * extent + i32::try_from(place).unwrap_or(0);
        }
        Ok(rank)
    }

    /// The rank that is so many places further along each axis; [`PROC_NULL`] outside of the grid.
    pub(super) fn rank_beyond(&self, displacements: &[i64]) -> Rank {
        let own = self.coordinates.iter().map(|coordinate| i64::from(*coordinate));
        let there =
            own.zip(displacements).map(|(coordinate, displacement)| coordinate + displacement);
        self.rank_at(there).unwrap_or(PROC_NULL)
    }

    /// The ranks so many places before and after this one along an axis.
    pub(super) fn shift(&self, axis: usize, displacement: i32) -> (Rank, Rank) {
        let at = |displacement: i64| {
            let mut displacements = vec![0; self.dims.len()];
            displacements[axis] = displacement;
            self.rank_beyond(&displacements)
        };
        (at(-i64::from(displacement)), at(displacement.into()))
    }
}
