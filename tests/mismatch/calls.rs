//! Calls as one rank makes them, and what may differ between the ranks' calls.

use mpi4tch::{Communicator, Error, Op, Replicated, Result};
use tch::{Device, Kind, Tensor};

use crate::table::{Arguments, OPERATIONS, Operation, STARTED, Takes};

/// A call as one rank makes it.
#[derive(Clone)]
pub struct Call {
    pub operation: &'static Operation,
    pub arguments: Arguments,
    pub kind: Kind,
}

impl Call {
    /// One that is right if all ranks make it. A rank's block is a row of `width` elements along the
    /// first axis, and what `all_to_all` cuts are rows along the second.
    pub fn new(operation: &'static Operation, comm: &Communicator, width: i64) -> Self {
        let ones = vec![1; comm.size().unsigned_abs() as usize];
        let arguments = Arguments {
            shape: vec![1, 1, width],
            axis: 0,
            scatter_axis: 1,
            counts: ones.clone(),
            scatter_counts: ones,
            root: 0,
            op: Op::Sum,
        };
        Self { operation, arguments, kind: Kind::Double }
    }

    pub fn with(mut self, change: fn(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// What it takes on this rank.
    pub fn input(&self, comm: &Communicator) -> Tensor {
        let rank = comm.rank().unsigned_abs() as usize;
        let shape = self.arguments.input_shape(self.operation.takes, rank);
        Tensor::ones(shape, (Kind::Double, Device::Cpu)).to_kind(self.kind)
    }

    /// For what is printed.
    pub fn name(&self) -> String {
        let Self { operation, arguments, kind } = self;
        format!("{} of {kind:?} {:?}", operation.name, arguments.shape)
    }

    pub fn make(&self, comm: &Communicator, x: &Tensor) -> Result<Tensor> {
        (self.operation.run)(comm, x, &self.arguments)
    }
}

/// The collectives of the table, blocking and started, each a single call.
pub fn collectives() -> impl Iterator<Item = &'static Operation> + Clone {
    OPERATIONS.iter().chain(&STARTED).filter(|operation| !operation.name.contains(' '))
}

/// What names have in common that stand for one call: blocking, started or in place.
pub fn stem(operation: &Operation) -> &'static str {
    let name = operation.name;
    name.strip_prefix('i').unwrap_or(name).trim_end_matches('_')
}

const fn other(
    name: &'static str,
    run: fn(&Communicator, &Tensor, &Arguments) -> Result<Tensor>,
) -> Operation {
    let serial = |_: &[Tensor], _: &Arguments| Vec::new();
    Operation { name, takes: Takes::Same, ops: None, has_root: false, run, serial }
}

/// Calls of all ranks that the table lacks: with other results than a tensor, or without any.
#[rustfmt::skip]
pub static OTHERS: [Operation; 9] = [
    other("max_loc", |c, x, _| c.max_loc(x).map(|(values, _)| values)),
    other("min_loc", |c, x, _| c.min_loc(x).map(|(values, _)| values)),
    other("barrier", |c, x, _| c.barrier().map(|()| x.shallow_clone())),
    other("ibarrier", |c, _, _| c.ibarrier()?.wait()),
    other("duplicate", |c, x, _| c.duplicate().map(|_| x.shallow_clone())),
    other("split", |c, x, _| c.split(Some(0), 0).map(|_| x.shallow_clone())),
    other("sum", |c, x, _| Replicated::sum(c, x)?.vary()),
    other("concat", |c, x, _| Replicated::concat(c, x, 0)?.vary()),
    other("broadcast from the root", |c, x, _| Replicated::broadcast(c, x, 0)?.vary()),
];

/// What all ranks but one call, and what that one calls, each with each other: one in so many of the
/// pairs, others for each number of ranks.
pub fn pairs<T: Copy>(
    comm: &Communicator,
    one_in: usize,
    all: impl Iterator<Item = T> + Clone,
) -> impl Iterator<Item = (T, T)> {
    let ranks = comm.size().unsigned_abs() as usize;
    // Three show what several ranks can do to each other. More take their time.
    let one_in = if ranks > 3 { 4 * one_in } else { one_in };
    all.clone().enumerate().flat_map(move |(i, most)| {
        let others =
            all.clone().enumerate().filter(move |(j, _)| (i + j + ranks).is_multiple_of(one_in));
        others.map(move |(_, odd)| (most, odd))
    })
}

/// Whether these are one call, or can be.
pub fn are_alike((most, odd): &(&Operation, &Operation)) -> bool {
    stem(most) == stem(odd)
}

/// What is different on one rank, so that the ranks' calls do not go together.
pub struct Difference {
    /// What differs, for the name of the test.
    pub what: &'static str,
    /// The width of the other ranks' call.
    pub width: i64,
    /// Makes the call of one rank of that of the others.
    pub change: fn(&mut Call),
    /// The calls that do not go together then, and those whose adjoints do not.
    pub forward: fn(&Operation) -> bool,
    pub backward: fn(&Operation) -> bool,
}

const fn differ(
    what: &'static str,
    width: i64,
    change: fn(&mut Call),
    forward: fn(&Operation) -> bool,
    backward: fn(&Operation) -> bool,
) -> Difference {
    Difference { what, width, change, forward, backward }
}

/// Widths of a message that travels at once, and of ones that are copied where they are or piece by
/// piece, by each MPI.
#[rustfmt::skip]
pub const DIFFERENCES: [Difference; 18] = [
    differ("sizes", 1, |c| c.arguments.shape[2] = 0, all_know_the_size, every),
    differ("sizes", 0, |c| c.arguments.shape[2] = 600, all_know_the_size, every),
    differ("sizes", 1, |c| c.arguments.shape[2] = 2, all_know_the_size, every),
    differ("sizes", 1, |c| c.arguments.shape[2] = 600, all_know_the_size, every),
    differ("sizes", 600, |c| c.arguments.shape[2] = 1, all_know_the_size, every),
    differ("sizes", 600, |c| c.arguments.shape[2] = 4096, all_know_the_size, every),
    differ("sizes", 4096, |c| c.arguments.shape[2] = 600, all_know_the_size, every),
    differ("sizes", 1, |c| c.arguments.shape[2] = 1 << 20, all_know_the_size, every),
    differ("kinds", 600, |c| c.kind = Kind::Float, every, every),
    differ("kinds", 600, |c| c.kind = Kind::Int64, every, never),
    differ("ops", 600, |c| c.arguments.op = Op::Max, has_op, has_adjoint_by_op),
    differ("roots", 1, |c| c.arguments.root = 1, has_root, has_root),
    differ("roots", 4096, |c| c.arguments.root = 1, has_root, has_root),
    differ("axes", 600, |c| (c.arguments.axis, c.arguments.scatter_axis) = (1, 0), has_blocks, has_blocks),
    differ("counts", 1, |c| c.set_counts(2), all_know_the_counts, has_blocks),
    differ("counts", 600, |c| c.set_counts(2), all_know_the_counts, has_blocks),
    differ("counts", 1, |c| c.set_counts(100), all_know_the_counts, has_blocks),
    differ("refusals", 4096, |c| c.kind = Kind::Float8e5m2, every, never),
];

impl Call {
    fn set_counts(&mut self, count: i64) {
        self.arguments.counts.fill(count);
        self.arguments.scatter_counts.fill(count);
    }
}

fn every(_: &Operation) -> bool {
    true
}

fn never(_: &Operation) -> bool {
    false
}

/// Not those to which ranks besides the root give a tensor of any size.
fn all_know_the_size(operation: &Operation) -> bool {
    operation.takes != Takes::WholeOnRoot
}

/// Not those in which each rank's own extents are its counts.
fn all_know_the_counts(operation: &Operation) -> bool {
    has_blocks(operation)
        && (!matches!(operation.takes, Takes::Block | Takes::Row)
            || operation.name.ends_with("_with_counts"))
}

fn has_blocks(operation: &Operation) -> bool {
    operation.takes != Takes::Same
}

fn has_root(operation: &Operation) -> bool {
    operation.has_root
}

fn has_op(operation: &Operation) -> bool {
    operation.ops.is_some()
}

/// Not the scans: one adjoint is a call on the reversed communicator, the other is none.
fn has_adjoint_by_op(operation: &Operation) -> bool {
    has_op(operation) && !is_scan(operation)
}

pub fn is_scan(operation: &Operation) -> bool {
    operation.name.ends_with("scan")
}

/// Makes a call that sums up a large tensor, and looks at all of the result.
pub struct Afterwards {
    x: Tensor,
    sum: Tensor,
}

impl Afterwards {
    pub fn new(comm: &Communicator) -> Self {
        let numbers = Tensor::arange(1 << 16, (Kind::Double, Device::Cpu));
        let ranks = f64::from(comm.size());
        let sum = &numbers * (ranks * (ranks + 1.0) / 2.0);
        Self { x: numbers * f64::from(comm.rank() + 1), sum }
    }

    pub fn works(&self, comm: &Communicator) -> Result<()> {
        assert!(comm.all_reduce(&self.x, Op::Sum)? == self.sum, "a wrong sum");
        Ok(())
    }
}

/// Whether it is an error about the calls, rather than one of MPI, which may have done anything.
pub fn is_told(error: &Error) -> bool {
    matches!(error, Error::Mismatch { .. } | Error::Counts { .. } | Error::Kind { .. })
}
