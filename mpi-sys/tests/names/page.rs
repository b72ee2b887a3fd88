//! The page `bound.md`: a row and a section for each MPI.

use std::collections::BTreeMap;
use std::env;
use std::path::Path;

use mpi_sys::{LIBRARY_VERSION, STANDARD, VENDOR};

use crate::header::Header;
use crate::standard;

/// The versions of the standard, each after the one that it adds to.
const VERSIONS: [(i32, i32); 4] = [(3, 1), (4, 0), (4, 1), (5, 0)];

/// What the page says of one MPI.
struct Entry {
    name: String,
    row: String,
    section: String,
}

/// Compares what the page says of this MPI, or writes it if told to.
pub fn check(header: &Header, reasons: &[(&str, Vec<&str>)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bound.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let entry = Entry::of(header, reasons);
    let written = entry.put(&page);
    if env::var_os("MPI4TCH_TEST_WRITE").is_some() {
        std::fs::write(path, written).unwrap();
    } else if page.contains(&format!("\n## {}\n", entry.name)) {
        assert!(
            page == written,
            "bound.md is not true of {}; with MPI4TCH_TEST_WRITE=1 this test writes:\n{}\n{}",
            entry.name,
            entry.row,
            entry.section
        );
    } else {
        eprintln!("bound.md does not have {}:\n{}\n{}", entry.name, entry.row, entry.section);
    }
}

impl Entry {
    fn of(header: &Header, reasons: &[(&str, Vec<&str>)]) -> Entry {
        let vendor = if header.is_intel { "Intel MPI".to_owned() } else { VENDOR.to_string() };
        let name = format!("{vendor} {LIBRARY_VERSION}");
        let (major, minor) = STANDARD;
        let mut row = format!("| {name} | {major}.{minor} |");
        let mut section = String::new();
        for (version, names) in by_version() {
            let (there, missing): (Vec<_>, Vec<_>) =
                names.iter().partition(|name| header.bound.contains(**name));
            row += &format!(" {} of {} |", there.len(), names.len());
            let (major, minor) = version;
            let of = format!("Of the names that MPI {major}.{minor} added");
            let of = if version == VERSIONS[0] { "Of the names of MPI 3.1".to_owned() } else { of };
            section += &match (there.is_empty(), missing.is_empty()) {
                (_, true) => continue,
                (true, _) => format!("{of}, `mpi.h` has none.\n\n"),
                _ if there.len() < missing.len() => {
                    format!("{of}, `mpi.h` has only {}.\n\n", list(&there))
                }
                _ => format!("{of}, `mpi.h` lacks {}.\n\n", list(&missing)),
            };
        }
        if section.is_empty() {
            section += "All names of the standard are bound.\n\n";
        }
        for (reason, names) in reasons {
            section += &match names.len() {
                0..=20 => format!("In `mpi.h` but not bound, as {reason}: {}.\n\n", list(names)),
                many => format!(
                    "In `mpi.h` but not bound, as {reason}: {many} names like {}.\n\n",
                    list(&names[..1])
                ),
            };
        }
        let section = wrap(section.trim_end());
        Entry { name, row, section }
    }

    /// The page with this entry in its place: in the order of names.
    fn put(&self, page: &str) -> String {
        let mut parts = page.split("\n## ");
        let head = parts.next().unwrap_or_default();
        let mut sections: BTreeMap<String, String> = parts
            .map(|part| part.split_once('\n').expect("a section has a title"))
            .map(|(title, text)| (title.to_owned(), text.trim().to_owned()))
            .collect();
        sections.insert(self.name.clone(), self.section.clone());

        let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| MPI ");
        let title = |row: &str| row.split('|').nth(1).unwrap_or_default().trim().to_owned();
        let mut rows: BTreeMap<String, String> =
            head.lines().filter(is_row).map(|row| (title(row), row.to_owned())).collect();
        rows.insert(self.name.clone(), self.row.clone());
        let mut written = String::new();
        for line in head.trim_end().lines().filter(|line| !is_row(line)) {
            written += &format!("{line}\n");
            if line.starts_with("|---") {
                written.extend(rows.values().map(|row| format!("{row}\n")));
            }
        }
        written.extend(sections.iter().map(|(title, text)| format!("\n## {title}\n\n{text}\n")));
        written
    }
}

/// The names of the standard that each version has added, sorted.
fn by_version() -> Vec<((i32, i32), Vec<&'static str>)> {
    let names = standard::names();
    let of = |version| {
        let names = names.iter().filter(|(_, entry)| entry.since == version);
        let mut names: Vec<_> = names.map(|(name, _)| *name).collect();
        names.sort_unstable();
        names
    };
    VERSIONS.map(|version| (version, of(version))).to_vec()
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Breaks the lines of paragraphs at 100 columns.
fn wrap(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| {
        let mut lines = vec![String::new()];
        for word in paragraph.split(' ') {
            let line = lines.last_mut().expect("there is a line");
            if line.is_empty() {
                line.push_str(word);
            } else if line.len() + 1 + word.len() <= 100 {
                line.push(' ');
                line.push_str(word);
            } else {
                lines.push(word.to_owned());
            }
        }
        lines.join("\n")
    });
    paragraphs.collect::<Vec<_>>().join("\n\n")
}
