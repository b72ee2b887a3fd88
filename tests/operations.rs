//! The benchmark of all operations, on 2 ranks and small messages: it compares this crate's results with
//! raw MPI's, and writes its results, a report and pictures.

#[path = "../benches/operations/main.rs"]
mod operations;

use std::env;
use std::error::Error;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::{Command, ExitCode};

use serde_json::Value;

/// The variable by which this program knows that it is to be the benchmark.
const BENCHMARK: &str = "MPI4TCH_TEST_BENCHMARK";

fn main() -> ExitCode {
    if env::var_os(BENCHMARK).is_some() {
        return operations::main();
    }
    let folder = env::temp_dir().join(format!("mpi4tch-operations-{}", std::process::id()));
    let outcome = run(&folder);
    let _ = fs::remove_dir_all(folder);
    // As libtest prints it, for scripts/test.sh.
    let (word, passed, failed) = if outcome.is_ok() { ("ok", 1, 0) } else { ("FAILED", 0, 1) };
    println!("\nrunning 1 test\ntest the_benchmark_writes_a_report ... {word}");
    if let Err(error) = &outcome {
        println!("{error}");
    }
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured\n");
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(folder: &Path) -> Result<(), Box<dyn Error>> {
    let output = Command::new(env::current_exe()?)
        .args(["8B", "1KiB", "--ranks", "2", "--minutes", "0", "--out"])
        .arg(folder)
        .env(BENCHMARK, "")
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let mut reports = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => check_rows(&serde_json::from_slice(&bytes)?)?,
            Some("png") => png::Decoder::new(Cursor::new(&bytes)).read_info().map(drop)?,
            _ => check_report(&String::from_utf8(bytes)?)?,
        }
        reports += 1;
    }
    // Results, report and two pictures.
    if reports != 4 { Err(format!("{reports} files instead of 4").into()) } else { Ok(()) }
}

/// Every operation was timed in every pass that it has.
fn check_rows(results: &Value) -> Result<(), String> {
    let rows = results["rows"].as_array().ok_or("no rows")?;
    let count = |direction: &str| {
        let is_right = |row: &&Value| {
            let [raw, ours] = ["raw", "ours"].map(|side| row[side]["median"].as_f64());
            row["direction"] == direction && raw > Some(0.0) && ours > Some(0.0)
        };
        rows.iter().filter(is_right).count()
    };
    let [forward, backward, both] = ["forward", "backward", "both"].map(count);
    // A barrier, blocking and started, has no backward pass.
    if backward < 60 || both != backward || forward != backward + 2 {
        return Err(format!("{forward} rows forward, {backward} backward, {both} both"));
    }
    Ok(())
}

fn check_report(text: &str) -> Result<(), String> {
    for part in ["2 ranks", "| all_gather, counts given |", ".png)", "MPI_Reduce_scatter_block"] {
        if !text.contains(part) {
            return Err(format!("{part} is not in the report:\n{text}"));
        }
    }
    Ok(())
}
