//! Results of benchmarks, with what is needed to repeat them, in JSON files.

#![allow(dead_code, reason = "each benchmark uses some of it")]

use std::error::Error;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The folder of the results that are kept with the source.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results");

/// What one run of a benchmark has measured.
#[derive(Serialize, Deserialize)]
pub struct Results<Row> {
    pub about: About,
    pub rows: Vec<Row>,
}

impl<Row: Serialize + DeserializeOwned> Results<Row> {
    /// Writes `folder/name.json`; returns its path.
    pub fn write(&self, folder: &Path, name: &str) -> Result<PathBuf, Box<dyn Error>> {
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{name}.json"));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        Ok(path)
    }

    /// Reads a file that `write` has written.
    pub fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let file = File::open(path);
        let file = file.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        serde_json::from_reader(BufReader::new(file))
            .map_err(|error| format!("{}: {error}", path.display()).into())
    }
}

/// Where, when and with what a benchmark ran.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    pub date: String,
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub rustc: String,
    pub libtorch: String,
    pub mpi: String,
    pub ranks: usize,
    pub mpi4tch: String,
}

impl About {
    /// `mpi` is the text of `MPI_Get_library_version`.
    pub fn here(mpi: &str, ranks: usize) -> Self {
        let (cpu, cores) = processor();
        Self {
            date: output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_default(),
            cpu,
            cores,
            kernel: output("uname", &["-sr"]).unwrap_or_default(),
            rustc: output("rustc", &["--version"]).unwrap_or_default(),
            libtorch: libtorch().unwrap_or_else(|| "unknown".to_owned()),
            mpi: short_version(mpi),
            ranks,
            mpi4tch: version(),
        }
    }

    /// Whether ranks have to share cores, so that waiting takes the time of other ranks.
    pub fn is_oversubscribed(&self) -> bool {
        self.ranks > self.cores
    }
}

/// The times of a call over the rounds of a benchmark, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Times {
    pub median: f64,
    pub lower_quartile: f64,
    pub upper_quartile: f64,
    pub rounds: usize,
}

impl Times {
    /// Of at least one time.
    pub fn of(times: &[f64]) -> Self {
        Self {
            median: quantile(times, 2),
            lower_quartile: quantile(times, 1),
            upper_quartile: quantile(times, 3),
            rounds: times.len(),
        }
    }
}

/// The median of the ratios of times that were measured in the same rounds.
pub fn median_ratio(times: &[f64], base: &[f64]) -> f64 {
    let ratios: Vec<f64> = times.iter().zip(base).map(|(time, base)| time / base).collect();
    quantile(&ratios, 2)
}

fn quantile(times: &[f64], quarters: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) * quarters + 2) / 4]
}

/// The name of the processor, and the number of its cores: of all that there are, as a launcher may
/// have bound this process to one.
fn processor() -> (String, usize) {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let values = |key: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|line| line.0.trim() == key).map(|line| line.1.trim().to_owned()).collect()
    };
    let names = values("model name");
    (names.into_iter().next().unwrap_or_default(), values("processor").len())
}

/// The version of this crate, and the commit if the source is in a repository.
fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let Some(commit) = output("git", &["rev-parse", "--short", "HEAD"]) else {
        return version.to_owned();
    };
    let changed = output("git", &["status", "--porcelain", "--", "src", "mpi-sys", "build.rs"]);
    let changes = if changed.is_some_and(|files| files.is_empty()) { "" } else { ", changed" };
    format!("{version} ({commit}{changes})")
}

/// The version of libtorch, from its header or from PyTorch.
fn libtorch() -> Option<String> {
    let Some(folder) = std::env::var_os("LIBTORCH") else {
        return output("python3", &["-c", "import torch; print(torch.__version__)"]);
    };
    let folder = std::env::var_os("LIBTORCH_INCLUDE").unwrap_or(folder);
    let header = Path::new(&folder).join("include/torch/headeronly/version.h");
    let header = fs::read_to_string(header).ok()?;
    let number = |name: &str| {
        let define = format!("#define TORCH_VERSION_{name} ");
        header.lines().find_map(|line| Some(line.strip_prefix(&define)?.trim().to_owned()))
    };
    Some([number("MAJOR")?, number("MINOR")?, number("PATCH")?].join("."))
}

/// The first part of a library's version: `Open MPI v4.1.4`, `MPICH Version: 4.0.2`.
fn short_version(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let part = line.split(',').next().unwrap_or_default();
    part.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a program prints, if it succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let folder = env!("CARGO_MANIFEST_DIR");
    let output = Command::new(program).args(arguments).current_dir(folder).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
