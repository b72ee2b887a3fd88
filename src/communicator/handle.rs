//! [`Handle`]: a group of ranks with its contexts.

use std::sync::Arc;

use mpi_sys::MPI_Comm;
use parking_lot::Mutex;

use super::foreign::check_intra;
use super::identity::Identity;
use super::lineage::Contexts;
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::environment::error_code::{check, checked};
use crate::environment::{Environment, return_errors};

/// A group of ranks and its contexts, which are freed when nobody holds it any more.
pub(crate) struct Handle {
    pub(super) contexts: Arc<Contexts>,
    /// Kept alive for as long as this is: see [`lineage`](super::lineage).
    _parent: Option<Arc<Handle>>,
    rank: Rank,
    size: Rank,
    environment: Arc<Environment>,
    identity: Identity,
    /// The call that made it.
    made: Site,
}

impl Handle {
    /// Makes one from `comm`, which stays its owner's, by the call at `site`. Collective over `comm`.
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

    /// As [`duplicate_of`](Self::duplicate_of), for a communicator that another library made: it may
    /// be none.
    pub(crate) fn duplicate_of_foreign(
        site: Site,
        comm: MPI_Comm,
        environment: &Arc<Environment>,
    ) -> Result<Arc<Self>> {
        environment.call(site, || check_intra(site.call, comm))?;
        Self::duplicate_of(site, comm, environment)
    }

    /// Makes one from this by the call at `site`, and frees those that were made before and are dead:
    /// the bits are the same on all ranks, and each is set only if it is [set](Self::dead) on all.
    /// Collective.
    ///
    /// `create` takes a live communicator and where to put the new one; on some ranks it may make none.
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

    /// Adds to a communicator that was just made what makes it one of this crate. Collective over
    /// it, with permission to call MPI.
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

    /// The call that made it.
    pub(crate) fn made(&self) -> Site {
        self.made
    }

    /// One bit for each communicator that was made from this, set where nobody on this rank holds it.
    pub(crate) fn dead(&self) -> Vec<u64> {
        self.contexts.dead()
    }

    /// The number by which Fortran knows the context of the forward pass.
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

    /// The context in which the ranks count from the other end, for the adjoint of a scan.
    pub(crate) fn reversed(&self) -> Further<'_> {
        Further { handle: self, context: &self.contexts.reversed, key: -self.rank }
    }

    /// The context of what users' own pullbacks do.
    pub(crate) fn of_pullbacks(&self) -> Further<'_> {
        Further { handle: self, context: &self.contexts.of_pullbacks, key: self.rank }
    }
}

/// A context that is made when it is first needed.
pub(crate) struct Further<'h> {
    handle: &'h Handle,
    context: &'h Mutex<Option<MPI_Comm>>,
    /// Its ranks are in the order of their keys.
    key: i32,
}

impl Further<'_> {
    /// `MPI_COMM_NULL` before it is made.
    pub(crate) fn get(&self) -> MPI_Comm {
        self.context.lock().unwrap_or(mpi_sys::MPI_COMM_NULL)
    }

    pub(crate) fn is_made(&self) -> bool {
        self.context.lock().is_some()
    }

    /// Makes it. Collective.
    pub(crate) fn make(&self, site: Site) -> Result<()> {
        self.handle.environment.call(site, || {
            let (backward, mut context) = (self.handle.backward(), mpi_sys::MPI_COMM_NULL);
            // SAFETY: a valid communicator, as `call` gives permission; `context` outlives the call.
            unsafe { checked!(MPI_Comm_split(backward, 0, self.key, &mut context)) }?;
            return_errors(context)?;
            *self.context.lock() = Some(context);
            Ok(())
        })
    }
}

/// A duplicate of `parent` that returns errors instead of aborting. Collective, with permission to call
/// MPI.
fn duplicate(parent: MPI_Comm) -> Result<MPI_Comm> {
    let mut duplicate = mpi_sys::MPI_COMM_NULL;
    // SAFETY: `parent` is a communicator; `duplicate` outlives the call.
    unsafe { checked!(MPI_Comm_dup(parent, &mut duplicate)) }?;
    return_errors(duplicate)?;
    Ok(duplicate)
}
