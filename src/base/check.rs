//! [`Check`]: how much of their calls the ranks compare, set by `MPI4TCH_CHECK`.

use std::ffi::OsString;

use crate::base::error::{Error, Result};

/// How much of their calls the ranks compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Check {
    /// Nothing, except in calls that exchange sizes first.
    None,
    /// The terms of collective calls, and for nonlinear reductions whether they are recorded.
    Local,
    /// Also, for every call, whether it is recorded, and for messages kind and number of elements.
    Collective,
}

impl Check {
    /// The value of `MPI4TCH_CHECK`; if it is not set, `Collective` in debug builds, else `Local`.
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
