//! Who waits for the device: MPI for what it reads, and a result's reader for the copy; a start does
//! not.

use std::time::{Duration, Instant};

use mpi4tch::{Cartesian, Communicator, Halo, Op, Result, testing, wait_all};
use tch::{Kind, Tensor};

use crate::common::ring::neighbours;
use crate::common::{Context, works};
use crate::{PLACES, Place, leaf, moved, with_delay};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        a_call_reads_what_the_device_has_computed,
        an_adjoint_reads_what_the_device_has_computed,
        results_that_nobody_has_waited_for,
        many_started_at_once,
        copies_keep_no_graph,
        a_tensor_changed_after_the_call,
        a_start_does_not_wait_for_the_device,
        a_test_does_not_wait_for_the_device,
        another_stream_at_the_wait,
        another_stream_in_the_call,
        memory_that_another_stream_is_at_work_on,
        started_calls_come_in_their_order,
        blocking_calls_come_after_started_ones,
        requests_that_are_dropped,
        requests_that_are_dropped_with_a_graph,
    ]
}

pub type Call = fn(&Cartesian, &Tensor) -> Result<Tensor>;

/// Calls of each sort, on tensors whose first extent is the number of ranks.
pub const CALLS: [(&str, Call); 16] = [
    ("all_reduce", |c, x| c.all_reduce(x, Op::Sum)),
    ("all_reduce of a product", |c, x| c.all_reduce(x, Op::Prod)),
    ("all_reduce of a mean", |c, x| c.all_reduce(x, Op::Mean)),
    ("iall_reduce", |c, x| c.iall_reduce(x, Op::Max)?.wait()),
    ("all_reduce of columns", |c, x| c.all_reduce(&x.tr(), Op::Sum)),
    ("all_reduce_", |c, x| {
        let mut y = x * 1.0;
        c.all_reduce_(&mut y, Op::Sum)?;
        Ok(y)
    }),
    ("broadcast", |c, x| c.broadcast(x, c.size() - 1)),
    ("ibroadcast", |c, x| c.ibroadcast(x, 0)?.wait()),
    ("all_gather of columns", |c, x| c.all_gather(x, 1)),
    ("iall_gather", |c, x| c.iall_gather(x, 0)?.wait()),
    ("scatter", |c, x| c.scatter(x, 0, 1, 0)),
    ("iall_to_all", |c, x| c.iall_to_all(x, 1, 0, 1)?.wait()),
    ("reduce_scatter", |c, x| c.reduce_scatter(x, 0, 1, Op::Sum)),
    ("sendrecv", |c, x| {
        let (right, left) = neighbours(c);
        c.sendrecv(x, right, x, left, 1)
    }),
    ("isend, irecv", |c, x| {
        let (right, left) = neighbours(c);
        Ok(wait_all([c.irecv(x, left, 1)?, c.isend(x, right, 1)?])?.swap_remove(0))
    }),
    ("halo_exchange", |c, x| {
        c.halo_exchange(x, &[Halo { axis: 1, along: 0, before: 1, after: 1 }])
    }),
];

pub fn grid(world: &Communicator) -> Result<Cartesian> {
    Ok(world.cartesian(&[0], &[true], false)?.expect("all ranks are in it"))
}

pub fn random(world: &Communicator, columns: i64) -> Result<Tensor> {
    testing::random(world, &[i64::from(world.size()), columns], Kind::Double)
}

pub fn assert_close(x: &Tensor, expected: &Tensor, what: &str) {
    let x = moved(&x.detach(), None);
    assert!(x.allclose(&moved(&expected.detach(), None), 1e-12, 1e-12, false), "{what}: {x}");
}

pub fn a_call_reads_what_the_device_has_computed(context: &Context) -> Result<()> {
    let grid = grid(&context.world)?;
    for (name, call) in CALLS {
        for place in PLACES.map(|place| place(grid.rank())) {
            let x = random(&grid, 3)?;
            let expected = call(&grid, &(leaf(&x, None) * 2.0))?;
            let y = with_delay(10, || {
                let x = leaf(&x, place);
                let y = call(&grid, &(x * 2.0))?;
                // Nor does the result's reader get it too early.
                Ok::<_, mpi4tch::Error>(moved(&(y + 1.0), None))
            })?;
            assert_close(&y, &(expected + 1.0), name);
        }
    }
    Ok(())
}

/// As above, in the backward pass.
pub fn an_adjoint_reads_what_the_device_has_computed(context: &Context) -> Result<()> {
    let grid = grid(&context.world)?;
    for (name, call) in CALLS {
        let tape = grid.tape();
        let on_tape = tape.cartesian(&[0], &[true], false)?.expect("all ranks are in it");
        let x = random(&grid, 3)?;
        let gradient = |place: Place, delay: u64| -> Result<Tensor> {
            let x = leaf(&x, place).set_requires_grad(true);
            let loss = call(&on_tape, &(&x * 2.0))?.square().sum(Kind::Double);
            with_delay(delay, || Ok(moved(&tape.grad(&loss, &[&x])?.remove(0), None)))
        };
        let expected = gradient(None, 1)?;
        for place in PLACES.map(|place| place(grid.rank())) {
            assert_close(&gradient(place, 5)?, &expected, name);
        }
    }
    Ok(())
}

/// The memory that MPI has written into stays until the device has copied it.
fn results_that_nobody_has_waited_for(context: &Context) -> Result<()> {
    let world = &context.world;
    for count in [3, 1000, 100_000] {
        let xs = (0..6).map(|_| random(world, count)).collect::<Result<Vec<_>>>()?;
        let sums = |place: Place, started: bool| -> Result<Vec<Tensor>> {
            let sum = |x: &Tensor| match started {
                true => world.iall_reduce(x, Op::Sum)?.wait(),
                false => world.all_reduce(x, Op::Sum),
            };
            xs.iter().map(|x| sum(&leaf(x, place))).collect()
        };
        for started in [false, true] {
            let expected = sums(None, started)?;
            let results = with_delay(10, || {
                let results = sums(Some(0), started)?;
                Ok::<_, mpi4tch::Error>(results.iter().map(|y| moved(y, None)).collect::<Vec<_>>())
            })?;
            for (i, (y, expected)) in results.iter().zip(&expected).enumerate() {
                assert_close(y, expected, &format!("{i} of {count}"));
            }
        }
    }
    Ok(())
}

/// What stays until the device has copied it is memory, and nothing else that hangs on the tensors.
fn copies_keep_no_graph(context: &Context) -> Result<()> {
    let world = &context.world;
    let before = testing::live_pullbacks();
    with_delay(50, || -> Result<()> {
        let x = leaf(&random(world, 3)?, Some(0)).set_requires_grad(true);
        let y = world.all_reduce(&(&x * 2.0), Op::Max)?;
        let mut z = world.iall_reduce(&y, Op::Sum)?.wait()?;
        world.all_reduce_(&mut z, Op::Sum)?;
        assert!(testing::live_pullbacks() > before);
        Ok(())
    })?;
    assert_eq!(testing::live_pullbacks(), before);
    works(world)
}

/// Each has memory of its own from its start to the end of its copies.
fn many_started_at_once(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let xs = (0..5).map(|_| random(world, 50)).collect::<Result<Vec<_>>>()?;
    let run = |place: Place| -> Result<Vec<Tensor>> {
        let mut requests = Vec::new();
        for (i, x) in (0..).zip(&xs) {
            let x = leaf(x, place);
            requests.push(world.irecv(&x, left, i)?);
            requests.push(world.iall_reduce(&(&x * 3.0), Op::Sum)?);
            requests.push(world.isend(&(&x * 2.0), right, i)?);
            requests.push(world.iall_gather(&x, 1)?);
        }
        let results = wait_all(requests)?;
        Ok(results.iter().map(|y| moved(y, None)).collect())
    };
    let expected = run(None)?;
    for place in PLACES.map(|place| place(world.rank())) {
        let results = with_delay(5, || run(place))?;
        for (i, (y, expected)) in results.iter().zip(&expected).enumerate() {
            assert_close(y, expected, &format!("result {i}"));
        }
    }
    Ok(())
}

/// What follows on the stream changes it after it has been read, and a result after it has been
/// written.
fn a_tensor_changed_after_the_call(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = random(world, 100)?;
    let sum = world.all_reduce(&leaf(&x, None), Op::Sum)?;
    let before = world.sendrecv(&leaf(&x, None), right, &sum, left, 0)?;
    with_delay(10, || {
        let mut changed = leaf(&x, Some(0)) * 1.0;
        let mut y = world.all_reduce(&changed, Op::Sum)?;
        let _ = changed.fill_(7.0);
        let _ = y.fill_(8.0);
        assert_eq!(moved(&y, None), sum.full_like(8.0));
        let mut sent = leaf(&x, Some(1)) * 1.0;
        let request = world.irecv(&leaf(&x, Some(1)), left, 0)?;
        let _ = world.send(&sent, right, 0)?;
        let _ = sent.fill_(9.0);
        assert_close(&request.wait()?, &before, "the message");
        Ok(())
    })
}

/// The device is busy for long, and the program goes on. So do calls that MPI could carry out at once.
fn a_start_does_not_wait_for_the_device(context: &Context) -> Result<()> {
    const BUSY: u64 = 200;
    let grid = grid(&context.world)?;
    let (right, left) = neighbours(&grid);
    let x = random(&grid, 3)?;
    let counts = vec![1; grid.size().unsigned_abs() as usize];
    type Start<'a> = &'a dyn Fn(&Tensor) -> Result<mpi4tch::Request>;
    let starts: [(&str, Start); 6] = [
        ("iall_reduce", &|x| grid.iall_reduce(x, Op::Sum)),
        ("ibroadcast", &|x| grid.ibroadcast(x, 0)),
        ("iall_gather_with_counts", &|x| {
            grid.iall_gather_with_counts(&x.narrow(0, 0, 1), 0, &counts)
        }),
        ("ireduce_scatter", &|x| grid.ireduce_scatter(x, 0, &counts, Op::Max)),
        ("isend", &|x| grid.isend(x, right, 0)),
        ("irecv", &|x| grid.irecv(x, left, 0)),
    ];
    let expected: Vec<Tensor> = wait_all(
        starts.iter().map(|(_, start)| start(&leaf(&x, None))).collect::<Result<Vec<_>>>()?,
    )?;
    let x = leaf(&x, Some(0));
    with_delay(BUSY, || {
        // Filled by a task that waits in the queue.
        let mut y = x.zeros_like();
        y.copy_(&x);
        let begin = Instant::now();
        let mut requests = Vec::new();
        for (name, start) in starts {
            requests.push(start(&y)?);
            let taken = begin.elapsed();
            assert!(taken < Duration::from_millis(BUSY), "{name}: {taken:?}");
        }
        let results = wait_all(requests)?;
        assert!(begin.elapsed() >= Duration::from_millis(BUSY), "the device was busy");
        for ((y, expected), (name, _)) in results.iter().zip(&expected).zip(starts) {
            assert_close(y, expected, name);
        }
        Ok(())
    })
}

fn a_test_does_not_wait_for_the_device(context: &Context) -> Result<()> {
    const BUSY: u64 = 200;
    let world = &context.world;
    let x = random(world, 3)?;
    let expected = world.all_reduce(&leaf(&x, None), Op::Sum)?;
    let x = leaf(&x, Some(0));
    with_delay(BUSY, || {
        let mut y = x.zeros_like();
        y.copy_(&x);
        let begin = Instant::now();
        let request = world.iall_reduce(&y, Op::Sum)?;
        let mpi4tch::Test::Pending(mut request) = request.test()? else {
            panic!("the device has computed nothing yet")
        };
        assert!(begin.elapsed() < Duration::from_millis(BUSY), "{:?}", begin.elapsed());
        let y = loop {
            match request.test()? {
                mpi4tch::Test::Done(y) => break y,
                mpi4tch::Test::Pending(again) => request = again,
            }
        };
        assert_close(&y, &expected, "tested until done");
        Ok(())
    })
}

/// A result is written on the stream that is current at the wait, by which it is used.
fn another_stream_at_the_wait(context: &Context) -> Result<()> {
    let grid = grid(&context.world)?;
    let (right, left) = neighbours(&grid);
    let x = random(&grid, 20)?;
    let expected = [
        grid.all_reduce(&leaf(&x, None), Op::Sum)?,
        grid.all_gather(&leaf(&x, None), 1)?,
        grid.sendrecv(&leaf(&x, None), right, &leaf(&x, None), left, 0)?,
    ];
    let start = |x: &Tensor| -> Result<Vec<mpi4tch::Request>> {
        Ok(vec![
            grid.iall_reduce(x, Op::Sum)?,
            grid.iall_gather(x, 1)?,
            grid.irecv(x, left, 0)?,
            grid.isend(x, right, 0)?,
        ])
    };
    let place = grid.rank() % 2;
    for other_at_the_start in [false, true] {
        let results = with_delay(10, || -> Result<Vec<Tensor>> {
            let x = leaf(&x, Some(place));
            let finish = |requests| -> Result<Vec<Tensor>> {
                let results = wait_all(requests)?;
                Ok(results.iter().map(|y| moved(&(y + 1.0), None)).collect())
            };
            if other_at_the_start {
                finish(stand_in::on_new_stream(place, || start(&(&x * 1.0)))?)
            } else {
                let requests = start(&(&x * 1.0))?;
                stand_in::on_new_stream(place, || finish(requests))
            }
        })?;
        for (y, expected) in results.iter().zip(&expected) {
            assert_close(y, &(expected + 1.0), "on another stream");
        }
    }
    Ok(())
}

/// The result of a receive is in memory that the stream of its start has been given to work on before,
/// and is still to be written by it when the message comes, on another stream.
fn memory_that_another_stream_is_at_work_on(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = random(world, 20)?;
    let sent = leaf(&x, None);
    let all = world.all_gather(&sent.unsqueeze(0), 0)?;
    let place = world.rank() % 2;
    let like = leaf(&x, Some(place));
    let request = with_delay(200, || {
        let _ = like.zeros_like().fill_(7.0);
        world.irecv(&like, left, 0)
    })?;
    let _ = world.send(&sent, right, 0)?;
    let y = stand_in::on_new_stream(place, || -> Result<Tensor> {
        let y = request.wait()?;
        // It is there for this stream, and stays.
        assert_close(&y, &all.get(left.into()), "the message");
        Ok(y)
    })?;
    stand_in::synchronize(place);
    assert_close(&y, &all.get(left.into()), "the message later");
    works(world)
}

/// All copies of a blocking call are on the stream that is current, whatever the others do.
fn another_stream_in_the_call(context: &Context) -> Result<()> {
    let grid = grid(&context.world)?;
    let place = grid.rank() % 2;
    for (name, call) in CALLS {
        let x = random(&grid, 3)?;
        let expected = call(&grid, &(leaf(&x, None) * 2.0))?;
        let y = with_delay(10, || {
            stand_in::on_new_stream(place, || -> Result<Tensor> {
                let y = call(&grid, &(leaf(&x, Some(place)) * 2.0))?;
                Ok(moved(&(y + 1.0), None))
            })
        })?;
        assert_close(&y, &(expected + 1.0), name);
    }
    Ok(())
}

/// In one order on all ranks, although they are ready in another on each.
fn started_calls_come_in_their_order(context: &Context) -> Result<()> {
    let world = &context.world;
    let xs = [random(world, 3)?, random(world, 3)?, random(world, 3)?];
    let sums = |place: &dyn Fn(usize) -> Place| -> Result<Vec<Tensor>> {
        let start = |(i, x): (usize, &Tensor)| {
            let x = leaf(x, place(i));
            world.iall_reduce(&(x * 1.0), Op::Sum)
        };
        let mut requests = xs.iter().enumerate().map(start).collect::<Result<Vec<_>>>()?;
        requests.reverse();
        let mut results = wait_all(requests)?;
        results.reverse();
        Ok(results.iter().map(|y| moved(y, None)).collect())
    };
    let expected = sums(&|_| None)?;
    // One of them is on a device, another one on each rank.
    for shift in 0..3 {
        let own = (world.rank().unsigned_abs() as usize + shift) % 3;
        let place = move |i: usize| (i == own).then_some(0);
        let results = with_delay(20, || sums(&place))?;
        for (i, (y, expected)) in results.iter().zip(&expected).enumerate() {
            assert_close(y, expected, &format!("call {i}"));
        }
    }
    Ok(())
}

fn blocking_calls_come_after_started_ones(context: &Context) -> Result<()> {
    let world = &context.world;
    let (a, b) = (random(world, 3)?, random(world, 3)?);
    let expected = [&a, &b].map(|x| world.all_reduce(&leaf(x, None), Op::Sum));
    for place in PLACES.map(|place| place(world.rank())) {
        let results = with_delay(20, || -> Result<_> {
            let started = world.iall_reduce(&(leaf(&a, place) * 1.0), Op::Sum)?;
            let second = world.all_reduce(&leaf(&b, None), Op::Sum)?;
            world.barrier()?;
            Ok([moved(&started.wait()?, None), second])
        })?;
        for (y, expected) in results.iter().zip(&expected) {
            assert_close(y, expected.as_ref().expect("no error"), "in their order");
        }
    }
    Ok(())
}

/// Their memory stays until the device and MPI have done with it, and no longer.
fn requests_that_are_dropped(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = random(world, 30)?;
    let kept = world.all_reduce(&leaf(&x, None), Op::Sum)?;
    let all = world.all_gather(&leaf(&x, None).unsqueeze(0), 0)?;
    let received = all.get(i64::from(left));
    with_delay(5, || -> Result<()> {
        for place in [Some(0), Some(1)] {
            for i in 0..5 {
                let y = leaf(&x, place);
                drop(world.iall_reduce(&(&y * 5.0), Op::Sum)?);
                drop(world.isend(&(&y * f64::from(i)), right, i)?);
                drop(world.irecv(&y, left, 10 + i)?);
                std::mem::forget(world.isend(&(&y * 3.0), right, 10 + i)?);
                assert_close(&world.all_reduce(&y, Op::Sum)?, &kept, "after the dropped ones");
                let y = world.recv(&y, left, i)?;
                assert_close(&y, &(&received * f64::from(i)), "what was sent and dropped");
            }
        }
        works(world)
    })
}

/// The backward pass goes through the start only.
fn requests_that_are_dropped_with_a_graph(context: &Context) -> Result<()> {
    let world = &context.world;
    let before = testing::live_pullbacks();
    let run = |place: Place| -> Result<()> {
        let tape = world.tape();
        let x = leaf(&random(world, 3)?, place).set_requires_grad(true);
        drop(tape.iall_reduce(&(&x * 2.0), Op::Sum)?);
        let y = tape.iall_reduce(&(&x * 3.0), Op::Sum)?.wait()?;
        let gradient = tape.grad(&y.sum(Kind::Double), &[&x])?.remove(0);
        let expected = x.detach().full_like(3.0 * f64::from(world.size()));
        assert_close(&gradient, &expected, "without the dropped one");
        Ok(())
    };
    for place in PLACES.map(|place| place(world.rank())) {
        with_delay(5, || run(place))?;
        crate::common::assert_freed(before, "the graph");
    }
    works(world)
}
