//! A picture of an example's results: diagrams side by side, in a PNG file.
//!
//! The font is in the program, and no other is needed on the machine: DejaVu Sans, from the crate
//! dejavu, under the free licence of Bitstream Vera, <https://dejavu-fonts.github.io/License.html>.

use std::error::Error;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::BufWriter;
use std::ops::Range;
use std::path::{Path, PathBuf};

use mpi4tch::Communicator;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

/// The size of a diagram in pixels.
const SIZE: (u32, u32) = (640, 480);

/// The size of the text, and the spaces around the curves, in pixels: below and beside them is the
/// text of the axes, above them are the names of the series.
const TEXT: u32 = 18;
const BELOW: u32 = 64;
const BESIDE: u32 = 72;
const ABOVE: u32 = 44;
const MARGIN: u32 = 16;

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

    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
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

    /// The names of the series, each after a square in its color.
    fn draw_names<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
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

fn color(number: usize) -> ShapeStyle {
    COLORS[number % COLORS.len()].filled().stroke_width(2)
}

/// A number without trailing zeros.
fn short(number: &f64) -> String {
    let text = format!("{number:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The file for a picture.
pub struct Picture {
    path: PathBuf,
    file: File,
}

impl Picture {
    /// Makes the file, and the folder if it is missing: on rank 0, and if a folder is given. It is
    /// called before the training, so that an error shows early: it ends the job.
    pub fn create(
        comm: &Communicator,
        folder: Option<&Path>,
        name: &str,
    ) -> Result<Option<Self>, String> {
        let Some(folder) = folder.filter(|_| comm.rank() == 0) else { return Ok(None) };
        fs::create_dir_all(folder)
            .map_err(|error| format!("cannot create the folder {}: {error}", folder.display()))?;
        let path = folder.join(name);
        match File::create(&path) {
            Ok(file) => Ok(Some(Self { path, file })),
            Err(error) => Err(cannot_write(&path, error)),
        }
    }

    /// Draws the diagrams side by side, and writes the file.
    pub fn write(self, diagrams: &[Diagram]) -> Result<(), Box<dyn Error>> {
        let (width, height) = (SIZE.0 * u32::try_from(diagrams.len())?, SIZE.1);
        let mut pixels = vec![0; usize::try_from(3 * width * height)?];
        draw(diagrams, &mut pixels, (width, height))?;

        let mut encoder = png::Encoder::new(BufWriter::new(self.file), width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(|error| cannot_write(&self.path, error))?;
        writer.write_image_data(&pixels).map_err(|error| cannot_write(&self.path, error))?;
        writer.finish().map_err(|error| cannot_write(&self.path, error))?;
        println!("\npicture: {}", self.path.display());
        Ok(())
    }
}

fn draw(diagrams: &[Diagram], pixels: &mut [u8], size: (u32, u32)) -> Result<(), Box<dyn Error>> {
    register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| "the font of the crate dejavu is not valid")?;
    let area = BitMapBackend::with_buffer(pixels, size).into_drawing_area();
    area.fill(&WHITE)?;
    for (area, diagram) in area.split_evenly((1, diagrams.len())).iter().zip(diagrams) {
        diagram.draw(area)?;
    }
    area.present()?;
    Ok(())
}

fn cannot_write(path: &Path, error: impl Display) -> String {
    format!("cannot write {}: {error}", path.display())
}
