//! [`Handle`]: a group of ranks and its contexts.

use std::sync::Arc;

use mpi_sys::MPI_Comm;
use parking_lot::Mutex;

use super::checkpoints;
use super::foreign::check_intra;
use super::identity::Identity;
use super::lineage::Contexts;
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::environment::error_code::{check, checked};
use crate::environment::{Environment, return_errors};

/// A group of ranks and its contexts: communicators of MPI for the different sorts of calls, so
/// that the messages of one sort cannot meet those of another. They are freed some time after the
/// last reference to the handle is gone: see [`lineage`](super::lineage).
pub(crate) struct Handle {
    pub(super) contexts: Arc<Contexts>,
    /// Kept alive by this handle: see [`lineage`](super::lineage).
    _parent: Option<Arc<Handle>>,
    rank: Rank,
    size: Rank,
    environment: Arc<Environment>,
    identity: Identity,
    /// The call that made this handle.
    made: Site,
}

impl Handle {
    /// Makes a handle of a duplicate of `comm` by the call at `site`; `comm` is not changed.
    /// Collective over `comm`.
    pub(crate) fn duplicate_of(
        site: Site,
        comm: MPI_Comm,
        environment: &Arc<Environment>,
    ) -> Result<Arc<Self>> {
        environment.call(site, || {
            let contexts = duplicate(comm)?;
            let made = Self::new(site, contexts, None, environment)?;
            environment.free_at_end(made.contexts.clone());
            Ok(made)
        })
    }

    /// As [`duplicate_of`](Self::duplicate_of), for a `comm` that another library made and that may
    /// be invalid.
    pub(crate) fn duplicate_of_foreign(
        site: Site,
        comm: MPI_Comm,
        environment: &Arc<Environment>,
    ) -> Result<Arc<Self>> {
        environment.call(site, || check_intra(site.call, comm))?;
        Self::duplicate_of(site, comm, environment)
    }

    /// Makes a handle from this one by the call at `site`, after freeing handles made from this one
    /// before that are dead on all ranks. `dead` has the bits that are [set](Self::dead) on all
    /// ranks, and so is the same on all. Collective.
    ///
    /// `create` makes a communicator of MPI by `function`: it is given the one to make it from and
    /// the place to write it to, which may remain `MPI_COMM_NULL` on some ranks. It returns MPI's
    /// error code.
    pub(crate) fn make(
        self: &Arc<Self>,
        site: Site,
        dead: &[u64],
        function: &'static str,
        create: impl FnOnce(MPI_Comm, *mut MPI_Comm) -> i32,
    ) -> Result<Option<Arc<Self>>> {
        let contexts = &self.contexts;
        self.environment.call(site, || {
            // SAFETY: `call` gives permission to call MPI, and all ranks have the same bits.
            let left = unsafe { contexts.free_children(dead) };
            self.environment.note_left(left);
            contexts.add_entry();
            let mut made = mpi_sys::MPI_COMM_NULL;
            check(function, create(contexts.forward, &mut made))?;
            if made == mpi_sys::MPI_COMM_NULL {
                return Ok(None);
            }
            let child = Self::new(site, made, Some(self), &self.environment)?;
            contexts.fill_entry(&child);
            Ok(Some(child))
        })
    }

    /// Makes the handle of a communicator of MPI that was just made, with the other contexts and an
    /// identity. Collective over it, with permission to call MPI.
    fn new(
        site: Site,
        forward: MPI_Comm,
        parent: Option<&Arc<Self>>,
        environment: &Arc<Environment>,
    ) -> Result<Arc<Self>> {
        return_errors(forward)?;
        let backward = duplicate(forward)?;
        let control = duplicate(forward)?;
        let (mut rank, mut size) = (0, 0);
        // SAFETY: `forward` is a communicator; `rank` outlives the call.
        unsafe { checked!(MPI_Comm_rank(forward, &mut rank)) }?;
        // SAFETY: as above.
        unsafe { checked!(MPI_Comm_size(forward, &mut size)) }?;
        let identity = Identity::agree(control)?;
        let contexts = Arc::new(Contexts::new(forward, backward, control));
        checkpoints::enter(identity, &contexts);
        let (_parent, environment) = (parent.cloned(), Arc::clone(environment));
        let made = site;
        Ok(Arc::new(Self { contexts, _parent, rank, size, environment, identity, made }))
    }

    #[inline]
    pub(crate) fn rank(&self) -> Rank {
        self.rank
    }

    #[inline]
    pub(crate) fn size(&self) -> Rank {
        self.size
    }

    #[inline]
    pub(crate) fn environment(&self) -> &Arc<Environment> {
        &self.environment
    }

    #[inline]
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// The call that made this handle.
    pub(crate) fn made(&self) -> Site {
        self.made
    }

    /// One bit for each call that made a handle from this one, set if this rank has no reference to
    /// that handle any more.
    pub(crate) fn dead(&self) -> Vec<u64> {
        self.contexts.dead()
    }

    /// The Fortran handle of the context of the forward pass.
    pub(crate) fn fortran(&self) -> i32 {
        self.contexts.fortran
    }

    /// The context of calls of the forward pass.
    #[inline]
    pub(crate) fn forward(&self) -> MPI_Comm {
        self.contexts.forward
    }

    /// The context of calls of the backward pass.
    #[inline]
    pub(crate) fn backward(&self) -> MPI_Comm {
        self.contexts.backward
    }

    /// The context of the crate's own messages.
    #[inline]
    pub(crate) fn control(&self) -> MPI_Comm {
        self.contexts.control
    }

    /// The context in which the ranks are in reverse order, for the adjoint of a scan.
    pub(crate) fn reversed(&self) -> Further<'_> {
        Further { handle: self, context: &self.contexts.reversed, key: -self.rank }
    }

    /// The context of calls of checkpoints that are made again, if it has been made.
    pub(crate) fn of_checkpoints(&self) -> Option<MPI_Comm> {
        *self.contexts.of_checkpoints.lock()
    }

    /// The context of calls in pullbacks that the user wrote.
    pub(crate) fn of_pullbacks(&self) -> Further<'_> {
        Further { handle: self, context: &self.contexts.of_pullbacks, key: self.rank }
    }

    /// The context of the messages of exchanges.
    pub(crate) fn exchanges(&self) -> Further<'_> {
        Further { handle: self, context: &self.contexts.exchanges, key: self.rank }
    }
}

/// A context of a handle that is made only when it is first needed.
pub(crate) struct Further<'h> {
    handle: &'h Handle,
    context: &'h Mutex<Option<MPI_Comm>>,
    /// The ranks of the context are in the order of their keys.
    key: i32,
}

impl Further<'_> {
    /// The context; `MPI_COMM_NULL` before it is made.
    pub(crate) fn get(&self) -> MPI_Comm {
        self.context.lock().unwrap_or(mpi_sys::MPI_COMM_NULL)
    }

    pub(crate) fn is_made(&self) -> bool {
        self.context.lock().is_some()
    }

    /// Makes the context. Collective.
    pub(crate) fn make(&self, site: Site) -> Result<()> {
        self.handle.environment.call(site, || {
            let (backward, mut context) = (self.handle.backward(), mpi_sys::MPI_COMM_NULL);
            // SAFETY: a valid communicator, as `call` gives permission; `context` outlives the
            // call.
            unsafe { checked!(MPI_Comm_split(backward, 0, self.key, &mut context)) }?;
            return_errors(context)?;
            *self.context.lock() = Some(context);
            Ok(())
        })
    }
}

/// A duplicate of `parent` that returns errors instead of aborting. Collective, with permission to
/// call MPI.
fn duplicate(parent: MPI_Comm) -> Result<MPI_Comm> {
    let mut duplicate = mpi_sys::MPI_COMM_NULL;
    // SAFETY: `parent` is a communicator; `duplicate` outlives the call.
    unsafe { checked!(MPI_Comm_dup(parent, &mut duplicate)) }?;
    return_errors(duplicate)?;
    Ok(duplicate)
}
