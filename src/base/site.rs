//! [`Site`]: where a call was made, for the tape, the watch and error texts.

use std::fmt;
use std::panic::Location;

/// A call of an operation, and the line of the user's program that made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// The method's name.
    pub(crate) call: &'static str,
    pub(crate) at: &'static Location<'static>,
    /// Whether this is the call's derivative, in the backward pass.
    pub(crate) backward: bool,
    /// The call's number among this rank's calls, from 1; 0 if the watch is to number it.
    pub(crate) number: u64,
    /// A hash of what the ranks have agreed on about the call; 0 if they have agreed on nothing. It
    /// can be compared across ranks: all run the same program, whose hash function has fixed keys.
    pub(crate) seal: u64,
}

impl Site {
    /// The caller's site, in the forward pass and not numbered yet.
    #[track_caller]
    pub(crate) fn new(call: &'static str) -> Self {
        Self { call, at: Location::caller(), backward: false, number: 0, seal: 0 }
    }

    /// The line, and the pass if it is the backward pass.
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
