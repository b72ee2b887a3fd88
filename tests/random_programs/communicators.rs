//! The communicators of a program: how each is made, and which ranks it has, in which order.

use std::fmt;

use mpi4tch::{Communicator, Rank, Result};

/// A communicator of a program.
#[derive(Clone)]
pub struct Group {
    /// `c0`, the world, `c1`, …
    pub name: usize,
    /// Its ranks, in their order, by their numbers in the world.
    pub ranks: Vec<usize>,
}

impl Group {
    pub fn world(ranks: usize) -> Self {
        Self { name: 0, ranks: (0..ranks).collect() }
    }

    pub fn size(&self) -> usize {
        self.ranks.len()
    }

    /// The entries of its ranks, in their order, of a list with one for each rank of the world.
    pub fn pick<T: Clone>(&self, all: &[T]) -> Vec<T> {
        self.ranks.iter().map(|rank| all[*rank].clone()).collect()
    }

    /// The number in the group of a rank of the world, if that is in it.
    pub fn place(&self, rank: usize) -> Option<usize> {
        self.ranks.iter().position(|own| *own == rank)
    }

    /// As [`place`](Self::place), for a rank that is in the group.
    pub fn rank(&self, rank: usize) -> Rank {
        let place = self.place(rank).expect("the rank is in the group");
        Rank::try_from(place).expect("ranks are few")
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{} of ranks {:?}", self.name, self.ranks)
    }
}

/// How communicators are made from one.
#[derive(Clone, Debug)]
pub enum Making {
    Duplicate,
    /// The color and the key of each of its ranks.
    Split(Vec<(Option<i32>, i32)>),
}

impl Making {
    /// The ranks of each communicator that is made, in their order.
    pub fn groups(&self, parent: &Group) -> Vec<Vec<usize>> {
        let Self::Split(given) = self else { return vec![parent.ranks.clone()] };
        let mut colors: Vec<i32> = given.iter().filter_map(|(color, _)| *color).collect();
        colors.sort_unstable();
        colors.dedup();
        let group = |color: &i32| {
            let mut places: Vec<usize> =
                (0..given.len()).filter(|place| given[*place].0 == Some(*color)).collect();
            // Where keys are equal, the order is the parent's.
            places.sort_by_key(|place| (given[*place].1, *place));
            places.into_iter().map(|place| parent.ranks[place]).collect()
        };
        colors.iter().map(group).collect()
    }

    /// What a rank gets; none if it joins no group.
    pub fn run(&self, parent: &Communicator) -> Result<Option<Communicator>> {
        match self {
            Self::Duplicate => parent.duplicate().map(Some),
            Self::Split(given) => {
                let (color, key) = given[parent.rank().unsigned_abs() as usize];
                parent.split(color, key)
            }
        }
    }
}
