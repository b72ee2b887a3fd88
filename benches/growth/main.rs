//! How time and memory grow: with the number of ranks, with the number of operations on a tape, and
//! with the number of training steps.
//!
//! ```text
//! cargo bench --bench growth               # on 1 to 8 ranks, which may be more than there are cores
//! ```
//!
//! The results are in benches/results/growth.md, .json and .png. Each measurement has a job of its own, whose rank 0 prints the points of the curves.

mod memory;
mod operations;
#[path = "../common/panels.rs"]
#[allow(dead_code, reason = "overlap draws bars")]
mod panels;
#[path = "../../examples/common/picture.rs"]
#[allow(dead_code, reason = "examples use all of it")]
mod picture;
mod ranks;
#[path = "../common/record.rs"]
mod record;
mod report;
mod steps;
mod tapes;
#[path = "../side_by_side/turns.rs"]
#[allow(dead_code, reason = "the jobs are started here")]
mod turns;

use std::error::Error;
use std::process::Stdio;

use mpi4tch::{Communicator, ThreadLevel, initialize_with};
use serde::{Deserialize, Serialize};

/// The measurement of a job.
const PART: &str = "MPI4TCH_BENCH_PART";

/// The measurements, with the numbers of ranks of their jobs.
const PARTS: [(&str, &[usize], Part); 3] = [
    ("ranks", &[1, 2, 3, 4, 6, 8], ranks::measure),
    ("tapes", &[2], tapes::measure),
    ("steps", &[2], steps::measure),
];

type Part = fn(&Communicator) -> Result<(), Box<dyn Error>>;

/// A point of a curve, which stands in a table.
#[derive(Serialize, Deserialize)]
struct Point {
    table: String,
    curve: String,
    x: f64,
    y: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(part) = std::env::var(PART) {
        let universe = initialize_with(ThreadLevel::Serialized)?;
        let world = universe.world();
        tch::set_num_threads(1);
        if world.rank() == 0 {
            let library = universe.library().version().lines().next().unwrap_or_default();
            println!("library\t{}", library.replace('\t', " "));
        }
        let (.., measure) = PARTS.into_iter().find(|(name, ..)| *name == part).ok_or(part)?;
        return measure(&world);
    }
    let (mut library, mut points, mut most) = (String::new(), Vec::new(), 0);
    for (part, counts, _) in PARTS {
        for &ranks in counts {
            eprintln!("growth: {part}, {ranks} ranks");
            let before = points.len();
            for line in run(part, ranks)? {
                match line.split('\t').collect::<Vec<_>>()[..] {
                    ["library", text] => library = text.to_owned(),
                    [table, curve, x, y] => points.push(Point {
                        table: table.to_owned(),
                        curve: curve.to_owned(),
                        x: x.parse()?,
                        y: y.parse()?,
                    }),
                    _ => (),
                }
            }
            if points.len() == before {
                return Err(format!("{part} on {ranks} ranks prints no figures").into());
            }
            most = most.max(ranks);
        }
    }
    report::write(&library, most, points)
}

/// Runs the job of a measurement. Returns what it prints.
fn run(part: &str, ranks: usize) -> Result<Vec<String>, Box<dyn Error>> {
    let mut job = harness::mpiexec(ranks);
    job.arg(std::env::current_exe()?).env(PART, part).stderr(Stdio::inherit());
    // A rank that waits for one that has failed ends.
    job.env("MPI4TCH_TIMEOUT", "120");
    let output = job.output()?;
    let printed = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        return Err(format!("{part} on {ranks} ranks: {}\n{printed}", output.status).into());
    }
    Ok(printed.lines().map(str::to_owned).collect())
}

/// Prints a point, on rank 0.
fn print(comm: &Communicator, table: &str, curve: &str, x: impl Into<f64>, y: f64) {
    if comm.rank() == 0 {
        println!("{table}\t{curve}\t{}\t{y}", x.into());
    }
}
