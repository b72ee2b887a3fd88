//! The end of a timeline: the ranks' files become one, `timeline.json`.
//!
//! Each rank reads its own file again, aligns the times, and adds the arrows. A message needs no
//! knowledge of the other rank: messages of one [`Stream`](super::Stream) arrive in the order in which
//! they were sent, so both ends number them by the order of their calls, and the arrow's name is the
//! stream's with that number. Rank 0 gets the lines of one rank after another, as the ranks need not
//! have a file system in common.

use std::collections::HashMap;
use std::ffi::c_int;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::json;

use super::Timeline;
use super::clock::{self, Alignment};
use super::event::{ADJOINT, Line, MESSAGE};
use crate::base::error::Result;
use crate::base::rank::Rank;
use crate::environment::error_code::checked;
use crate::environment::status::Status;
use crate::environment::watch;

/// The name of the file.
pub(super) const RESULT: &str = "timeline.json";

/// What is between two lines of the list.
const SEPARATOR: &str = ",\n";

/// The bytes of a message to rank 0, at most.
const PIECE: usize = 1 << 20;

/// The tags of messages to rank 0. `LINES` carries lines. `END` follows the last of them, or `FAILED` if
/// some are missing.
const LINES: c_int = 1;
const END: c_int = 2;
const FAILED: c_int = 3;

impl Timeline {
    /// Writes the events of all ranks to one file. Collective over all ranks of the program, with
    /// permission to call MPI. Errors are printed: the results of the program do not depend on the
    /// timeline. The ranks' own files are then left.
    pub(in crate::environment) fn merge(&self) {
        self.flush();
        // It was before if a part of the file could not be written.
        let is_broken = self.is_closed.swap(true, Ordering::Relaxed);
        let complain = |error: &dyn std::fmt::Display| {
            let (rank, path) = (self.rank, self.path());
            watch::say(&format!(
                "mpi4tch: rank {rank}: the timeline is not complete: {error}; the events of this rank \
                 are in {}\n",
                path.display()
            ));
        };
        match self.carry_out(is_broken, &complain) {
            Ok(true) => drop(fs::remove_file(self.path())),
            Ok(false) => (),
            Err(error) => complain(&error),
        }
    }

    /// Returns whether the file has the events of all ranks. An error is one of MPI.
    fn carry_out(
        &self,
        is_broken: bool,
        complain: &dyn Fn(&dyn std::fmt::Display),
    ) -> Result<bool> {
        let last = clock::compare(self.context, (self.rank, self.size), || self.now())?;
        let alignment = Alignment::new(self.first, last);
        let mut outcome = if self.rank == 0 {
            c_int::from(self.collect(&alignment, is_broken, complain)?)
        } else {
            self.tell(&alignment, is_broken, complain)?;
            0
        };
        let place = std::ptr::from_mut(&mut outcome).cast();
        // SAFETY: an integer on every rank.
        unsafe { checked!(MPI_Bcast(place, 1, mpi_sys::MPI_INT, 0, self.context)) }?;
        let mut context = self.context;
        // SAFETY: the communicator is this timeline's, and is not used any more.
        unsafe { checked!(MPI_Comm_free(&mut context)) }?;
        Ok(outcome != 0)
    }

    /// On rank 0: writes the file. The other ranks' lines are received even if it cannot be written.
    fn collect(
        &self,
        alignment: &Alignment,
        is_broken: bool,
        complain: &dyn Fn(&dyn std::fmt::Display),
    ) -> Result<bool> {
        let partial = self.folder.join(format!("{RESULT}.partial"));
        let mut result = Output::new(&partial);
        result.write(format!("{{\"otherData\":{},\"traceEvents\":[\n", self.about()).as_bytes());
        let mut separator = "";
        let own = aligned(&self.path(), alignment, |line| {
            result.write(std::mem::replace(&mut separator, SEPARATOR).as_bytes());
            result.write(line.as_bytes());
        });
        let mut is_complete = own.is_ok() && !is_broken;
        let mut piece = vec![0_u8; PIECE];
        for rank in 1..self.size {
            loop {
                let (tag, count) = self.receive(rank, &mut piece)?;
                if tag != LINES {
                    is_complete &= tag == END;
                    break;
                }
                result.write(&piece[..count]);
            }
        }
        result.write(b"\n]}\n");
        let written = own.and_then(|()| result.finish()).and_then(|()| match is_complete {
            true => fs::rename(&partial, self.folder.join(RESULT)),
            false => Ok(()),
        });
        if let Err(error) = &written {
            complain(&format!("{}: {error}", partial.display()));
        }
        Ok(written.is_ok() && is_complete)
    }

    fn about(&self) -> serde_json::Value {
        json!({ "ranks": self.size, "library": format!("mpi4tch {}", env!("CARGO_PKG_VERSION")) })
    }

    /// On the other ranks: sends the lines to rank 0.
    fn tell(
        &self,
        alignment: &Alignment,
        is_broken: bool,
        complain: &dyn Fn(&dyn std::fmt::Display),
    ) -> Result<()> {
        let (mut piece, mut sent) = (Vec::with_capacity(PIECE), Ok(()));
        let told = aligned(&self.path(), alignment, |line| {
            if piece.len() + SEPARATOR.len() + line.len() > PIECE {
                if sent.is_ok() {
                    sent = self.send(LINES, &piece);
                }
                piece.clear();
            }
            piece.extend_from_slice(SEPARATOR.as_bytes());
            piece.extend_from_slice(line.as_bytes());
        });
        sent?;
        if !piece.is_empty() {
            self.send(LINES, &piece)?;
        }
        if let Err(error) = &told {
            complain(error);
        }
        self.send(if told.is_ok() && !is_broken { END } else { FAILED }, &[])
    }

    fn send(&self, tag: c_int, bytes: &[u8]) -> Result<()> {
        let count = c_int::try_from(bytes.len()).unwrap_or(c_int::MAX);
        let start = bytes.as_ptr().cast();
        // SAFETY: so many bytes, which outlive the call.
        unsafe { checked!(MPI_Send(start, count, mpi_sys::MPI_BYTE, 0, tag, self.context)) }
    }

    /// Returns the tag, and the number of bytes.
    fn receive(&self, from: Rank, piece: &mut [u8]) -> Result<(c_int, usize)> {
        let (count, mut status) =
            (c_int::try_from(piece.len()).unwrap_or(c_int::MAX), Status::none());
        // SAFETY: room for so many bytes, which outlives the call, as the status does.
        unsafe {
            checked!(MPI_Recv(
                piece.as_mut_ptr().cast(),
                count,
                mpi_sys::MPI_BYTE,
                from,
                mpi_sys::MPI_ANY_TAG,
                self.context,
                &mut status,
            ))
        }?;
        let status = Status::of(&status);
        Ok((status.tag, usize::try_from(status.bytes).unwrap_or(0)))
    }
}

/// A file that is written as far as possible: after an error, nothing more is.
struct Output {
    file: io::Result<BufWriter<File>>,
}

impl Output {
    fn new(path: &Path) -> Self {
        Self { file: File::create(path).map(BufWriter::new) }
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Ok(file) = &mut self.file
            && let Err(error) = file.write_all(bytes)
        {
            self.file = Err(error);
        }
    }

    fn finish(self) -> io::Result<()> {
        self.file?.flush()
    }
}

/// Passes the lines of a rank's file to `tell`, with their times aligned, and then those of the arrows.
fn aligned(path: &Path, alignment: &Alignment, mut tell: impl FnMut(&str)) -> io::Result<()> {
    let mut arrows = Arrows::default();
    let mut tell_line = |mut line: Line| {
        if let Some(dur) = &mut line.dur {
            *dur = alignment.align(line.ts + *dur) - alignment.align(line.ts);
        }
        if line.ph != 'M' {
            line.ts = alignment.align(line.ts);
        }
        tell(&line.text());
    };
    let mut own = None;
    for text in BufReader::new(File::open(path)?).lines() {
        let text = text?;
        // The first line begins the list.
        let Some(text) = text.strip_suffix(',') else { continue };
        let line: Line = serde_json::from_str(text)?;
        own = own.or(Some(line.pid));
        arrows.note(&line);
        if line.cat != MESSAGE {
            tell_line(line);
        }
    }
    let mut clock = Line::new(("process_labels".to_owned(), ""), 'M', (own.unwrap_or(0), 0), 0.0);
    let text = format!("clock within {:.1} µs of rank 0's", alignment.error());
    clock.args.insert("labels".to_owned(), text.into());
    clock.args.insert("clock_error_us".to_owned(), alignment.error().into());
    tell_line(clock);
    arrows.lines().into_iter().for_each(tell_line);
    Ok(())
}

/// The arrows of a rank: the ends of its messages, and whole ones from calls to their adjoints.
#[derive(Default)]
struct Arrows {
    messages: Vec<Line>,
    /// The beginning of each call by its number, with its thread.
    calls: HashMap<u64, (f64, u32)>,
    /// The beginnings of adjoints, each with the numbers of the adjoint and of its call.
    adjoints: Vec<(u64, u64, Line)>,
}

impl Arrows {
    fn note(&mut self, line: &Line) {
        if line.cat == MESSAGE {
            self.messages.push(line.clone());
            return;
        }
        let number = line.number("number");
        if line.ph != 'X' || number == 0 {
            return;
        }
        self.calls.entry(number).or_insert((line.ts, line.tid));
        let of = line.number("adjoint_of");
        if of != 0 {
            let name = (ADJOINT.to_owned(), ADJOINT);
            let end = Line::new(name, 'f', (line.pid, line.tid), line.ts);
            self.adjoints.push((number, of, end));
        }
    }

    fn lines(mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        self.messages.sort_by_key(|line| line.number("number"));
        let mut counts: HashMap<(Option<String>, char), u64> = HashMap::new();
        for mut line in self.messages {
            let count = counts.entry((line.id.clone(), line.ph)).or_default();
            *count += 1;
            line.id = line.id.map(|stream| format!("{stream} message {count}"));
            lines.push(line);
        }
        for (number, of, mut end) in self.adjoints {
            let Some(&(ts, tid)) = self.calls.get(&of) else { continue };
            let mut start = Line::new((ADJOINT.to_owned(), ADJOINT), 's', (end.pid, tid), ts);
            for line in [&mut start, &mut end] {
                line.id = Some(format!("rank {} {of} adjoint {number}", line.pid));
            }
            end.bp = Some('e');
            lines.extend([start, end]);
        }
        lines
    }
}
