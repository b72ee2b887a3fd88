//! Models, and their gradients on one rank.

use mpi4tch::{Communicator, DataParallel, DataParallelOptions, Result, testing};
use tch::nn::{self, OptimizerConfig};
use tch::{Kind, Tensor};

use crate::common::store::store_of;

/// A model by its parameters: the loss of each row of a batch.
pub type Losses = fn(parameters: &[Tensor], batch: &Tensor) -> Tensor;

pub fn small_buckets() -> [DataParallelOptions; 4] {
    [(1, 1), (40, 24), (1 << 12, 1), (25 << 20, 1 << 20)].map(
        |(bucket_bytes, first_bucket_bytes)| DataParallelOptions {
            bucket_bytes,
            first_bucket_bytes,
            reduce_in: None,
        },
    )
}

/// A perceptron of two layers: its parameters, equal on all ranks, and the losses.
pub fn perceptron(comm: &Communicator, kind: Kind) -> Result<(Vec<Tensor>, Losses)> {
    let shapes: [&[i64]; 5] = [&[4, 3], &[4], &[2, 4], &[2], &[]];
    let parameters = shapes
        .iter()
        .map(|shape| {
            let x = comm.broadcast(&testing::random(comm, shape, Kind::Double)?, 0)?;
            Ok(x.to_kind(kind).set_requires_grad(true))
        })
        .collect::<Result<_>>()?;
    Ok((parameters, |w, batch| {
        let hidden = batch.linear(&w[0], Some(&w[1])).tanh();
        let y = hidden.linear(&w[2], Some(&w[3])) * &w[4];
        y.square().sum_dim_intlist(1, false, None)
    }))
}

/// `rows` random rows of each rank, which differ by rank.
pub fn batch(comm: &Communicator, rows: i64, kind: Kind) -> Result<Tensor> {
    Ok(testing::random(comm, &[rows, 3], Kind::Double)?.to_kind(kind))
}

/// The gradients of the mean loss over all ranks' rows, on this rank alone, from copies of the
/// parameters.
pub fn gradients_on_one_rank(
    comm: &Communicator,
    parameters: &[Tensor],
    losses: Losses,
    batch: &Tensor,
) -> Result<Vec<Tensor>> {
    let whole = comm.all_gather(batch, 0)?;
    let copies: Vec<Tensor> = parameters.iter().map(leaf_like).collect();
    losses(&copies, &whole).mean(None).f_backward()?;
    Ok(copies.iter().map(Tensor::grad).collect())
}

/// Copies of the parameters in a store, and an optimizer, whose `zero_grad` drops their gradients.
pub fn with_optimizer(parameters: &[Tensor]) -> (Vec<Tensor>, nn::Optimizer) {
    let copies: Vec<Tensor> = parameters.iter().map(leaf_like).collect();
    let optimizer = nn::Sgd::default().build(&store_of(&copies), 0.1).expect("it is made");
    (copies, optimizer)
}

/// A leaf with the same values.
pub fn leaf_like(x: &Tensor) -> Tensor {
    x.detach().copy().set_requires_grad(x.requires_grad())
}

/// The gradients, undefined ones too, agree up to `tolerance`, relative to their size, and are equal
/// bit for bit on all ranks of `comm`.
#[track_caller]
pub fn assert_close(
    comm: &Communicator,
    parameters: &[Tensor],
    expected: &[Tensor],
    tolerance: f64,
) {
    assert_eq!(parameters.len(), expected.len());
    for (i, (parameter, expected)) in parameters.iter().zip(expected).enumerate() {
        let gradient = parameter.grad();
        assert_eq!(gradient.defined(), expected.defined(), "gradient {i}");
        if !expected.defined() {
            continue;
        }
        let bytes = gradient.flatten(0, -1).contiguous().view_dtype(Kind::Uint8).unsqueeze(0);
        let all = comm.all_gather(&bytes, 0).expect("all ranks have the gradient");
        assert_eq!(all, all.slice(0, 0, 1, 1).expand_as(&all), "gradient {i} differs by rank");
        assert_eq!((gradient.kind(), gradient.size()), (parameter.kind(), expected.size()));
        let [gradient, expected] = [&gradient, expected].map(|g| g.to_dense(None, false));
        let [wide, wanted] = [&gradient, &expected]
            .map(|g| if g.is_complex() { g.view_as_real() } else { g.shallow_clone() })
            .map(|g| g.to_kind(Kind::Double));
        let error = (wide - &wanted).abs().sum(Kind::Double).double_value(&[]);
        let size = wanted.abs().sum(Kind::Double).double_value(&[]) + 1e-6;
        assert!(error <= tolerance * size, "gradient {i}: {gradient:?}, expected {expected:?}");
    }
}

/// A `DataParallel` of these parameters.
#[track_caller]
pub fn trained(
    comm: &Communicator,
    parameters: &[Tensor],
    options: DataParallelOptions,
) -> Result<DataParallel> {
    DataParallel::with_options(comm, parameters, &[], options)
}
