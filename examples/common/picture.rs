//! A picture of an example's results: drawings side by side, in a PNG file.
//!
//! The font is in the program, and no other is needed on the machine: DejaVu Sans, from the crate
//! dejavu, under the free licence of Bitstream Vera, <https://dejavu-fonts.github.io/License.html>.

use std::error::Error;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use mpi4tch::Communicator;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

/// The size of the text, and the spaces around a drawing, in pixels: below and beside it is the text
/// of the axes, above it are names.
pub const TEXT: u32 = 18;
pub const BELOW: u32 = 64;
pub const BESIDE: u32 = 72;
pub const ABOVE: u32 = 44;
pub const MARGIN: u32 = 16;

pub type Pixels<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// A part of a picture.
pub trait Drawing {
    /// Its width and height in pixels.
    fn size(&self) -> (u32, u32);

    fn draw(&self, area: &Pixels) -> Result<(), Box<dyn Error>>;
}

/// A number without trailing zeros.
pub fn short(number: &f64) -> String {
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
        Self::at(folder.join(name)).map(Some)
    }

    /// Makes the file.
    pub fn at(path: PathBuf) -> Result<Self, String> {
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(cannot_write(&path, error)),
        }
    }

    /// Draws side by side, or wide drawings one below the other, and writes the file.
    pub fn write(self, drawings: &[impl Drawing]) -> Result<(), Box<dyn Error>> {
        let (mut width, mut height) = (0, 0);
        let mut places = Vec::new();
        for (w, h) in drawings.iter().map(Drawing::size) {
            if 5 * w < 9 * h {
                places.push(((width, 0), (w, h)));
                (width, height) = (width + w, height.max(h));
            } else {
                places.push(((0, height), (w, h)));
                (width, height) = (width.max(w), height + h);
            }
        }
        let mut pixels = vec![0; usize::try_from(3 * width * height)?];
        register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular())
            .map_err(|_| "the font of the crate dejavu is not valid")?;
        let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
        area.fill(&WHITE)?;
        for (drawing, (place, size)) in drawings.iter().zip(places) {
            drawing.draw(&area.clone().shrink(place, size))?;
        }
        area.present()?;
        drop(area);
        self.write_pixels(&pixels, (width, height)).map_err(|e| cannot_write(&self.path, e))?;
        println!("\npicture: {}", self.path.display());
        Ok(())
    }

    fn write_pixels(&self, pixels: &[u8], size: (u32, u32)) -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(BufWriter::new(&self.file), size.0, size.1);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(pixels)?;
        writer.finish()
    }
}

fn cannot_write(path: &Path, error: impl Display) -> String {
    format!("cannot write {}: {error}", path.display())
}
