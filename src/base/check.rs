//! [`Check`]: how much the ranks compare of their calls, as `MPI4TCH_CHECK` says.

use std::ffi::OsString;

use crate::base::error::{Error, Result};

/// What the ranks compare of their calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Check {
    /// Nothing, except in calls in which sizes travel.
    None,
    /// The terms of collective calls.
    Local,
    /// Also whether calls are recorded, and what messages hold.
    Collective,
}

impl Check {
    /// What `MPI4TCH_CHECK` says; by default all in debug builds.
    pub(crate) fn from_environment() -> Result<Self> {
        match std::env::var_os("MPI4TCH_CHECK") {
            None if cfg!(debug_assertions) => Ok(Self::Collective),
            None => Ok(Self::Local),
            Some(value) => Self::parse(value),
        }
    }

    fn parse(value: OsString) -> Result<Self> {
        match value.to_str() {
            Some("none") => Ok(Self::None),
            Some("local") => Ok(Self::Local),
            Some("collective") => Ok(Self::Collective),
            _ => Err(Error::Setting {
                name: "MPI4TCH_CHECK",
                value: value.to_string_lossy().into_owned(),
                needed: "none, local or collective",
            }),
        }
    }
}
