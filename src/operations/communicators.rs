//! Making communicators, and exchanging them with other libraries.

use std::hash::Hash;

use mpi_sys::MPI_Comm;

use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::base::way::Way;
use crate::communicator::Handle;
use crate::engine::agreement::{Terms, agree};
use crate::engine::communicator::Communicator;
use crate::engine::runtime::Runtime;
use crate::engine::trace::Traced;

impl Communicator {
    /// A communicator of the same ranks with contexts of its own: a message on one of the two is
    /// never received on the other. If this communicator is on a [`Tape`](crate::Tape), so is the
    /// new one.
    ///
    /// Wraps `MPI_Comm_dup`. Collective: every rank must call it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if other ranks make another call; [`Error::Mpi`] if MPI fails;
    /// [`Error::Finalized`] after the universe's end.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let other = world.duplicate()?;
    /// assert_eq!((other.rank(), other.size()), (world.rank(), world.size()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Comm_dup")]
    #[track_caller]
    pub fn duplicate(&self) -> Result<Self> {
        let made = self.make(
            self.site("duplicate"),
            Ok(Terms::default()),
            "MPI_Comm_dup",
            |parent, made| {
                // SAFETY: `make` gives a live communicator, and room for the new one.
                unsafe { mpi_sys::MPI_Comm_dup(parent, made) }
            },
        );
        made?.ok_or_else(|| null("duplicate"))
    }

    /// A communicator of the ranks that gave the same `color`. They are ordered by `key`, and by
    /// their rank here if keys are equal. A rank that gives `None` as its color gets `None`. If
    /// this communicator is on a [`Tape`](crate::Tape), so is the new one.
    ///
    /// Wraps `MPI_Comm_split`. Collective: every rank must call it.
    ///
    /// # Errors
    /// [`Error::Argument`] if this rank's color is negative, and then [`Error::Mismatch`] on the
    /// others; [`Error::Mismatch`] if other ranks make another call; [`Error::Mpi`] if MPI fails;
    /// [`Error::Finalized`] after the universe's end.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// // One communicator of the even ranks and one of the odd ranks, each in reverse order.
    /// let half = world.split(Some(world.rank() % 2), -world.rank())?;
    /// assert_eq!(half.map(|half| half.size()), Some((world.size() + 1 - world.rank() % 2) / 2));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Comm_split")]
    #[doc(alias = "MPI_UNDEFINED")]
    #[track_caller]
    pub fn split(&self, color: Option<i32>, key: i32) -> Result<Option<Self>> {
        let terms = match color {
            Some(color) if color < 0 => Err(Error::Argument {
                call: "split",
                message: format!("color {color} is negative; None is the color of no communicator"),
            }),
            _ => Ok(Terms::default()),
        };
        let color = color.unwrap_or(mpi_sys::MPI_UNDEFINED);
        let site = self.site("split");
        if let Some(record) = self.tape_record() {
            record.note_arguments(|hasher| (color, key).hash(hasher));
        }
        self.make(site, terms, "MPI_Comm_split", |parent, made| {
            // SAFETY: `make` gives a live communicator, and room for the new one; it gets here with
            // a valid color only.
            unsafe { mpi_sys::MPI_Comm_split(parent, color, key, made) }
        })
    }

    /// A communicator of the ranks that share memory with this one, that is, of its node, in the
    /// same order as here. If this communicator is on a [`Tape`](crate::Tape), so is the new one.
    ///
    /// Wraps `MPI_Comm_split_type` with `MPI_COMM_TYPE_SHARED`. Collective: every rank must call
    /// it.
    ///
    /// # Errors
    /// As for [`duplicate`](Self::duplicate).
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let node = world.split_shared()?;
    /// assert!((1..=world.size()).contains(&node.size()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Comm_split_type")]
    #[doc(alias = "MPI_COMM_TYPE_SHARED")]
    #[track_caller]
    pub fn split_shared(&self) -> Result<Self> {
        let made = self.make(
            self.site("split_shared"),
            Ok(Terms::default()),
            "MPI_Comm_split_type",
            |parent, made| {
                // SAFETY: `make` gives a live communicator, and room for the new one; the info may
                // be null.
                unsafe {
                    mpi_sys::MPI_Comm_split_type(
                        parent,
                        mpi_sys::MPI_COMM_TYPE_SHARED,
                        0,
                        mpi_sys::MPI_INFO_NULL,
                        made,
                    )
                }
            },
        );
        made?.ok_or_else(|| null("split_shared"))
    }

    /// A duplicate of a communicator that MPI or another library made. The original stays its
    /// owner's.
    ///
    /// Wraps `MPI_Comm_dup`. Collective over `comm`. No communicator of this crate is the
    /// duplicate's parent, so its contexts are freed only when MPI is finalized. Make one duplicate
    /// and keep it, instead of making one whenever it is needed.
    ///
    /// # Safety
    /// `comm` is `MPI_COMM_NULL` or a communicator that has not been freed.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is `MPI_COMM_NULL` or an intercommunicator;
    /// [`Error::Uninitialized`] before [`initialize`](crate::initialize); [`Error::Mpi`] if MPI
    /// fails; [`Error::Finalized`] after the universe's end.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::{Communicator, mpi_sys};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// // SAFETY: MPI's own communicator lives as long as MPI.
    /// let comm = unsafe { Communicator::from_raw(mpi_sys::MPI_COMM_WORLD) }?;
    /// assert_eq!(comm.size(), universe.world().size());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Comm_dup")]
    #[track_caller]
    pub unsafe fn from_raw(comm: MPI_Comm) -> Result<Self> {
        Self::take_in("from_raw", comm)
    }

    /// As [`from_raw`](Self::from_raw), for a communicator given by its Fortran handle, a number.
    /// Python's mpi4py (`py2f`), Fortran and other languages pass communicators in this way.
    ///
    /// Wraps `MPI_Comm_f2c` and `MPI_Comm_dup`. Collective over the communicator.
    ///
    /// # Errors
    /// [`Error::Argument`] or [`Error::Mpi`] if the number is not the handle of a communicator; and
    /// as for [`from_raw`](Self::from_raw).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Communicator;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let same = Communicator::from_fortran(world.to_fortran())?;
    /// assert_eq!(same.size(), world.size());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Comm_f2c")]
    #[track_caller]
    pub fn from_fortran(handle: i32) -> Result<Self> {
        let call = "from_fortran";
        let environment = Runtime::current(call)?.environment;
        if !may_be_handle(handle) {
            let message = format!("{handle} is not the handle of a communicator");
            return Err(Error::Argument { call, message });
        }
        let comm = {
            let _guard = environment.enter(call)?;
            // SAFETY: MPI is initialized; the call takes any integer but those that are refused above.
            unsafe { mpi_sys::MPI_Comm_f2c(handle) }
        };
        Self::take_in(call, comm)
    }

    /// The Fortran handle of this communicator, by which other languages can use it too.
    ///
    /// It stands for the handle that [`as_raw`](Self::as_raw) returns, not for a duplicate, and is
    /// valid for as long as that: after the universe's end it is not.
    ///
    /// Wraps `MPI_Comm_c2f`. Local.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// assert_ne!(world.to_fortran(), world.duplicate()?.to_fortran());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Comm_c2f")]
    pub fn to_fortran(&self) -> i32 {
        self.environment().share("to_fortran");
        self.handle().fortran()
    }

    /// The MPI handle on which this communicator's calls are made, for MPI calls of your own.
    ///
    /// It is valid until this communicator and its clones are dropped, and no longer than the
    /// universe. Do not free it.
    ///
    /// A program with a handle may wait in calls of its own, in which those of this crate do not go on.
    /// So from now on, every started receive is handed to MPI at once. With Open MPI, that takes up to
    /// three times as long for large messages.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::mpi_sys;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let mut size = 0;
    /// // SAFETY: the communicator is alive, and `size` outlives the call.
    /// unsafe { mpi_sys::MPI_Comm_size(world.as_raw(), &mut size) };
    /// assert_eq!(size, world.size());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    #[doc(alias = "MPI_Comm")]
    pub fn as_raw(&self) -> MPI_Comm {
        self.environment().share("as_raw");
        self.context()
    }

    /// Makes a communicator from this one by one collective call of MPI, and frees those that were
    /// made from it before and that no rank holds any more.
    ///
    /// `create` gets a live communicator, and room for the new one.
    pub(super) fn make(
        &self,
        site: Site,
        terms: Result<Terms>,
        function: &'static str,
        create: impl FnOnce(MPI_Comm, *mut MPI_Comm) -> i32,
    ) -> Result<Option<Self>> {
        let _traced = Traced::begin(site, self);
        // The ranks must be in the same call: they intersect, entry by entry, which children are
        // dead.
        let way = self.environment().way();
        if let (Some(record), Ok(terms)) = (self.tape_record(), &terms) {
            record.note_arguments(|hasher| terms.hash_arguments(false, hasher));
        }
        let (_, turn) = self.note(agree(site, &self.plain(), None, terms, true, way))?;
        let mut dead = self.handle().dead();
        if !dead.is_empty() {
            dead = self.intersect_control(site, Way::Polls, dead)?;
        }
        let child = self.handle().make(site, &dead, function, create);
        if child.is_ok() {
            turn.made();
        }
        self.note(child.map(|child| child.map(|handle| self.child(handle))))
    }

    /// A duplicate of a communicator that this crate has not made.
    #[track_caller]
    fn take_in(call: &'static str, comm: MPI_Comm) -> Result<Self> {
        let runtime = Runtime::current(call)?;
        runtime.environment.share(call);
        let handle = Handle::duplicate_of_foreign(Site::new(call), comm, &runtime.environment)?;
        Ok(Self::new(handle, &runtime.flights))
    }
}

/// Whether MPI can be asked which communicator has this number.
///
/// MPICH ends the job for some numbers, instead of returning an error. With the standard's ABI, MPICH 5.0.2
/// also makes communicators of numbers that are of none, as it looks them up in its tables unchecked
/// (`MPI_Comm_fromint`, mpi_abi_util.h). So what a number says of itself is checked here. By MPICH's
/// mpir_objects.h its first two bits are the kind of the handle, the next four the type of the object, and
/// the others its place in a table of that kind.
fn may_be_handle(number: i32) -> bool {
    /// The type of communicators.
    const COMMUNICATOR: u32 = 1;
    if mpi_sys::loaded_vendor() != mpi_sys::Vendor::Mpich {
        return true;
    }
    let bits = number.cast_unsigned();
    let (kind, type_of_object, place) = (bits >> 30, (bits >> 26) & 0xF, bits & 0x03FF_FFFF);
    match kind {
        // Numbers that stand for nothing, which MPICH knows.
        0 => true,
        // MPI_COMM_WORLD and MPI_COMM_SELF.
        1 => type_of_object == COMMUNICATOR && place < 2,
        // The sizes of the other tables are those of the library.
        _ => type_of_object == COMMUNICATOR,
    }
}

pub(super) fn null(call: &'static str) -> Error {
    Error::Argument { call, message: "MPI made no communicator".to_owned() }
}
