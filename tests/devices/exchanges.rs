//! Exchanges of halos and between neighbours: only the messages are copied to the host and back, and each
//! step waits for the device if it must.

use std::time::{Duration, Instant};

use mpi4tch::{Cartesian, Communicator, Error, Halo, Request, Result, testing, wait_all};
use stand_in::{bytes_copied, device_of};
use tch::{Device, Kind, Tensor};

use crate::common::{Context, works};
use crate::{PLACES, Place, leaf, moved, with_delay};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        nothing_but_the_messages_is_copied,
        what_goes_to_several_ranks_is_copied_once,
        on_the_host_here_and_on_a_device_there,
        exchanges_of_what_the_device_has_not_computed,
        messages_that_nobody_has_waited_for,
        another_stream_in_an_exchange,
        another_stream_at_the_wait_for_an_exchange,
        another_stream_without_messages,
        an_output_that_another_stream_is_at_work_on,
        memory_that_is_freed_on_another_stream,
        an_input_that_is_freed_on_another_stream,
        the_start_of_an_exchange_does_not_wait,
        memory_of_a_start_that_is_refused,
        a_lack_of_memory_comes_first,
        exchanges_that_are_dropped,
        versions_stay,
    ]
}

/// One cell around a block of a field, on a grid of two axes.
const HALOS: [Halo; 2] = [halo(0), halo(1)];

const fn halo(axis: i64) -> Halo {
    Halo { axis, along: if axis == 0 { 0 } else { 1 }, before: 1, after: 1 }
}

type Exchange = fn(&Cartesian, &Tensor) -> Result<Tensor>;

/// By one stage and several, of regions that are consecutive and others.
const EXCHANGES: [(&str, Exchange); 8] = [
    ("by axis", |g, x| g.halo_exchange(x, &HALOS)),
    ("at once", |g, x| g.ihalo_exchange(x, &HALOS)?.wait()),
    ("rows", |g, x| g.halo_exchange(x, &HALOS[..1])),
    ("columns", |g, x| g.halo_exchange(&x.tr(), &HALOS[1..])),
    ("gathered", |g, x| g.neighbor_all_gather(x, 0)),
    ("gathered as columns", |g, x| g.ineighbor_all_gather(x, 1)?.wait()),
    ("exchanged", |g, x| g.neighbor_all_to_all(&repeated(g, x, 0), 0, 0, 2)),
    ("exchanged as columns", |g, x| g.ineighbor_all_to_all(&repeated(g, x, 1), 0, 1, 2)?.wait()),
];

/// Two rows or columns for each rank beside this one.
fn repeated(grid: &Cartesian, x: &Tensor, axis: i64) -> Tensor {
    let beside = grid.destinations().into_iter().filter(|rank| *rank != mpi4tch::PROC_NULL);
    let blocks: Vec<Tensor> =
        (0..).zip(beside).map(|(i, _)| x.narrow(axis, 0, 2) * f64::from(i + 1)).collect();
    Tensor::cat(&blocks, axis)
}

fn grid(world: &Communicator, periodic: [bool; 2]) -> Result<Cartesian> {
    Ok(world.cartesian(&[0, 0], &periodic, false)?.expect("all ranks are in it"))
}

fn grids(world: &Communicator) -> Result<[Cartesian; 2]> {
    Ok([grid(world, [true, true])?, grid(world, [false, true])?])
}

fn random(grid: &Cartesian) -> Result<Tensor> {
    testing::random(grid, &[4, 4], Kind::Double)
}

#[track_caller]
fn assert_close(y: &Tensor, expected: &Tensor, what: &str) {
    let [y, expected] = [y, expected].map(|x| moved(&x.detach(), None));
    assert_eq!(y.size(), expected.size(), "{what}");
    assert!(y.allclose(&expected, 1e-12, 1e-12, false), "{what}: {y} instead of {expected}");
}

/// The bytes that are copied between the host and the devices in `f`.
fn copied<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, i64)> {
    let before = bytes_copied();
    let y = f()?;
    Ok((y, i64::try_from(bytes_copied() - before).expect("few bytes")))
}

/// Of a field of n² cells, the 4n + 4 ghosts to the host, and as many back, in both passes.
fn nothing_but_the_messages_is_copied(context: &Context) -> Result<()> {
    let grid = grid(&context.world, [true, true])?;
    let place = Some(grid.rank() % 2);
    for n in [8, 200] {
        let x = leaf(&testing::random(&grid, &[n, n], Kind::Double)?, place);
        for (name, call) in &EXCHANGES[..2] {
            for view in [|x: &Tensor| x.shallow_clone(), |x: &Tensor| x.tr()] {
                let x = x.detach().set_requires_grad(true);
                let (y, forward) = copied(|| call(&grid, &view(&x)))?;
                assert_eq!(forward, 2 * 8 * (4 * n + 4), "{name}, {n}");
                let z = y.square().sum(Kind::Double);
                let (g, backward) =
                    copied(|| Ok(Tensor::f_run_backward(&[&z], &[&x], true, true)?.remove(0)))?;
                assert_eq!(backward, 2 * 8 * (4 * n + 4), "{name}, {n}");
                // The adjoint of the exchange, the exchange, and the adjoint again.
                let z = g.square().sum(Kind::Double);
                let (_, second) =
                    copied(|| Ok(Tensor::f_run_backward(&[z], &[&x], false, false)?))?;
                assert_eq!(second, 2 * 2 * 8 * (4 * n + 4), "{name}, {n}");
            }
        }
    }
    Ok(())
}

fn what_goes_to_several_ranks_is_copied_once(context: &Context) -> Result<()> {
    let ring = context.world.cartesian(&[0], &[true], false)?.expect("all ranks are in it");
    let x = testing::random(&ring, &[30, 20], Kind::Float)?;
    let x = leaf(&x, Some(0)).set_requires_grad(true);
    for axis in [0, 1] {
        let (y, forward) = copied(|| ring.neighbor_all_gather(&x, axis))?;
        assert_eq!(forward, 3 * 600 * 4);
        let z = y.sum(Kind::Float);
        let (_, backward) = copied(|| Ok(Tensor::f_run_backward(&[z], &[&x], false, false)?))?;
        assert_eq!(backward, 4 * 600 * 4);
    }
    Ok(())
}

/// The result, its gradient and the second one.
fn derivatives(grid: &Cartesian, call: Exchange, x: &Tensor, place: Place) -> Result<[Tensor; 3]> {
    let x = leaf(x, place).set_requires_grad(true);
    let y = call(grid, &x.exp())?;
    assert_eq!(device_of(&y), place);
    let loss = y.sin().sum(Kind::Double);
    let first = Tensor::f_run_backward(&[loss], &[&x], true, true)?.remove(0);
    let second = Tensor::f_run_backward(&[first.square().sum(Kind::Double)], &[&x], false, false)?;
    for z in [&first, &second[0]] {
        assert_eq!(device_of(z), place);
    }
    Ok([y, first, second[0].shallow_clone()])
}

fn on_the_host_here_and_on_a_device_there(context: &Context) -> Result<()> {
    for grid in grids(&context.world)? {
        for (name, call) in EXCHANGES {
            let x = random(&grid)?;
            let expected = derivatives(&grid, call, &x, None)?;
            for place in PLACES.map(|place| place(grid.rank())) {
                let results = with_delay(3, || derivatives(&grid, call, &x, place))?;
                for (y, expected) in results.iter().zip(&expected) {
                    assert_close(y, expected, name);
                }
            }
        }
    }
    works(&context.world)
}

fn exchanges_of_what_the_device_has_not_computed(context: &Context) -> Result<()> {
    for grid in grids(&context.world)? {
        for (name, call) in EXCHANGES {
            let x = random(&grid)?;
            let expected = call(&grid, &(leaf(&x, None) * 2.0))? + 1.0;
            for place in PLACES.map(|place| place(grid.rank())) {
                let y = with_delay(10, || -> Result<Tensor> {
                    Ok(moved(&(call(&grid, &(leaf(&x, place) * 2.0))? + 1.0), None))
                })?;
                assert_close(&y, &expected, name);
            }
        }
    }
    Ok(())
}

/// The memory by which messages go stays until the device and MPI have done with it.
fn messages_that_nobody_has_waited_for(context: &Context) -> Result<()> {
    for grid in grids(&context.world)? {
        let xs = (0..4).map(|_| random(&grid)).collect::<Result<Vec<_>>>()?;
        let all = |place: Place| -> Result<Vec<Tensor>> {
            let mut results = Vec::new();
            for (_, call) in EXCHANGES {
                for x in &xs {
                    results.push(call(&grid, &leaf(x, place))?);
                }
            }
            Ok(results)
        };
        let expected = all(None)?;
        let results = with_delay(10, || all(Some(grid.rank() % 2)))?;
        for (i, (y, expected)) in results.iter().zip(&expected).enumerate() {
            assert_close(y, expected, &format!("exchange {i}"));
        }
    }
    Ok(())
}

fn another_stream_in_an_exchange(context: &Context) -> Result<()> {
    for grid in grids(&context.world)? {
        let place = grid.rank() % 2;
        for (name, call) in EXCHANGES {
            let x = random(&grid)?;
            let expected = call(&grid, &(leaf(&x, None) * 2.0))? + 1.0;
            let y = with_delay(10, || {
                stand_in::on_new_stream(place, || -> Result<Tensor> {
                    let y = call(&grid, &(leaf(&x, Some(place)) * 2.0))?;
                    Ok(moved(&(y + 1.0), None))
                })
            })?;
            assert_close(&y, &expected, name);
        }
    }
    Ok(())
}

fn starts(grid: &Cartesian, x: &Tensor) -> Result<Vec<Request>> {
    Ok(vec![
        grid.ihalo_exchange(x, &HALOS)?,
        grid.ihalo_exchange(x, &HALOS[..1])?,
        grid.ineighbor_all_gather(x, 0)?,
        grid.ineighbor_all_to_all(&repeated(grid, x, 1), 0, 1, 2)?,
    ])
}

/// A result is completed on the stream that is current at the wait, by which it is used.
fn another_stream_at_the_wait_for_an_exchange(context: &Context) -> Result<()> {
    for grid in grids(&context.world)? {
        let x = random(&grid)?;
        let expected = wait_all(starts(&grid, &leaf(&x, None))?)?;
        let place = grid.rank() % 2;
        for other_at_the_start in [false, true] {
            for tested in [false, true] {
                let results = with_delay(10, || -> Result<Vec<Tensor>> {
                    let x = leaf(&x, Some(place));
                    let test = |request: Request| -> Result<Tensor> {
                        let mut request = request;
                        loop {
                            match request.test()? {
                                mpi4tch::Test::Done(y) => return Ok(y),
                                mpi4tch::Test::Pending(again) => request = again,
                            }
                        }
                    };
                    let finish = |requests: Vec<Request>| -> Result<Vec<Tensor>> {
                        let results = match tested {
                            true => requests.into_iter().map(test).collect::<Result<_>>()?,
                            false => wait_all(requests)?,
                        };
                        Ok(results.iter().map(|y| moved(&(y + 1.0), None)).collect())
                    };
                    if other_at_the_start {
                        let start = || starts(&grid, &(&x * 1.0));
                        finish(stand_in::on_new_stream(place, start)?)
                    } else {
                        let requests = starts(&grid, &(&x * 1.0))?;
                        stand_in::on_new_stream(place, || finish(requests))
                    }
                })?;
                for (y, expected) in results.iter().zip(&expected) {
                    assert_close(y, &(expected + 1.0), "on another stream");
                }
            }
        }
    }
    Ok(())
}

/// A field that takes its time to be copied.
fn large(grid: &Cartesian) -> Result<Tensor> {
    testing::random(grid, &[1500, 1500], Kind::Double)
}

/// A rank without neighbours has no messages: the wait's stream waits for the start's all the same.
fn another_stream_without_messages(context: &Context) -> Result<()> {
    let alone = context.world.split(Some(context.world.rank()), 0)?.expect("a rank alone");
    let grid = grid(&alone, [false, false])?;
    let x = large(&grid)?;
    let place = context.world.rank() % 2;
    let expected = grid.halo_exchange(&leaf(&x, None), &HALOS)?;
    let on_device = leaf(&x, Some(place));
    stand_in::synchronize(place);
    let request = with_delay(50, || grid.ihalo_exchange(&on_device, &HALOS))?;
    let y = stand_in::on_new_stream(place, || -> Result<Tensor> {
        let y = request.wait()?;
        let last = with_delay(0, || moved(&y.narrow(0, -2, 2), None));
        assert_close(&last, &expected.narrow(0, -2, 2), "for this stream");
        // It is used here after it was freed for the stream that it was made on.
        let copy = with_delay(100, || start_copy_to_host(&y));
        with_delay(0, || drop(y));
        Ok(copy)
    })?;
    with_delay(0, || {
        let next: Vec<Tensor> = (0..3).map(|_| leaf(&expected, Some(place)).fill_(7.0)).collect();
        stand_in::synchronize(place);
        drop(next);
    });
    assert_close(&y, &expected, "for a copy that was late");
    Ok(())
}

/// A copy to pinned memory, for which nobody waits.
fn start_copy_to_host(x: &Tensor) -> Tensor {
    x.internal_to_copy((x.kind(), Device::Cpu), true)
}

/// The output is in memory that the stream of the start is still to write, in the call and before it.
fn an_output_that_another_stream_is_at_work_on(context: &Context) -> Result<()> {
    for grid in grids(&context.world)? {
        let x = random(&grid)?;
        let place = grid.rank() % 2;
        let expected = grid.halo_exchange(&leaf(&x, None), &HALOS)?;
        let on_device = leaf(&x, Some(place));
        let like = leaf(&expected, Some(place));
        stand_in::synchronize(place);
        let request = with_delay(50, || {
            drop(like.zeros_like().fill_(7.0));
            grid.ihalo_exchange(&on_device, &HALOS)
        })?;
        let y = stand_in::on_new_stream(place, || -> Result<Tensor> {
            let y = request.wait()?;
            assert_close(&y, &expected, "for this stream");
            Ok(y)
        })?;
        stand_in::synchronize(place);
        assert_close(&y, &expected, "later");
    }
    Ok(())
}

/// What is unpacked late on one stream is not memory of the next tensor of the other, on which the output
/// was made.
fn memory_that_is_freed_on_another_stream(context: &Context) -> Result<()> {
    for grid in grids(&context.world)? {
        let x = random(&grid)?;
        let place = grid.rank() % 2;
        let on_device = leaf(&x, Some(place));
        for part in [&HALOS[..], &HALOS[..1]] {
            let like = leaf(&grid.halo_exchange(&leaf(&x, None), part)?, Some(place));
            let request = grid.ihalo_exchange(&on_device, part)?;
            // All has been received, but not unpacked.
            grid.barrier()?;
            stand_in::synchronize(place);
            stand_in::on_new_stream(place, || with_delay(50, || request.wait().map(drop)))?;
            let next: Vec<Tensor> = with_delay(0, || (0..3).map(|_| like.full_like(7.0)).collect());
            stand_in::synchronize(place);
            for next in next {
                assert_close(&next, &like.full_like(7.0), "the next tensor");
            }
        }
    }
    Ok(())
}

/// The input's memory is not that of the next tensor before it has been copied.
fn an_input_that_is_freed_on_another_stream(context: &Context) -> Result<()> {
    let alone = context.world.split(Some(context.world.rank()), 0)?.expect("a rank alone");
    let grid = grid(&alone, [false, false])?;
    let x = random(&grid)?;
    let place = context.world.rank() % 2;
    let expected = grid.halo_exchange(&leaf(&x, None), &HALOS)?;
    let on_device = leaf(&x, Some(place)) * 1.0;
    stand_in::synchronize(place);
    let call = || grid.halo_exchange(&on_device, &HALOS);
    let y = with_delay(100, || stand_in::on_new_stream(place, call))?;
    with_delay(0, || drop(on_device));
    stand_in::synchronize(place);
    assert_close(&y, &expected, "the input was freed");
    Ok(())
}

fn the_start_of_an_exchange_does_not_wait(context: &Context) -> Result<()> {
    const BUSY: u64 = 300;
    let grid = grid(&context.world, [true, true])?;
    let x = random(&grid)?;
    let start = |x: &Tensor| -> Result<Vec<Request>> {
        Ok(vec![grid.ihalo_exchange(x, &HALOS)?, grid.ihalo_exchange(&x.tr(), &HALOS)?])
    };
    let expected = wait_all(start(&leaf(&x, None))?)?;
    let x = leaf(&x, Some(0));
    with_delay(BUSY, || {
        let mut y = x.zeros_like();
        y.copy_(&x);
        let begin = Instant::now();
        let requests = start(&y)?;
        let taken = begin.elapsed();
        assert!(taken < Duration::from_millis(BUSY), "{taken:?}");
        let results = wait_all(requests)?;
        assert!(begin.elapsed() >= Duration::from_millis(BUSY), "the device was busy");
        for (y, expected) in results.iter().zip(&expected) {
            assert_close(y, expected, "started");
        }
        Ok(())
    })
}

/// The ranks do not agree on the call while a device copies what it was to send. The memory that it
/// copies to is not given to anybody before.
fn memory_of_a_start_that_is_refused(context: &Context) -> Result<()> {
    let grid = grid(&context.world, [true, true])?;
    if grid.size() == 1 {
        return Ok(());
    }
    let place = grid.rank() % 2;
    let x = leaf(&random(&grid)?, Some(place));
    let halo = Halo { before: 1 + i64::from(grid.rank() == 0), ..HALOS[0] };
    let start = |stream_delay| with_delay(stream_delay, || grid.ihalo_exchange(&x, &[halo]));
    stand_in::synchronize(place);
    let refused = start(200)?.wait();
    assert!(matches!(refused, Err(Error::Mismatch { .. })));
    stand_in::on_new_stream(place, || {
        with_delay(0, || {
            // As large as what is sent, and as what is received.
            let sizes = [4, 8, 12, 16].map(|n| leaf(&x.narrow(0, 0, 1), None).repeat([n / 4, 1]));
            let mut pinned: Vec<Tensor> = sizes
                .iter()
                .flat_map(|x| (0..4).map(|_| start_copy_to_host(&leaf(x, Some(place)))))
                .collect();
            stand_in::Event::record(place).wait();
            pinned.iter_mut().for_each(|x| drop(x.fill_(7.0)));
            stand_in::synchronize(place);
            for x in &pinned {
                assert_eq!(*x, x.full_like(7.0));
            }
        });
    });
    works(&grid)
}

/// A rank that has no memory for a later stage must not take part in the first, after which others wait.
fn a_lack_of_memory_comes_first(context: &Context) -> Result<()> {
    let grid = grid(&context.world, [true, true])?;
    let place = grid.rank() % 2;
    let x = leaf(&random(&grid)?, Some(place)).set_requires_grad(true);
    for (name, exchange) in &EXCHANGES[..4] {
        let y = once_there_is_memory(name, || exchange(&grid, &x))?;
        assert_close(&y, &exchange(&grid, &leaf(&x, None))?, name);
        let cotangent = y.detach();
        let back = || Ok(testing::vjp(&[&y], &[&cotangent], &[&x], true)?.remove(0));
        let gradient = once_there_is_memory(name, back)?;
        assert_close(&gradient, &back()?, name);
    }
    works(&grid)
}

/// The result of an exchange, after attempts with less and less of a lack of memory: in none of them has
/// anything been copied.
fn once_there_is_memory(name: &str, exchange: impl Fn() -> Result<Tensor>) -> Result<Tensor> {
    for tensors in 0..100 {
        let before = stand_in::copies_made();
        stand_in::set_tensors_left(Some(tensors));
        let result = exchange();
        stand_in::set_tensors_left(None);
        let copies = stand_in::copies_made() - before;
        let Err(error) = result else { return result };
        assert!(error.to_string().contains("out of memory"), "{name}: {error}");
        assert_eq!(copies, 0, "{name}: {tensors} tensors");
    }
    panic!("{name}: some number of tensors is enough");
}

fn exchanges_that_are_dropped(context: &Context) -> Result<()> {
    for grid in grids(&context.world)? {
        let x = random(&grid)?;
        let expected = grid.halo_exchange(&leaf(&x, None), &HALOS)?;
        for place in PLACES.map(|place| place(grid.rank())) {
            with_delay(5, || -> Result<()> {
                for i in 0..5 {
                    let y = leaf(&x, place) * f64::from(i);
                    drop(starts(&grid, &y)?);
                    std::mem::forget(grid.ihalo_exchange(&y, &HALOS)?);
                    let y = grid.halo_exchange(&leaf(&x, place), &HALOS)?;
                    assert_close(&y, &expected, "after the dropped ones");
                }
                Ok(())
            })?;
        }
    }
    works(&context.world)
}

/// What this crate writes to a result is not a change in place, on a device as little as on the host.
fn versions_stay(context: &Context) -> Result<()> {
    let grid = grid(&context.world, [true, true])?;
    for place in PLACES.map(|place| place(grid.rank())) {
        let x = leaf(&random(&grid)?, place).set_requires_grad(true);
        // Saved for the backward pass from before the wait's end to after it.
        let y = grid.ihalo_exchange(&x, &HALOS)?.wait()?;
        let z = y.square();
        let again = grid.ihalo_exchange(&z, &HALOS)?;
        let w = z.sin() * again.wait()?.narrow(0, 1, 6).narrow(1, 1, 6);
        w.sum(Kind::Double).f_backward()?;
        assert_eq!(device_of(&x.grad()), place);
    }
    works(&context.world)
}
