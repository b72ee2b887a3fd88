//! A picture of a timeline that another program has written: a forward and a backward pass of it.
//!
//! ```sh
//! MPI4TCH_TRACE=target/timeline make demo EXAMPLE=pipeline RANKS=4 ARGS='--epochs 1'
//! make demo EXAMPLE=timeline RANKS=1 ARGS='target/timeline/timeline.json --out target/plots'
//! ```
//!
//! It draws from the end of one [`Tape::backward`](mpi4tch::Tape::backward) to the end of the next. To
//! look at all of a timeline, open the file with <https://ui.perfetto.dev>.
//!
//! The example checks that no message arrives before it is sent, as far as the clocks of the ranks are
//! known.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mpi4tch::Universe;
use picture::Picture;
use serde_json::Value;
use slices::{Arrow, Slice, Slices, Sort};

#[path = "common/command_line.rs"]
mod command_line;
#[path = "common/picture.rs"]
mod picture;
#[path = "timeline/slices.rs"]
mod slices;

/// Draws a forward and a backward pass of a timeline.
#[derive(Parser)]
#[command(override_usage = "timeline FILE --out FOLDER [--pass N]")]
pub(crate) struct Arguments {
    /// The timeline.json that a program has written with MPI4TCH_TRACE
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Which backward pass to draw, counted from 1, with what came before it
    #[arg(long, value_name = "N", default_value = "4")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) pass: u64,

    /// The folder for the picture, timeline.png
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
}

fn main() -> ExitCode {
    mpi4tch::run(|universe| command_line::parse_and_run(universe, run))
}

/// Draws the timeline.
pub(crate) fn run(universe: &Universe, arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let world = universe.world();
    let Some(picture) = Picture::create(&world, Some(&arguments.out), "timeline.png")? else {
        return Ok(());
    };
    let cannot_read =
        |error: &dyn Error| format!("cannot read {}: {error}", arguments.file.display());
    let file = File::open(&arguments.file).map_err(|error| cannot_read(&error))?;
    let file: Value =
        serde_json::from_reader(BufReader::new(file)).map_err(|error| cannot_read(&error))?;
    let events = file["traceEvents"].as_array().ok_or("the file is no timeline")?;
    let slices = Slices { ranks: ranks(events), list: slices(events), arrows: arrows(events)? };
    let slices = slices.of_pass(arguments.pass)?;
    println!(
        "ranks: {}, calls and waits: {}, messages: {}",
        slices.ranks,
        slices.list.len(),
        slices.arrows.len()
    );
    picture.write(&[slices])
}

fn of_kind<'e>(events: &'e [Value], ph: &'e str) -> impl Iterator<Item = &'e Value> {
    events.iter().filter(move |event| event["ph"] == ph)
}

fn rank(event: &Value) -> i32 {
    event["pid"].as_i64().and_then(|rank| i32::try_from(rank).ok()).unwrap_or(0)
}

/// A time in milliseconds.
fn time(event: &Value, name: &str) -> f64 {
    event[name].as_f64().unwrap_or(0.0) / 1e3
}

fn ranks(events: &[Value]) -> i32 {
    events.iter().map(rank).max().unwrap_or(0) + 1
}

fn slices(events: &[Value]) -> Vec<Slice> {
    let slice = |event: &Value| {
        let (name, begin) = (event["name"].as_str().unwrap_or(""), time(event, "ts"));
        let sort = match event["cat"].as_str() {
            _ if name.starts_with("Tape::") => Sort::Pass,
            Some("wait") => Sort::Wait,
            Some("backward") => Sort::Backward,
            _ => Sort::Forward,
        };
        let end = begin + time(event, "dur");
        Slice { rank: rank(event), name: name.to_owned(), sort, begin, end }
    };
    of_kind(events, "X").map(slice).collect()
}

/// The messages. None arrives before it is sent.
fn arrows(events: &[Value]) -> Result<Vec<Arrow>, String> {
    let clocks = events.iter().filter(|event| event["name"] == "process_labels");
    let errors: HashMap<i32, f64> =
        clocks.map(|event| (rank(event), time(&event["args"], "clock_error_us"))).collect();
    let messages = |ph| of_kind(events, ph).filter(|event| event["cat"] == "message");
    let ends: HashMap<&str, &Value> =
        messages("f").filter_map(|event| Some((event["id"].as_str()?, event))).collect();
    let mut arrows = Vec::new();
    for start in messages("s") {
        let Some(end) = start["id"].as_str().and_then(|id| ends.get(id)) else { continue };
        let arrow =
            Arrow { from: (rank(start), time(start, "ts")), to: (rank(end), time(end, "ts")) };
        let error: f64 = [start, *end].iter().filter_map(|end| errors.get(&rank(end))).sum();
        if arrow.to.1 + error < arrow.from.1 {
            return Err(format!("a message arrives before it is sent: {start}, {end}"));
        }
        arrows.push(arrow);
    }
    Ok(arrows)
}
