//! Which communicator was made from which, and when its contexts are freed.
//!
//! `MPI_Comm_free` is collective, while a communicator is dropped whenever its last holder goes:
//! on each rank at a time of its own, perhaps with an autograd graph and on another thread. So
//! dropping one frees nothing and calls nothing; it only leaves a [`Weak`] dead. What is dead is
//! freed by the next call that makes a communicator from the same parent, since all ranks that
//! could hold it are in that call.
//!
//! Each such call on a parent leaves one entry, on every rank of the parent, also on those that
//! get no communicator: the lists of all ranks of the parent are thus equally long and in the same
//! order, though what an entry stands for may differ from rank to rank after a split. The ranks
//! combine one bit per entry with `MPI_BAND`, and those that are dead on every rank are freed in
//! order of their entries. A communicator keeps its parent alive, so all that was made from a dead
//! one is dead as well, on all ranks, and is freed along with it.
//!
//! Why this cannot deadlock, even if `MPI_Comm_free` waits for the other ranks: number the
//! communicators of a tree by their paths of entries from the root. The ranks of one communicator
//! all know its path; a rank has at most one communicator of each path; and each rank frees in
//! lexicographic order of paths. What all ranks do is therefore part of one order of all frees,
//! and the first that is not done yet has all its ranks at hand. At the end the trees are freed
//! one after another in order of the creation of their roots, which is the same on all ranks that
//! two roots have in common, as making them is collective too.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};

use mpi_sys::MPI_Comm;
use parking_lot::Mutex;

use super::Handle;
use crate::environment::FreedAtEnd;
use crate::environment::status::Status;

/// The contexts of a communicator, and the entries of those made from it.
#[derive(Debug)]
pub(crate) struct Contexts {
    pub(super) forward: MPI_Comm,
    pub(super) backward: MPI_Comm,
    pub(super) control: MPI_Comm,
    /// The number of the forward context in Fortran: MPI tells it only until its end.
    pub(super) fortran: i32,
    /// Made when first needed.
    pub(super) reversed: Mutex<Option<MPI_Comm>>,
    /// Likewise: for what users' own pullbacks do.
    pub(super) of_pullbacks: Mutex<Option<MPI_Comm>>,
    children: Mutex<Vec<Child>>,
}

/// The entry of a call that made a communicator; empty on ranks that got none.
#[derive(Debug, Default)]
struct Child {
    contexts: Option<Arc<Contexts>>,
    holders: Weak<Handle>,
}

impl Contexts {
    /// Of contexts that were just made, with permission to call MPI.
    pub(super) fn new(forward: MPI_Comm, backward: MPI_Comm, control: MPI_Comm) -> Self {
        let (reversed, of_pullbacks) = (Mutex::new(None), Mutex::new(None));
        let children = Mutex::new(Vec::new());
        // SAFETY: the context is a valid communicator, as its maker has permission to call MPI.
        let fortran = unsafe { mpi_sys::MPI_Comm_c2f(forward) };
        Self { forward, backward, control, fortran, reversed, of_pullbacks, children }
    }

    /// One bit per entry, set where nobody on this rank holds what was made.
    pub(super) fn dead(&self) -> Vec<u64> {
        let children = self.children.lock();
        let mut bits = vec![0; children.len().div_ceil(64)];
        for (i, child) in children.iter().enumerate() {
            // Nobody can hold it again: the parent has only this weak reference.
            if child.holders.strong_count() == 0 {
                bits[i / 64] |= 1 << (i % 64);
            }
        }
        // What the holders did before they let go comes before what follows.
        fence(Ordering::Acquire);
        bits
    }

    /// Frees the entries that the ranks agreed on, in their order. Returns a line for each message
    /// that was left over.
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
                // SAFETY: nobody holds it, and so nobody what was made from it; the others free it
                // too, as they have the same bits.
                unsafe { contexts.free(&mut left) };
            }
            !free
        });
        left
    }

    /// Adds the entry of a call that every rank is about to make.
    pub(super) fn add_entry(&self) {
        self.children.lock().push(Child::default());
    }

    /// Fills the last entry with what the call made.
    pub(super) fn fill_entry(&self, handle: &Arc<Handle>) {
        let mut children = self.children.lock();
        if let Some(child) = children.last_mut() {
            *child = Child {
                contexts: Some(Arc::clone(&handle.contexts)),
                holders: Arc::downgrade(handle),
            };
        }
    }
}

impl FreedAtEnd for Contexts {
    /// Frees the contexts, and those of all that was made from it. The lines are of messages that were
    /// left over.
    unsafe fn free(&self, left: &mut Vec<String>) {
        for (context, pass) in [(self.forward, "forward"), (self.backward, "backward")] {
            // SAFETY: passed on to the caller.
            left.extend(unsafe { unreceived(context, pass) });
        }
        let further = [&self.reversed, &self.of_pullbacks].map(|made| made.lock().take());
        if let Some(of_pullbacks) = further[1] {
            // SAFETY: passed on to the caller.
            left.extend(unsafe { unreceived(of_pullbacks, "backward") });
        }
        let contexts = [self.forward, self.backward, self.control];
        for mut context in contexts.into_iter().chain(further.into_iter().flatten()) {
            // Errors are of no use here: what is not freed is lost.
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

/// A line for a message that has come and that nobody has received: in the backward pass, it is a
/// cotangent that somebody's gradient lacks.
///
/// # Safety
/// MPI can be called, and the context has not been freed.
unsafe fn unreceived(context: MPI_Comm, pass: &str) -> Option<String> {
    let (mut found, mut status, mut rank) = (0, Status::none(), 0);
    // SAFETY: the context is a communicator; the others outlive the call.
    let code = unsafe {
        mpi_sys::MPI_Iprobe(
            mpi_sys::MPI_ANY_SOURCE,
            mpi_sys::MPI_ANY_TAG,
            context,
            &mut found,
            &mut status,
        )
    };
    if code != mpi_sys::MPI_SUCCESS || found == 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { mpi_sys::MPI_Comm_rank(context, &mut rank) };
    let (source, tag) = (status.MPI_SOURCE, status.MPI_TAG);
    Some(format!(
        "rank {rank} has never received a message of the {pass} pass, of rank {source} with tag {tag}"
    ))
}
