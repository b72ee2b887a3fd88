//! What is refused: the text on the rank that is wrong, and on the others; then all works.

use std::cell::RefCell;
use std::rc::Rc;

use mpi4tch::{DataParallel, DataParallelOptions, Result};
use tch::{Kind, Tensor};

use crate::common::device;
use crate::common::store::empty_store;
use crate::common::tensors::{full, tensor};
use crate::common::{Context, without_lines, works};
use crate::models::{assert_close, batch, gradients_on_one_rank, perceptron, trained};

fn leaf(values: &[f64]) -> Tensor {
    tensor(values).set_requires_grad(true)
}

#[track_caller]
fn refused<T>(outcome: Result<T>) -> String {
    outcome.err().expect("it is refused").to_string()
}

pub fn options(context: &Context) -> Result<()> {
    let world = &context.world;
    let cases = [
        (
            DataParallelOptions { bucket_bytes: 0, ..Default::default() },
            "DataParallel::new: bucket_bytes is 0; at least 1 is needed",
        ),
        (
            DataParallelOptions { first_bucket_bytes: 0, ..Default::default() },
            "DataParallel::new: first_bucket_bytes is 0; at least 1 is needed",
        ),
        (
            DataParallelOptions { reduce_in: Some(Kind::Int64), ..Default::default() },
            "DataParallel::new: reduce_in is Int64; Half, BFloat16, Float or Double is needed",
        ),
    ];
    for (options, text) in cases {
        assert_eq!(refused(trained(world, &[leaf(&[1.0])], options)), text);
    }
    if world.size() > 1 {
        // Each rank can be right alone.
        let bytes = 1 + usize::from(world.rank() == 0);
        let options = DataParallelOptions { bucket_bytes: bytes, ..Default::default() };
        let error = refused(trained(world, &[leaf(&[1.0])], options));
        assert!(error.contains("options: "), "{error}");
    }
    works(world)
}

pub fn models(context: &Context) -> Result<()> {
    let world = &context.world;
    let used = leaf(&[1.0]);
    let _model = trained(world, &[used.shallow_clone()], DataParallelOptions::default())?;
    let expanded = leaf(&[1.0]).detach().expand([4], false).set_requires_grad(true);
    let cases: [(&[Tensor], &str); 7] = [
        (
            &[leaf(&[1.0]), expanded],
            "several elements of parameter 1 are in the same place in memory; copy it first",
        ),
        (&[], "the model has no parameters"),
        (&[leaf(&[1.0]), Tensor::new()], "parameter 1 is undefined"),
        (&[leaf(&[1.0]) * 2.0], "parameter 0 is the result of an operation; a leaf is needed"),
        (&[tensor(&[1])], "parameter 0 is of kind Int; one that carries gradients is needed"),
        (
            &[Tensor::from_slice(&[1.0]).to_sparse(None, None::<&[i64]>, None::<i64>)],
            "parameter 0: the tensor has no strided storage; a dense tensor is needed",
        ),
        (
            &[leaf(&[1.0]), used],
            "parameter 1 has a hook already, perhaps of another DataParallel; drop that first",
        ),
    ];
    for (parameters, text) in cases {
        let error = refused(trained(world, parameters, DataParallelOptions::default()));
        assert_eq!(error, format!("DataParallel::new: {text}"));
    }
    let good = [leaf(&[1.0])];
    let buffers = [tensor(&[1]), Tensor::new()];
    let made = DataParallel::with_options(world, &good, &buffers, DataParallelOptions::default());
    assert_eq!(refused(made), "DataParallel::new: buffer 1 is undefined");
    works(world)
}

/// All ranks get the same error, by name.
pub fn models_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    if last == 0 {
        return Ok(());
    }
    let is_last = world.rank() == last;
    let others = match last {
        1 => "rank 0".to_owned(),
        _ => format!("ranks {}", (0..last).map(|r| r.to_string()).collect::<Vec<_>>().join(", ")),
    };
    let Some(store) = empty_store() else { return Ok(()) };
    let _ = store.root().sub("fc").zeros("weight", &[2, if is_last { 4 } else { 3 }]);
    let _ = store.root().sub("fc").zeros("bias", &[2]);
    let text = refused(DataParallel::new(world, &store));
    let told = format!(
        "the ranks disagree on a call:\n  parameter fc.weight: Float [2, 3], number 0 on {others}; \
         Float [2, 4], number 0 on rank {last}"
    );
    assert_eq!(text, told);

    let kind = if is_last { Kind::Double } else { Kind::Float };
    let w = [leaf(&[1.0]), full(&[2], kind, 0.0)];
    let text = refused(trained(world, &w, DataParallelOptions::default()));
    let told = format!(
        "the ranks disagree on a call:\n  parameter 1: Float [2], does not require grad, number 1 \
         on {others}; Double [2], does not require grad, number 1 on rank {last}"
    );
    assert_eq!(text, told);

    let w = [leaf(&[1.0]), leaf(&[1.0])];
    let fewer = if is_last { &w[..1] } else { &w[..] };
    let text = refused(trained(world, fewer, DataParallelOptions::default()));
    let told = format!(
        "the ranks disagree on a call:\n  parameter 1: Double [1], number 1 on {others}; none on \
         rank {last}"
    );
    assert_eq!(text, told);

    // A rank that refuses its own model tells the others.
    let text =
        refused(trained(world, if is_last { &[] } else { &w[..] }, DataParallelOptions::default()));
    if !is_last {
        let told = format!(
            "the ranks disagree on a call:\n  refused: DataParallel::new: the model has no \
             parameters on rank {last}"
        );
        assert!(text.starts_with(&told), "{text}");
    }
    works(world)
}

pub fn losses(context: &Context) -> Result<()> {
    let world = &context.world;
    let (w, losses) = perceptron(world, Kind::Double)?;
    let model = trained(world, &w, DataParallelOptions::default())?;
    let cases: [(Tensor, &str); 5] = [
        (w[1].shallow_clone(), "the loss has shape [4]; one element is needed"),
        (Tensor::new(), "the loss is undefined"),
        (
            w[4].to_kind(Kind::ComplexDouble),
            "the loss is of kind ComplexDouble; a real kind is needed",
        ),
        (
            w[4].detach(),
            "the loss does not require grad; a loss that depends on the parameters is needed, or \
             None",
        ),
        (
            tensor(&[1]).sum(Kind::Int64),
            "the loss does not require grad; a loss that depends on the parameters is needed, or \
             None",
        ),
    ];
    let last = world.size() - 1;
    for (loss, text) in &cases {
        let accumulated = text.strip_suffix(", or None").unwrap_or(text);
        let told = format!("DataParallel::accumulate: {accumulated}");
        assert_eq!(refused(model.accumulate(loss)), told);
        // On the last rank only.
        let good = w[4].square();
        let is_last = world.rank() == last;
        let error = model.backward(if is_last { loss } else { &good }).expect_err("it is refused");
        let told = format!("DataParallel::backward: {text}");
        if is_last {
            assert_eq!(error.to_string(), told);
        } else {
            let expected =
                format!("the ranks disagree on a call:\n  refused: {told} on rank {last}");
            assert_eq!(without_lines(&error), expected);
        }
        assert!(w.iter().all(|w| !w.grad().defined()), "nothing has changed");
    }
    let rows = batch(world, 2, Kind::Double)?;
    let expected = gradients_on_one_rank(world, &w, losses, &rows)?;
    model.backward(&losses(&w, &rows).mean(None))?;
    assert_close(world, &w, &expected, 1e-12);
    Ok(())
}

pub fn weights(context: &Context) -> Result<()> {
    let world = &context.world;
    let w = [leaf(&[1.0])];
    let model = trained(world, &w, DataParallelOptions::default())?;
    for (weight, told) in [(-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let text = refused(model.backward_weighted(&w[0], weight));
        let expected = format!(
            "DataParallel::backward_weighted: the weight is {told}; a finite number of at least 0 \
             is needed"
        );
        assert_eq!(text, expected);
    }
    let text = refused(model.backward_weighted(&w[0], 0.0));
    let expected = "DataParallel::backward_weighted: the weights of all ranks are 0; one above 0 is \
                    needed";
    assert_eq!(text, expected);
    if world.size() > 1 {
        let text = refused(model.backward_weighted(&w[0], f64::MAX));
        let expected = "DataParallel::backward_weighted: the weights of all ranks add up to inf; a \
                        finite sum is needed";
        assert_eq!(text, expected);
    }
    assert!(!w[0].grad().defined());
    model.backward_weighted(&w[0], f64::MAX / 1e3)?;
    assert_close(world, &w, &[tensor(&[1.0])], 1e-12);
    works(world)
}

/// On the other ranks it requires grad.
pub fn frozen_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    let w = [leaf(&[1.0]), leaf(&[2.0])];
    let model = trained(world, &w, DataParallelOptions::default())?;
    let loss = || (&w[0] * &w[1]).sum(Kind::Double);
    if world.size() > 1 {
        let _ = w[1].set_requires_grad(world.rank() != 0);
        let text = refused(model.backward(&loss()));
        let told = "the ranks disagree on a call:\n  parameter 1: Double [1], does not require grad, \
                    number 1 on rank 0; Double [1], number 1 on rank";
        assert!(text.starts_with(told), "{text}");
        let _ = w[1].set_requires_grad(true);
    }
    model.backward(&loss())?;
    assert_close(world, &w, &[leaf(&[2.0]).detach(), leaf(&[1.0]).detach()], 1e-12);
    works(world)
}

/// A parameter that is given another kind or shape on one rank.
pub fn changed_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    let mut w = leaf(&[1.0, 2.0]);
    let model = trained(world, &[w.shallow_clone()], DataParallelOptions::default())?;
    let last = world.size() - 1;
    let others = [tensor(&[1_f32, 2.0]), tensor(&[1.0])];
    for (other, told) in others.iter().zip(["Float [2]", "Double [1]"]) {
        if world.rank() == last {
            w.set_data(other);
        }
        let outcome = model.backward(&w.sum(Kind::Double));
        if last == 0 {
            outcome?;
        } else {
            let text = refused(outcome);
            assert!(text.contains("  parameter 0: Double [2], number 0 on rank"), "{text}");
            assert!(text.contains(&format!("; {told}, number 0 on rank {last}")), "{text}");
        }
        w.set_data(&tensor(&[1.0, 2.0]));
        w.zero_grad();
    }
    works(world)
}

/// Ranks that call different methods.
pub fn other_calls(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let w = [leaf(&[1.0])];
    let model = trained(world, &w, DataParallelOptions::default())?;
    let loss = w[0].sum(Kind::Double);
    let error = if world.rank() == 0 {
        model.backward(&loss).expect_err("others weigh")
    } else {
        model.backward_weighted(&loss, 1.0).expect_err("rank 0 does not weigh")
    };
    let text = without_lines(&error);
    let start = "the ranks disagree on a call:\n  operation: DataParallel::backward on rank 0; \
                 DataParallel::backward_weighted on rank";
    assert!(text.starts_with(start), "{text}");
    model.backward(&loss)?;
    assert_close(world, &w, &[tensor(&[1.0])], 1e-12);
    works(world)
}

thread_local! {
    /// For a pullback, which can capture only what may be shared with other threads.
    static MODEL: RefCell<Option<Rc<DataParallel>>> = const { RefCell::new(None) };
}

/// A pullback that goes back by the DataParallel in whose pass it is called.
pub fn within_its_own_pass(context: &Context) -> Result<()> {
    if device::left_out_on_devices("pullbacks run on another thread, where no DataParallel can be")
    {
        return Ok(());
    }
    let world = &context.world;
    let w = [leaf(&[1.0])];
    let model = Rc::new(trained(world, &w, DataParallelOptions::default())?);
    MODEL.set(Some(Rc::clone(&model)));
    let y = tensor(&[2.0]);
    let y = world.custom("nested", &[&w[0]], &[&y], &[&w[0]], |_, saved, cotangents| {
        let loss = tch::with_grad(|| saved[0].square().sum(Kind::Double));
        let inner = MODEL.take().map(|model| refused(model.backward(&loss)));
        let told = "DataParallel::backward: called within a backward pass of the same DataParallel";
        assert_eq!(inner.as_deref(), Some(told));
        Ok(vec![Some(cotangents[0].shallow_clone())])
    })?;
    model.backward(&y[0].sum(Kind::Double))?;
    assert_close(world, &w, &[tensor(&[1.0])], 1e-12);
    works(world)
}
