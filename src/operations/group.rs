//! [`Group`]: an ordered set of ranks, of which communicators are made.

use std::sync::Arc;

use crate::base::error::{Error, Result};
use crate::base::rank::{Rank, index};
use crate::communicator;
use crate::engine::agreement::Terms;
use crate::engine::communicator::Communicator;

/// An ordered set of processes, each of which has a rank in it, from 0.
/// [`Communicator::create`] makes a communicator of a group.
///
/// All methods are local. A group is a list, and needs no MPI: it may be kept beyond the universe's
/// end.
///
/// # Examples
/// ```
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let all = world.group()?;
/// let first = all.include(&[0])?;
/// let others = all.difference(&first);
/// assert_eq!(others.size(), world.size() - 1);
/// // Each rank is in one of the two.
/// let comm = world.create(&first)?.or(world.create(&others)?).expect("one of the two");
/// assert_eq!(comm.rank(), if world.rank() == 0 { 0 } else { world.rank() - 1 });
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[doc(alias = "MPI_Group")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// The processes, by their ranks in `MPI_COMM_WORLD`, in order of their ranks in the group.
    processes: Arc<[Rank]>,
    /// The calling process.
    own: Rank,
}

impl Group {
    fn of(&self, processes: impl IntoIterator<Item = Rank>) -> Self {
        Self { processes: processes.into_iter().collect(), own: self.own }
    }

    fn has(&self, process: Rank) -> bool {
        self.processes.contains(&process)
    }

    /// The number of processes.
    ///
    /// As `MPI_Group_size`.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// assert_eq!(world.group()?.size(), world.size());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Group_size")]
    pub fn size(&self) -> Rank {
        Rank::try_from(self.processes.len()).unwrap_or(Rank::MAX)
    }

    /// The rank of the calling process; `None` if it is not in the group.
    ///
    /// As `MPI_Group_rank`.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let first = world.group()?.include(&[0])?;
    /// assert_eq!(first.rank(), (world.rank() == 0).then_some(0));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Group_rank")]
    pub fn rank(&self) -> Option<Rank> {
        self.rank_of(self.own)
    }

    fn rank_of(&self, process: Rank) -> Option<Rank> {
        let place = self.processes.iter().position(|other| *other == process)?;
        Rank::try_from(place).ok()
    }

    /// The group of these ranks of this one, in the order of the list.
    ///
    /// As `MPI_Group_incl`.
    ///
    /// # Errors
    /// [`Error::Rank`] if there is no such rank; [`Error::Argument`] if one is listed twice.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let all = universe.world().group()?;
    /// let reversed = all.include(&(0..all.size()).rev().collect::<Vec<_>>())?;
    /// assert_eq!(reversed.rank(), Some(all.size() - 1 - universe.world().rank()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Group_incl")]
    pub fn include(&self, ranks: &[Rank]) -> Result<Self> {
        self.check("Group::include", ranks)?;
        Ok(self.of(ranks.iter().map(|rank| self.processes[index(*rank)])))
    }

    /// The group without these ranks, in the same order.
    ///
    /// As `MPI_Group_excl`.
    ///
    /// # Errors
    /// As for [`include`](Self::include).
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let all = universe.world().group()?;
    /// assert_eq!(all.exclude(&[0])?.size(), all.size() - 1);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Group_excl")]
    pub fn exclude(&self, ranks: &[Rank]) -> Result<Self> {
        self.check("Group::exclude", ranks)?;
        let left = (0..self.size()).filter(|rank| !ranks.contains(rank));
        Ok(self.of(left.map(|rank| self.processes[index(rank)])))
    }

    /// All processes of this group in their order, and then those that are in the other group only,
    /// in theirs.
    ///
    /// As `MPI_Group_union`.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let all = universe.world().group()?;
    /// let (first, others) = (all.include(&[0])?, all.exclude(&[0])?);
    /// assert_eq!(first.union(&others), all);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Group_union")]
    pub fn union(&self, other: &Self) -> Self {
        let further = other.processes.iter().filter(|process| !self.has(**process));
        self.of(self.processes.iter().chain(further).copied())
    }

    /// The processes of this group that are in the other group too, in their order here.
    ///
    /// As `MPI_Group_intersection`.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let all = universe.world().group()?;
    /// let (first, others) = (all.include(&[0])?, all.exclude(&[0])?);
    /// assert_eq!(all.intersection(&first), first);
    /// assert_eq!(first.intersection(&others).size(), 0);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Group_intersection")]
    pub fn intersection(&self, other: &Self) -> Self {
        self.of(self.processes.iter().copied().filter(|process| other.has(*process)))
    }

    /// The processes of this group that are not in the other group, in their order here.
    ///
    /// As `MPI_Group_difference`.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let all = universe.world().group()?;
    /// let first = all.include(&[0])?;
    /// assert_eq!(all.difference(&first), all.exclude(&[0])?);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Group_difference")]
    pub fn difference(&self, other: &Self) -> Self {
        self.of(self.processes.iter().copied().filter(|process| !other.has(*process)))
    }

    /// The rank in the other group of each of these ranks of this one; `None` for a process that is
    /// not there.
    ///
    /// As `MPI_Group_translate_ranks`.
    ///
    /// # Errors
    /// [`Error::Rank`] if this group has no such rank.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let all = universe.world().group()?;
    /// let first = all.include(&[0])?;
    /// assert_eq!(first.translate(&[0], &all)?, [Some(0)]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Group_translate_ranks")]
    pub fn translate(&self, ranks: &[Rank], other: &Self) -> Result<Vec<Option<Rank>>> {
        self.check_range("Group::translate", ranks)?;
        Ok(ranks.iter().map(|rank| other.rank_of(self.processes[index(*rank)])).collect())
    }

    fn check_range(&self, call: &'static str, ranks: &[Rank]) -> Result<()> {
        match ranks.iter().find(|rank| !(0..self.size()).contains(*rank)) {
            Some(&rank) => Err(Error::Rank { call, role: "rank", rank, size: self.size() }),
            None => Ok(()),
        }
    }

    /// Checks that there are such ranks, and that none is listed twice.
    fn check(&self, call: &'static str, ranks: &[Rank]) -> Result<()> {
        self.check_range(call, ranks)?;
        let mut is_listed = vec![false; self.processes.len()];
        for rank in ranks {
            if std::mem::replace(&mut is_listed[index(*rank)], true) {
                let message = format!("rank {rank} is listed twice");
                return Err(Error::Argument { call, message });
            }
        }
        Ok(())
    }
}

impl Communicator {
    /// The group of this communicator's ranks.
    ///
    /// As `MPI_Comm_group`. Local.
    ///
    /// # Errors
    /// [`Error::Argument`] if a process is not in `MPI_COMM_WORLD`, which can be if the communicator
    /// comes from a library that started processes; [`Error::Finalized`] after the universe's end.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let group = world.group()?;
    /// assert_eq!((group.rank(), group.size()), (Some(world.rank()), world.size()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Comm_group")]
    pub fn group(&self) -> Result<Group> {
        let processes: Option<Arc<[Rank]>> =
            self.handle().ranks_in_world("group")?.into_iter().collect();
        let message = "a process of the communicator is not in MPI_COMM_WORLD".to_owned();
        let processes = processes.ok_or(Error::Argument { call: "group", message })?;
        Ok(Group { own: processes[index(self.rank())], processes })
    }

    /// A communicator of the processes in `group`, in its order; `None` on ranks that are not in it.
    /// If this communicator is on a [`Tape`](crate::Tape), so is the new one.
    ///
    /// Wraps `MPI_Comm_create`. Collective: every rank must call it, with the same group.
    ///
    /// # Errors
    /// [`Error::Argument`] if a process of the group is not in this communicator, and then
    /// [`Error::Mismatch`] on the other ranks; [`Error::Mismatch`] if the groups differ or other
    /// ranks make another call; [`Error::Mpi`] if MPI fails; [`Error::Finalized`] after the
    /// universe's end.
    ///
    /// # Examples
    /// ```
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let reversed: Vec<_> = (0..world.size()).rev().collect();
    /// let reversed = world.group()?.include(&reversed)?;
    /// let comm = world.create(&reversed)?.expect("all ranks are in the group");
    /// assert_eq!(comm.rank(), world.size() - 1 - world.rank());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Comm_create")]
    #[track_caller]
    pub fn create(&self, group: &Group) -> Result<Option<Self>> {
        let site = self.site("create");
        let ranks: Result<Vec<Rank>> = self.group().and_then(|own| {
            let ranks: Option<Vec<Rank>> =
                group.processes.iter().map(|process| own.rank_of(*process)).collect();
            let message = "a process of the group is not in the communicator".to_owned();
            ranks.ok_or(Error::Argument { call: site.call, message })
        });
        let (ranks, checked) = match ranks {
            Ok(ranks) => (ranks, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        let list = format!("{ranks:?}");
        let further = Some(("ranks", &list[..]));
        let terms = checked.map(|()| Terms { further, ..Terms::default() });
        self.make(site, terms, "MPI_Comm_create", |parent, made| {
            // SAFETY: `make` gives a live communicator, which has these ranks, and room for the new
            // one.
            unsafe { communicator::create(parent, &ranks, made) }
        })
    }
}
