//! The names of the MPI standard, from `standard.txt`.

use std::collections::HashMap;

/// A line of `standard.txt`.
pub struct Entry {
    /// The first version that has the name, as in `(4, 0)`; `(3, 1)` stands for all
    /// before.
    pub since: (i32, i32),
    /// One sentence, or empty for the variants with large counts.
    pub description: &'static str,
}

/// The names of the standard's binding to C.
pub fn names() -> HashMap<&'static str, Entry> {
    let mut names = HashMap::new();
    for line in include_str!("../standard.txt").lines() {
        if line.is_empty() || line.starts_with(['#', '[']) {
            continue;
        }
        let mut words = line.splitn(3, ' ');
        let name = words.next().expect("a line has a name");
        let version = words.next().and_then(|version| version.split_once('.'));
        let (major, minor) = version.expect("a name has a version");
        let number = |text: &str| text.parse().expect("a version is of numbers");
        let since = (number(major), number(minor));
        names.insert(name, Entry { since, description: words.next().unwrap_or_default() });
    }
    names
}
