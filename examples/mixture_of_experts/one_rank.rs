//! The gradients by a program for one rank, which is simple because every expert sees every image.

use mpi4tch::tch::{Kind, Tensor};
use mpi4tch::{Communicator, Result};

use super::data::Digits;
use super::layer::linear;
use super::model::{Model, balance};

/// The gradients by the parameters of `model`, for the whole batch. Each rank computes them for
/// itself, with all ranks' experts, and returns those by its own.
pub fn gradients(comm: &Communicator, model: &Model, batch: &Digits) -> Result<Vec<Tensor>> {
    let copy = |x: &Tensor| x.detach().copy().set_requires_grad(true);
    let all = |x: &Tensor| -> Result<Tensor> { Ok(copy(&comm.all_gather(&x.detach(), 0)?)) };
    let (embedding, gate) = (copy(&model.embedding), copy(&model.gate));
    let (first, second) = (all(&model.first)?, all(&model.second)?);

    let embedded = linear(&batch.images, &embedding).relu();
    let probabilities = model.shape.probabilities(&linear(&embedded, &gate));
    let (_, chosen) = probabilities.topk(model.shape.choices, 1, true, false);
    let outputs: Vec<_> = (0..model.shape.experts)
        .map(|expert| linear(&linear(&embedded, &first.get(expert)).relu(), &second.get(expert)))
        .collect();
    // 1 for each expert that is chosen, 0 for the others.
    let mask = probabilities.zeros_like().scatter_value(1, &chosen, 1.0);
    let weighted = Tensor::stack(&outputs, 2) * (&probabilities * &mask).unsqueeze(1);
    let output = weighted.sum_dim_intlist(2, false, Kind::Double);
    let load = mask.sum_dim_intlist(0, false, Kind::Double);
    let loss = batch.loss(&output) / batch.rows() + balance(&load, &probabilities, batch.rows());
    loss.f_backward()?;

    // Of the experts of the ranks before this one.
    let counts = comm.all_gather(&Tensor::from_slice(&[model.first.size()[0]]), 0)?;
    let begin = counts.narrow(0, 0, comm.rank().into()).sum(Kind::Int64).int64_value(&[]);
    let own = |x: &Tensor| x.grad().narrow(0, begin, model.first.size()[0]);
    Ok(vec![embedding.grad(), gate.grad(), own(&first), own(&second)])
}
