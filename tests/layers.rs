//! The folders of `src/` are layers: a file uses what stands in its own folder or in one below.

use std::fs;
use std::path::{Path, PathBuf};

/// From the bottom up. The files that stand in no folder are above all.
const LAYERS: [&str; 10] = [
    "base",
    "autograd",
    "environment",
    "communicator",
    "call",
    "engine",
    "operations",
    "replicated",
    "data_parallel",
    "torchscript",
];

/// The folder of the guide's pages, which are documentation only.
const PAGES: &str = "guide";

/// How high a folder stands.
fn height(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|other| *other == layer)
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The words of code that stand before the comment of a line.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or("")
}

/// What follows each `start` in a line: up to the end of the word.
fn words<'l>(line: &'l str, start: &'l str) -> impl Iterator<Item = &'l str> {
    line.split(start).skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

/// The offences of one file: a line for each.
fn offences(path: &Path, text: &str) -> Vec<String> {
    let modules: Vec<String> =
        path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    // Of a folder's own file the folder is the module.
    let depth = modules.len() - usize::from(path.ends_with("mod.rs"));
    let Some(own) = height(&modules[0]) else { return Vec::new() };
    let mut offences = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = code(line);
        let mut offend = |what: String| {
            offences.push(format!("{}:{number}: uses {what}", path.display()));
        };
        for word in words(line, "crate::") {
            if height(word).is_none_or(|other| other > own) {
                offend(format!("crate::{word}"));
            }
        }
        if line.contains("extern crate self") {
            offend("its crate by another name".to_owned());
        }
        let ups = line.matches("super::").count();
        if ups >= depth {
            offend("the crate's root by super".to_owned());
        }
    }
    offences
}

#[test]
fn no_file_uses_what_stands_above_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    for file in sources(&root) {
        let text = fs::read_to_string(&file).expect("it can be read");
        all.extend(offences(file.strip_prefix(&root).expect("it is below"), &text));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn every_folder_is_a_layer() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(root).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
        let is_known = path.is_file() || height(&name).is_some() || name == PAGES;
        assert!(is_known, "{name} is no layer");
    }
}

#[test]
fn offences_are_found() {
    let found = |path: &str, text: &str| offences(Path::new(path), text);
    let above = found("call/plan.rs", "// crate::engine\nuse crate::engine::flight::Flight;\n");
    assert_eq!(above, ["call/plan.rs:2: uses crate::engine"]);
    let inline = found("call/plan.rs", "fn f() -> crate::Rank { crate::base::rank::index(0) }");
    assert_eq!(inline, ["call/plan.rs:1: uses crate::Rank"]);
    let root = found("call/plan.rs", "use super::super::engine;");
    assert_eq!(root, ["call/plan.rs:1: uses the crate's root by super"]);
    assert_eq!(found("call/mod.rs", "use super::engine;").len(), 1);
    assert_eq!(found("call/plan.rs", "use super::{super::engine::tape};").len(), 1);
    assert_eq!(found("call/plan.rs", "extern crate self as me;").len(), 1);
    assert!(found("call/plan.rs", "use super::made::Made;\nuse crate::base::op::Op;").is_empty());
    assert!(found("engine/tape/pass.rs", "use super::super::flight::Flight;").is_empty());
    assert!(found("testing.rs", "use crate::engine::tape::Tape;").is_empty());
}
