//! Who may call MPI, and when: between its start and its end, on the threads that it allows.

use std::sync::atomic::Ordering;

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::Environment;
use crate::base::error::{Error, Result};
use crate::base::thread_level::ThreadLevel;

impl Environment {
    /// Whether a thread that waits inside MPI, as this one may, would keep others waiting.
    #[inline]
    pub(super) fn has_waiting_threads(&self) -> bool {
        if self.level != ThreadLevel::Serialized {
            return false;
        }
        if std::thread::current().id() != self.main {
            self.has_threads.store(true, Ordering::Relaxed);
        }
        self.has_threads.load(Ordering::Relaxed)
    }

    /// Whether this thread may call MPI, as things stand.
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
        // A panic between two MPI calls leaves nothing half done: poisoning does not matter.
        let permission = match self.level {
            ThreadLevel::Serialized => Permission::Exclusive(self.alone()),
            _ => Permission::Shared(self.shared()),
        };
        // The end is set by who is alone.
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

/// Permission to call MPI: alone, or beside other threads.
pub(crate) enum Permission<'a> {
    Exclusive(#[expect(dead_code, reason = "held for its Drop")] RwLockWriteGuard<'a, ()>),
    Shared(#[expect(dead_code, reason = "held for its Drop")] RwLockReadGuard<'a, ()>),
}
