//! Large tensors are copied and sent in pieces, in which all ranks agree, wherever their tensors are.

use mpi4tch::{Communicator, Op, Rank, Result, testing};
use stand_in::device_of;
use tch::{Kind, Tensor};

use crate::common::kinds::{KINDS, is_defined};
use crate::common::{Context, serial, works};
use crate::{PLACES, Place, leaf, moved, whole_numbers, with_delay, with_pieces};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        any_number_of_pieces,
        pieces_of_every_kind_and_op,
        pieces_of_what_the_device_has_not_computed,
        pieces_in_place,
        pieces_that_nobody_has_waited_for,
        pieces_that_no_int_counts,
        pieces_as_large_as_usual,
    ]
}

type Call = fn(&Communicator, &Tensor) -> Result<Tensor>;
type Serial = fn(&[Tensor]) -> Vec<Tensor>;

/// Those that treat each element by itself, and one that does not.
const CALLS: [(&str, Call, Serial); 9] = [
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
];

fn last(comm: &Communicator) -> Rank {
    comm.size() - 1
}

/// One, full or not, and several, of which the last is shorter or as long as the others. It is the
/// values that are looked at, so the device does not wait.
fn any_number_of_pieces(context: &Context) -> Result<()> {
    let world = &context.world;
    with_pieces(24, || {
        with_delay(0, || {
            for place in PLACES.map(|place| place(world.rank())) {
                for (_, call, serial) in CALLS {
                    for count in [0, 2, 3, 4, 9, 10] {
                        let x = leaf(&testing::random(world, &[count], Kind::Double)?, place);
                        testing::assert_serial(world, &x, |x| call(world, x), serial)?;
                    }
                    // Of a tensor that is not contiguous.
                    let x = leaf(&testing::random(world, &[4, 3], Kind::Double)?, place).tr();
                    testing::assert_serial(world, &x, |x| call(world, x), serial)?;
                }
            }
            works(world)
        })
    })
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
    let x = testing::random(world, &[50], Kind::Double)?;
    let expected = expected(world, &x)?;
    for place in PLACES.map(|place| place(world.rank())) {
        let results = with_pieces(56, || {
            testing::set_largest_count(2);
            let call = |(_, call, _): &(&str, Call, Serial)| call(world, &leaf(&x, place));
            let results = CALLS.iter().map(call).collect::<Result<Vec<_>>>();
            testing::set_largest_count(i32::MAX);
            results
        })?;
        assert_close(&results, &expected);
    }
    Ok(())
}

fn pieces_as_large_as_usual(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[1_300_001], Kind::Double)?;
    for place in PLACES.map(|place| place(world.rank())) {
        let x = leaf(&x, place);
        testing::assert_adjoint(world, &x, |x| world.all_reduce(x, Op::Sum))?;
        testing::assert_adjoint(world, &x, |x| world.broadcast(x, 0))?;
        let whole = world.all_reduce(&leaf(&x, None), Op::Max)?;
        assert_eq!(moved(&world.all_reduce(&x, Op::Max)?, None), whole);
    }
    Ok(())
}
