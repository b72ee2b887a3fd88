//! Gradients are those of one rank on the whole batch, in every way to use them.

use mpi4tch::{DataParallel, DataParallelOptions, Op, Result, testing};
use tch::nn::{self, Module, ModuleT, OptimizerConfig};
use tch::{Kind, Tensor, no_grad};

use crate::common::Context;
use crate::common::device;
use crate::common::store::{empty_store, store_of};
use crate::common::tensors::{full, tensor};
use crate::models::{
    assert_close, batch, gradients_on_one_rank, leaf_like, perceptron, small_buckets, trained,
};

pub fn are_those_of_the_whole_batch(context: &Context) -> Result<()> {
    let world = &context.world;
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-5)] {
        for options in small_buckets() {
            let (w, losses) = perceptron(world, kind)?;
            let model = trained(world, &w, options)?;
            let rows = batch(world, 5, kind)?;
            let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
            model.backward(&losses(&w, &rows).mean(kind))?;
            assert_close(world, &w, &expected, tolerance);
        }
    }
    Ok(())
}

/// All ranks start from the values of rank 0, and have equal gradients.
pub fn are_equal_bit_for_bit(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let w: Vec<Tensor> = [vec![4, 3], vec![4], vec![2, 4], vec![2], vec![]]
            .iter()
            .map(|shape| Ok(testing::random(world, shape, Kind::Float)?.set_requires_grad(true)))
            .collect::<Result<_>>()?;
        let statistics = [tensor(&[world.rank()]), tensor(&[true])];
        let (_, losses) = perceptron(world, Kind::Float)?;
        let model = DataParallel::with_options(world, &w, &statistics, options)?;
        assert_eq!(statistics[0], tensor(&[0]));
        let rows = batch(world, 4, Kind::Float)?;
        model.backward(&losses(&w, &rows).mean(None))?;
        for x in w.iter().flat_map(|w| [w.detach(), w.grad()]) {
            let all = world.all_gather(&x.unsqueeze(0), 0)?;
            assert_eq!(all, all.slice(0, 0, 1, 1).expand_as(&all), "differs between ranks");
        }
    }
    Ok(())
}

pub fn of_a_convolutional_net_in_a_store(context: &Context) -> Result<()> {
    let world = &context.world;
    let net = |store: &nn::VarStore| {
        let root = store.root();
        nn::seq_t()
            .add(nn::conv2d(&root / "conv", 1, 3, 3, Default::default()))
            .add(nn::batch_norm2d(&root / "norm", 3, Default::default()))
            .add_fn(|x| x.relu().flatten(1, -1))
            .add(nn::linear(&root / "linear", 3 * 6 * 6, 10, Default::default()))
    };
    let (Some(store), Some(alone)) = (empty_store(), empty_store()) else { return Ok(()) };
    let (layers, copy) = (net(&store), net(&alone));
    let model = DataParallel::new(world, &store)?;
    for (name, mut x) in alone.variables() {
        no_grad(|| x.copy_(&store.variables()[&name]));
    }
    let images = testing::random(world, &[4, 1, 8, 8], Kind::Float)?;
    let whole = world.all_gather(&images, 0)?;
    // In evaluation mode, as in training each rank normalizes its own part.
    let loss = |net: &nn::SequentialT, x: &Tensor| net.forward_t(x, false).square().mean(None);
    model.backward(&loss(&layers, &images))?;
    loss(&copy, &whole).f_backward()?;
    let expected: Vec<Tensor> = alone.trainable_variables().iter().map(Tensor::grad).collect();
    assert_close(world, &store.trainable_variables(), &expected, 1e-5);
    Ok(())
}

/// One tensor in two places of the model and of the list.
pub fn of_shared_parameters(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let (w, _) = perceptron(world, Kind::Double)?;
        let model = trained(
            world,
            &[w[0].shallow_clone(), w[1].shallow_clone(), w[0].shallow_clone()],
            options,
        )?;
        let loss = |w: &[Tensor], x: &Tensor| {
            (x.linear(&w[0], Some(&w[1])).matmul(&w[0])).square().sum_dim_intlist(1, false, None)
        };
        let rows = batch(world, 3, Kind::Double)?;
        let expected = gradients_on_one_rank(world, &w[..2], loss, &rows)?;
        model.backward(&loss(&w, &rows).mean(None))?;
        assert_close(world, &w[..2], &expected, 1e-12);
    }
    Ok(())
}

/// They become dense.
pub fn that_are_sparse(context: &Context) -> Result<()> {
    if device::left_out_on_the_stand_in("it has no sparse tensors") {
        return Ok(());
    }
    let world = &context.world;
    for options in small_buckets() {
        let table = world.broadcast(&testing::random(world, &[6, 2], Kind::Double)?, 0)?;
        let table = table.set_requires_grad(true);
        let model = trained(world, &[table.shallow_clone()], options)?;
        let rows = tensor(&[i64::from(world.rank() % 6), 5, 5]);
        let look = |table: &Tensor, rows: &Tensor, sparse| {
            Tensor::embedding(table, rows, -1, false, sparse)
                .square()
                .sum_dim_intlist(1, false, None)
        };
        let whole = world.all_gather(&rows, 0)?;
        let copy = leaf_like(&table);
        look(&copy, &whole, false).mean(None).f_backward()?;
        for _ in 0..2 {
            model.backward(&look(&table, &rows, true).mean(None))?;
            assert!(!table.grad().is_sparse());
            assert_close(world, &[table.shallow_clone()], &[copy.grad()], 1e-12);
            table.shallow_clone().zero_grad();
        }
    }
    Ok(())
}

/// The steps are those of one rank, with clipping, momentum and weight decay.
pub fn that_are_clipped_and_stepped(context: &Context) -> Result<()> {
    let world = &context.world;
    let (Some(store), Some(alone)) = (empty_store(), empty_store()) else { return Ok(()) };
    let net = |store: &nn::VarStore| nn::linear(store.root(), 3, 2, Default::default());
    let (layer, copy) = (net(&store), net(&alone));
    let model = DataParallel::new(world, &store)?;
    for (name, mut x) in alone.variables() {
        no_grad(|| x.copy_(&store.variables()[&name]));
    }
    let adam = nn::AdamW::default();
    let [mut here, mut there] = [&store, &alone].map(|s| adam.build(s, 0.1).expect("it is made"));
    for _ in 0..4 {
        let rows = batch(world, 3, Kind::Float)?;
        let whole = world.all_gather(&rows, 0)?;
        here.zero_grad();
        there.zero_grad();
        model.backward(&layer.forward(&rows).square().mean(None))?;
        copy.forward(&whole).square().mean(None).f_backward()?;
        for optimizer in [&mut here, &mut there] {
            optimizer.clip_grad_norm(0.1);
            optimizer.step();
        }
    }
    for (name, x) in store.variables() {
        let difference = (x - &alone.variables()[&name]).abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{name} differs by {difference}");
    }
    Ok(())
}

/// `Optimizer::zero_grad` drops gradients, `Tensor::zero_grad` zeroes them.
pub fn zeroed_in_each_way(context: &Context) -> Result<()> {
    let world = &context.world;
    for options in small_buckets() {
        let shapes: [&[i64]; 2] = [&[2, 3], &[2]];
        let w = shapes.map(|shape| full(shape, Kind::Float, 0.0).set_requires_grad(true));
        let store = store_of(&w);
        let model = trained(world, &w, options)?;
        let mut optimizer = nn::Sgd::default().build(&store, 0.1).expect("it is made");
        let losses = |w: &[Tensor], x: &Tensor| {
            x.linear(&w[0], Some(&w[1])).exp().sum_dim_intlist(1, false, None)
        };
        for step in 0..6 {
            let rows = batch(world, 3, Kind::Float)?;
            let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
            match step % 3 {
                0 => optimizer.zero_grad(),
                1 => w.iter().for_each(|w| w.shallow_clone().zero_grad()),
                // Of each kind one.
                _ => w[step % 2].shallow_clone().zero_grad(),
            }
            if step % 3 == 2 {
                let _ = w[1 - step % 2].grad().zero_();
            }
            model.backward(&losses(&w, &rows).mean(None))?;
            assert_close(world, &w, &expected, 1e-4);
        }
    }
    Ok(())
}

/// Small gradients are views of a buffer, in the reverse order of their creation; a large one is
/// where libtorch put it.
pub fn lie_in_buckets(context: &Context) -> Result<()> {
    let world = &context.world;
    let (w, losses) = perceptron(world, Kind::Double)?;
    let model = trained(world, &w, DataParallelOptions::default())?;
    let rows = batch(world, 3, Kind::Double)?;
    let first: Vec<usize> = (0..2)
        .map(|_| {
            model.backward(&losses(&w, &rows).mean(None))?;
            let address = |w: &Tensor| w.grad().data_ptr().addr();
            let bytes = |w: &Tensor| w.numel() * size_of::<f64>();
            for pair in w.windows(2) {
                assert_eq!(address(&pair[0]), address(&pair[1]) + bytes(&pair[1]));
            }
            Ok(address(&w[0]))
        })
        .collect::<Result<_>>()?;
    assert_eq!(first[0], first[1]);
    Ok(())
}

pub fn of_two_models_on_one_communicator(context: &Context) -> Result<()> {
    let world = &context.world;
    let (a, losses) = perceptron(world, Kind::Double)?;
    let (b, _) = perceptron(world, Kind::Double)?;
    let [first, second] = [&a, &b].map(|w| trained(world, w, DataParallelOptions::default()));
    let (first, second) = (first?, second?);
    let [x, y] = [batch(world, 3, Kind::Double)?, batch(world, 2, Kind::Double)?];
    let expected = [
        gradients_on_one_rank(world, &a, losses, &x)?,
        gradients_on_one_rank(world, &b, losses, &y)?,
    ];
    // The second pass begins while the graph of the first is there.
    let [of_a, of_b] = [losses(&a, &x).mean(None), losses(&b, &y).mean(None)];
    second.backward(&of_b)?;
    first.backward(&of_a)?;
    assert_close(world, &a, &expected[0], 1e-12);
    assert_close(world, &b, &expected[1], 1e-12);
    Ok(())
}

/// The buckets are used again and again.
pub fn in_many_steps(context: &Context) -> Result<()> {
    let world = &context.world;
    let (w, losses) = perceptron(world, Kind::Double)?;
    let model = trained(world, &w, DataParallelOptions::default())?;
    let rows = batch(world, 3, Kind::Double)?;
    let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
    let mut another_call = None;
    for step in 0..20 {
        if step == 10 {
            // From here on the sums are started.
            another_call = Some(world.all_reduce(&w[0], Op::Sum)?);
        }
        w.iter().for_each(|w| w.shallow_clone().zero_grad());
        model.backward(&losses(&w, &rows).mean(None))?;
        assert_close(world, &w, &expected, 1e-12);
    }
    drop(another_call);
    Ok(())
}
