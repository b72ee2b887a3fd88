//! What the command line selects.

use std::path::PathBuf;

use clap::Parser;

use super::protocol::{Case, Way};
use super::record;
use super::worker::OPERATIONS;

/// Times every operation against raw MPI, forward, backward and both.
#[derive(Parser)]
#[command(
    name = "operations",
    after_help = "A SELECTION is the name of an operation, a way \
(blocking, started, counts), or the size of the largest buffer on a rank, such as 8B, 64KiB or \
80MB. Without a name all operations are timed; the same holds for ways and sizes. All results are written to \
benches/results; those of a selection, to a folder of the build."
)]
pub struct Arguments {
    selection: Vec<String>,
    /// The numbers of ranks
    #[arg(long, value_delimiter = ',', default_value = "2,4")]
    pub ranks: Vec<usize>,
    /// The time for all operations on one number of ranks, exceeded if calls are slow; a selection
    /// takes its part of it
    #[arg(long, default_value_t = 2.0)]
    pub minutes: f64,
    /// Times mpi4torch and mpi4jax, too, and only what one of them has: see `make bench-peers`
    #[arg(long)]
    pub peers: bool,
    /// The folder for the results
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only writes the report and the pictures anew, from the results in the folder
    #[arg(long)]
    pub report: bool,
    /// Cargo passes it
    #[arg(long, hide = true)]
    bench: bool,
}

/// Cases to time, each with the share of the time that it may take.
pub type Cases = Vec<(Case, f64)>;

/// The sizes, each with the share of its cases: large ones take longer.
const SIZES: [(usize, f64); 6] =
    [(8, 0.4), (1 << 10, 0.4), (1 << 16, 0.6), (1 << 20, 1.0), (1 << 24, 1.6), (1 << 27, 3.0)];

impl Arguments {
    /// The selected cases.
    pub fn cases(&self) -> Result<Cases, String> {
        let (mut names, mut ways, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for word in &self.selection {
            if let Some(operation) = OPERATIONS.iter().find(|operation| operation.name == word) {
                names.push(operation.name);
            } else if let Some(way) = ALL_WAYS.into_iter().find(|way| way.to_string() == *word) {
                ways.push(way);
            } else {
                sizes.push(bytes(word).ok_or_else(|| unknown(word))?);
            }
        }
        let all = all_cases(&SIZES);
        let total: f64 = all.iter().map(|(_, share)| share).sum();
        let chosen: Vec<(usize, f64)> = sizes.iter().map(|&size| (size, share(size))).collect();
        let cases = if sizes.is_empty() { all } else { all_cases(&chosen) };
        let cases: Cases = cases
            .into_iter()
            .filter(|(case, _)| names.is_empty() || names.contains(&case.operation.as_str()))
            .filter(|(case, _)| ways.is_empty() || ways.contains(&case.way))
            .map(|(case, share)| (case, share / total))
            .collect();
        if cases.is_empty() {
            return Err("no operation has what is selected".to_owned());
        }
        Ok(cases)
    }

    /// The folder for the results: that of the source, unless they are a part only.
    pub fn folder(&self) -> PathBuf {
        match &self.out {
            Some(folder) => folder.clone(),
            None if self.selection.is_empty() => record::FOLDER.into(),
            None => concat!(env!("CARGO_TARGET_TMPDIR"), "/operations").into(),
        }
    }
}

const ALL_WAYS: [Way; 3] = [Way::Blocking, Way::Started, Way::Counts];

fn all_cases(sizes: &[(usize, f64)]) -> Cases {
    let mut cases = Vec::new();
    for operation in OPERATIONS {
        for &way in operation.ways {
            let mut add = |bytes, share| {
                let operation = operation.name.to_owned();
                cases.push((Case { operation, way, bytes }, share));
            };
            if !operation.has_data {
                add(0, share(0));
                continue;
            }
            // Given counts save a small message, which a large one hides.
            let largest = if way == Way::Counts && sizes.len() > 1 { 1 << 16 } else { usize::MAX };
            sizes.iter().filter(|(bytes, _)| *bytes <= largest).for_each(|&(b, s)| add(b, s));
        }
    }
    cases
}

/// The share of a case of any size.
fn share(bytes: usize) -> f64 {
    SIZES.iter().find(|(size, _)| bytes <= *size).map_or(3.0, |(_, share)| *share)
}

/// The bytes of a size such as `64KiB`.
fn bytes(word: &str) -> Option<usize> {
    const UNITS: [(&str, usize); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let (number, unit) =
        UNITS.iter().find_map(|(unit, bytes)| Some((word.strip_suffix(unit)?, bytes)))?;
    number.parse::<usize>().ok()?.checked_mul(*unit)
}

fn unknown(word: &str) -> String {
    let names: Vec<&str> = OPERATIONS.iter().map(|operation| operation.name).collect();
    format!(
        "{word:?} is no operation, no way and no size; the operations are {}; the ways are blocking, \
         started and counts; a size is such as 8B or 64KiB",
        names.join(", ")
    )
}
