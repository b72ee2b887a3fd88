//! Properties of the collectives for shapes, axes, counts, roots, kinds and layouts drawn at random:
//! value and derivatives are those of the serial computation, and linear ones pass the
//! inner-product test.
//!
//! All ranks draw the same cases. `MPI4TCH_TEST_SEED` chooses others; a failure tells the seed and
//! the case.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;

use common::kinds::{is_defined, is_floating};
use common::{Context, serial, start};
use mpi4tch::{Communicator, Op, Rank, Result, testing};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            gathers_and_scatters,
            all_gathers_and_reduce_scatters,
            transpositions_and_repartitions,
            matrices_of_counts,
            reductions_and_scans,
        ],
    )
}

/// A tensor that is cut over the ranks.
#[derive(Clone, Debug)]
struct Case {
    /// Extents; those along the axes are replaced by counts.
    shape: Vec<i64>,
    axis: i64,
    other_axis: i64,
    counts: Vec<i64>,
    /// Along the other axis; if that is the axis itself, of the same sum as the counts.
    other_counts: Vec<i64>,
    /// What each rank sends to each.
    matrix: Vec<Vec<i64>>,
    root: Rank,
    kind: Kind,
    layout: Layout,
    op: Op,
}

#[derive(Clone, Copy, Debug)]
enum Layout {
    Contiguous,
    Reversed,
    Strided,
}

fn cases(ranks: usize) -> impl Strategy<Value = Case> {
    let kinds = prop::sample::select(vec![
        Kind::Double,
        Kind::Float,
        Kind::BFloat16,
        Kind::ComplexDouble,
        Kind::Int64,
        Kind::Uint8,
    ]);
    let layouts = prop::sample::select(vec![Layout::Contiguous, Layout::Reversed, Layout::Strided]);
    let ops = prop::sample::select(vec![Op::Sum, Op::Mean, Op::Max, Op::Min, Op::Prod]);
    prop::collection::vec(0..4_i64, 1..5).prop_flat_map(move |shape| {
        let dim = i64::try_from(shape.len()).unwrap_or(1);
        let rank = 0..Rank::try_from(ranks).unwrap_or(1);
        let counts = || {
            prop_oneof![
                3 => prop::collection::vec(0..4_i64, ranks),
                1 => (0..4_i64).prop_map(move |count| vec![count; ranks]),
            ]
        };
        let rows = prop::collection::vec(prop::collection::vec(0..4_i64, ranks), ranks);
        let counts = (counts(), counts(), rows);
        let axes = (-dim..dim, -dim..dim);
        (Just(shape), axes, counts, rank, kinds.clone(), layouts.clone(), ops.clone()).prop_map(
            move |(
                shape,
                (axis, other_axis),
                (counts, mut other_counts, matrix),
                root,
                kind,
                layout,
                op,
            )| {
                if axis.rem_euclid(dim) == other_axis.rem_euclid(dim) {
                    other_counts = counts.iter().rev().copied().collect();
                }
                Case {
                    shape,
                    axis,
                    other_axis,
                    counts,
                    other_counts,
                    matrix,
                    root,
                    kind,
                    layout,
                    op,
                }
            },
        )
    })
}

impl Case {
    fn shape_with(&self, axis: i64, extent: i64) -> Vec<i64> {
        let mut shape = self.shape.clone();
        let dim = i64::try_from(shape.len()).unwrap_or(0);
        shape[usize::try_from(axis.rem_euclid(dim)).unwrap_or(0)] = extent;
        shape
    }

    fn total(&self) -> i64 {
        self.counts.iter().sum()
    }

    fn own(&self, comm: &Communicator) -> i64 {
        self.counts[usize::try_from(comm.rank()).unwrap_or(0)]
    }

    fn random(&self, comm: &Communicator, shape: &[i64]) -> Result<Tensor> {
        Ok(match self.layout {
            Layout::Contiguous => testing::random(comm, shape, self.kind)?,
            Layout::Reversed => {
                let axes: Vec<i64> = (0..i64::try_from(shape.len()).unwrap_or(0)).rev().collect();
                let reversed: Vec<i64> = shape.iter().rev().copied().collect();
                testing::random(comm, &reversed, self.kind)?.permute(axes)
            }
            Layout::Strided => {
                let mut wide = shape.to_vec();
                let last = wide.len() - 1;
                wide[last] *= 2;
                testing::random(comm, &wide, self.kind)?.slice(-1, 0, wide[last], 2)
            }
        })
    }

    /// The linear map `f` on `x`, against `serial`.
    fn check(
        &self,
        comm: &Communicator,
        x: &Tensor,
        f: impl Fn(&Tensor) -> Result<Tensor>,
        serial: impl Fn(&[Tensor]) -> Vec<Tensor>,
    ) -> Result<()> {
        if is_floating(self.kind) {
            testing::assert_adjoint(comm, x, &f)?;
        }
        testing::assert_serial(comm, x, f, serial)
    }
}

/// Runs `property` on each case, and names the case that fails.
fn for_all(context: &Context, property: impl Fn(&Communicator, &Case) -> Result<()>) -> Result<()> {
    let world = &context.world;
    let seed = std::env::var("MPI4TCH_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or(20_261_123);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = cases(world.size().unsigned_abs() as usize);
    // Many ranks on few cores take long to meet.
    let cases_drawn = if world.size() <= 3 { 16 } else { 4 };
    for _ in 0..cases_drawn {
        let case = strategy.new_tree(&mut runner).expect("nothing is rejected").current();
        match catch_unwind(AssertUnwindSafe(|| property(world, &case))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("MPI4TCH_TEST_SEED={seed}, {case:?}: {error}"),
            Err(panic) => {
                eprintln!("MPI4TCH_TEST_SEED={seed}, {case:?}");
                resume_unwind(panic);
            }
        }
    }
    Ok(())
}

fn gathers_and_scatters(context: &Context) -> Result<()> {
    for_all(context, |comm, case| {
        let (axis, root, own) = (case.axis, case.root, case.own(comm));
        let x = case.random(comm, &case.shape_with(axis, own))?;
        let gathered = |xs: &[Tensor]| serial::gather(xs, axis, root);
        case.check(comm, &x, |x| comm.gather(x, axis, root), gathered)?;
        case.check(comm, &x, |x| comm.gather_with_counts(x, axis, &case.counts, root), gathered)?;
        let whole = case.random(comm, &case.shape_with(axis, case.total()))?;
        let scattered = |xs: &[Tensor]| serial::scatter(xs, axis, &case.counts, root);
        case.check(comm, &whole, |x| comm.scatter(x, axis, own, root), scattered)?;
        case.check(comm, &whole, |x| comm.scatter(x, axis, &case.counts, root), scattered)?;
        // Off root, any tensor of the kind will do, and gets zeros of its own shape.
        let mine = if comm.rank() == root {
            whole
        } else {
            testing::random(comm, &[i64::from(comm.rank())], case.kind)?
        };
        if is_floating(case.kind) {
            testing::assert_adjoint(comm, &mine, |x| comm.scatter(x, axis, own, root))?;
        }
        Ok(())
    })
}

fn all_gathers_and_reduce_scatters(context: &Context) -> Result<()> {
    for_all(context, |comm, case| {
        let (axis, own) = (case.axis, case.own(comm));
        let x = case.random(comm, &case.shape_with(axis, own))?;
        let gathered = |xs: &[Tensor]| serial::all_gather(xs, axis);
        case.check(comm, &x, |x| comm.all_gather(x, axis), gathered)?;
        case.check(comm, &x, |x| comm.all_gather_with_counts(x, axis, &case.counts), gathered)?;
        let whole = case.random(comm, &case.shape_with(axis, case.total()))?;
        let reduced = |xs: &[Tensor]| serial::reduce_scatter(xs, axis, &case.counts, Op::Sum);
        case.check(comm, &whole, |x| comm.reduce_scatter(x, axis, own, Op::Sum), reduced)?;
        case.check(comm, &whole, |x| comm.reduce_scatter(x, axis, &case.counts, Op::Sum), reduced)
    })
}

fn transpositions_and_repartitions(context: &Context) -> Result<()> {
    for_all(context, |comm, case| {
        let (axis, other) = (case.axis, case.other_axis);
        let after = &case.other_counts;
        let wanted = after[usize::try_from(comm.rank()).unwrap_or(0)];
        let outer = Case { shape: case.shape_with(other, after.iter().sum()), ..case.clone() };
        let x = case.random(comm, &outer.shape_with(axis, case.own(comm)))?;
        let cut_anew = |xs: &[Tensor]| serial::all_to_all(xs, axis, other, after);
        case.check(comm, &x, |x| comm.all_to_all(x, axis, other, wanted), cut_anew)?;
        case.check(comm, &x, |x| comm.all_to_all(x, axis, other, after), cut_anew)?;
        case.check(
            comm,
            &x,
            |x| comm.all_to_all_with_counts(x, axis, &case.counts, other, after),
            cut_anew,
        )
    })
}

fn matrices_of_counts(context: &Context) -> Result<()> {
    for_all(context, |comm, case| {
        let rank = usize::try_from(comm.rank()).unwrap_or(0);
        let (axis, matrix, send) = (case.axis, &case.matrix, &case.matrix[rank]);
        let receive: Vec<i64> = matrix.iter().map(|row| row[rank]).collect();
        let x = case.random(comm, &case.shape_with(axis, send.iter().sum()))?;
        let exchanged = |xs: &[Tensor]| serial::all_to_all_v(xs, axis, matrix);
        case.check(comm, &x, |x| comm.all_to_all_v(x, axis, send), exchanged)?;
        case.check(comm, &x, |x| comm.iall_to_all_v(x, axis, send)?.wait(), exchanged)?;
        case.check(
            comm,
            &x,
            |x| comm.all_to_all_v_with_counts(x, axis, send, &receive),
            exchanged,
        )?;
        case.check(
            comm,
            &x,
            |x| comm.iall_to_all_v_with_counts(x, axis, send, &receive)?.wait(),
            exchanged,
        )
    })
}

fn reductions_and_scans(context: &Context) -> Result<()> {
    for_all(context, |comm, case| {
        let (op, root) = (case.op, case.root);
        // Products of 16-bit numbers cancel too much for second derivatives to agree.
        let cancels = op == Op::Prod && case.kind == Kind::BFloat16;
        if cancels || !is_defined(op, case.kind) {
            return Ok(());
        }
        let x = case.random(comm, &case.shape)?;
        let all_reduced = |xs: &[Tensor]| serial::all_reduce(xs, op);
        testing::assert_serial(comm, &x, |x| comm.all_reduce(x, op), all_reduced)?;
        let reduced = |xs: &[Tensor]| serial::reduce(xs, op, root);
        testing::assert_serial(comm, &x, |x| comm.reduce(x, op, root), reduced)?;
        testing::assert_serial(comm, &x, |x| comm.scan(x, op), |xs| serial::scan(xs, op))
    })
}
