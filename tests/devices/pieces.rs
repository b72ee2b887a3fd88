//! Large tensors are copied and sent in pieces, in which all ranks agree, wherever their tensors are.

use mpi4tch::{Communicator, Op, Rank, Result, testing};
use stand_in::device_of;
use tch::{Kind, Tensor};

use crate::common::kinds::{KINDS, is_defined};
use crate::common::{Context, serial, works};
use crate::{OnDrop, PLACES, Place, leaf, moved, whole_numbers, with_delay, with_pieces};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        any_number_of_pieces,
        pieces_of_every_kind_and_op,
        pieces_of_what_the_device_has_not_computed,
        pieces_in_place,
        pieces_that_nobody_has_waited_for,
        pieces_that_no_int_counts,
        pieces_of_blocks_that_are_summed,
        pieces_of_blocks_that_differ,
        pieces_as_large_as_usual,
        each_piece_is_copied_by_itself,
        derivatives_of_pieces,
    ]
}

pub fn tests_that_are_polled() -> Vec<harness::Test<Context>> {
    harness::tests![derivatives_on_several_devices]
}

type Call = fn(&Communicator, &Tensor) -> Result<Tensor>;
type Serial = fn(&[Tensor]) -> Vec<Tensor>;

/// Those that treat each element by itself, and those that treat blocks.
const CALLS: [(&str, Call, Serial); 16] = [
    ("all_reduce", |c, x| c.all_reduce(x, Op::Sum), |xs| serial::all_reduce(xs, Op::Sum)),
    ("a mean", |c, x| c.all_reduce(x, Op::Mean), |xs| serial::all_reduce(xs, Op::Mean)),
    ("a product", |c, x| c.all_reduce(x, Op::Prod), |xs| serial::all_reduce(xs, Op::Prod)),
    (
        "reduce",
        |c, x| c.reduce(x, Op::Max, last(c)),
        |xs| serial::reduce(xs, Op::Max, Rank::try_from(xs.len() - 1).expect("few ranks")),
    ),
    ("scan", |c, x| c.scan(x, Op::Sum), |xs| serial::scan(xs, Op::Sum)),
    ("exscan", |c, x| c.exscan(x, Op::Min), |xs| serial::exscan(xs, Op::Min)),
    ("broadcast", |c, x| c.broadcast(x, 0), |xs| serial::broadcast(xs, 0)),
    ("iall_reduce", |c, x| c.iall_reduce(x, Op::Sum)?.wait(), |xs| serial::all_reduce(xs, Op::Sum)),
    ("all_gather", |c, x| c.all_gather(x, 0), |xs| serial::all_gather(xs, 0)),
    ("all_gather of columns", |c, x| c.all_gather(x, -1), |xs| serial::all_gather(xs, -1)),
    (
        "gather",
        |c, x| c.gather(x, -1, last(c)),
        |xs| serial::gather(xs, -1, Rank::try_from(xs.len() - 1).expect("few ranks")),
    ),
    (
        "scatter",
        |c, x| c.scatter(x, -1, &columns(c, x), 0),
        |xs| serial::scatter(xs, -1, &serial::balanced(&xs[0], -1, xs.len()), 0),
    ),
    (
        "all_to_all",
        |c, x| c.all_to_all(x, 0, -1, &columns(c, &joined(c, x))),
        |xs| {
            let joined = Tensor::cat(xs, 0);
            serial::all_to_all(xs, 0, -1, &serial::balanced(&joined, -1, xs.len()))
        },
    ),
    (
        "reduce_scatter",
        |c, x| c.reduce_scatter(x, -1, &columns(c, x), Op::Sum),
        |xs| serial::reduce_scatter(xs, -1, &serial::balanced(&xs[0], -1, xs.len()), Op::Sum),
    ),
    (
        "all_to_all_v",
        |c, x| c.all_to_all_v(x, -1, &uneven(x, c.rank(), c.size())),
        |xs| serial::all_to_all_v(xs, -1, &all_uneven(xs)),
    ),
    (
        "all_to_all_v_with_counts",
        |c, x| {
            let row = |rank| uneven(x, rank, c.size());
            let receive: Vec<i64> = (0..c.size()).map(|rank| row(rank)[index(c.rank())]).collect();
            c.all_to_all_v_with_counts(x, -1, &row(c.rank()), &receive)
        },
        |xs| serial::all_to_all_v(xs, -1, &all_uneven(xs)),
    ),
];

/// The last axis, cut as equally as possible.
fn columns(comm: &Communicator, x: &Tensor) -> Vec<i64> {
    serial::balanced(x, -1, index(comm.size()))
}

/// A tensor of the shape of all ranks' tensors, joined along the first axis.
fn joined(comm: &Communicator, x: &Tensor) -> Tensor {
    Tensor::cat(&serial::on_every_rank(&leaf(x, None), index(comm.size())), 0)
}

fn index(rank: Rank) -> usize {
    usize::try_from(rank).expect("not negative")
}

/// How a rank cuts the last axis: all but two of it go to one rank, so that the largest buffers of the
/// ranks differ in size.
fn uneven(x: &Tensor, rank: Rank, ranks: Rank) -> Vec<i64> {
    let extent = *x.size().last().expect("an axis");
    let (own, first) = (extent.min(2), extent - extent.min(2));
    let mut counts = vec![0; index(ranks)];
    counts[0] += first;
    counts[index(rank)] += own;
    counts
}

fn all_uneven(xs: &[Tensor]) -> Vec<Vec<i64>> {
    let ranks = Rank::try_from(xs.len()).expect("few ranks");
    (0..ranks).map(|rank| uneven(&xs[0], rank, ranks)).collect()
}

fn last(comm: &Communicator) -> Rank {
    comm.size() - 1
}

/// One, full or not, and several, which may differ by an element. It is the values that are looked at, so the
/// device does not wait.
fn any_number_of_pieces(context: &Context) -> Result<()> {
    let world = &context.world;
    for count in [0, 2, 3, 4, 9, 10] {
        compare(world, &testing::random(world, &[count], Kind::Double)?, 24, 0)?;
    }
    // Of a tensor that is not contiguous.
    compare(world, &testing::random(world, &[4, 3], Kind::Double)?.tr(), 24, 0)?;
    works(world)
}

/// With the results on the host, of calls that are made at once.
fn compare(world: &Communicator, x: &Tensor, piece: usize, delay: u64) -> Result<()> {
    let expected = expected(world, x)?;
    for place in PLACES.map(|place| place(world.rank())) {
        let results = with_pieces(piece, || {
            with_delay(delay, || {
                let call = |(_, call, _): &(&str, Call, Serial)| call(world, &leaf(x, place));
                CALLS.iter().map(call).collect::<Result<Vec<_>>>()
            })
        })?;
        assert_close(&results, &expected);
    }
    Ok(())
}

fn derivatives(context: &Context, places: &[fn(Rank) -> Place]) -> Result<()> {
    let world = &context.world;
    with_pieces(24, || {
        with_delay(0, || {
            for place in places.iter().map(|place| place(world.rank())) {
                for (_, call, serial) in CALLS {
                    let x = leaf(&testing::random(world, &[10], Kind::Double)?, place);
                    testing::assert_serial(world, &x, |x| call(world, x), serial)?;
                    let x = leaf(&testing::random(world, &[4, 3], Kind::Double)?, place).tr();
                    testing::assert_serial(world, &x, |x| call(world, x), serial)?;
                }
            }
            works(world)
        })
    })
}

/// Each rank's pullbacks are called on the thread of one device, so that calls go in pieces all the while.
fn derivatives_of_pieces(context: &Context) -> Result<()> {
    derivatives(context, &PLACES[..1])?;
    let world = &context.world;
    let x = leaf(&testing::random(world, &[150_000], Kind::Double)?, Some(world.rank() % 2));
    with_pieces(100_000, || {
        testing::assert_adjoint(world, &x, |x| world.all_reduce(x, Op::Sum))?;
        testing::assert_adjoint(world, &x, |x| world.broadcast(x, 0))?;
        testing::assert_adjoint(world, &x, |x| world.all_gather(x, 0))
    })?;
    each_piece_is_copied_by_itself(context)
}

fn derivatives_on_several_devices(context: &Context) -> Result<()> {
    derivatives(context, &PLACES[1..])
}

fn pieces_of_every_kind_and_op(context: &Context) -> Result<()> {
    let world = &context.world;
    for (kind, op) in KINDS.into_iter().flat_map(|kind| Op::ALL.map(|op| (kind, op))) {
        if !is_defined(op, kind) {
            continue;
        }
        let x = whole_numbers(world, &[11], kind)?;
        let whole = world.all_reduce(&leaf(&x, None), op)?;
        for place in PLACES.map(|place| place(world.rank())) {
            let y = with_pieces(5, || world.all_reduce(&leaf(&x, place), op))?;
            assert_eq!((device_of(&y), y.kind()), (place, kind));
            assert_eq!(moved(&y, None), whole, "{op:?} of {kind:?}");
        }
    }
    Ok(())
}

/// On the host, by calls that are made at once.
fn expected(world: &Communicator, x: &Tensor) -> Result<Vec<Tensor>> {
    CALLS.iter().map(|(_, call, _)| call(world, &leaf(x, None))).collect()
}

fn assert_close(results: &[Tensor], expected: &[Tensor]) {
    for ((y, expected), (name, _, _)) in results.iter().zip(expected).zip(CALLS) {
        assert!(moved(y, None).allclose(expected, 1e-12, 1e-12, false), "{name}: {y}");
    }
}

fn pieces_of_what_the_device_has_not_computed(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[50], Kind::Double)?;
    let expected = expected(world, &(leaf(&x, None) * 2.0))?;
    for place in PLACES.map(|place| place(world.rank())) {
        let results = with_pieces(56, || {
            with_delay(10, || -> Result<Vec<Tensor>> {
                let call = |(_, call, _): &(&str, Call, Serial)| {
                    Ok(moved(&call(world, &(leaf(&x, place) * 2.0))?, None))
                };
                CALLS.iter().map(call).collect()
            })
        })?;
        assert_close(&results, &expected);
    }
    Ok(())
}

/// All results are read after the last call.
fn pieces_that_nobody_has_waited_for(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[50], Kind::Double)?;
    let expected = expected(world, &x)?;
    let place = Some(world.rank() % 2);
    with_pieces(56, || {
        with_delay(10, || -> Result<()> {
            let x = leaf(&x, place);
            let results: Vec<Tensor> =
                CALLS.iter().map(|(_, call, _)| call(world, &x)).collect::<Result<_>>()?;
            assert_close(&results, &expected);
            Ok(())
        })
    })
}

fn pieces_in_place(context: &Context) -> Result<()> {
    let world = &context.world;
    type InPlace = fn(&Communicator, &mut Tensor) -> Result<()>;
    let pairs: [(InPlace, Call); 4] = [
        (|c, x| c.all_reduce_(x, Op::Sum), |c, x| c.all_reduce(x, Op::Sum)),
        (|c, x| c.all_reduce_(x, Op::Mean), |c, x| c.all_reduce(x, Op::Mean)),
        (|c, x| c.reduce_(x, Op::Max, last(c)), |c, x| c.reduce(x, Op::Max, last(c))),
        (|c, x| c.broadcast_(x, 0), |c, x| c.broadcast(x, 0)),
    ];
    let run = |place: Place| -> Result<Vec<Tensor>> {
        pairs
            .iter()
            .map(|(in_place, out_of_place)| {
                let x = whole_numbers(world, &[4, 5], Kind::Double)?;
                let expected = out_of_place(world, &leaf(&x, None))?;
                let mut y = leaf(&x, place) * 1.0;
                in_place(world, &mut y)?;
                // Of a view that is not contiguous, the rest of whose base stays.
                let base = leaf(&x, place) * 1.0;
                in_place(world, &mut base.narrow(1, 0, 4).tr())?;
                assert_eq!(moved(&y, None), expected);
                assert_eq!(moved(&base.narrow(1, 0, 4), None), expected.narrow(1, 0, 4));
                assert_eq!(moved(&base.select(1, 4), None), leaf(&x, None).select(1, 4));
                Ok(y)
            })
            .collect()
    };
    for place in PLACES.map(|place| place(world.rank())) {
        with_pieces(24, || with_delay(5, || run(place)))?;
    }
    Ok(())
}

/// As if an int held two.
fn pieces_that_no_int_counts(context: &Context) -> Result<()> {
    let world = &context.world;
    testing::set_largest_count(2);
    let _reset = OnDrop(|| testing::set_largest_count(i32::MAX));
    compare(world, &testing::random(world, &[50], Kind::Double)?, 56, 1)
}

fn pieces_as_large_as_usual(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[1_300_001], Kind::Double)?;
    let calls: [Call; 3] =
        [|c, x| c.all_reduce(x, Op::Max), |c, x| c.broadcast(x, 0), |c, x| c.all_gather(x, 0)];
    for place in PLACES.map(|place| place(world.rank())) {
        for call in calls {
            let expected = call(world, &leaf(&x, None))?;
            assert_eq!(moved(&call(world, &leaf(&x, place))?, None), expected);
        }
    }
    Ok(())
}

/// Large enough for this crate to sum the blocks; columns are packed by a copy.
fn pieces_of_blocks_that_are_summed(context: &Context) -> Result<()> {
    let world = &context.world;
    for kind in [Kind::Double, Kind::ComplexFloat, Kind::Int, Kind::Half] {
        let x = whole_numbers(world, &[6, 5000], kind)?;
        for (axis, op) in [(0, Op::Sum), (1, Op::Sum), (1, Op::Mean), (1, Op::Max)] {
            if !is_defined(op, kind) {
                continue;
            }
            let mut counts = serial::balanced(&x, axis, index(world.size()));
            if axis == 0 && world.size() == 3 {
                counts = vec![3, 3, 0];
            }
            let call = |x: &Tensor| world.reduce_scatter(x, axis, &counts, op);
            let expected = call(&leaf(&x, None))?;
            for place in PLACES.map(|place| place(world.rank())) {
                for largest in [i32::MAX, 1000] {
                    testing::set_largest_count(largest);
                    let _reset = OnDrop(|| testing::set_largest_count(i32::MAX));
                    let y = with_pieces(9000, || with_delay(2, || call(&leaf(&x, place))))?;
                    assert_eq!(device_of(&y), place);
                    assert_eq!(moved(&y, None), expected, "{op:?} of {kind:?} along {axis}");
                }
            }
        }
    }
    works(world)
}

/// Some ranks ask for fewer pieces than others, or for none.
fn pieces_of_blocks_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, ranks) = (world.rank(), world.size());
    for extents in [[0, 1, 40], [40, 0, 3], [1, 1, 1], [7, 60, 0]] {
        let counts: Vec<i64> = extents.into_iter().cycle().take(index(world.size())).collect();
        let own = counts[index(rank)];
        let x = testing::random(world, &[2, own], Kind::Double)?;
        let expected = world.all_gather(&leaf(&x, None), 1)?;
        for place in PLACES.map(|place| place(rank)) {
            with_pieces(56, || {
                with_delay(2, || -> Result<()> {
                    let x = leaf(&x, place);
                    let all = world.all_gather(&x, 1)?;
                    let root = world.gather_with_counts(&x, 1, &counts, last(world))?;
                    let back = world.scatter(&root, 1, &counts[..], last(world))?;
                    assert_eq!(moved(&all, None), expected);
                    assert_eq!(moved(&back, None), leaf(&x, None));
                    if rank == ranks - 1 {
                        assert_eq!(moved(&root, None), expected);
                    }
                    Ok(())
                })
            })?;
        }
    }
    works(world)
}

/// There and back, and to or from each block of the larger side.
fn each_piece_is_copied_by_itself(context: &Context) -> Result<()> {
    const PIECES: u32 = 4;
    let world = &context.world;
    let (rank, ranks) = (world.rank(), u64::from(world.size().unsigned_abs()));
    let size = i64::from(world.size());
    let x = leaf(&testing::random(world, &[600 * size], Kind::Double)?, Some(rank % 2));
    let is_root = u64::from(rank == 0);
    let (one, each) = (u64::from(PIECES), u64::from(PIECES) * ranks);
    let calls: [(&str, Call, u64); 8] = [
        ("all_reduce", |c, x| c.all_reduce(x, Op::Sum), one + one),
        ("all_gather", |c, x| c.all_gather(x, 0), one + each),
        ("gather", |c, x| c.gather(x, 0, 0), one + is_root * each),
        ("scatter", |c, x| c.scatter(x, 0, &columns(c, x), 0), is_root * each + one),
        ("all_to_all_v", |c, x| c.all_to_all_v(x, 0, &columns(c, x)), each + each),
        (
            "reduce_scatter",
            |c, x| c.reduce_scatter(x, 0, &columns(c, x), Op::Sum),
            if ranks > 1 { each + one } else { 2 },
        ),
        // MPI's function takes no blocks with gaps between them.
        ("reduce_scatter by max", |c, x| c.reduce_scatter(x, 0, &columns(c, x), Op::Max), 2),
        ("iall_gather", |c, x| c.iall_gather(x, 0)?.wait(), 2),
    ];
    for (name, call, copies) in calls {
        let larger =
            if name.ends_with("gather") { x.numel() * index(world.size()) } else { x.numel() };
        let made = with_pieces(larger * 8 / PIECES as usize, || -> Result<u64> {
            let before = stand_in::copies_made();
            let _y = call(world, &x)?;
            stand_in::synchronize(rank % 2);
            Ok(stand_in::copies_made() - before)
        })?;
        assert_eq!(made, copies, "{name}");
    }
    Ok(())
}
