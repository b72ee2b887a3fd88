//! What the test process and the ranks tell each other.
//!
//! A message is one line: a word, then its arguments. Text that may hold line
//! ends is escaped as in a Rust string.

use std::io::{self, BufRead, Write};

/// From the test process to a rank.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Run the test of this name.
    Run(String),
    /// Drop the context and exit.
    Finish,
}

/// From a rank to the test process.
#[derive(Debug, PartialEq)]
pub enum Report {
    /// The first message, sent before MPI is initialised.
    Hello {
        /// The rank's process.
        pid: i32,
    },
    /// MPI is initialised.
    Ready {
        /// This rank.
        rank: i32,
        /// The size of its world.
        size: i32,
    },
    /// The test passed.
    Passed,
    /// The test failed, for this reason.
    Failed(String),
}

impl Command {
    /// Sends the command.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let line = match self {
            Command::Run(name) => format!("run {}\n", escape(name)),
            Command::Finish => "finish\n".to_owned(),
        };
        to.write_all(line.as_bytes())
    }

    /// Receives a command; `None` when the other side is gone.
    pub fn read(from: impl BufRead) -> Option<Command> {
        let line = read_line(from)?;
        match line.split_once(' ') {
            Some(("run", name)) => Some(Command::Run(unescape(name))),
            None if line == "finish" => Some(Command::Finish),
            _ => None,
        }
    }
}

impl Report {
    /// Sends the report.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let line = match self {
            Report::Hello { pid } => format!("hello {pid}\n"),
            Report::Ready { rank, size } => format!("ready {rank} {size}\n"),
            Report::Passed => "passed\n".to_owned(),
            Report::Failed(reason) => format!("failed {}\n", escape(reason)),
        };
        to.write_all(line.as_bytes())
    }

    /// Receives a report; `None` when the other side is gone.
    pub fn read(from: impl BufRead) -> Option<Report> {
        let line = read_line(from)?;
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "hello" => Some(Report::Hello { pid: rest.parse().ok()? }),
            "ready" => {
                let (rank, size) = rest.split_once(' ')?;
                Some(Report::Ready { rank: rank.parse().ok()?, size: size.parse().ok()? })
            }
            "passed" => Some(Report::Passed),
            "failed" => Some(Report::Failed(unescape(rest))),
            _ => None,
        }
    }
}

fn read_line(mut from: impl BufRead) -> Option<String> {
    let mut line = String::new();
    from.read_line(&mut line).ok()?;
    line.strip_suffix('\n').map(str::to_owned)
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => plain.extend(letters.next().map(|next| if next == 'n' { '\n' } else { next })),
            _ => plain.push(letter),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_as_sent() {
        let reports = [
            Report::Hello { pid: 17 },
            Report::Ready { rank: 2, size: 3 },
            Report::Passed,
            Report::Failed("two\nlines, \\n and \\\n".to_owned()),
        ];
        let mut sent = Vec::new();
        for report in &reports {
            report.write(&mut sent).unwrap();
        }
        let mut received = sent.as_slice();
        for report in reports {
            assert_eq!(Report::read(&mut received), Some(report));
        }
        assert_eq!(Report::read(&mut received), None);
    }

    #[test]
    fn commands_arrive_as_sent() {
        for command in [Command::Run("a b\n".to_owned()), Command::Finish] {
            let mut sent = Vec::new();
            command.write(&mut sent).unwrap();
            assert_eq!(Command::read(sent.as_slice()), Some(command));
        }
    }
}
