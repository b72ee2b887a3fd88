//! The results, as a file of data, a table and a picture.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::panels::{self, Axis, Panel};
use crate::record::{About, FOLDER, Results};
use crate::timing::{Pass, Row};

/// A row, with the wire that it was measured on.
#[derive(Serialize, Deserialize)]
struct OnWire {
    wire: String,
    #[serde(flatten)]
    row: Row,
    hidden: f64,
}

const TEXT: &str = "\
# Overlap on a real wire

How much of the time that communication takes is hidden behind computation:
(communication + computation − both) / min(communication, computation), of the medians of the times of
the communication alone, of the computation alone, and of both, which took turns. 0 % is one after the
other, 100 % is the longer of the two. 4 MiB of floats a rank; the computation is a chain of products of
matrices that takes about as long as the communication, or the backward pass of it.

- MPI: the nonblocking call, the computation, `MPI_Wait`.
- mpi4tch: the started operation, the computation, `wait`; backward, the pass of a tape, which starts
  the adjoint, computes, and waits for it.
- with tests: each millisecond the program calls `MPI_Test`, or `Request::test`.
- with a thread: a thread of the program calls `Request::test` every 100 µs.

MPICH over TCP goes on with a call only while the program calls MPI. So nothing is hidden if the program
computes without a call, by MPI or by this crate.
";

/// Writes the results of rank 0. `library` is the text of `MPI_Get_library_version`.
pub fn write(wire: String, library: &str, rows: Vec<Row>) -> Result<(), Box<dyn Error>> {
    let about = About::here(library, 2);
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder)?;
    let text = format!(
        "{TEXT}\n{wire}, on one machine: {}, {} cores, {}. {}, libtorch {}, mpi4tch {}; {}.\n\n\
         ![the share that is hidden](overlap.png)\n\n{}",
        about.cpu,
        about.cores,
        about.kernel,
        about.mpi,
        about.libtorch,
        about.mpi4tch,
        about.date,
        table(&rows)
    );
    println!("{text}");
    fs::write(folder.join("overlap.md"), text)?;
    panels::draw(
        &folder.join("overlap.png"),
        &[panel(&rows, Pass::Forward), panel(&rows, Pass::Backward)],
    )?;
    let rows = rows.into_iter();
    let rows = rows.map(|row| OnWire { wire: wire.clone(), hidden: row.hidden(), row }).collect();
    Results { about, rows }.write(folder, "overlap")?;
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| operation | pass | by | communication | computation | both | hidden |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let [communication, computation, both] =
            [row.communication, row.computation, row.both].map(|time| time * 1e3);
        let pass = pass_name(row.pass);
        let hidden = 100.0 * row.hidden();
        let Row { operation, by, .. } = row;
        let _ = writeln!(
            text,
            "| {operation} | {pass} | {by} | {communication:.1} ms | {computation:.1} ms | \
             {both:.1} ms | {hidden:.0} % |"
        );
    }
    text
}

fn pass_name(pass: Pass) -> &'static str {
    match pass {
        Pass::Forward => "forward",
        Pass::Backward => "backward",
    }
}

/// Bars of the shares, for each operation.
fn panel(rows: &[Row], pass: Pass) -> Panel {
    let (mut names, mut series) = (Vec::new(), Vec::<(String, Vec<(f64, f64)>)>::new());
    for row in rows.iter().filter(|row| row.pass == pass) {
        let place = names.iter().position(|name| *name == row.operation);
        let place = place.unwrap_or_else(|| {
            names.push(row.operation.clone());
            names.len() - 1
        });
        let point = (place as f64, 100.0 * row.hidden());
        match series.iter_mut().find(|(by, _)| *by == row.by) {
            Some((_, points)) => points.push(point),
            None => series.push((row.by.clone(), vec![point])),
        }
    }
    let title = format!("hidden behind computation, {}", pass_name(pass));
    Panel { title, x: "", y: "% of the communication", axis: Axis::Names(names), series }
}
