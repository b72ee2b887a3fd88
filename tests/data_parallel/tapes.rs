//! Losses that communicate on a tape.

use mpi4tch::{DataParallelOptions, Op, Result, testing};
use tch::{Kind, Tensor};

use crate::common::tensors::tensor;
use crate::common::{Context, works};
use crate::models::{assert_close, leaf_like, small_buckets, trained};

/// A layer whose rows are split over the ranks of a row of a grid, trained by the columns: the
/// gradients are those of one rank.
pub fn tensor_parallel(context: &Context) -> Result<()> {
    let world = &context.world;
    let columns = if world.size() % 2 == 0 { 2 } else { 1 };
    let (row, column) = (world.rank() / columns, world.rank() % columns);
    for options in small_buckets() {
        let tape = world.tape();
        let within_row = tape.split(Some(row), column)?.expect("each rank has a color");
        let within_column = world.split(Some(column), row)?.expect("each rank has a color");
        let whole = world.broadcast(&testing::random(world, &[4, 3], Kind::Double)?, 0)?;
        let width = 4 / i64::from(columns);
        let own = whole.narrow(0, i64::from(column) * width, width);
        let w = [leaf_like(&own).set_requires_grad(true)];
        let model = trained(&within_column, &w, options)?;
        // All ranks of a row have the same data.
        let data = testing::random(world, &[5, 3], Kind::Double)?;
        let data =
            world.split(Some(row), column)?.expect("each has a color").broadcast(&data, 0)?;

        let loss = |total: Tensor| total.square();
        for _ in 0..2 {
            let part = data.matmul(&w[0].tr()).tanh().sum(Kind::Double);
            let total = within_row.all_reduce(&part, Op::Sum)?;
            // Counted once per row.
            let own_loss = (column == 0).then(|| loss(total));
            model.backward_on(&tape, own_loss.as_ref())?;

            let copy = leaf_like(&whole).set_requires_grad(true);
            let rows = within_column.all_gather(&data.unsqueeze(0), 0)?;
            let totals =
                rows.matmul(&copy.tr()).tanh().sum_dim_intlist(&[1_i64, 2][..], false, None);
            loss(totals).mean(Kind::Double).f_backward()?;
            let expected = copy.grad().narrow(0, i64::from(column) * width, width);
            assert_close(&within_column, &w, &[expected], 1e-12);
            w[0].shallow_clone().zero_grad();
        }
    }
    Ok(())
}

/// A rank's bad loss fails the pass on all ranks of the tape, those of other DataParallels too.
pub fn that_refuse(context: &Context) -> Result<()> {
    let world = &context.world;
    let alone = world.split(Some(world.rank()), 0)?.expect("each rank has a color");
    let w = [tensor(&[1.0, 2.0]).set_requires_grad(true)];
    let model = trained(&alone, &w, DataParallelOptions::default())?;
    let tape = world.tape();
    let y = tape.all_reduce(&w[0], Op::Sum)?;
    let bad = if world.rank() == 0 { y.shallow_clone() } else { y.sum(Kind::Double) };
    let error = model.backward_on(&tape, &bad).expect_err("it is refused").to_string();
    let told = "DataParallel::backward_on: the loss has shape [2]; one element is needed";
    if world.rank() == 0 {
        assert_eq!(error, told);
    } else {
        assert!(error.contains(&format!("refused: {told} on rank 0")), "{error}");
    }
    assert!(!w[0].grad().defined());
    // The tape is as it was.
    model.backward_on(&tape, &y.sum(Kind::Double))?;
    assert_eq!(w[0].grad(), Tensor::ones_like(&w[0]) * f64::from(world.size()));
    works(world)
}
