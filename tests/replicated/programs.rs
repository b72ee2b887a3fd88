//! Programs of replicated and varying tensors against libtorch alone on all ranks' data.

use mpi4tch::{Communicator, Rank, Replicated, Result, Tape, testing};
use tch::{Kind, Tensor};

use crate::common::tensors::{tensor, values, variable};
use crate::common::{Context, communicators, passes::CREATE_GRAPH};
use crate::{assert_close, assert_same, common_random, gradients, leaf};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        the_gradient_of_one_loss,
        programs,
        programs_of_started_maps,
        gradients_add_up,
        second_derivatives_of_the_one_loss,
        a_tape_may_be_dropped,
        within_a_pullback,
        several_communicators,
    ]
}

fn index(rank: Rank) -> usize {
    usize::try_from(rank).expect("positive")
}

/// Every rank's tensor of one shape.
fn all_ranks(comm: &Communicator, x: &Tensor) -> Result<Vec<Tensor>> {
    Ok(comm.all_gather(&x.detach().unsqueeze(0), 0)?.unbind(0))
}

/// The program that all of this is for: a share of the data on each rank.
fn the_gradient_of_one_loss(context: &Context) -> Result<()> {
    let world = &context.world;
    let data = testing::random(world, &[4, 3], Kind::Double)?;
    let w = leaf(&common_random(world, &[3], Kind::Double)?);
    let local_loss = |data: &Tensor, w: &Tensor| data.matmul(w).sin().square().sum(Kind::Double);
    let serial = leaf(&w);
    let losses = all_ranks(world, &data)?;
    let expected = losses.iter().map(|data| local_loss(data, &serial)).sum::<Tensor>();
    expected.backward();

    let tape = world.tape();
    for comm in [world, &*tape] {
        let own = leaf(&w);
        let w = Replicated::assume(comm, &own)?;
        let loss = Replicated::sum(comm, &local_loss(&data, &w.vary()?))?;
        loss.backward()?;
        assert_close(loss.tensor(), &expected, "loss");
        assert_close(&w.grad(), &serial.grad(), "gradient");
        assert!(own.grad().equal(&w.grad()), "a leaf stays the leaf");
        assert_same(world, &w.grad(), "gradient")?;
    }
    Ok(())
}

/// What a program works with: replicated, of each rank, and of the root.
struct Inputs {
    weights: Tensor,
    data: Tensor,
    root: Rank,
}

impl Inputs {
    fn new(comm: &Communicator, extent: i64, root: Rank) -> Result<Self> {
        let weights = leaf(&common_random(comm, &[extent, 2], Kind::Double)?);
        Ok(Self { weights, data: variable(comm, &[extent, 2])?, root })
    }
}

fn mix(a: &Tensor, b: &Tensor) -> Tensor {
    a * b + a.square()
}

fn waited(request: mpi4tch::ReplicatedRequest) -> Result<Replicated> {
    request.wait()
}

/// A loss by all maps, blocking or started.
fn parallel(comm: &Communicator, inputs: &Inputs, starts: bool) -> Result<Replicated> {
    let Inputs { weights, data, root } = inputs;
    let weights = Replicated::assume(comm, weights)?;
    let own = if starts { weights.ivary()?.wait()? } else { weights.vary()? };
    let own = (own * data).sin();
    let sum =
        if starts { waited(Replicated::isum(comm, &own)?)? } else { Replicated::sum(comm, &own)? };
    let mixed = Replicated::combine(&[&sum, &weights], |parts| mix(parts[0], parts[1]))?;
    let block = if starts { mixed.ishard(0)?.wait()? } else { mixed.shard(0)? };
    let block = block.sin() * f64::from(comm.rank() + 1);
    let whole = if starts {
        waited(Replicated::iconcat(comm, &block, 0)?)?
    } else {
        Replicated::concat(comm, &block, 0)?
    };
    let sent = data.cos();
    let came = if starts {
        waited(Replicated::ibroadcast(comm, &sent, *root)?)?
    } else {
        Replicated::broadcast(comm, &sent, *root)?
    };
    let squares = (own.square() + came.vary()?).sum(Kind::Double);
    let mean = if starts {
        waited(Replicated::imean(comm, &squares)?)?
    } else {
        Replicated::mean(comm, &squares)?
    };
    let product = Replicated::combine(&[&whole, &came], |parts| mix(parts[0], parts[1]))?;
    let product = product.map(|product| product.sum(Kind::Double))?;
    Replicated::combine(&[&product, &mean], |parts| parts[0] + parts[1])
}

/// The same by libtorch alone: `weights` once, and all ranks' data.
fn serial(weights: &Tensor, data: &[Tensor], root: Rank) -> Tensor {
    let size = i64::try_from(data.len()).expect("few");
    let owns: Vec<Tensor> = data.iter().map(|data| (weights * data).sin()).collect();
    let mixed = mix(&Tensor::stack(&owns, 0).sum_dim_intlist(0, false, Kind::Double), weights);
    let extent = weights.size()[0];
    let counts: Vec<i64> =
        (0..size).map(|r| extent / size + i64::from(r < extent % size)).collect();
    let blocks = mixed.split_with_sizes(&counts, 0);
    let blocks: Vec<Tensor> =
        blocks.iter().zip(1..).map(|(block, rank)| block.sin() * f64::from(rank)).collect();
    let whole = Tensor::cat(&blocks, 0);
    let came = data[index(root)].cos();
    let squares = owns.iter().map(|own| (own.square() + &came).sum(Kind::Double));
    mix(&whole, &came).sum(Kind::Double) + squares.sum::<Tensor>() / size as f64
}

/// The loss, the gradients by the weights and by this rank's data, and the derivatives of their
/// products with directions.
fn check(comm: &Communicator, tape: Option<&Tape>, inputs: &Inputs, starts: bool) -> Result<()> {
    let Inputs { weights, data, root } = inputs;
    let on = tape.map_or(comm, |tape| tape);
    let all: Vec<Tensor> = all_ranks(comm, data)?.iter().map(leaf).collect();
    let serial_weights = leaf(weights);
    let expected = serial(&serial_weights, &all, *root);
    let of_all: Vec<&Tensor> = std::iter::once(&serial_weights).chain(&all).collect();
    let one = expected.ones_like();
    let firsts = testing::vjp(&[&expected], &[&one], &of_all, true)?;

    let loss = parallel(on, inputs, starts)?;
    assert_close(loss.tensor(), &expected, "loss");
    assert_same(comm, loss.tensor(), "loss")?;
    let own = index(comm.rank()) + 1;
    let by = [weights, data];
    let first = gradients(tape, (loss.tensor(), &one), &by, true)?;
    assert_close(&first[0], &firsts[0], "gradient by the weights");
    assert_close(&first[1], &firsts[own], "gradient by the data");
    assert_same(comm, &first[0], "gradient by the weights")?;

    // A scalar of the gradients, which is one on all ranks: of the replicated gradient as it is, of
    // the varying one by the sum.
    let along = common_random(comm, &weights.size(), Kind::Double)?;
    let aside = testing::random(comm, &data.size(), Kind::Double)?;
    let of_one = Replicated::assume(on, &first[0])?.map(|g| (g * &along).sum(Kind::Double))?;
    let of_each = Replicated::sum(on, &(&first[1] * &aside).sum(Kind::Double))?;
    let scalar = Replicated::combine(&[&of_one, &of_each], |parts| parts[0] + parts[1])?;
    let second = gradients(tape, (scalar.tensor(), &one), &by, false)?;
    let asides = all_ranks(comm, &aside)?;
    let of_each = firsts[1..].iter().zip(&asides).map(|(g, v)| (g * v).sum(Kind::Double));
    let scalar = (&firsts[0] * &along).sum(Kind::Double) + of_each.sum::<Tensor>();
    let seconds = testing::vjp(&[&scalar], &[&one], &of_all, false)?;
    assert_close(&second[0], &seconds[0], "second derivative by the weights");
    assert_close(&second[1], &seconds[own], "second derivative by the data");
    assert_same(comm, &second[0], "second derivative")
}

fn check_all(context: &Context, starts: bool) -> Result<()> {
    for (_, comm) in communicators(&context.world) {
        for (extent, root) in [(5, 0), (2, comm.size() - 1), (8, comm.size() / 2)] {
            let inputs = Inputs::new(&comm, extent, root)?;
            check(&comm, None, &inputs, starts)?;
            check(&comm, Some(&comm.tape()), &inputs, starts)?;
        }
    }
    Ok(())
}

fn programs(context: &Context) -> Result<()> {
    check_all(context, false)
}

fn programs_of_started_maps(context: &Context) -> Result<()> {
    check_all(context, true)
}

/// `backward` adds to the gradients of leaves, and to those that a broadcast retains.
fn gradients_add_up(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = f64::from(world.size());
    let tape = world.tape();
    for comm in [world, &*tape] {
        for started in [false, true] {
            let w = leaf(&tensor(&[3.0]));
            let own = variable(world, &[1])?;
            let last = world.size() - 1;
            for pass in [1.0, 2.0] {
                let w = Replicated::assume(comm, &w)?;
                let x = if started {
                    Replicated::ibroadcast(comm, &own, last)?.wait()?
                } else {
                    Replicated::broadcast(comm, &own, last)?
                };
                let product = Replicated::combine(&[&w, &x], |p| p[0].square() * p[1])?;
                Replicated::sum(comm, &product.vary()?.sum(Kind::Double))?.backward()?;
                let x_value = x.tensor().detach();
                assert_close(&w.grad(), &(&x_value * 6.0 * size * pass), "by w");
                assert_close(&x.grad(), &tensor(&[9.0 * size]), "retained");
                let expected = if world.rank() == last { 9.0 * size * pass } else { 0.0 };
                assert_eq!(values(&own.grad()), [expected]);
            }
        }
    }
    Ok(())
}

/// L = Σ_r (r + 1) w³: the second derivative is 6 w Σ_r (r + 1), by the same maps.
fn second_derivatives_of_the_one_loss(context: &Context) -> Result<()> {
    let world = &context.world;
    let ranks: f64 = (1..=world.size()).map(f64::from).sum();
    let tape = world.tape();
    let w = leaf(&tensor(&[2.0]));
    let replicated = Replicated::assume(&tape, &w)?;
    let cube = replicated.vary()?.pow_tensor_scalar(3) * f64::from(world.rank() + 1);
    let loss = Replicated::sum(&tape, &cube.sum(Kind::Double))?;
    let gradient = tape.grad_with(loss.tensor(), &[&w], CREATE_GRAPH)?.remove(0);
    assert_eq!(values(&gradient), [12.0 * ranks]);
    let gradient = Replicated::assume(&tape, &gradient)?.map(|g| g.sum(Kind::Double))?;
    gradient.backward()?;
    assert_eq!(values(&w.grad()), [12.0 * ranks]);
    Ok(())
}

/// Its calls are then on no tape, and neither is the backward pass.
fn a_tape_may_be_dropped(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let w = leaf(&tensor(&[3.0]));
    let w = Replicated::assume(&tape, &w)?;
    let own = w.vary()?.square();
    drop(tape);
    let loss = Replicated::mean(w.communicator(), &own.sum(Kind::Double))?;
    loss.backward()?;
    assert_close(&w.grad(), &tensor(&[6.0]), "without the tape");
    Ok(())
}

/// A pullback of the user's own may go back through replicated tensors of its own.
fn within_a_pullback(context: &Context) -> Result<()> {
    fn cube(comm: &Communicator, x: &Tensor) -> Result<Tensor> {
        let y = tch::no_grad(|| x.pow_tensor_scalar(3));
        let mut y = comm.custom("cube", &[x], &[&y], &[x], |comm, saved, cotangents| {
            let gradient = tch::with_grad(|| {
                let w = leaf(&saved[0]);
                // p ranks, of which each has a p-th.
                let own = Replicated::assume(comm, &w)?.vary()?.pow_tensor_scalar(3);
                Replicated::mean(comm, &own.sum(Kind::Double))?.backward()?;
                Result::Ok(w.grad())
            })?;
            Ok(vec![Some(&cotangents[0] * gradient)])
        })?;
        Ok(y.remove(0))
    }
    let world = &context.world;
    let tape = world.tape();
    for comm in [world, &*tape] {
        let x = leaf(&tensor(&[2.0]));
        let x = Replicated::assume(comm, &x)?;
        let loss = Replicated::sum(comm, &cube(comm, &x.vary()?)?.sum(Kind::Double))?;
        loss.backward()?;
        let expected = tensor(&[12.0 * f64::from(world.size())]);
        assert_close(&x.grad(), &expected, "by the pullback");
    }
    Ok(())
}

/// Replicated over the rows of a grid, and then over the columns.
fn several_communicators(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, columns) = (world.rank(), if world.size() % 2 == 0 { 2 } else { 1 });
    let tape = world.tape();
    let row = tape.split(Some(rank / columns), rank)?.expect("each rank has a color");
    let column = tape.split(Some(rank % columns), rank)?.expect("each rank has a color");
    let (a, w) = (f64::from(rank + 1), leaf(&tensor(&[3.0])));
    let in_row = Replicated::assume(&row, &w)?;
    let sum_of_row = Replicated::sum(&row, &(in_row.vary()?.square() * a))?;
    let in_column = Replicated::sum(&column, &sum_of_row.vary()?.square())?;
    let loss = Replicated::mean(&tape, &in_column.vary()?.sum(Kind::Double))?;
    loss.backward()?;
    // L = Σ (A w²)² over the rows, each with its own w and with A = Σ a over its ranks.
    let sum: f64 = (0..row.size()).map(|c| f64::from(rank / columns * columns + c + 1)).sum();
    let expected = 4.0 * 27.0 * sum * sum;
    assert_close(&w.grad(), &tensor(&[expected]), "by the w of a row");
    Ok(())
}
