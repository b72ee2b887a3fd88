//! The table to fit, of which every rank holds some of the rows.

use std::error::Error;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use csv::{ReaderBuilder, Trim};
use mpi4tch::tch::{Device, Kind, Tensor};
use mpi4tch::{Communicator, Op};

/// This rank's rows of a table: features, then the target.
pub struct Table {
    source: String,
    names: Vec<String>,
    rows: Tensor,
}

impl Table {
    /// The coefficients of 1, x and x² in the synthetic data.
    pub const SYNTHETIC: [f64; 3] = [0.1, 1.0, -2.0];

    /// 10 000 points of a quadratic, with x from −1 to 1.
    pub fn synthetic(world: &Communicator) -> Self {
        let (begin, end) = share(world, 10_000);
        let x = Tensor::arange_start(begin, end, (Kind::Double, Device::Cpu)) * (2.0 / 9_999.0) - 1;
        let square = x.square();
        let [a, b, c] = Self::SYNTHETIC;
        let y = &x * b + &square * c + a;
        let names = ["x", "x²", "y"].map(str::to_owned).to_vec();
        let source = "synthetic".to_owned();
        Self { source, names, rows: Tensor::stack(&[x, square, y], 1) }
    }

    /// Reads a file on every rank and keeps a share of its rows.
    ///
    /// An error on one rank is returned on all: if one rank returned alone, the others would wait
    /// for it in their next communication.
    pub fn read(world: &Communicator, path: &Path) -> Result<Self, Box<dyn Error>> {
        let source = path.display().to_string();
        let (names, values, fingerprint) = agree(world, parse(path))?;
        let first = reduce(world, if world.rank() == 0 { fingerprint } else { i64::MIN }, Op::Max)?;
        let other = || format!("{source} is another file than on rank 0");
        agree(world, (fingerprint == first).then_some(()).ok_or_else(other))?;
        let columns = names.len();
        let (begin, end) = share(world, i64::try_from(values.len() / columns)?);
        let rows = Tensor::from_slice(&values).view([-1, i64::try_from(columns)?]);
        Ok(Self { source, names, rows: rows.slice(0, begin, end, 1) })
    }

    /// The source of the data: a path, or "synthetic".
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The names of all columns but the target.
    pub fn features(&self) -> &[String] {
        &self.names[..self.names.len() - 1]
    }

    /// Gives each column the mean 0 and the standard deviation 1, over the rows of all ranks.
    pub fn standardize(&self, world: &Communicator) -> Result<Standardized, Box<dyn Error>> {
        let sum = |x: &Tensor| {
            let local = x.sum_dim_intlist(0, false, Kind::Double);
            world.all_reduce(&local, Op::Sum)
        };
        let rows = reduce(world, self.rows.size()[0], Op::Sum)? as f64;
        let mean = sum(&self.rows)? / rows;
        let centred = &self.rows - &mean;
        let deviation = (sum(&centred.square())? / rows).sqrt();
        let columns = centred / &deviation;

        let (mean, deviation) = (Vec::<f64>::try_from(mean)?, Vec::<f64>::try_from(deviation)?);
        for ((name, mean), deviation) in self.names.iter().zip(&mean).zip(&deviation) {
            // The computed mean of equal numbers can differ from them by rounding.
            if *deviation <= 1e-13 * mean.abs() {
                return Err(format!("{}: column {name} is constant", self.source).into());
            }
            if !deviation.is_finite() {
                return Err(format!("{}: column {name}: too large numbers", self.source).into());
            }
        }
        let target = columns.select(1, -1).contiguous();
        let features = columns.slice(1, 0, -1, 1).contiguous();
        Ok(Standardized { features, target, rows, mean, deviation })
    }
}

/// This rank's rows of a table whose columns have mean 0 and standard deviation 1.
pub struct Standardized {
    pub features: Tensor,
    pub target: Tensor,
    /// How many rows all ranks have together.
    pub rows: f64,
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl Standardized {
    /// The intercept and the coefficients for the table as it was before.
    pub fn in_units_of_the_table(&self, standardized: &[f64]) -> Vec<f64> {
        let k = standardized.len();
        let slope = |j: usize| standardized[j] * self.deviation[k] / self.deviation[j];
        let intercept = self.mean[k] - (0..k).map(|j| slope(j) * self.mean[j]).sum::<f64>();
        std::iter::once(intercept).chain((0..k).map(slope)).collect()
    }
}

/// The names of the columns, the values row by row, and a fingerprint of the file.
fn parse(path: &Path) -> Result<(Vec<String>, Vec<f64>, i64), String> {
    let file = path.display();
    let bytes = fs::read(path).map_err(|error| format!("cannot read {file}: {error}"))?;
    let mut fingerprint = DefaultHasher::new();
    bytes.hash(&mut fingerprint);

    let mut reader =
        ReaderBuilder::new().flexible(true).trim(Trim::All).from_reader(bytes.as_slice());
    let header = reader.headers().map_err(|error| format!("{file}: {error}"))?.clone();
    let columns = header.len();
    if columns == 0 {
        return Err(format!("{file} is empty"));
    }
    if columns == 1 {
        return Err(format!("{file} has 1 column; at least a feature and the target are needed"));
    }
    if header.iter().all(|name| name.parse::<f64>().is_ok()) {
        return Err(format!("{file}: the first line has numbers instead of the columns' names"));
    }
    let mut values = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| format!("{file}: {error}"))?;
        let line = record.position().map_or(0, |begin| line_of_data(&bytes, begin));
        if record.len() != columns {
            let fields = record.len();
            return Err(format!("{file}, line {line}: {fields} fields instead of {columns}"));
        }
        for (field, name) in record.iter().zip(&header) {
            let value = field.parse().ok().filter(|value: &f64| value.is_finite());
            values.push(value.ok_or_else(|| {
                format!("{file}, line {line}, column {name}: {field:?} is not a finite number")
            })?);
        }
    }
    let rows = values.len() / columns;
    if rows == 0 {
        return Err(format!("{file} has no rows"));
    }
    if rows < columns {
        return Err(format!("{file} has {rows} rows, fewer than the {columns} coefficients"));
    }
    let names = header.iter().map(str::to_owned).collect();
    Ok((names, values, fingerprint.finish().cast_signed()))
}

/// The line of a record. The crate csv counts empty lines to the record that follows.
fn line_of_data(file: &[u8], begin: &csv::Position) -> u64 {
    let rest = file.iter().skip(usize::try_from(begin.byte()).unwrap_or(usize::MAX));
    let breaks = rest.take_while(|byte| matches!(byte, b'\r' | b'\n'));
    breaks.fold(begin.line(), |line, byte| line + u64::from(*byte == b'\n'))
}

/// The range of this rank's rows, in shares that are as equal as possible.
fn share(world: &Communicator, rows: i64) -> (i64, i64) {
    let begin = |rank: i64| rows * rank / i64::from(world.size());
    let rank = i64::from(world.rank());
    (begin(rank), begin(rank + 1))
}

fn reduce(world: &Communicator, value: i64, op: Op) -> mpi4tch::Result<i64> {
    Ok(world.all_reduce(&Tensor::from(value), op)?.int64_value(&[]))
}

/// Returns an error on all ranks if one has an error, with the text of the lowest such rank.
fn agree<T>(world: &Communicator, outcome: Result<T, String>) -> Result<T, Box<dyn Error>> {
    let (rank, size) = (i64::from(world.rank()), i64::from(world.size()));
    let first = reduce(world, if outcome.is_err() { rank } else { size }, Op::Min)?;
    let failures = reduce(world, outcome.is_err().into(), Op::Sum)?;
    let text = match outcome {
        Ok(found) if failures == 0 => return Ok(found),
        Err(error) if failures == size && rank == first => error,
        Err(error) if rank == first => format!("on rank {rank}: {error}"),
        _ => String::new(),
    };
    let length = reduce(world, i64::try_from(text.len())?, Op::Max)?;
    let mut bytes = text.into_bytes();
    bytes.resize(usize::try_from(length)?, 0);
    let bytes = Vec::try_from(world.all_reduce(&Tensor::from_slice(&bytes), Op::Max)?)?;
    Err(String::from_utf8_lossy(&bytes).into())
}
