//! Permission to call MPI: from its initialization to its finalization, on threads that its thread
//! level allows.

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::Environment;
use crate::base::error::{Error, Result};
use crate::base::thread_level::ThreadLevel;

impl Environment {
    /// Whether several threads call MPI in turn, so that one that waits inside MPI blocks the
    /// others.
    #[inline]
    pub(super) fn serializes_threads(&self) -> bool {
        self.level == ThreadLevel::Serialized && self.threads.note()
    }

    /// An error if this thread may not call MPI, or if MPI has been finalized.
    #[inline]
    pub(crate) fn allows(&self, call: &'static str) -> Result<()> {
        if self.level < ThreadLevel::Serialized && std::thread::current().id() != self.main {
            let needed = "call from the main thread, or initialize with ThreadLevel::Serialized";
            return Err(Error::Thread { call, level: self.level, needed });
        }
        if self.is_open() { Ok(()) } else { Err(Error::Finalized { call }) }
    }

    /// Permission to call MPI, for as long as the guard lives.
    #[inline]
    pub(crate) fn enter(&self, call: &'static str) -> Result<Permission<'_>> {
        let permission = match self.level {
            ThreadLevel::Serialized => Permission::Exclusive(self.alone()),
            _ => Permission::Shared(self.shared()),
        };
        // With the guard held, as `close` marks the end while it holds the exclusive one.
        self.allows(call)?;
        Ok(permission)
    }

    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.calls.read()
    }

    pub(super) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.calls.write()
    }
}

/// Permission to call MPI, exclusive or shared with other threads.
pub(crate) enum Permission<'a> {
    Exclusive(#[expect(dead_code, reason = "held for its Drop")] RwLockWriteGuard<'a, ()>),
    Shared(#[expect(dead_code, reason = "held for its Drop")] RwLockReadGuard<'a, ()>),
}
