//! Pictures of results: curves or bars, in panels.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::picture::{Drawing, Picture, Pixels};

/// Colors that people with any kind of color vision can tell apart, of M. Okabe and K. Ito.
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(110, 110, 110),
    RGBColor(0, 0, 0),
];

const TEXT: u32 = 14;
const PANEL: (u32, u32) = (500, 360);
const COLUMNS: usize = 2;
/// The height of a line of names.
const LINE: i32 = 20;

/// A diagram, whose values begin at zero.
pub struct Panel {
    pub title: String,
    /// The names of the axes, with their units.
    pub x: &'static str,
    pub y: &'static str,
    pub axis: Axis,
    /// The names of the series, and their points.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

/// What stands on the horizontal axis.
pub enum Axis {
    /// Numbers, and lines over them.
    Linear,
    /// Powers of ten, and lines over them.
    Logarithmic,
    /// Names, for 0, 1, 2, …, and bars over them.
    Names(Vec<String>),
}

/// Draws the panels two by two, in a file. A name has the same color in all of them.
pub fn draw(path: &Path, panels: &[Panel]) -> Result<(), Box<dyn Error>> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in panels.iter().flat_map(|panel| &panel.series) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let rows: Vec<Row> = panels.chunks(COLUMNS).map(|panels| Row(panels, &names)).collect();
    Picture::at(path.to_owned())?.write(&rows)
}

/// Panels side by side, and all names in the order of their colors.
struct Row<'a>(&'a [Panel], &'a [&'a str]);

impl Drawing for Row<'_> {
    fn size(&self) -> (u32, u32) {
        (PANEL.0 * u32::try_from(COLUMNS).unwrap_or(1), PANEL.1)
    }

    fn draw(&self, area: &Pixels) -> Result<(), Box<dyn Error>> {
        let areas = area.split_evenly((1, COLUMNS));
        self.0.iter().zip(&areas).try_for_each(|(panel, area)| panel.draw(area, self.1))
    }
}

impl Panel {
    fn ranges(&self) -> (Range<f64>, Range<f64>) {
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let largest = points().map(|point| point.1).fold(0.0, f64::max);
        let smallest = points().map(|point| point.1).fold(0.0, f64::min);
        let xs = points().map(|point| self.position(point.0));
        let x = match &self.axis {
            Axis::Names(names) => -0.5..names.len() as f64 - 0.5,
            _ => {
                let (low, high) =
                    xs.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
                low..high.max(low + 1e-9)
            }
        };
        (x, smallest * 1.05..(largest * 1.05).max(1e-9))
    }

    fn position(&self, x: f64) -> f64 {
        if matches!(self.axis, Axis::Logarithmic) { x.log10() } else { x }
    }

    fn label(&self, x: f64) -> String {
        // What is computed of a tick is not exact.
        let (nearest, is_whole) = (x.round(), (x - x.round()).abs() < 1e-6);
        match &self.axis {
            Axis::Linear => format!("{}", (x * 100.0).round() / 100.0),
            _ if !is_whole => String::new(),
            Axis::Logarithmic => format!("{}", 10_f64.powf(nearest)),
            Axis::Names(names) => {
                let name = names.iter().enumerate().find(|(i, _)| *i as f64 == nearest);
                name.map_or(String::new(), |(_, name)| name.clone())
            }
        }
    }

    /// The title, and the names of the series, each after a square in its color. Returns the area
    /// that is left.
    fn draw_names<'b>(
        &self,
        area: &DrawingArea<BitMapBackend<'b>, Shift>,
        names: &[&str],
    ) -> Result<DrawingArea<BitMapBackend<'b>, Shift>, Box<dyn Error>> {
        let font = TextStyle::from(("sans-serif", TEXT).into_font());
        let middle = font.pos(Pos::new(HPos::Left, VPos::Center));
        let title = TextStyle::from(("sans-serif", TEXT + 2).into_font());
        area.draw_text(&self.title, &title, (16, 8))?;
        let right = i32::try_from(PANEL.0).unwrap_or(0) - 16;
        let (mut x, mut y) = (16, 8 + 2 * LINE);
        for (name, _) in &self.series {
            let (width, _) = area.estimate_text_size(name, &middle)?;
            let width = i32::try_from(width).unwrap_or(0) + 40;
            if x + width > right && x > 16 {
                (x, y) = (16, y + LINE);
            }
            area.draw(&Rectangle::new([(x, y - 6), (x + 12, y + 6)], color(name, names)))?;
            area.draw_text(name, &middle, (x + 18, y))?;
            x += width;
        }
        Ok(area.split_vertically(y + LINE).1)
    }

    fn draw(&self, area: &Pixels, names: &[&str]) -> Result<(), Box<dyn Error>> {
        let area = self.draw_names(area, names)?;
        let (x_range, y_range) = self.ranges();
        let mut chart = ChartBuilder::on(&area)
            .margin_left(8)
            .margin_right(24)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(x_range, y_range)?;
        let mut mesh = chart.configure_mesh();
        if let Axis::Names(names) = &self.axis {
            mesh.x_labels(2 * names.len()).disable_x_mesh();
        }
        mesh.light_line_style(TRANSPARENT)
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&|x| self.label(*x))
            .y_label_formatter(&|y| format!("{}", (y * 1000.0).round() / 1000.0))
            .label_style(("sans-serif", TEXT))
            .axis_desc_style(("sans-serif", TEXT))
            .draw()?;
        let width = 0.8 / self.series.len() as f64;
        for (number, (name, points)) in self.series.iter().enumerate() {
            let color = color(name, names);
            let points = points.iter().map(|(x, y)| (self.position(*x), *y));
            match self.axis {
                Axis::Names(_) => chart.draw_series(points.map(|(x, y)| {
                    let left = x - 0.4 + width * number as f64;
                    Rectangle::new([(left, 0.0), (left + width, y)], color)
                }))?,
                _ => chart.draw_series(LineSeries::new(points, color).point_size(3))?,
            };
        }
        Ok(())
    }
}

fn color(name: &str, names: &[&str]) -> ShapeStyle {
    let number = names.iter().position(|other| *other == name).unwrap_or(0);
    COLORS[number % COLORS.len()].filled().stroke_width(2)
}
