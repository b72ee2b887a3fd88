//! The results, as a file of data, a table and a picture.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::Point;
use crate::panels::{self, Axis, Panel};
use crate::record::{About, FOLDER, Results};

/// A diagram, which is also a table.
struct Table {
    name: &'static str,
    title: &'static str,
    x: &'static str,
    y: &'static str,
    axis: fn() -> Axis,
}

const TABLES: [Table; 7] = [
    Table {
        name: "time on ranks",
        title: "forward and backward, 1 MiB a rank; a training step",
        x: "ranks",
        y: "ms",
        axis: || Axis::Linear,
    },
    Table {
        name: "memory on ranks",
        title: "memory of a result, 1 MiB a rank",
        x: "ranks",
        y: "MiB",
        axis: || Axis::Linear,
    },
    Table {
        name: "memory of a rank",
        title: "resident memory of a rank, with libtorch and MPI",
        x: "ranks",
        y: "MiB",
        axis: || Axis::Linear,
    },
    Table {
        name: "time on a tape",
        title: "time of an operation on one number",
        x: "operations on the tape",
        y: "µs",
        axis: || Axis::Logarithmic,
    },
    Table {
        name: "memory on a tape",
        title: "memory of an operation on one number",
        x: "operations on the tape",
        y: "bytes",
        axis: || Axis::Logarithmic,
    },
    Table {
        name: "resident memory",
        title: "resident memory while training",
        x: "training steps",
        y: "MiB",
        axis: || Axis::Linear,
    },
    Table {
        name: "allocated memory",
        title: "allocated memory while training",
        x: "training steps",
        y: "MiB",
        axis: || Axis::Linear,
    },
];

/// `library` is the text of `MPI_Get_library_version`, `ranks` the largest number of ranks.
pub fn write(library: &str, ranks: usize, points: Vec<Point>) -> Result<(), Box<dyn Error>> {
    let about = About::here(library, ranks);
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder)?;
    let mut text = format!(
        "# Growth\n\n\
         Time and memory on more ranks, on longer tapes and after more training steps. The time is \
         that of the slowest rank, the median of several runs but for the tape of 100,000 operations.\nMore than {} ranks share the cores, and wait for each other. The \
         tapes and the training run on 2 ranks.\n\n\
         {}, {} cores, {}. {}, libtorch {}, mpi4tch {}; {}.\n\n\
         ![time and memory](growth.png)\n",
        about.cores,
        about.cpu,
        about.cores,
        about.kernel,
        about.mpi,
        about.libtorch,
        about.mpi4tch,
        about.date
    );
    let mut panels = Vec::new();
    for table in &TABLES {
        let series = table.series(&points);
        text += &table.text(&series);
        let (title, axis) = (table.title.to_owned(), (table.axis)());
        panels.push(Panel { title, x: table.x, y: table.y, axis, series });
    }
    println!("{text}");
    fs::write(folder.join("growth.md"), text)?;
    panels::draw(&folder.join("growth.png"), &panels)?;
    Results { about, rows: points }.write(folder, "growth")?;
    Ok(())
}

type Series = Vec<(String, Vec<(f64, f64)>)>;

impl Table {
    fn series(&self, points: &[Point]) -> Series {
        let mut series = Series::new();
        for point in points.iter().filter(|point| point.table == self.name) {
            let Point { curve, x, y, .. } = point;
            match series.iter_mut().find(|(name, _)| name == curve) {
                Some((_, points)) => points.push((*x, *y)),
                None => series.push((curve.clone(), vec![(*x, *y)])),
            }
        }
        series
    }

    /// A row for each value of x.
    fn text(&self, series: &Series) -> String {
        let names: Vec<&str> = series.iter().map(|(name, _)| name.as_str()).collect();
        let mut text = format!("\n## {}\n\n", self.title);
        let _ = writeln!(text, "| {} | {} |", self.x, names.join(" | "));
        let _ = writeln!(text, "| --- |{}", " --- |".repeat(names.len()));
        let places = series.iter().flat_map(|(_, points)| points).map(|point| point.0);
        let mut places: Vec<f64> = places.collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        for x in places {
            let _ = write!(text, "| {x} |");
            for (_, points) in series {
                let value = points.iter().find(|point| point.0 == x).map(|point| point.1);
                let _ = match value {
                    Some(value) => write!(text, " {value:.2} {} |", self.y),
                    None => write!(text, " |"),
                };
            }
            text.push('\n');
        }
        text
    }
}
