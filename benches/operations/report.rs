//! The report in Markdown, made from all results in a folder, and the lines on the terminal.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::pictures;
use super::protocol::{Direction, Way};
use super::record::{About, Results};
use super::row::Row;

const HOW: &str = "\
Made by `make bench` and `make bench-peers`. A time is that of one call on the slowest rank: the median over \
31 rounds, fewer for long calls (three at least), in each of which raw MPI, this crate and the peers have a \
turn of about a millisecond, or of one call if that is longer, while the ranks of other jobs sleep. Bytes are \
those of the largest buffer of the call on one rank; blocks have at least one double. A \
multiple is the median of the ratios of the rounds. Calls of a turn follow each other without a barrier, so \
small messages in one direction overtake their receiver. Backward is from a given cotangent: alone, of a \
graph that is kept, by `Tape::vjp`; with the forward pass, on no tape, except for messages. Raw MPI makes \
the same communication in buffers that are allocated once (for max_loc without making the pairs); of several \
ways, the fastest one counts. The JSON files have all figures.

mpi4torch's reduce and broadcast work in place, here on a copy. mpi4jax's adjoint of allreduce is the \
identity; here another allreduce sums the cotangents, as ours does.
";

/// Writes the report and the pictures of all results in the folder.
pub fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let is_ours = name.starts_with("operations-") || name.starts_with("peers-");
        if is_ours && path.extension().is_some_and(|extension| extension == "json") {
            all.push((name, Results::<Row>::read(&path)?));
        }
    }
    // Those of Open MPI before those of MPICH, each from few to many ranks.
    all.sort_by_key(|(name, results)| {
        (name.starts_with("peers"), !name.contains("openmpi"), results.about.ranks)
    });
    let mut text = format!("# The time of operations\n\n{HOW}");
    let with_peers = all.iter().find(|(name, _)| name.starts_with("peers"));
    if let Some((_, results)) = with_peers.or(all.first()) {
        text += &summary(results);
    }
    for (name, results) in &all {
        let about = &results.about;
        let crowded = if about.is_oversubscribed() {
            format!(", which share {} cores: waiting takes the time of other ranks", about.cores)
        } else {
            String::new()
        };
        write!(text, "\n## {}, {} ranks{crowded}\n\n{}", about.mpi, about.ranks, setting(about))?;
        for picture in pictures::draw(folder, name, &results.rows)? {
            write!(text, "\n![time over bytes]({picture})\n")?;
        }
        let has_peers = results.rows.iter().any(|row| !row.peers.is_empty());
        text += &if has_peers { peers(&results.rows) } else { ratios(&results.rows) };
        text += &raw_ways(&results.rows);
    }
    let path = folder.join("operations.md");
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    println!("report: {}", path.display());
    Ok(())
}

fn setting(about: &About) -> String {
    let About { date, cpu, cores, kernel, rustc, libtorch, mpi4tch, .. } = about;
    format!(
        "{date}, {cpu}, {cores} cores, {kernel}, {rustc}, libtorch {libtorch}, mpi4tch {mpi4tch}.\n"
    )
}

/// A short table, for the README: forward and backward, with as many multiples in a cell as there are
/// others to compare with.
fn summary(results: &Results<Row>) -> String {
    const SHOWN: [&str; 7] = [
        "all_reduce",
        "broadcast",
        "gather",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "sendrecv",
    ];
    let about = &results.about;
    let rows: Vec<&Row> = results
        .rows
        .iter()
        .filter(|row| row.direction == Direction::Both && row.case.way != Way::Counts)
        .filter(|row| SHOWN.contains(&row.case.operation.as_str()))
        .filter(|row| row.case.way == Way::Blocking || row.case.operation == "sendrecv")
        .collect();
    let names: BTreeSet<&String> = rows.iter().flat_map(|row| row.peers.keys()).collect();
    let has_most = |name: &&String| {
        rows.iter().filter(|row| row.peers.contains_key(*name)).count() * 2 > rows.len()
    };
    let peers: Vec<&String> = names.into_iter().filter(has_most).collect();
    let others = ["raw MPI"].into_iter().chain(peers.iter().map(|peer| peer.as_str()));
    let others = others.collect::<Vec<_>>().join(" / ");
    let sizes: BTreeSet<usize> = rows.iter().map(|row| row.case.bytes).collect();
    let mut text = format!(
        "\n{}, {} ranks, forward and backward, as multiples of the time of {others}:\n",
        about.mpi, about.ranks
    );
    text += &head("operation", sizes.iter().map(|&bytes| size(bytes)));
    for (operation, way) in lines(&rows) {
        let _ = write!(text, "| {} |", label(operation, way));
        for &bytes in &sizes {
            let row = rows.iter().find(|row| row.case.is(operation, way, bytes));
            let cell = row.map_or(String::new(), |row| {
                let of_peer = |peer: &&String| {
                    row.peers.get(*peer).map_or("–".to_owned(), |peer| short(peer.ratio))
                };
                let peers = peers.iter().map(of_peer);
                [short(row.ratio)].into_iter().chain(peers).collect::<Vec<_>>().join(" / ")
            });
            let _ = write!(text, " {cell} |");
        }
        text += "\n";
    }
    text
}

/// A multiple with two digits or more.
fn short(ratio: f64) -> String {
    if ratio < 10.0 { format!("{ratio:.2}") } else { format!("{ratio:.0}") }
}

/// A table for each pass: a line for each operation and way, a column for each size.
fn ratios(rows: &[Row]) -> String {
    let mut text = String::new();
    for direction in [Direction::Both, Direction::Forward, Direction::Backward] {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.direction == direction).collect();
        if rows.is_empty() {
            continue;
        }
        let sizes: BTreeSet<usize> = rows.iter().map(|row| row.case.bytes).collect();
        let title = format!("{direction}: time, and as a multiple of raw MPI's");
        // The tables of single passes are folded.
        let is_folded = direction != Direction::Both;
        if is_folded {
            let _ = write!(text, "\n<details><summary>{title}</summary>\n");
        } else {
            let _ = write!(text, "\n{title}\n");
        }
        text += &head("operation", sizes.iter().map(|&bytes| size(bytes)));
        for (operation, way) in lines(&rows) {
            let _ = write!(text, "| {} |", label(operation, way));
            for &bytes in &sizes {
                let row = rows.iter().find(|row| row.case.is(operation, way, bytes));
                let cell = row.map_or(String::new(), |row| {
                    format!("{} ({})", time(row.ours.median), short(row.ratio))
                });
                let _ = write!(text, " {cell} |");
            }
            text += "\n";
        }
        if is_folded {
            text += "\n</details>\n";
        }
    }
    text
}

/// A table of what peers were timed for: a line for each operation, pass and size.
fn peers(rows: &[Row]) -> String {
    let names: BTreeSet<&String> = rows.iter().flat_map(|row| row.peers.keys()).collect();
    let heads = names.iter().map(|name| format!("{name} (ours as a multiple)"));
    let columns = ["pass", "bytes", "raw MPI", "mpi4tch (as a multiple of raw)"].map(String::from);
    let mut text = "\n".to_owned() + &head("operation", columns.into_iter().chain(heads));
    for row in rows.iter().filter(|row| !row.peers.is_empty()) {
        let (case, direction) = (&row.case, row.direction);
        let (label, size) = (label(&case.operation, case.way), size(case.bytes));
        let (raw, ours) = (time(row.raw.median), time(row.ours.median));
        let _ = write!(
            text,
            "| {label} | {direction} | {size} | {raw} | {ours} ({}) |",
            short(row.ratio)
        );
        for name in &names {
            let cell = row.peers.get(*name).map_or(String::new(), |peer| {
                format!("{} ({})", time(peer.times.median), short(peer.ratio))
            });
            let _ = write!(text, " {cell} |");
        }
        text += "\n";
    }
    text
}

/// A table of the raw ways of passes for which there are several.
fn raw_ways(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows
        .iter()
        .filter(|row| !row.slower_raw.is_empty() && row.direction != Direction::Both)
        .collect();
    let all = |row: &Row| -> BTreeMap<String, f64> {
        let fastest = (row.raw_calls.clone(), row.raw.median);
        row.slower_raw.clone().into_iter().chain([fastest]).collect()
    };
    let columns: BTreeSet<String> = rows.iter().flat_map(|row| all(row).into_keys()).collect();
    if columns.is_empty() {
        return String::new();
    }
    let mut text = "\n<details><summary>ways of raw MPI to sum and scatter</summary>\n".to_owned();
    let heads = ["pass", "bytes"].map(String::from).into_iter().chain(columns.iter().cloned());
    text += &head("operation", heads.chain(["mpi4tch".to_owned()]));
    for row in rows {
        let label = label(&row.case.operation, row.case.way);
        let _ = write!(text, "| {label} | {} | {} |", row.direction, size(row.case.bytes));
        let ways = all(row);
        for column in &columns {
            let _ = write!(text, " {} |", ways.get(column).map_or(String::new(), |&t| time(t)));
        }
        let _ = writeln!(text, " {} |", time(row.ours.median));
    }
    text + "\n</details>\n"
}

/// The first two lines of a table.
fn head(first: &str, columns: impl Iterator<Item = String>) -> String {
    let columns: Vec<String> = columns.collect();
    let rule = "| ---: ".repeat(columns.len());
    format!("\n| {first} | {} |\n| --- {rule}|\n", columns.join(" | "))
}

/// Operations and ways in the order in which they come.
fn lines<'a>(rows: &[&'a Row]) -> Vec<(&'a str, Way)> {
    let mut lines = Vec::new();
    for row in rows {
        let line = (row.case.operation.as_str(), row.case.way);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

/// The name of an operation that is called in a way.
pub fn label(operation: &str, way: Way) -> String {
    match (operation, way) {
        ("send_recv", _) => "send, recv".to_owned(),
        ("sendrecv", Way::Started) => "isend, irecv, wait_all".to_owned(),
        (_, Way::Blocking) => operation.to_owned(),
        (_, Way::Started) => format!("i{operation}, wait"),
        (_, Way::Counts) => format!("{operation}, counts given"),
    }
}

/// A number of bytes, as in `64 KiB`.
pub fn size(bytes: usize) -> String {
    const UNITS: [(&str, usize); 5] =
        [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("MB", 1_000_000), ("kB", 1_000)];
    match UNITS.into_iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{} {name}", bytes / unit),
        None if bytes == 0 => "no data".to_owned(),
        None => format!("{bytes} B"),
    }
}

/// A time that is given in microseconds, with three digits or more.
fn time(microseconds: f64) -> String {
    let (number, unit) = match microseconds {
        t if t < 1e3 => (t, "µs"),
        t if t < 1e6 => (t / 1e3, "ms"),
        t => (t / 1e6, "s"),
    };
    let digits = match number {
        n if n < 10.0 => 2,
        n if n < 100.0 => 1,
        _ => 0,
    };
    format!("{number:.digits$} {unit}")
}

/// What stands above the lines on the terminal.
pub fn heading() -> String {
    let head = ["operation", "pass", "bytes", "raw", "ours"];
    let [operation, pass, bytes, raw, ours] = head;
    format!("{operation:<29}{pass:<21}{bytes:>8}{raw:>11}{ours:>11}{:>7}", "ratio")
}

/// A line on the terminal.
pub fn line(row: &Row) -> String {
    let mut line = format!(
        "{:<29}{:<21}{:>8}{:>11}{:>11}{:>7}",
        label(&row.case.operation, row.case.way),
        row.direction,
        size(row.case.bytes),
        time(row.raw.median),
        time(row.ours.median),
        short(row.ratio)
    );
    for (name, peer) in &row.peers {
        let _ = write!(line, "   {name} {} ({})", time(peer.times.median), short(peer.ratio));
    }
    line
}
