//! A bar on the terminal that shows how far the training is.

use std::env;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use mpi4tch::Communicator;

/// A bar of so many steps, on rank 0, and only if standard error goes to a terminal.
///
/// It may go there through a launcher: the rank itself then writes to a pipe. `scripts/mpiexec.sh`
/// puts the width of its terminal, if it has one, in `MPI4TCH_TERMINAL_WIDTH`.
pub fn bar(comm: &Communicator, steps: i64) -> ProgressBar {
    let terminal = env::var("MPI4TCH_TERMINAL_WIDTH").ok().and_then(|width| width.parse().ok());
    let target = match terminal {
        _ if comm.rank() != 0 => ProgressDrawTarget::hidden(),
        _ if io::stderr().is_terminal() => ProgressDrawTarget::stderr(),
        Some(width) => ProgressDrawTarget::term_like_with_hz(Box::new(Launcher { width }), 10),
        None => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}, {eta} left {msg}")
        .expect("the template is right");
    ProgressBar::with_draw_target(Some(steps.unsigned_abs()), target).with_style(style)
}

/// The terminal at the other end of the launcher's pipe.
#[derive(Debug)]
struct Launcher {
    width: u16,
}

impl Launcher {
    /// Moves the cursor n places in a direction.
    fn go(n: usize, direction: char) -> io::Result<()> {
        if n > 0 { write!(io::stderr(), "\x1b[{n}{direction}") } else { Ok(()) }
    }
}

impl TermLike for Launcher {
    fn width(&self) -> u16 {
        self.width
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        Self::go(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        Self::go(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        Self::go(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        Self::go(n, 'D')
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        writeln!(io::stderr(), "{line}")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        write!(io::stderr(), "{text}")
    }

    fn clear_line(&self) -> io::Result<()> {
        write!(io::stderr(), "\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        io::stderr().flush()
    }
}
