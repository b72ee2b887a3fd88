//! The pictures of the guide: each `src/guide/pictures/NAME.pikchr` is drawn as `NAME.svg` beside it,
//! which the guide includes. `make pictures` writes the files; otherwise they are compared with what is
//! drawn.
//!
//! A picture stands in the page itself and not in a file of its own, so that `currentColor` is the
//! colour of the text around it, in each of rustdoc's themes.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use pikchr::{Pikchr, PikchrFlags};
use roxmltree::{Document, Node};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/guide/pictures");

/// Set to `write` by `make pictures`.
const VARIABLE: &str = "MPI4TCH_PICTURES";

/// The file of definitions that all pictures have in common.
const STYLE: &str = "style.pikchr";

/// pikchr's colours, and what they are in the page. Others are taken as they are: they can be seen on
/// white and on black.
const COLOURS: [(&str, &str); 2] =
    [("fill:rgb(254,0,0)", "fill:currentColor;fill-opacity:0.12"), ("rgb(0,0,0)", "currentColor")];

/// What the colours of `style.pikchr` for messages and for problems are in SVG.
const ACCENTS: [&str; 2] = ["rgb(61,143,209)", "rgb(208,120,42)"];

/// A picture is a paragraph, and not wider than the page.
const LAYOUT: &str = "display:block;margin:1em 0;max-width:100%;height:auto";

/// The fonts of rustdoc's headings. A picture is shown at [`SCALE`] times its size.
const FONT: &str = "font-family:'Fira Sans',Arial,sans-serif;font-size:23px";

/// By how much pikchr's units, 144 per inch, are larger than pixels.
const SCALE: f64 = 0.65;

/// The files in the folder of pictures with this ending, but for the common definitions.
fn files(ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path());
    let is_picture = |path: &Path| !path.ends_with(STYLE);
    let mut files: Vec<_> = entries
        .filter(|path| path.extension() == Some(OsStr::new(ending)) && is_picture(path))
        .collect();
    files.sort();
    files
}

/// Draws a picture. The comment that it begins with becomes its text alternative.
fn draw(style: &str, source: &str) -> Result<String, String> {
    let comment = source.lines().map_while(|line| line.strip_prefix("# "));
    let label = comment.collect::<Vec<_>>().join(" ");
    if label.is_empty() {
        return Err("it does not begin with a comment that says what can be seen".to_owned());
    }
    let drawn = Pikchr::render(&format!("{style}{source}"), None, PikchrFlags::default())?;
    let (_, view) = drawn.split_once("viewBox=\"").ok_or("it is empty")?;
    let (view, elements) = view.split_once("\">").ok_or("the view box does not end")?;
    let width: f64 = view.split(' ').nth(2).and_then(|w| w.parse().ok()).ok_or("no width")?;
    let label = label.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    let first = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"{label}\" \
         width=\"{:.0}\" viewBox=\"{view}\" style=\"{LAYOUT};{FONT}\">",
        width * SCALE
    );
    let recoloured =
        COLOURS.iter().fold(elements.to_owned(), |svg, (from, to)| svg.replace(from, to));
    Ok(first + &recoloured)
}

#[test]
fn pictures_are_drawn_from_their_sources() {
    let writes = std::env::var(VARIABLE).is_ok_and(|value| value == "write");
    let style = fs::read_to_string(Path::new(FOLDER).join(STYLE)).unwrap();
    let sources = files("pikchr");
    assert!(!sources.is_empty());
    for path in &sources {
        let name = path.display();
        let source = fs::read_to_string(path).unwrap();
        let drawn = draw(&style, &source).unwrap_or_else(|error| panic!("{name}: {error}"));
        let picture = path.with_extension("svg");
        if writes {
            fs::write(&picture, &drawn).unwrap();
        }
        let stored = fs::read_to_string(&picture).unwrap_or_default();
        assert!(stored == drawn, "{name} has changed: `make pictures` draws it");
    }
    let drawn: Vec<_> = sources.iter().map(|source| source.with_extension("svg")).collect();
    assert_eq!(files("svg"), drawn, "a picture without a source");
}

#[test]
fn pictures_can_be_read_in_every_theme() {
    for path in files("svg") {
        let name = path.display();
        let svg = fs::read_to_string(&path).unwrap();
        // A blank line would end the HTML in the Markdown of a page.
        assert!(svg.lines().all(|line| !line.trim().is_empty()), "{name} has a blank line");
        let document = Document::parse(&svg).unwrap_or_else(|error| panic!("{name}: {error}"));
        let root = document.root_element();
        assert_eq!((root.tag_name().name(), root.attribute("role")), ("svg", Some("img")));
        assert!(root.attribute("aria-label").is_some_and(|label| label.len() > 20), "{name}");
        for node in root.descendants().filter(Node::is_element) {
            let attributes = ["fill", "stroke", "style"].map(|name| node.attribute(name));
            for value in attributes.into_iter().flatten() {
                let rest = ACCENTS.iter().fold(value.to_owned(), |rest, c| rest.replace(c, ""));
                let is_fixed = ["rgb", "#", "black", "white"].iter().any(|c| rest.contains(c));
                assert!(!is_fixed, "{name}: {value} cannot be seen on every ground");
            }
        }
    }
}

/// A text that is wider than pikchr assumes would be cut off.
#[test]
fn texts_lie_within_their_pictures() {
    for path in files("svg") {
        let svg = fs::read_to_string(&path).unwrap();
        let document = Document::parse(&svg).unwrap();
        let number = |text: &str| text.parse::<f64>().unwrap();
        let view = document.root_element().attribute("viewBox").unwrap();
        let width = number(view.split(' ').nth(2).unwrap());
        for node in document.descendants().filter(|node| node.has_tag_name("text")) {
            let text = node.text().unwrap();
            let (x, long) =
                (number(node.attribute("x").unwrap()), text.chars().count() as f64 * 11.5);
            let start = match node.attribute("text-anchor").unwrap() {
                "start" => x,
                "end" => x - long,
                _ => x - long / 2.0,
            };
            let is_within = start >= -4.0 && start + long <= width + 4.0;
            assert!(is_within, "{}: {text:?} is beyond the edge", path.display());
        }
    }
}

#[test]
fn every_picture_is_in_the_guide() {
    let pages = [include_str!("../src/guide.rs"), include_str!("../src/guide/devices.rs")];
    for path in files("svg") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let line = format!("pictures/{name}\")]");
        let is_included = |page: &&str| {
            page.lines().any(|l| l.starts_with("#![doc = include_str!(\"") && l.ends_with(&line))
        };
        assert!(pages.iter().any(is_included), "{name} is in no page");
    }
}

#[test]
fn mistakes_are_told() {
    let told = |source: &str| draw("", source).unwrap_err();
    assert!(told("box").contains("does not begin with a comment"));
    assert!(told("# A box.\nbxo \"a\"").contains("bxo"));
    let drawn = draw("", "# A box, <a & \"b\">.\nbox \"a\" fill 0xfe0000").unwrap();
    let document = Document::parse(&drawn).unwrap();
    assert_eq!(document.root_element().attribute("aria-label"), Some("A box, <a & \"b\">."));
    assert!(drawn.contains("fill:currentColor;fill-opacity:0.12") && !drawn.contains("rgb"));
}
