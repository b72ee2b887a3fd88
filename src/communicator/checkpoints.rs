//! The contexts in which the calls of checkpoints are made again.
//!
//! They are made before the backward pass that needs them, by all ranks of the communicator. By then
//! some of its ranks may have dropped it, but its contexts live on until no rank holds it. So a list
//! has the contexts of all communicators, by their identity.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use super::Identity;
use super::lineage::Contexts;
use crate::base::error::Result;
use crate::base::site::Site;
use crate::environment::error_code::checked;
use crate::environment::{Environment, return_errors};

/// The contexts of the communicators that have not been freed.
static ALL: LazyLock<Mutex<HashMap<Identity, Weak<Contexts>>>> = LazyLock::new(Mutex::default);

/// Enters the contexts of a communicator that was just made.
pub(super) fn enter(identity: Identity, contexts: &Arc<Contexts>) {
    let mut all = ALL.lock();
    // Now and then, so that a program that makes many communicators does not fill the list.
    if all.len().is_power_of_two() {
        all.retain(|_, contexts| contexts.strong_count() > 0);
    }
    all.insert(identity, Arc::downgrade(contexts));
}

/// Makes the context for calls of checkpoints on the communicator, unless it exists or this rank is
/// none of the communicator's. Collective over the communicator.
pub(crate) fn make_context(
    site: Site,
    environment: &Environment,
    identity: Identity,
) -> Result<()> {
    let Some(contexts) = ALL.lock().get(&identity).and_then(Weak::upgrade) else { return Ok(()) };
    if contexts.of_checkpoints.lock().is_some() {
        return Ok(());
    }
    environment.call(site, || {
        let mut context = mpi_sys::MPI_COMM_NULL;
        // SAFETY: a valid communicator, as `call` gives permission, and as some rank holds it or the
        // contexts are kept to the end; `context` outlives the call.
        unsafe { checked!(MPI_Comm_dup(contexts.backward, &mut context)) }?;
        return_errors(context)?;
        *contexts.of_checkpoints.lock() = Some(context);
        Ok(())
    })
}
