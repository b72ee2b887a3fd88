//! Curves or bars in a picture.

use std::error::Error;
use std::ops::Range;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::picture::{ABOVE, BELOW, BESIDE, Drawing, MARGIN, Pixels, TEXT, short};

/// Colors that people with any kind of color vision can tell apart, of M. Okabe and K. Ito.
const COLORS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// Values over 1, 2, 3, …
pub struct Diagram<'a> {
    /// The names of the axes, with their units.
    pub x: &'a str,
    pub y: &'a str,
    /// The names of the series, and their values. The values may differ in number.
    pub series: Vec<(&'a str, Vec<f64>)>,
    pub style: Style,
}

/// How the values of a series are drawn.
#[derive(Clone, Copy, PartialEq)]
pub enum Style {
    Lines,
    Bars,
}

impl Diagram<'_> {
    fn x_range(&self) -> Range<f64> {
        let length = self.series.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
        match self.style {
            // A line needs two ends.
            Style::Lines => 1.0..(length as f64).max(2.0),
            Style::Bars => 0.4..length as f64 + 0.6,
        }
    }

    /// All values, with a margin. Bars stand on zero.
    fn y_range(&self) -> Range<f64> {
        let values = || self.series.iter().flat_map(|(_, values)| values.iter().copied());
        let largest = values().fold(f64::NEG_INFINITY, f64::max);
        let smallest = match self.style {
            Style::Lines => values().fold(f64::INFINITY, f64::min),
            Style::Bars => 0.0,
        };
        let margin = ((largest - smallest) * 0.05).max(1e-12);
        let below = if self.style == Style::Bars { 0.0 } else { margin };
        smallest - below..largest + margin
    }

    /// The names of the series, each after a square in its color.
    fn draw_names(&self, area: &Pixels) -> Result<(), Box<dyn Error>> {
        let centre = Pos::new(HPos::Left, VPos::Center);
        let style = TextStyle::from(("sans-serif", TEXT).into_font()).pos(centre);
        let (mut x, y) = (i32::try_from(MARGIN + BESIDE).unwrap_or(0), 20);
        for (number, (name, _)) in self.series.iter().enumerate() {
            area.draw(&Rectangle::new([(x, y - 6), (x + 12, y + 6)], color(number)))?;
            area.draw_text(name, &style, (x + 20, y))?;
            let (width, _) = area.estimate_text_size(name, &style)?;
            x += i32::try_from(width).unwrap_or(0) + 50;
        }
        Ok(())
    }
}

impl Drawing for Diagram<'_> {
    fn size(&self) -> (u32, u32) {
        (640, 480)
    }

    fn draw(&self, area: &Pixels) -> Result<(), Box<dyn Error>> {
        let (top, area) = area.split_vertically(ABOVE);
        self.draw_names(&top)?;
        let mut chart = ChartBuilder::on(&area)
            .margin_left(MARGIN)
            .margin_right(MARGIN)
            .x_label_area_size(BELOW)
            .y_label_area_size(BESIDE)
            .build_cartesian_2d(self.x_range(), self.y_range())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&|x| if x.fract() == 0.0 { x.to_string() } else { String::new() })
            .y_label_formatter(&short)
            .label_style(("sans-serif", TEXT))
            .axis_desc_style(("sans-serif", TEXT))
            .draw()?;
        let width = 0.8 / self.series.len() as f64;
        for (number, (_, values)) in self.series.iter().enumerate() {
            let color = color(number);
            let points = (1..).map(f64::from).zip(values.iter().copied());
            match self.style {
                Style::Lines => chart.draw_series(LineSeries::new(points, color).point_size(3))?,
                Style::Bars => chart.draw_series(points.map(|(x, y)| {
                    let left = x - 0.4 + width * number as f64;
                    Rectangle::new([(left, 0.0), (left + width, y)], color)
                }))?,
            };
        }
        Ok(())
    }
}

fn color(number: usize) -> ShapeStyle {
    COLORS[number % COLORS.len()].filled().stroke_width(2)
}
