//! The handwritten digits that the examples learn to read.

use std::error::Error;

use mpi4tch::Communicator;
use mpi4tch::tch::{Kind, Reduction, Tensor};

/// Images of digits, one per row.
pub struct Digits {
    /// The pixels, from 0 to 1.
    pub images: Tensor,
    /// The digit of each image.
    pub labels: Tensor,
}

#[allow(dead_code, reason = "each example uses some of it")]
impl Digits {
    /// The number of pixels of an image, which is a square.
    pub const PIXELS: i64 = 64;

    /// The number of different digits.
    pub const CLASSES: i64 = 10;

    /// Reads all images, in Double.
    pub fn read() -> Result<Self, Box<dyn Error>> {
        let file = include_str!("../data/digits.csv");
        let mut values = Vec::new();
        for record in csv::Reader::from_reader(file.as_bytes()).records() {
            for field in &record? {
                values.push(field.parse::<f64>()?);
            }
        }
        let table = Tensor::from_slice(&values).view([-1, Self::PIXELS + 1]);
        let images = table.slice(1, 0, Self::PIXELS, 1) / 16.0;
        Ok(Self { images, labels: table.select(1, Self::PIXELS).to_kind(Kind::Int64) })
    }

    /// The number of images.
    pub fn rows(&self) -> i64 {
        self.images.size()[0]
    }

    /// The images at these places.
    pub fn select(&self, places: &Tensor) -> Self {
        let [images, labels] = [&self.images, &self.labels].map(|x| x.index_select(0, places));
        Self { images, labels }
    }

    /// Batches of `rows` each; the last one may be smaller.
    pub fn split(&self, rows: i64) -> impl Iterator<Item = Self> {
        let parts = self.images.split(rows, 0).into_iter().zip(self.labels.split(rows, 0));
        parts.map(|(images, labels)| Self { images, labels })
    }

    /// The images of this rank, in shares that are as equal as possible. A share may be empty.
    pub fn share(&self, comm: &Communicator) -> Self {
        let begin = |rank: i64| self.rows() * rank / i64::from(comm.size());
        let rank = i64::from(comm.rank());
        let [images, labels] = [&self.images, &self.labels]
            .map(|x| x.narrow(0, begin(rank), begin(rank + 1) - begin(rank)));
        Self { images, labels }
    }

    /// The sum of the cross-entropies of all images.
    pub fn loss(&self, output: &Tensor) -> Tensor {
        output.cross_entropy_loss(&self.labels, None::<Tensor>, Reduction::Sum, -100, 0.0)
    }

    /// The number of images for which the largest output is that of their digit.
    pub fn correct(&self, output: &Tensor) -> Tensor {
        output.argmax(1, false).eq_tensor(&self.labels).sum(Kind::Int64)
    }
}
