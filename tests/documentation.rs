//! Every public item has an example in its documentation.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        // The guide's programs are examples themselves.
        if path.is_dir() && !path.ends_with("guide") {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The kind and the name of the public item that a line declares. What is `pub` in this crate is
/// public; the rest is `pub(crate)` or less.
fn item(line: &str) -> Option<(&str, &str)> {
    const KINDS: [&str; 6] = ["fn", "struct", "enum", "trait", "type", "const"];
    let mut words = line.trim_start().strip_prefix("pub ")?.split_whitespace().peekable();
    while words.next_if(|word| ["unsafe", "async", "extern"].contains(word)).is_some() {}
    let mut kind = words.next()?;
    if kind == "const" && words.next_if_eq(&"fn").is_some() {
        kind = "fn";
    }
    let name = words.next()?;
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
    KINDS.contains(&kind).then_some((kind, &name[..end]))
}

/// The public items of a file: each with the number of its line, and whether it has an example.
fn items(text: &str) -> Vec<(usize, String, bool)> {
    let mut items = Vec::new();
    // The documentation and the attributes before an item.
    let mut before: Vec<&str> = Vec::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.starts_with("///") || line.starts_with("#[") {
            before.push(line);
            continue;
        }
        if let Some((kind, name)) = item(line) {
            let examples = before.iter().skip_while(|line| **line != "/// # Examples");
            let has_example = examples.skip(1).any(|line| line.starts_with("/// ```"));
            if !before.contains(&"#[doc(hidden)]") {
                items.push((number, format!("{kind} {name}"), has_example));
            }
        }
        before.clear();
    }
    items
}

#[test]
fn every_public_item_has_an_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut count, mut missing) = (0, Vec::new());
    for file in sources(&root) {
        let text = fs::read_to_string(&file).expect("it can be read");
        for (number, item, has_example) in items(&text) {
            count += 1;
            if !has_example {
                let file = file.strip_prefix(&root).expect("it is below").display();
                missing.push(format!("src/{file}:{number}: {item} has no example"));
            }
        }
    }
    assert!(count > 100, "only {count} public items were found");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn items_and_their_examples_are_found() {
    let with = "/// Waits.\n///\n/// # Examples\n/// ```\n/// f();\n/// ```\n#[inline]\n";
    let found = |text: &str| items(text);
    assert_eq!(found(&format!("{with}pub fn f() {{")), [(8, "fn f".to_owned(), true)]);
    assert_eq!(
        found(&format!("{with}pub fn f() {{}}\npub const fn g<T>() {{}}")),
        [(8, "fn f".to_owned(), true), (9, "fn g".to_owned(), false)]
    );
    let link = "/// # Examples\n/// See [`Request`].\npub struct Status;\n    pub unsafe fn raw(";
    assert_eq!(
        found(link),
        [(3, "struct Status".to_owned(), false), (4, "fn raw".to_owned(), false)]
    );
    let elsewhere = "/// ```\n/// f();\n/// ```\npub const N: usize = 1;";
    assert_eq!(found(elsewhere), [(4, "const N".to_owned(), false)]);
    let private =
        "pub(crate) fn f() {}\nfn g() {}\npub use a::b;\npub mod c;\n#[doc(hidden)]\npub fn h() {}";
    assert_eq!(found(private), []);
}
