//! Each map and its adjoint, where a replicated tensor counts once.

use mpi4tch::{Communicator, Op, Replicated, Result, Tape, testing};
use tch::{Kind, Tensor};

use crate::common::tensors::{range, tensor};
use crate::common::{Context, communicators};
use crate::{assert_close, assert_same, common_random, gradients, leaf};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        adjoints,
        adjoints_of_started_maps,
        kinds,
        layouts,
        compositions,
        blocks_are_balanced,
        integers_and_truth_values,
    ]
}

/// Where a map comes from, and where it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Varying,
    Replicated,
}
use Side::{Replicated as One, Varying as Each};

struct Map<'a> {
    name: &'a str,
    sides: [Side; 2],
    f: &'a dyn Fn(&Communicator, &Tensor) -> Result<Tensor>,
}

/// A random tensor, the same on all ranks if it is replicated.
fn random(comm: &Communicator, side: Side, shape: &[i64], kind: Kind) -> Result<Tensor> {
    match side {
        Each => testing::random(comm, shape, kind),
        One => common_random(comm, shape, kind),
    }
}

/// Re⟨a, b⟩: the sum over all ranks, or of one rank if they are replicated.
fn inner(comm: &Communicator, side: Side, a: &Tensor, b: &Tensor) -> Result<f64> {
    let wide = |x: &Tensor| {
        let x = x.detach().resolve_conj();
        let x = if x.is_complex() { x.to_kind(Kind::ComplexDouble).view_as_real() } else { x };
        x.to_kind(Kind::Double)
    };
    let local = (wide(a) * wide(b)).sum(Kind::Double);
    let total = if side == One { local } else { comm.all_reduce(&local, Op::Sum)? };
    Ok(total.double_value(&[]))
}

/// ⟨F x, y⟩ = ⟨x, F* y⟩, and the second derivative, which is F again. What is replicated is the same
/// on all ranks.
fn check(tape: Option<&Tape>, comm: &Communicator, map: &Map, x: &Tensor) -> Result<()> {
    let [from, to] = map.sides;
    let kind = x.kind();
    // The ranks compare nothing else on a tape.
    let plain = comm.duplicate()?;
    let on = tape.map_or(comm, |tape| tape);
    let x = leaf(x);
    let y = (map.f)(on, &x)?;
    assert!(y.requires_grad(), "{}", map.name);
    let cotangent = leaf(&random(&plain, to, &y.size(), kind)?);
    let gradient = gradients(tape, (&y, &cotangent), &[&x], true)?.remove(0);
    assert_eq!((gradient.size(), gradient.kind()), (x.size(), kind), "{}", map.name);
    for (side, tensors) in [(from, [&x, &gradient]), (to, [&y, &cotangent])] {
        if side == One {
            assert_same(&plain, tensors[0], map.name)?;
            assert_same(&plain, tensors[1], map.name)?;
        }
    }
    let [forward, backward] =
        [inner(&plain, to, &y, &cotangent)?, inner(&plain, from, &x, &gradient)?];
    let scale = inner(&plain, to, &y, &y)? + inner(&plain, from, &x, &x)? + 1.0;
    let tolerance = match kind {
        Kind::Double | Kind::ComplexDouble => 1e-12,
        Kind::Float | Kind::ComplexFloat => 1e-4,
        _ => 3e-2,
    };
    assert!(
        (forward - backward).abs() <= tolerance * scale,
        "{}: {forward} and {backward} on {} ranks",
        map.name,
        comm.size()
    );
    let direction = random(&plain, from, &x.size(), kind)?;
    let second = gradients(tape, (&gradient, &direction), &[&cotangent], false)?.remove(0);
    assert_close(&second, &(map.f)(&plain, &direction)?, map.name);
    Ok(())
}

fn assume(comm: &Communicator, x: &Tensor) -> Result<Replicated> {
    Replicated::assume(comm, x)
}

fn value(y: Replicated) -> Tensor {
    y.tensor().shallow_clone()
}

/// With and without a tape.
fn check_both(comm: &Communicator, map: &Map, x: &Tensor) -> Result<()> {
    check(None, comm, map, x)?;
    check(Some(&comm.tape()), comm, map, x)
}

/// The shapes of a map's argument on this rank.
fn check_shapes(comm: &Communicator, map: &Map, shapes: &[&[i64]], kind: Kind) -> Result<()> {
    for shape in shapes {
        check_both(comm, map, &random(comm, map.sides[0], shape, kind)?)?;
    }
    Ok(())
}

const ANY: [&[i64]; 5] = [&[], &[3], &[2, 5], &[0], &[4, 0, 2]];
const WITH_AXES: [&[i64]; 5] = [&[7, 3], &[2, 8], &[5, 1], &[0, 3], &[1, 0]];

fn adjoints(context: &Context) -> Result<()> {
    for (_, comm) in communicators(&context.world) {
        let comm = &comm;
        let vary = Map { name: "vary", sides: [One, Each], f: &|c, x| assume(c, x)?.vary() };
        let sum =
            Map { name: "sum", sides: [Each, One], f: &|c, x| Replicated::sum(c, x).map(value) };
        let mean =
            Map { name: "mean", sides: [Each, One], f: &|c, x| Replicated::mean(c, x).map(value) };
        for map in [vary, sum, mean] {
            check_shapes(comm, &map, &ANY, Kind::Double)?;
        }
        for root in 0..comm.size() {
            let f = |c: &Communicator, x: &Tensor| Replicated::broadcast(c, x, root).map(value);
            let map = Map { name: "broadcast", sides: [Each, One], f: &f };
            check_shapes(comm, &map, &ANY[..3], Kind::Double)?;
        }
        for axis in [0, 1, -1] {
            let f = |c: &Communicator, x: &Tensor| assume(c, x)?.shard(axis);
            let map = Map { name: "shard", sides: [One, Each], f: &f };
            check_shapes(comm, &map, &WITH_AXES, Kind::Double)?;
            let f = |c: &Communicator, x: &Tensor| Replicated::concat(c, x, axis).map(value);
            let map = Map { name: "concat", sides: [Each, One], f: &f };
            let own = i64::from(comm.rank());
            let shape = if axis == 0 { [own, 2] } else { [2, (own * 2 + 1) % 4] };
            check_shapes(comm, &map, &[&shape, &[3, 3]], Kind::Double)?;
        }
    }
    Ok(())
}

fn adjoints_of_started_maps(context: &Context) -> Result<()> {
    let comm = &context.world;
    let waits = |request: mpi4tch::ReplicatedRequest| request.wait().map(value);
    let maps = [
        Map { name: "ivary", sides: [One, Each], f: &|c, x| assume(c, x)?.ivary()?.wait() },
        Map { name: "isum", sides: [Each, One], f: &|c, x| waits(Replicated::isum(c, x)?) },
        Map { name: "imean", sides: [Each, One], f: &|c, x| waits(Replicated::imean(c, x)?) },
    ];
    for map in maps {
        check_shapes(comm, &map, &ANY, Kind::Double)?;
    }
    for root in 0..comm.size() {
        let f = |c: &Communicator, x: &Tensor| waits(Replicated::ibroadcast(c, x, root)?);
        check_shapes(
            comm,
            &Map { name: "ibroadcast", sides: [Each, One], f: &f },
            &[&[2]],
            Kind::Double,
        )?;
    }
    for axis in [0, 1] {
        let f = |c: &Communicator, x: &Tensor| assume(c, x)?.ishard(axis)?.wait();
        check_shapes(
            comm,
            &Map { name: "ishard", sides: [One, Each], f: &f },
            &WITH_AXES,
            Kind::Double,
        )?;
        let f = |c: &Communicator, x: &Tensor| waits(Replicated::iconcat(c, x, axis)?);
        let own = i64::from(comm.rank() % 3);
        let shape = if axis == 0 { [own, 2] } else { [2, own] };
        check_shapes(
            comm,
            &Map { name: "iconcat", sides: [Each, One], f: &f },
            &[&shape],
            Kind::Double,
        )?;
    }
    Ok(())
}

/// All maps of a tensor with axes.
fn all_maps(comm: &Communicator, x: [&Tensor; 2]) -> Result<()> {
    let last = comm.size() - 1;
    let maps = [
        Map { name: "vary", sides: [One, Each], f: &|c, x| assume(c, x)?.vary() },
        Map { name: "shard", sides: [One, Each], f: &|c, x| assume(c, x)?.shard(1) },
        Map { name: "sum", sides: [Each, One], f: &|c, x| Replicated::sum(c, x).map(value) },
        Map { name: "mean", sides: [Each, One], f: &|c, x| Replicated::mean(c, x).map(value) },
        Map {
            name: "concat",
            sides: [Each, One],
            f: &|c, x| Replicated::concat(c, x, -1).map(value),
        },
        Map {
            name: "broadcast",
            sides: [Each, One],
            f: &|c, x| Replicated::broadcast(c, x, last).map(value),
        },
    ];
    let [each, one] = x;
    maps.iter()
        .try_for_each(|map| check_both(comm, map, if map.sides[0] == One { one } else { each }))
}

fn kinds(context: &Context) -> Result<()> {
    let comm = &context.world;
    for kind in [Kind::Half, Kind::BFloat16, Kind::Float, Kind::ComplexFloat, Kind::ComplexDouble] {
        let [each, one] = [Each, One].map(|side| random(comm, side, &[2, 5], kind));
        all_maps(comm, [&each?, &one?])?;
    }
    Ok(())
}

fn layouts(context: &Context) -> Result<()> {
    let comm = &context.world;
    let layouts: [fn(&Tensor) -> Tensor; 4] = [
        |x| x.transpose(0, 1),
        |x| x.slice(1, 0, None, 2),
        |x| x.select(0, 1).unsqueeze(1).expand([-1, 3], false),
        |x| x.conj(),
    ];
    for layout in layouts {
        let [each, one] = [Each, One].map(|side| random(comm, side, &[3, 5], Kind::ComplexDouble));
        all_maps(comm, [&layout(&each?), &layout(&one?)])?;
    }
    Ok(())
}

fn compositions(context: &Context) -> Result<()> {
    let comm = &context.world;
    let size = f64::from(comm.size());
    let x = common_random(comm, &[5, 3], Kind::Double)?;
    // The identity, by blocks.
    let f = |c: &Communicator, x: &Tensor| {
        Replicated::concat(c, &assume(c, x)?.shard(0)?, 0).map(value)
    };
    check_both(comm, &Map { name: "concat of shard", sides: [One, One], f: &f }, &x)?;
    assert!(f(comm, &x)?.equal(&x));
    // The p-fold, which is one variable in and one out.
    let f = |c: &Communicator, x: &Tensor| {
        let own = assume(c, x)?.vary()?;
        Replicated::sum(c, &own).map(value)
    };
    check_both(comm, &Map { name: "sum of vary", sides: [One, One], f: &f }, &x)?;
    assert_close(&f(comm, &x)?, &(&x * size), "p-fold");
    // As the operations of the communicator, where every rank has a variable of its own.
    let x = testing::random(comm, &[5, 3], Kind::Double)?;
    let tape = comm.tape();
    for comm in [comm, &tape] {
        let f = |x: &Tensor| Replicated::sum(comm, x)?.vary();
        testing::assert_adjoint(comm, &x, f)?;
        assert!(f(&x)?.equal(&comm.all_reduce(&x, Op::Sum)?));
        testing::assert_adjoint(comm, &x, |x| Replicated::sum(comm, x)?.shard(0))?;
        testing::assert_adjoint(comm, &x, |x| Replicated::concat(comm, x, 1)?.vary())?;
        testing::assert_adjoint(comm, &x, |x| Replicated::concat(comm, x, 1)?.shard(1))?;
        testing::assert_adjoint(comm, &x, |x| Replicated::broadcast(comm, x, 0)?.vary())?;
        testing::gradgradcheck(comm, &x, |x| {
            let y = Replicated::sum(comm, &x.sin())?.map(Tensor::sin)?.shard(0)?.sin();
            let z = Replicated::concat(comm, &y, 0)?.ivary()?.wait()?;
            Ok(z.sin())
        })?;
    }
    Ok(())
}

fn blocks_are_balanced(context: &Context) -> Result<()> {
    let comm = &context.world;
    let (rank, size) = (i64::from(comm.rank()), i64::from(comm.size()));
    for extent in 0..12 {
        let x = range(extent, Kind::Int64);
        let block = assume(comm, &x)?.shard(-1)?;
        let blocks = comm.all_gather(&tensor(&[block.size()[0]]), 0)?;
        let expected: Vec<i64> =
            (0..size).map(|r| extent / size + i64::from(r < extent % size)).collect();
        assert_eq!(blocks, tensor(&expected));
        let start: i64 = expected[..usize::try_from(rank).expect("positive")].iter().sum();
        assert!(block.equal(&x.narrow(0, start, block.size()[0])));
    }
    Ok(())
}

/// They carry no gradient, on a tape either.
fn integers_and_truth_values(context: &Context) -> Result<()> {
    let (world, size) = (&context.world, i64::from(context.world.size()));
    let tape = world.tape();
    for comm in [world, &*tape] {
        let x = assume(comm, &tensor(&[1_i64, 2, 3]))?;
        assert!(!x.vary()?.requires_grad());
        assert!(!x.shard(0)?.requires_grad());
        let sum = Replicated::sum(comm, &x.vary()?)?;
        assert_eq!(*sum.tensor(), tensor(&[size, 2 * size, 3 * size]));
        let truth = tensor(&[true, false]);
        let all = Replicated::concat(comm, &assume(comm, &truth)?.vary()?, 0)?;
        assert_eq!(all.tensor().size(), [2 * size]);
        let x = tensor(&[comm.rank()]);
        let last = comm.size() - 1;
        assert_eq!(*Replicated::broadcast(comm, &x, last)?.tensor(), tensor(&[last]));
        let error = Replicated::sum(comm, &truth).expect_err("MPI has no such sum").to_string();
        assert_eq!(error, "Replicated::sum: Op::Sum is not defined for kind Bool");
        let error = Replicated::mean(comm, &x).expect_err("no mean of integers").to_string();
        assert_eq!(error, "Replicated::mean: Op::Mean is not defined for kind Int");
    }
    tape.backward(None)
}
