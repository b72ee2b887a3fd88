//! Messages of more elements than an `int` counts: with small tensors and a lowered limit always,
//! with real data of more than 2³¹ elements where `MPI4TCH_TEST_LARGE` is set.
//!
//! ```text
//! MPI4TCH_TEST_LARGE=1 MPI4TCH_TEST_RANKS=2 MPI4TCH_TEST_TIMEOUT=600 cargo test --test large_counts
//! ```

mod common;

use std::process::ExitCode;

use common::{Context, start};
use mpi4tch::{Communicator, Op, Result, testing};
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    let mut tests = harness::tests![any_limit_gives_the_same];
    if std::env::var_os("MPI4TCH_TEST_LARGE").is_some() {
        tests.extend(harness::tests![
            real::all_gather,
            real::gather,
            real::scatter,
            real::all_to_all,
            real::broadcast,
            real::all_reduce,
            real::reduce_scatter,
        ]);
    }
    harness::run(start, tests)
}

/// Lowers the limit while it lives.
struct Limit;

impl Limit {
    fn of(count: i32) -> Self {
        testing::set_largest_count(count);
        Self
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        testing::set_largest_count(i32::MAX);
    }
}

type Operation<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

/// Whole numbers, whose sums are exact in any order.
fn whole_numbers(world: &Communicator, shape: &[i64], kind: Kind) -> Result<Tensor> {
    Ok((testing::random(world, shape, Kind::Double)? * 10.0).round().to_kind(kind))
}

fn assert_same_with_any_limit(
    world: &Communicator,
    name: &str,
    shape: &[i64],
    f: Operation,
) -> Result<()> {
    // One kind of each size.
    let kinds = [Kind::Double, Kind::BFloat16, Kind::Int8, Kind::Float, Kind::ComplexDouble];
    for (limit, kind) in [1, 2, 3, 5, 7].into_iter().zip(kinds) {
        let carries_gradient = kind != Kind::Int8;
        let x = whole_numbers(world, shape, kind)?.set_requires_grad(carries_gradient);
        let expected = f(&x)?;
        let cotangent = whole_numbers(world, &expected.size(), kind)?;
        let gradient = |y: &Tensor| {
            let gradients = testing::vjp(&[y], &[&cotangent], &[&x], false);
            if carries_gradient { gradients } else { Ok(vec![]) }
        };
        let expected_gradient = gradient(&expected)?;
        let _limit = Limit::of(limit);
        let y = f(&x)?;
        assert_eq!(y, expected, "{name} of {kind:?}, limit {limit}");
        let actual = gradient(&y)?;
        assert_eq!(actual, expected_gradient, "gradient of {name} of {kind:?}, limit {limit}");
    }
    Ok(())
}

fn any_limit_gives_the_same(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    // Blocks of 0, 1, 2, … and of equal extents, as they lie and packed.
    for extents in [(0..size).collect::<Vec<_>>(), vec![3; world.size().unsigned_abs() as usize]] {
        let own = extents[world.rank().unsigned_abs() as usize];
        let total = extents.iter().sum();
        let reversed: Vec<i64> = extents.iter().rev().copied().collect();
        for (axis, [part, whole]) in [(0, [[own, 4], [total, 4]]), (1, [[4, own], [4, total]])] {
            let same = |name, shape: &[i64], f: Operation| {
                assert_same_with_any_limit(world, name, shape, f)
            };
            same("all_gather", &part, &|x| world.all_gather(x, axis))?;
            same("reduce_scatter", &whole, &|x| world.reduce_scatter(x, axis, &extents, Op::Sum))?;
            for root in [0, world.size() - 1] {
                same("gather", &part, &|x| world.gather(x, axis, root))?;
                same("scatter", &whole, &|x| world.scatter(x, axis, own, root))?;
            }
            same("all_to_all along one axis", &part, &|x| {
                world.all_to_all_with_counts(x, axis, &extents, axis, &reversed)
            })?;
        }
        same_all_to_all(world, own, total)?;
        // Some ranks may be beyond the limit, and others not.
        let rank = i64::from(world.rank());
        let row: Vec<i64> = extents.iter().map(|extent| (extent + 2 * rank) % 3).collect();
        assert_same_with_any_limit(world, "all_to_all_v", &[4, row.iter().sum()], &|x| {
            world.all_to_all_v(x, 1, &row)
        })?;
    }
    for op in [Op::Sum, Op::Max] {
        let same = |name, f: Operation| {
            // Max has no order on complex numbers.
            let f = |x: &Tensor| {
                if x.is_complex() && op == Op::Max { Ok(x.shallow_clone()) } else { f(x) }
            };
            assert_same_with_any_limit(world, name, &[3, 5], &f)
        };
        same("all_reduce", &|x| world.all_reduce(x, op))?;
        same("scan", &|x| world.scan(x, op))?;
        same("exscan", &|x| world.exscan(x, Op::Sum))?;
        same("reduce", &|x| world.reduce(x, op, world.size() - 1))?;
    }
    assert_same_with_any_limit(world, "broadcast", &[3, 5], &|x| world.broadcast(x, 0))?;
    assert_same_with_any_limit(world, "nothing", &[0], &|x| world.all_reduce(x, Op::Sum))
}

fn same_all_to_all(world: &Communicator, own: i64, total: i64) -> Result<()> {
    for (gather, scatter, shape) in [(0, 1, [own, total]), (1, 0, [total, own])] {
        assert_same_with_any_limit(world, "all_to_all", &shape, &|x| {
            world.all_to_all(x, gather, scatter, own)
        })?;
    }
    Ok(())
}

/// More than 2³¹ bytes of real data, on 2 ranks, and every one of them looked at.
mod real {
    use super::*;

    /// No power of two: a message that is cut or moved at 2³¹ or 2³² shows. Sums of two fit in a
    /// byte, beyond which Open MPI's saturate.
    const PERIOD: i64 = 127;
    const LARGE: i64 = (1 << 31) + 3;
    /// The rows of [`PERIOD`] that are made or looked at in one go.
    const ROWS: i64 = 1 << 19;

    fn period() -> Tensor {
        Tensor::arange(PERIOD, (Kind::Int64, Device::Cpu)).to_kind(Kind::Uint8)
    }

    /// Elements `start..start + length` of 0, 1, …, 126, 0, 1, ….
    fn pattern(start: i64, length: i64) -> Tensor {
        repeated(&period().roll([-start], [0]), length)
    }

    fn repeated(period: &Tensor, length: i64) -> Tensor {
        let x = Tensor::empty([length], (Kind::Uint8, Device::Cpu));
        for_each_piece(&x, period, |mut piece, row| piece.copy_(&row));
        x
    }

    /// Every element of `x` is that of the repeated `period`.
    fn assert_repeats(x: &Tensor, period: &Tensor) {
        for_each_piece(x, period, |piece, row| assert_eq!(piece, row.expand_as(&piece)));
    }

    /// Calls `f` for rows of `x`, and a row of the period.
    fn for_each_piece(x: &Tensor, period: &Tensor, f: impl Fn(Tensor, Tensor)) {
        let length = x.size1().expect("a vector");
        let mut start = 0;
        while length - start >= PERIOD {
            let rows = ((length - start) / PERIOD).min(ROWS);
            f(x.narrow(0, start, rows * PERIOD).view([rows, PERIOD]), period.unsqueeze(0));
            start += rows * PERIOD;
        }
        f(x.narrow(0, start, length - start), period.narrow(0, 0, length - start));
    }

    /// `first` on rank 0, `second` on rank 1.
    fn choose<T>(world: &Communicator, first: T, second: T) -> T {
        if world.rank() == 0 { first } else { second }
    }

    /// The test is about the length of messages, not about the number of ranks.
    fn on_two_ranks(context: &Context, f: impl FnOnce(&Communicator) -> Result<()>) -> Result<()> {
        if context.world.size() == 2 { f(&context.world) } else { Ok(()) }
    }

    /// This rank's part of the whole, which is cut after `first` elements.
    fn part(world: &Communicator, first: i64, whole: i64) -> Tensor {
        let (start, length) = choose(world, (0, first), (first, whole - first));
        pattern(start, length)
    }

    pub fn all_gather(context: &Context) -> Result<()> {
        on_two_ranks(context, |world| {
            for first in [5, LARGE] {
                let y = world.all_gather(&part(world, first, LARGE + 5), 0)?;
                assert_eq!(y.size(), [LARGE + 5]);
                assert_repeats(&y, &period());
            }
            Ok(())
        })
    }

    pub fn gather(context: &Context) -> Result<()> {
        on_two_ranks(context, |world| {
            let y = world.gather(&part(world, 5, LARGE + 5), 0, 0)?;
            assert_eq!(y.size(), [choose(world, LARGE + 5, 0)]);
            assert_repeats(&y, &period());
            Ok(())
        })
    }

    pub fn scatter(context: &Context) -> Result<()> {
        on_two_ranks(context, |world| {
            let x = pattern(0, choose(world, LARGE + 5, 1));
            let y = world.scatter(&x, 0, choose(world, 5, LARGE), 0)?;
            assert_repeats(&y, &part_period(world, 5));
            assert_eq!(y.size(), [choose(world, 5, LARGE)]);
            Ok(())
        })
    }

    /// The period as this rank's part sees it.
    fn part_period(world: &Communicator, first: i64) -> Tensor {
        period().roll([choose(world, 0, -first)], [0])
    }

    /// Along one axis all but five elements change their rank.
    pub fn all_to_all(context: &Context) -> Result<()> {
        on_two_ranks(context, |world| {
            let y =
                world.all_to_all(&part(world, LARGE, LARGE + 5), 0, 0, choose(world, 5, LARGE))?;
            assert_eq!(y.size(), [choose(world, 5, LARGE)]);
            assert_repeats(&y, &part_period(world, 5));
            Ok(())
        })
    }

    pub fn broadcast(context: &Context) -> Result<()> {
        on_two_ranks(context, |world| {
            let zeros = period().zeros_like();
            let mut x = repeated(&choose(world, zeros, period()), LARGE);
            world.broadcast_(&mut x, 1)?;
            assert_repeats(&x, &period());
            Ok(())
        })
    }

    /// Rank 1's differs from rank 0's by a shift.
    fn shifted(world: &Communicator) -> Tensor {
        pattern(choose(world, 0, 17), LARGE)
    }

    pub fn all_reduce(context: &Context) -> Result<()> {
        on_two_ranks(context, |world| {
            let other = period().roll([-17], [0]);
            let mut x = shifted(world);
            world.all_reduce_(&mut x, Op::Sum)?;
            assert_repeats(&x, &(period() + &other));
            drop(x);
            let y = world.all_reduce(&shifted(world), Op::Max)?;
            assert_repeats(&y, &period().maximum(&other));
            Ok(())
        })
    }

    pub fn reduce_scatter(context: &Context) -> Result<()> {
        on_two_ranks(context, |world| {
            let (first, rest) = (5, LARGE - 5);
            let y =
                world.reduce_scatter(&shifted(world), 0, choose(world, first, rest), Op::Sum)?;
            assert_eq!(y.size(), [choose(world, first, rest)]);
            let sum = period() + period().roll([-17], [0]);
            assert_repeats(&y, &sum.roll([choose(world, 0, -first)], [0]));
            Ok(())
        })
    }
}
