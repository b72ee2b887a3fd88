//! Which communicator was made from which, and when its contexts are freed.
//!
//! `MPI_Comm_free` is collective, but a communicator is dropped with the last reference to it: on
//! each rank at another time, perhaps with an autograd graph and on another thread. So the drop
//! calls no MPI; it only lets a [`Weak`] expire, after which the communicator is dead on this rank.
//! It is freed by the next call that makes a communicator from the same parent, since all ranks
//! that could have a reference to it take part in that call.
//!
//! Each such call on a parent adds an entry to a list, on every rank of the parent, also on those
//! that get no communicator. So the lists of all ranks are equally long and in the same order,
//! although after a split the communicator of an entry may differ from rank to rank. The ranks
//! combine one bit per entry with `MPI_BAND`, and free those that are dead on every rank, in the
//! order of the entries. A communicator keeps its parent alive, so all communicators made from a
//! dead one are dead as well, on all ranks, and are freed along with it.
//!
//! Why this cannot deadlock, even if `MPI_Comm_free` waits for the other ranks: number the
//! communicators of a tree by their paths of entries from the root. All ranks of a communicator
//! agree on its path, a rank has at most one communicator of each path, and each rank frees in the
//! lexicographic order of the paths. So all ranks follow one order of all frees, and the first free
//! in it that is not done yet is the next one of each of its ranks. At the end the trees are freed
//! one after another, in the order in which their roots were made. That order is the same on all
//! ranks that two roots have in common, as making a root is collective too.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};

use mpi_sys::MPI_Comm;
use parking_lot::Mutex;

use super::Handle;
use crate::base::rank::index;
use crate::environment::FreedAtEnd;
use crate::environment::status::Status;

/// The contexts of a communicator, and an entry for each call that made a communicator from it.
#[derive(Debug)]
pub(crate) struct Contexts {
    pub(super) forward: MPI_Comm,
    pub(super) backward: MPI_Comm,
    pub(super) control: MPI_Comm,
    /// The Fortran handle of the forward context, kept as MPI returns it only until it is
    /// finalized.
    pub(super) fortran: i32,
    /// With the ranks in reverse order; made when first needed.
    pub(super) reversed: Mutex<Option<MPI_Comm>>,
    /// For calls in pullbacks that the user wrote; made when first needed.
    pub(super) of_pullbacks: Mutex<Option<MPI_Comm>>,
    /// For calls of checkpoints that are made again; made when first needed.
    pub(super) of_checkpoints: Mutex<Option<MPI_Comm>>,
    /// For the messages of exchanges; made when first needed.
    pub(super) exchanges: Mutex<Option<MPI_Comm>>,
    children: Mutex<Vec<Child>>,
}

/// The entry of a call that made a communicator; empty on ranks that got none, and so dead there.
#[derive(Debug, Default)]
struct Child {
    contexts: Option<Arc<Contexts>>,
    handle: Weak<Handle>,
}

impl Contexts {
    /// Takes contexts that were just made. The caller has permission to call MPI.
    pub(super) fn new(forward: MPI_Comm, backward: MPI_Comm, control: MPI_Comm) -> Self {
        let (reversed, of_pullbacks, of_checkpoints, exchanges) = Default::default();
        let children = Mutex::new(Vec::new());
        // SAFETY: the context is a valid communicator; the caller has permission to call MPI.
        let fortran = unsafe { mpi_sys::MPI_Comm_c2f(forward) };
        Self {
            forward,
            backward,
            control,
            fortran,
            reversed,
            of_pullbacks,
            of_checkpoints,
            exchanges,
            children,
        }
    }

    /// One bit per entry, set if this rank has no reference to the communicator any more.
    pub(super) fn dead(&self) -> Vec<u64> {
        let children = self.children.lock();
        let mut bits = vec![0; children.len().div_ceil(64)];
        for (i, child) in children.iter().enumerate() {
            // There will be none again: only this weak reference is left.
            if child.handle.strong_count() == 0 {
                bits[i / 64] |= 1 << (i % 64);
            }
        }
        // Orders what other threads did before they dropped their references before what follows.
        fence(Ordering::Acquire);
        bits
    }

    /// Frees the communicators whose bits are set, in the order of their entries, and removes the
    /// entries. Returns a line for each context with a message that was left over.
    ///
    /// # Safety
    /// MPI can be called, the bits are the same on all ranks, and none is set that is not
    /// [`dead`](Self::dead) on every rank.
    pub(super) unsafe fn free_children(&self, dead: &[u64]) -> Vec<String> {
        let mut left = Vec::new();
        let mut children = self.children.lock();
        let mut bits = (0..children.len()).map(|i| dead[i / 64] >> (i % 64) & 1 == 1);
        children.retain(|child| {
            let free = bits.next() == Some(true);
            if let Some(contexts) = child.contexts.as_ref().filter(|_| free) {
                // SAFETY: no rank has a reference to it, nor to one made from it; all its ranks
                // free it now, as they have the same bits.
                unsafe { contexts.free(&mut left) };
            }
            !free
        });
        left
    }

    /// Adds an empty entry, for a call that every rank is about to make.
    pub(super) fn add_entry(&self) {
        self.children.lock().push(Child::default());
    }

    /// Fills the last entry with the handle that the call made.
    pub(super) fn fill_entry(&self, handle: &Arc<Handle>) {
        let mut children = self.children.lock();
        if let Some(child) = children.last_mut() {
            *child = Child {
                contexts: Some(Arc::clone(&handle.contexts)),
                handle: Arc::downgrade(handle),
            };
        }
    }
}

impl FreedAtEnd for Contexts {
    /// Frees the contexts, and those of all communicators made from this one. Adds a line to `left`
    /// for each context with a message that was left over.
    unsafe fn free(&self, left: &mut Vec<String>) {
        for (context, pass) in
            [(self.forward, "the forward pass"), (self.backward, "the backward pass")]
        {
            // SAFETY: passed on to the caller.
            left.extend(unsafe { unreceived(context, pass) });
        }
        let further = [&self.exchanges, &self.reversed, &self.of_pullbacks, &self.of_checkpoints]
            .map(|made| made.lock().take());
        if let Some(exchanges) = further[0] {
            // SAFETY: passed on to the caller.
            left.extend(unsafe { unreceived(exchanges, "an exchange") });
        }
        for context in further[2..].iter().flatten() {
            // SAFETY: passed on to the caller.
            left.extend(unsafe { unreceived(*context, "the backward pass") });
        }
        let contexts = [self.forward, self.backward, self.control];
        for mut context in contexts.into_iter().chain(further.into_iter().flatten()) {
            // An error is ignored: a context that cannot be freed is leaked.
            // SAFETY: a communicator that this crate made; the caller vouches for the rest.
            let _ = unsafe { mpi_sys::MPI_Comm_free(&mut context) };
        }
        let children = std::mem::take(&mut *self.children.lock());
        for contexts in children.into_iter().filter_map(|child| child.contexts) {
            // SAFETY: as for this one.
            unsafe { contexts.free(left) };
        }
    }
}

/// Receives the messages that have arrived and that nobody has received: some MPIs give the context's
/// number to the next communicator that is made, and the messages with it. Returns a line for each; in
/// the backward pass, such a message is a cotangent that is missing in a gradient.
///
/// # Safety
/// MPI can be called, and the context has not been freed.
unsafe fn unreceived(context: MPI_Comm, pass: &str) -> Vec<String> {
    let (mut lines, mut rank) = (Vec::new(), 0);
    // SAFETY: the context is a communicator; `rank` outlives the call.
    unsafe { mpi_sys::MPI_Comm_rank(context, &mut rank) };
    loop {
        let (mut found, mut message) = (0, mpi_sys::MPI_MESSAGE_NULL);
        let mut status = Status::none();
        // SAFETY: the context is a communicator; the others outlive the call.
        let code = unsafe {
            mpi_sys::MPI_Improbe(
                mpi_sys::MPI_ANY_SOURCE,
                mpi_sys::MPI_ANY_TAG,
                context,
                &mut found,
                &mut message,
                &mut status,
            )
        };
        if code != mpi_sys::MPI_SUCCESS || found == 0 {
            return lines;
        }
        let (source, tag) = (status.MPI_SOURCE, status.MPI_TAG);
        let line = format!(
            "rank {rank} has never received a message of {pass}, of rank {source} with tag \
             {tag}"
        );
        if !lines.contains(&line) {
            lines.push(line);
        }
        let bytes = Status::of(&status).bytes;
        let Ok(count) = i32::try_from(bytes) else { return lines };
        let mut memory = vec![0_u8; index(count) + 1];
        // SAFETY: `memory` has room for the message, which was looked at.
        unsafe {
            mpi_sys::MPI_Mrecv(
                memory.as_mut_ptr().cast(),
                count,
                mpi_sys::MPI_BYTE,
                &mut message,
                mpi_sys::MPI_STATUS_IGNORE,
            )
        };
    }
}
