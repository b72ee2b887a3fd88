//! Pictures of results: the time over the bytes, in a panel for each operation.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::picture::{Drawing, Picture, Pixels};
use super::protocol::{Direction, Way};
use super::report::{label, size};
use super::row::Row;

/// Colors that people with any kind of color vision can tell apart, of M. Okabe and K. Ito.
const RAW: RGBColor = RGBColor(110, 110, 110);
const OURS: RGBColor = RGBColor(0, 114, 178);
const PEERS: [RGBColor; 3] = [RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

const TEXT: u32 = 15;
const PANEL: (u32, u32) = (330, 260);
const COLUMNS: usize = 3;

/// Draws what the rows have, and returns the names of the files: of operations that block, except for
/// messages; and of messages and those that are started.
pub fn draw(folder: &Path, name: &str, rows: &[Row]) -> Result<Vec<String>, Box<dyn Error>> {
    let is_message = |row: &Row| row.case.operation.starts_with("send");
    let is_other = |row: &Row| row.case.way == Way::Started || is_message(row);
    let mut names = Vec::new();
    for (name, is_in_picture) in [
        (format!("{name}.png"), &(|row: &Row| !is_other(row)) as &dyn Fn(&Row) -> bool),
        (format!("{name}-started.png"), &is_other),
    ] {
        let mut panels: Vec<Panel> = Vec::new();
        let rows = rows.iter().filter(|row| row.case.bytes > 0 && row.case.way != Way::Counts);
        for row in rows.filter(|row| is_in_picture(row)) {
            let title = label(&row.case.operation, row.case.way);
            match panels.iter_mut().find(|panel| panel.title == title) {
                Some(panel) => panel.rows.push(row),
                None => panels.push(Panel { title, rows: vec![row] }),
            }
        }
        if panels.is_empty() {
            continue;
        }
        let mut peers: Vec<&str> = Vec::new();
        for peer in panels.iter().flat_map(|panel| &panel.rows).flat_map(|row| row.peers.keys()) {
            if !peers.contains(&peer.as_str()) {
                peers.push(peer);
            }
        }
        let mut drawings = vec![Part::Names(&peers)];
        drawings.extend(panels.chunks(COLUMNS).map(|panels| Part::Panels(panels, &peers)));
        Picture::at(folder.join(&name))?.write(&drawings)?;
        names.push(name);
    }
    Ok(names)
}

/// A part of a picture, as wide as all of it.
enum Part<'a> {
    /// The names of the colors and lines.
    Names(&'a [&'a str]),
    /// Panels side by side, with times of these peers.
    Panels(&'a [Panel<'a>], &'a [&'a str]),
}

/// An operation that is called in a way.
struct Panel<'a> {
    title: String,
    rows: Vec<&'a Row>,
}

/// The times of one program in one pass.
struct Series {
    color: RGBColor,
    is_dashed: bool,
    /// Powers of two of bytes, and of ten of microseconds.
    points: Vec<(f64, f64)>,
}

impl Drawing for Part<'_> {
    fn size(&self) -> (u32, u32) {
        let width = PANEL.0 * u32::try_from(COLUMNS).unwrap_or(1);
        match self {
            Self::Names(_) => (width, 40),
            Self::Panels(..) => (width, PANEL.1),
        }
    }

    fn draw(&self, area: &Pixels) -> Result<(), Box<dyn Error>> {
        match self {
            Self::Names(peers) => draw_names(area, peers),
            Self::Panels(panels, peers) => {
                for (panel, area) in panels.iter().zip(area.split_evenly((1, COLUMNS))) {
                    panel.draw(&area, peers)?;
                }
                Ok(())
            }
        }
    }
}

/// Each name after a line in its color; then the meaning of the kinds of line.
fn draw_names(area: &Pixels, peers: &[&str]) -> Result<(), Box<dyn Error>> {
    let style =
        TextStyle::from(("sans-serif", TEXT).into_font()).pos(Pos::new(HPos::Left, VPos::Center));
    let colors = [RAW, OURS].into_iter().chain(PEERS);
    let names = ["raw MPI", "mpi4tch"].into_iter().chain(peers.iter().copied());
    let (mut x, y) = (20, 20);
    let write = |x: &mut i32, name: &str| -> Result<(), Box<dyn Error>> {
        area.draw_text(name, &style, (*x + 34, y))?;
        let (width, _) = area.estimate_text_size(name, &style)?;
        *x += i32::try_from(width).unwrap_or(0) + 64;
        Ok(())
    };
    for (name, color) in names.zip(colors) {
        area.draw(&PathElement::new([(x, y), (x + 26, y)], color.stroke_width(3)))?;
        write(&mut x, name)?;
    }
    area.draw(&PathElement::new([(x, y), (x + 26, y)], BLACK.stroke_width(2)))?;
    write(&mut x, "forward and backward")?;
    for dash in 0..3 {
        let start = x + 10 * dash;
        area.draw(&PathElement::new([(start, y), (start + 6, y)], BLACK.stroke_width(2)))?;
    }
    write(&mut x, "forward")
}

impl Panel<'_> {
    fn series(&self, peers: &[&str]) -> Vec<Series> {
        let mut all = Vec::new();
        for (direction, is_dashed) in [(Direction::Forward, true), (Direction::Both, false)] {
            let mut add = |color, median: &dyn Fn(&Row) -> Option<f64>| {
                let rows = self.rows.iter().filter(|row| row.direction == direction);
                let points: Vec<(f64, f64)> = rows
                    .filter_map(|row| {
                        let bytes = u32::try_from(row.case.bytes).map(f64::from).ok()?;
                        Some((bytes.log2(), median(row)?.max(1e-3).log10()))
                    })
                    .collect();
                if !points.is_empty() {
                    all.push(Series { color, is_dashed, points });
                }
            };
            add(RAW, &|row| Some(row.raw.median));
            for (name, color) in peers.iter().zip(PEERS) {
                add(color, &|row| Some(row.peers.get(*name)?.times.median));
            }
            add(OURS, &|row| Some(row.ours.median));
        }
        all
    }

    fn draw(&self, area: &Pixels, peers: &[&str]) -> Result<(), Box<dyn Error>> {
        let series = self.series(peers);
        let points = || series.iter().flat_map(|series| &series.points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) =
                values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
            // One size alone needs a width, too.
            low - 0.3..high + 0.3
        };
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", TEXT + 1))
            .margin(8)
            .margin_right(16)
            .x_label_area_size(28)
            .y_label_area_size(58)
            .build_cartesian_2d(
                range(&mut points().map(|point| point.0)),
                range(&mut points().map(|point| point.1)),
            )?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(&|power| whole(*power).map_or(String::new(), |n| size(1 << n)))
            .y_label_formatter(&|power| power_of_ten(*power))
            .label_style(("sans-serif", TEXT - 2))
            .draw()?;
        for Series { color, is_dashed, points } in series {
            let style = color.stroke_width(2);
            let line = points.iter().copied();
            if is_dashed {
                chart.draw_series(DashedLineSeries::new(line, 6, 4, style))?;
            } else {
                chart.draw_series(LineSeries::new(line, style))?;
            }
            let dots = points.into_iter().map(|point| Circle::new(point, 2, color.filled()));
            chart.draw_series(dots)?;
        }
        Ok(())
    }
}

/// A whole number from 0 to 62, if it is one.
fn whole(number: f64) -> Option<u32> {
    (0..63).find(|&n| (number - f64::from(n)).abs() < 1e-6)
}

/// A power of ten of microseconds: `10 µs`, `1 ms`; nothing between them.
fn power_of_ten(power: f64) -> String {
    const LABELS: [&str; 10] =
        ["0.1 µs", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"];
    let label = whole(power + 1.0).and_then(|n| LABELS.get(usize::try_from(n).ok()?));
    label.copied().unwrap_or_default().to_owned()
}
