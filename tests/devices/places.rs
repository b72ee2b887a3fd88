//! Results, gradients and what is saved for them are on the device of the input, and ranks may use
//! different devices in one call.

use mpi4tch::{DataParallel, DataParallelOptions, Halo, Op, Replicated, Result, testing};
use stand_in::device_of;
use tch::{Kind, Tensor};

use crate::common::ring::neighbours;
use crate::common::{Context, communicators};
use crate::table::{Arguments, OPERATIONS, Operation, STARTED};
use crate::ways::{WAYS, check_ring};
use crate::{PLACES, leaf, moved, with_delay};

pub fn tests() -> Vec<harness::Test<Context>> {
    let mut tests = harness::tests![
        messages,
        like_decides_where_a_message_goes,
        extrema_and_their_owners,
        neighbours_and_halos,
        variables_of_all_ranks,
        checkpoints,
        custom_nodes,
        parameters_on_several_devices,
    ];
    for operation in OPERATIONS.iter().chain(&STARTED) {
        let name = format!("{} on different devices", operation.name);
        tests.push(harness::Test::new(name, |context: &Context| on_places(context, operation)));
    }
    tests
}

/// Value, device and both derivatives.
fn on_places(context: &Context, operation: &Operation) -> Result<()> {
    let world = &context.world;
    let rank = world.rank().unsigned_abs() as usize;
    let counts: Vec<i64> = (0..world.size()).map(|rank| i64::from(rank % 3)).collect();
    let ops = [Op::Sum, Op::Max].into_iter().filter(|op| match operation.ops {
        Some(is_defined) => is_defined(*op),
        None => *op == Op::Sum,
    });
    let mut turn = 0;
    for op in ops {
        for place in PLACES.map(|place| place(world.rank())) {
            turn += 1;
            let a = Arguments {
                shape: vec![2, 3],
                axis: i64::from(turn % 2),
                scatter_axis: 0,
                scatter_counts: counts.iter().rev().copied().collect(),
                counts: counts.clone(),
                root: if operation.has_root { turn % world.size() } else { 0 },
                op,
            };
            let shape = a.input_shape(operation.takes, rank);
            let x = leaf(&testing::random(world, &shape, Kind::Double)?, place);
            testing::assert_serial(
                world,
                &x,
                |x| {
                    let y = (operation.run)(world, x, &a)?;
                    assert_eq!(device_of(&y), place);
                    Ok(y)
                },
                |xs| (operation.serial)(xs, &a),
            )?;
        }
    }
    Ok(())
}

fn messages(context: &Context) -> Result<()> {
    for (_, comm) in communicators(&context.world) {
        for place in PLACES.map(|place| place(context.world.rank())) {
            for (_, way) in WAYS {
                check_ring(&comm, &leaf(&testing::random(&comm, &[3], Kind::Double)?, place), way)?;
            }
        }
    }
    Ok(())
}

/// A result is where `like` is, and so are the zeros that are its gradient; the gradient of what was
/// sent is where that was.
fn like_decides_where_a_message_goes(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (right, left) = neighbours(&tape);
    let places = [None, Some(0), Some(1)];
    for (from, to) in places.into_iter().flat_map(|from| places.map(|to| (from, to))) {
        for started in [false, true] {
            let sent = testing::random(&tape, &[4], Kind::Double)?;
            let all = tape.all_gather(&leaf(&sent, None), 0)?;
            let x = leaf(&sent, from).set_requires_grad(true);
            let like = leaf(&sent.zeros_like(), to).set_requires_grad(true);
            let request = tape.isend(&x, right, 3)?;
            let y = match started {
                true => tape.irecv(&like, left, 3)?.wait()?,
                false => tape.recv(&like, left, 3)?,
            };
            let x_again = request.wait()?;
            assert_eq!((device_of(&y), device_of(&x_again)), (to, from));
            assert_eq!(moved(&y.detach(), None), all.narrow(0, i64::from(left) * 4, 4));
            tape.backward(&(&y * f64::from(tape.rank() + 1)).sum(Kind::Double))?;
            assert_eq!((device_of(&x.grad()), device_of(&like.grad())), (from, to));
            assert_eq!(x.grad(), x.detach().full_like(f64::from(right + 1)));
            assert_eq!(like.grad(), like.detach().zeros_like());
        }
    }
    Ok(())
}

fn extrema_and_their_owners(context: &Context) -> Result<()> {
    let world = &context.world;
    for place in PLACES.map(|place| place(world.rank())) {
        let x = testing::random(world, &[5], Kind::Double)?;
        let on_host = world.max_loc(&leaf(&x, None))?;
        let (values, owners) = world.max_loc(&leaf(&x, place))?;
        assert_eq!((device_of(&values), device_of(&owners)), (place, place));
        assert_eq!((moved(&values, None), moved(&owners, None)), on_host);
        testing::gradgradcheck(world, &leaf(&x, place), |x| Ok(world.min_loc(x)?.0))?;
    }
    Ok(())
}

fn neighbours_and_halos(context: &Context) -> Result<()> {
    let world = &context.world;
    let grid = world.cartesian(&[0], &[true], false)?.expect("all ranks are in it");
    let halos = [Halo { axis: 0, along: 0, before: 1, after: 2 }];
    for place in PLACES.map(|place| place(world.rank())) {
        let x = leaf(&testing::random(world, &[4, 2], Kind::Double)?, place);
        // Blocks of 4 rows on a ring.
        let with_ghosts = |xs: &[Tensor]| -> Vec<Tensor> {
            let ranks = xs.len();
            (0..ranks)
                .map(|rank| {
                    let before = xs[(rank + ranks - 1) % ranks].narrow(0, 3, 1);
                    let after = xs[(rank + 1) % ranks].narrow(0, 0, 2);
                    Tensor::cat(&[&before, &xs[rank], &after], 0)
                })
                .collect()
        };
        testing::assert_serial(world, &x, |x| grid.halo_exchange(x, &halos), with_ghosts)?;
        testing::assert_serial(world, &x, |x| grid.ihalo_exchange(x, &halos)?.wait(), with_ghosts)?;
        let from_both = |xs: &[Tensor]| -> Vec<Tensor> {
            let ranks = xs.len();
            let sides = |rank: usize| [(rank + ranks - 1) % ranks, (rank + 1) % ranks];
            (0..ranks).map(|rank| Tensor::cat(&sides(rank).map(|side| &xs[side]), 0)).collect()
        };
        testing::assert_serial(world, &x, |x| grid.neighbor_all_gather(x, 0), from_both)?;
        testing::assert_serial(world, &x, |x| grid.ineighbor_all_gather(x, 0)?.wait(), from_both)?;
        let exchange = |x: &Tensor| grid.neighbor_all_to_all(x, 1, 0, 2);
        testing::assert_adjoint(world, &x, exchange)?;
        assert_eq!(device_of(&exchange(&x)?), place);
        let whole = leaf(&testing::random(world, &[5, 2], Kind::Double)?, place);
        testing::assert_adjoint(world, &whole, |x| grid.distribute(x, &[0], 0))?;
        testing::assert_adjoint(world, &x, |x| grid.collect(x, &[0], 0))?;
    }
    Ok(())
}

fn variables_of_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    for place in PLACES.map(|place| place(world.rank())) {
        let root =
            leaf(&testing::random(world, &[3], Kind::Double)?, place).set_requires_grad(true);
        let w = Replicated::broadcast(world, &root, 0)?;
        assert_eq!(device_of(w.tensor()), place);
        let part = w.vary()?;
        assert_eq!(device_of(&part), place);
        let loss =
            Replicated::sum(world, &(part.square() * f64::from(world.rank() + 1)).sum(None))?;
        loss.backward()?;
        assert_eq!(device_of(&w.grad()), place);
        let weight = f64::from(world.size() * (world.size() + 1));
        let expected = w.tensor().detach() * weight;
        assert!(w.grad().allclose(&expected, 1e-12, 1e-12, false));
        let block = leaf(&testing::random(world, &[2], Kind::Double)?, place);
        let shard = |x: &Tensor| Replicated::concat(world, x, 0)?.shard(0);
        testing::assert_serial(world, &block, shard, |xs| {
            xs.iter().map(Tensor::shallow_clone).collect()
        })?;
    }
    Ok(())
}

/// What the function gets is where the input was, when it runs first and when it runs again.
fn checkpoints(context: &Context) -> Result<()> {
    let world = &context.world;
    for place in PLACES.map(|place| place(world.rank())) {
        let tape = world.tape();
        let x = leaf(&testing::random(world, &[3], Kind::Double)?, place).set_requires_grad(true);
        let comm = mpi4tch::Communicator::clone(&tape);
        let step = move |x: &Tensor| -> Result<Tensor> {
            assert_eq!(device_of(x), place);
            let y = comm.all_reduce(&x.sin(), Op::Mean)?;
            assert_eq!(device_of(&y), place);
            Ok(y)
        };
        let plain = tape.grad(&step(&step(&x)?)?.sum(Kind::Double), &[&x])?.remove(0);
        let (once, often) = (step.clone(), step);
        let y = tape.checkpoint(&[&x], move |x| Ok(vec![once(&x[0])?]))?.remove(0);
        let y = tape.checkpoint_steps(&[&y], 1, 1, move |_, x| Ok(vec![often(&x[0])?]))?.remove(0);
        let kept = tape.grad(&y.sum(Kind::Double), &[&x])?.remove(0);
        assert_eq!(device_of(&kept), place);
        assert!(kept.allclose(&plain, 1e-12, 1e-12, false));
    }
    Ok(())
}

/// They take tensors of several devices: nothing of them is sent.
fn custom_nodes(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = leaf(&testing::random(world, &[3], Kind::Double)?, None).set_requires_grad(true);
    let z = leaf(&testing::random(world, &[3], Kind::Double)?, Some(1)).set_requires_grad(true);
    let (y, w) = tch::no_grad(|| (moved(&x, Some(0)) * 2.0, moved(&z, None) * 3.0));
    let outputs =
        world.custom("swap", &[&x, &z], &[&y, &w], &[&x, &z], |comm, saved, cotangents| {
            let places = |tensors: &[Tensor]| tensors.iter().map(device_of).collect::<Vec<_>>();
            assert_eq!(places(saved), [None, Some(1)]);
            assert_eq!(places(cotangents), [Some(0), None]);
            let first = comm.all_reduce(&(&cotangents[0] * 2.0), Op::Sum)?;
            assert_eq!(device_of(&first), Some(0));
            Ok(vec![Some(moved(&first, None)), Some(moved(&(&cotangents[1] * 3.0), Some(1)))])
        })?;
    let loss = moved(&outputs[0], None) + &outputs[1];
    loss.sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), x.detach().full_like(2.0 * f64::from(world.size())));
    assert_eq!(z.grad(), z.detach().full_like(3.0));
    Ok(())
}

/// Each gradient is where its parameter is, and none is summed with those of another device.
fn parameters_on_several_devices(context: &Context) -> Result<()> {
    let world = &context.world;
    for (bucket_bytes, first_bucket_bytes) in [(1, 1), (1 << 20, 1 << 20)] {
        let places = [Some(0), None, Some(1), Some(0), None];
        let parameters = places
            .iter()
            .map(|place| {
                let x = world.broadcast(&testing::random(world, &[4], Kind::Double)?, 0)?;
                Ok(leaf(&x, *place).set_requires_grad(true))
            })
            .collect::<Result<Vec<_>>>()?;
        let options = DataParallelOptions { bucket_bytes, first_bucket_bytes, reduce_in: None };
        let model = DataParallel::with_options(world, &parameters, &[], options)?;
        for step in 1..4 {
            let weight = f64::from(step * (world.rank() + 1));
            let losses = parameters.iter().map(|w| moved(&(w.square() * weight), None));
            model.backward(&losses.sum::<Tensor>().sum(Kind::Double))?;
            let mean = f64::from(step * (world.size() + 1)) / 2.0;
            for (w, place) in parameters.iter().zip(places) {
                assert_eq!(device_of(&w.grad()), place);
                let expected = w.detach() * 2.0 * mean;
                assert!(w.grad().allclose(&expected, 1e-12, 1e-12, false));
                w.shallow_clone().zero_grad();
            }
        }
    }
    // On the first rank in host memory, and on the others on devices.
    for place in PLACES.map(|place| place(world.rank())) {
        let w = leaf(&testing::random(world, &[3], Kind::Double)?.zeros_like(), place);
        let w = [(w + 1.0).set_requires_grad(true)];
        let model = DataParallel::with_options(world, &w, &[], DataParallelOptions::default())?;
        with_delay(5, || model.backward(&(w[0].square() * f64::from(world.rank())).sum(None)))?;
        assert_eq!(device_of(&w[0].grad()), place);
        assert_eq!(w[0].grad(), w[0].detach() * f64::from(world.size() - 1));
    }
    Ok(())
}
