//! A program carried out by MPI, on one rank.

use mpi4tch::{Communicator, Result, Tape};
use tch::Tensor;

use crate::common::passes::{CREATE_GRAPH, KEEP_GRAPH};
use crate::outcome::{Outcome, loss, named, second_loss};
use crate::program::{Derivative, Program};
use crate::steps::Own;

/// Runs the program on this rank, on a tape or without one.
pub fn run(world: &Communicator, program: &Program, seed: u64, uses_tape: bool) -> Result<Outcome> {
    let rank = world.rank().unsigned_abs() as usize;
    let mut own = Own::new(world, uses_tape);
    for input in &program.inputs {
        own.tensors.insert(input.var, input.on(seed, rank));
    }
    let inputs: Vec<Tensor> = program
        .inputs
        .iter()
        .filter(|input| input.requires_grad[rank])
        .map(|input| own.at(input.var))
        .collect();
    for step in &program.steps {
        own.step(step)?;
    }
    let mut outcome = Outcome::default();
    for (var, value) in &own.tensors {
        outcome.values.push((format!("v{var}"), value.detach()));
    }
    let loss = loss(program, seed, rank, |x| own.at(x));
    let pass = Pass { tape: own.tape.take(), inputs: inputs.iter().collect() };
    // As in a program whose function has returned: only the tape and the graph keep what is left.
    drop(own);
    let gradients = match &program.derivative {
        Derivative::Grad => pass.grad(loss.as_ref(), false)?,
        Derivative::Backward => pass.backward(loss.as_ref(), 1)?,
        Derivative::BackwardTwice => pass.backward(loss.as_ref(), 2)?,
        Derivative::Second(on) => {
            let gradients = pass.grad(loss.as_ref(), true)?;
            let loss = second_loss(seed, rank, &gradients).filter(|_| on[rank]);
            outcome.second = named(program, rank, pass.grad(loss.as_ref(), false)?);
            gradients
        }
    };
    outcome.gradients = named(program, rank, gradients);
    Ok(outcome)
}

/// How derivatives are taken: by the tape, or by libtorch where there is none.
struct Pass<'a> {
    tape: Option<Tape>,
    inputs: Vec<&'a Tensor>,
}

impl Pass<'_> {
    /// The gradients, as they are returned.
    fn grad(&self, loss: Option<&Tensor>, create_graph: bool) -> Result<Vec<Tensor>> {
        match &self.tape {
            Some(tape) if create_graph => tape.grad_with(loss, &self.inputs, CREATE_GRAPH),
            Some(tape) => tape.grad(loss, &self.inputs),
            None => self.libtorch(loss, create_graph, create_graph),
        }
    }

    /// The gradients, as so many passes leave them with the leaves.
    fn backward(&self, loss: Option<&Tensor>, passes: usize) -> Result<Vec<Tensor>> {
        let mut sums: Vec<Tensor> = self.inputs.iter().map(|x| x.zeros_like()).collect();
        for _ in 1..passes {
            match &self.tape {
                Some(tape) => tape.backward_with(loss, KEEP_GRAPH)?,
                // Of tch's functions, only this one keeps the graph; it adds nothing to the leaves.
                None => {
                    for (sum, gradient) in sums.iter_mut().zip(self.libtorch(loss, true, false)?) {
                        *sum += gradient;
                    }
                }
            }
        }
        match (&self.tape, loss) {
            (Some(tape), _) => tape.backward(loss)?,
            (None, Some(loss)) => loss.f_backward()?,
            (None, None) => {}
        }
        for (sum, gradient) in sums.iter_mut().zip(self.inputs.iter().map(|x| x.grad())) {
            if gradient.defined() {
                *sum += gradient;
            }
        }
        Ok(sums)
    }

    fn libtorch(
        &self,
        loss: Option<&Tensor>,
        keep_graph: bool,
        create_graph: bool,
    ) -> Result<Vec<Tensor>> {
        let loss = loss.expect("without a tape, each rank has a loss");
        Ok(Tensor::f_run_backward(&[loss], &self.inputs, keep_graph, create_graph)?)
    }
}
