//! Where a call was made, for the tape, the watch and reports.

use std::fmt;
use std::panic::Location;

/// An operation, and the line of the user's that called it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// The method's name.
    pub(crate) call: &'static str,
    pub(crate) at: &'static Location<'static>,
    /// Whether it is the call's derivative that is meant.
    pub(crate) backward: bool,
    /// Which of this rank's calls it is, from 1; 0 for one that is not counted by itself.
    pub(crate) number: u64,
    /// What the ranks have agreed on about it, as a number that it has on all of them; 0 where they
    /// have not.
    pub(crate) seal: u64,
}

impl Site {
    /// The caller's.
    #[track_caller]
    pub(crate) fn new(call: &'static str) -> Self {
        Self { call, at: Location::caller(), backward: false, number: 0, seal: 0 }
    }

    /// The line, and the pass.
    pub(crate) fn place(&self) -> String {
        let pass = if self.backward { " in the backward pass" } else { "" };
        format!("{}{pass}", self.at)
    }
}

impl From<&'static str> for Site {
    #[track_caller]
    fn from(call: &'static str) -> Self {
        Self::new(call)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.call, self.place())
    }
}
