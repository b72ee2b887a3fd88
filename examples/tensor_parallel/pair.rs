//! A pair of layers that is cut over the ranks, as in M. Shoeybi et al., "Megatron-LM", 2019.

use std::ops::Range;

use mpi4tch::tch::{Kind, Tensor, nn};
use mpi4tch::{Communicator, Replicated, Result};

use super::layer::linear;

/// Two layers with a hidden layer between them, of which each rank has some units: the columns of the
/// first layer, and the same rows of the second.
///
/// ```text
///              columns            rows
/// rank 0   x ─ vary ─ first ─ relu ─ second ─┐
///                                            sum ─ + bias + x
/// rank 1   x ─ vary ─ first ─ relu ─ second ─┘
/// ```
///
/// Forward, `vary` makes no call, and `sum` an all-reduce. Backward, it is the other way around.
pub struct Pair {
    /// Its last row is the bias.
    first: Tensor,
    second: Tensor,
    bias: Tensor,
}

impl Pair {
    /// This rank's part of the pair. The random initial values do not depend on the number of ranks.
    pub fn new(comm: &Communicator, path: &nn::Path, width: i64, hidden: i64) -> Self {
        let own = units(comm, hidden);
        let random = |rows: i64, columns: i64| {
            let deviation = 1.0 / (rows as f64).sqrt();
            Tensor::randn([rows, columns], (Kind::Double, path.device())) * deviation
        };
        let first = random(width + 1, hidden).slice(1, own.start, own.end, 1);
        let second = random(hidden, width).slice(0, own.start, own.end, 1);
        Self {
            first: path.var_copy("first", &first),
            second: path.var_copy("second", &second),
            bias: path.zeros("bias", &[width]),
        }
    }

    /// Takes `x` through both layers, and adds it to the result.
    pub fn forward(&self, x: &Replicated) -> Result<Replicated> {
        let comm = x.communicator();
        let hidden = linear(&x.vary()?, &self.first).relu();
        let sum = Replicated::sum(comm, &hidden.matmul(&self.second))?;
        let bias = Replicated::assume(comm, &self.bias)?;
        Replicated::combine(&[x, &sum, &bias], |parts| parts[0] + parts[1] + parts[2])
    }
}

/// The hidden units of this rank, in shares that are as equal as possible.
fn units(comm: &Communicator, hidden: i64) -> Range<i64> {
    let begin = |rank: i64| hidden * rank / i64::from(comm.size());
    let rank = i64::from(comm.rank());
    begin(rank)..begin(rank + 1)
}
