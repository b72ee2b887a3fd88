//! A field as colors in a picture, with a bar that says which color is which value.

use std::error::Error;
use std::ops::Range;

use mpi4tch::tch::{Kind, Tensor};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::picture::{ABOVE, BELOW, BESIDE, Drawing, MARGIN, Pixels, TEXT, short};

/// The space for the bar of colors and its numbers, and the width of the bar, in pixels.
const BAR: u32 = 104;
const BAR_WIDTH: u32 = 18;

/// A field on a rectangle. Its first row is at the bottom.
pub struct HeatMap<'a> {
    /// What it shows, with the unit.
    pub title: &'a str,
    /// The names of the axes, with their units, and the rectangle's extents along them.
    pub x: (&'a str, f64),
    pub y: (&'a str, f64),
    pub field: Tensor,
    /// The values of the first and the last color.
    pub range: Range<f64>,
    pub colors: Colors,
    /// The width of the drawing in pixels.
    pub width: u32,
}

/// Colors that people with any kind of color vision can tell apart, in steps that look equal.
#[allow(dead_code, reason = "each example uses some of it")]
#[derive(Clone, Copy)]
pub enum Colors {
    /// Viridis, from dark to bright.
    Sequential,
    /// From blue by white to red, for values on both sides of the middle of the range.
    Diverging,
}

impl Colors {
    fn of(self, value: f64, range: &Range<f64>) -> RGBColor {
        let value = value.clamp(range.start, range.end);
        match self {
            Self::Sequential => ViridisRGB.get_color_normalized(value, range.start, range.end),
            // By C. Brewer, <https://colorbrewer2.org>.
            Self::Diverging => DerivedColorMap::new(&[
                RGBColor(33, 102, 172),
                RGBColor(103, 169, 207),
                RGBColor(209, 229, 240),
                RGBColor(247, 247, 247),
                RGBColor(253, 219, 199),
                RGBColor(239, 138, 98),
                RGBColor(178, 24, 43),
            ])
            .get_color_normalized(value, range.start, range.end),
        }
    }
}

/// From the smallest to the largest value.
#[allow(dead_code, reason = "each example uses some of it")]
pub fn range(field: &Tensor) -> Range<f64> {
    field.min().double_value(&[])..field.max().double_value(&[])
}

/// As far below zero as above it.
#[allow(dead_code, reason = "each example uses some of it")]
pub fn symmetric_range(field: &Tensor) -> Range<f64> {
    let largest = field.abs().max().double_value(&[]);
    -largest..largest
}

impl HeatMap<'_> {
    /// The size of the rectangle in pixels. It has the shape of the extents.
    fn inside(&self) -> (u32, u32) {
        let width = self.width - BESIDE - 3 * MARGIN - BAR;
        let height = f64::from(width) * self.y.1 / self.x.1;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is small")]
        (width, height.round() as u32)
    }

    /// The bar, in an area as high as the rectangle and the axis below it.
    fn draw_bar(&self, area: &Pixels) -> Result<(), Box<dyn Error>> {
        let Range { start, end } = self.range;
        let mut chart = ChartBuilder::on(area)
            .margin_bottom(BELOW)
            .right_y_label_area_size(BAR - BAR_WIDTH)
            .build_cartesian_2d(0.0..1.0, start..end)?;
        let step = (end - start) / 128.0;
        chart.draw_series((0..128).map(|i| {
            let bottom = start + step * f64::from(i);
            let color = self.colors.of(bottom + step / 2.0, &self.range);
            Rectangle::new([(0.0, bottom), (1.0, bottom + step)], color.filled())
        }))?;
        chart
            .configure_mesh()
            .disable_mesh()
            .y_labels(7)
            .y_label_formatter(&|value| significant(*value, end - start))
            .label_style(("sans-serif", TEXT))
            .draw()?;
        Ok(())
    }
}

impl Drawing for HeatMap<'_> {
    fn size(&self) -> (u32, u32) {
        (self.width, ABOVE + self.inside().1 + BELOW)
    }

    fn draw(&self, area: &Pixels) -> Result<(), Box<dyn Error>> {
        let centre = Pos::new(HPos::Center, VPos::Center);
        let title = TextStyle::from(("sans-serif", TEXT).into_font()).pos(centre);
        let (width, _) = self.inside();
        let (top, area) = area.split_vertically(ABOVE);
        top.draw_text(self.title, &title, (i32::try_from(MARGIN + BESIDE + width / 2)?, 24))?;
        let (left, right) = area.split_horizontally(BESIDE + width + 2 * MARGIN);

        let mut chart = ChartBuilder::on(&left)
            .margin_left(MARGIN)
            .margin_right(MARGIN)
            .x_label_area_size(BELOW)
            .y_label_area_size(BESIDE)
            .build_cartesian_2d(0.0..self.x.1, 0.0..self.y.1)?;
        let (rows, columns) = self.field.size2()?;
        let values = Vec::<f64>::try_from(self.field.to_kind(Kind::Double).flatten(0, -1))?;
        let (height, width) = (self.y.1 / rows as f64, self.x.1 / columns as f64);
        let place = |cell: i64| ((cell % columns) as f64 * width, (cell / columns) as f64 * height);
        chart.draw_series((0..).map(place).zip(values).map(|((x, y), value)| {
            let color = self.colors.of(value, &self.range);
            Rectangle::new([(x, y), (x + width, y + height)], color.filled())
        }))?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(5)
            .y_labels(5)
            .x_desc(self.x.0)
            .y_desc(self.y.0)
            .x_label_formatter(&short)
            .y_label_formatter(&short)
            .label_style(("sans-serif", TEXT))
            .axis_desc_style(("sans-serif", TEXT))
            .draw()?;
        self.draw_bar(&right)
    }
}

/// A number as short as a label of so long a range needs.
fn significant(number: f64, range: f64) -> String {
    match number.abs() {
        size if size < 1e-6 * range => "0".to_owned(),
        size if !(1e-3..1e5).contains(&size) => format!("{number:.1e}"),
        _ => short(&number),
    }
}
