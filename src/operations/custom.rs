//! [`Communicator::custom`]: graph nodes whose pullback the user writes.

use tch::Tensor;

use crate::autograd::{self, Metadata};
use crate::base::error::{Error, Result};
use crate::engine::agreement::{Terms, agree, refuse};
use crate::engine::communicator::Communicator;
use crate::engine::tape::{self, Traffic, carries_gradient};
use crate::environment::datatype::Datatype;

impl Communicator {
    /// Adds a node with a pullback of your own to the graph, from `inputs` to `outputs`, which were
    /// computed from them without grad. It is for steps whose derivative you know better than
    /// libtorch, such as the solution of an equation. Returns the outputs as results of the node.
    ///
    /// In the backward pass `pullback` gets a communicator, the `saved` tensors and one cotangent
    /// for each output, and returns a gradient, or `None`, for each input. It may communicate on
    /// the communicator that it gets, which has a context of its own: its messages are never
    /// received by calls outside of pullbacks. With `create_graph` its operations are recorded, and
    /// can be differentiated in turn.
    ///
    /// - Collective: every rank must add the node, with the same `name`, and its backward pass must
    ///   reach it. On a [`Tape`](crate::Tape) it has its place in the order, and is always reached.
    /// - Saved tensors: put the tensors that the pullback needs in `saved`, inputs and outputs too.
    ///   A change of one in place is then an error of the backward pass. A closure cannot capture
    ///   them, as a `Tensor` is not `Sync`.
    /// - Communicators: the pullback communicates on the communicator that it gets, or on what it
    ///   makes of that, by `split` for example. One that the closure captures is for other calls.
    /// - Shape and kind of the outputs: any shape, kinds that carry gradients. Gradients have the
    ///   shape and kind of their inputs.
    /// - The result shares its memory with `outputs`. If no input requires grad and there is no
    ///   tape, no node is added.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no output, or if one requires grad or is of a kind that
    /// carries no gradient, and then [`Error::Mismatch`] on the other ranks; [`Error::Mismatch`] if
    /// other ranks make another call, or if inputs require grad on some ranks only, without a tape;
    /// [`Error::Undefined`] if a tensor is undefined. The backward pass fails, a tape's with
    /// [`Error::Autograd`], if the pullback returns an error or does not return one gradient for each
    /// input.
    ///
    /// # Examples
    /// The implicit function theorem: u solves a u = Σ f_r, summed over the ranks r, on every rank. The
    /// adjoint solves a λ = Σ ū_r, with the cotangents on the right-hand side, and the gradient of f_r
    /// is λ.
    /// ```
    /// use mpi4tch::Op;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let f = Tensor::from_slice(&[2.0]).set_requires_grad(true);
    /// let a = 4.0;
    /// // A solver may iterate as often as it needs: without grad, only the solution is kept.
    /// let u = world.all_reduce(&f.detach(), Op::Sum)? / a;
    /// let u = world.custom("solve", &[&f], &[&u], &[], move |comm, _saved, cotangents| {
    ///     let lambda = comm.all_reduce(&cotangents[0], Op::Sum)? / a;
    ///     Ok(vec![Some(lambda)])
    /// })?;
    /// u[0].sum(Kind::Double).f_backward()?;
    /// assert_eq!(f.grad(), Tensor::from_slice(&[f64::from(world.size()) / a]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    /// In `examples/implicit_solve.rs` conjugate gradients solve a linear system that is
    /// distributed over the ranks, and the adjoint is a second solve.
    #[track_caller]
    pub fn custom(
        &self,
        name: &'static str,
        inputs: &[&Tensor],
        outputs: &[&Tensor],
        saved: &[&Tensor],
        pullback: impl Fn(&Self, &[Tensor], &[Tensor]) -> Result<Vec<Option<Tensor>>>
        + Send
        + Sync
        + 'static,
    ) -> Result<Vec<Tensor>> {
        let site = self.site(name);
        self.note((|| {
            if let Err(error) = check(name, inputs, outputs, saved) {
                return Err(refuse(site, self, error, false));
            }
            let records = self.is_on_tape()
                || (autograd::is_recording() && inputs.iter().any(|x| x.requires_grad()));
            let subject = Datatype::of(Metadata::of(outputs[0]).scalar_type()).map(|d| (d, records));
            let way = self.environment().way();
            let terms = Terms { compares_recording: true, ..Terms::default() };
            let (_, turn) = agree(site, self, subject, Ok(terms), false, way)?;
            turn.made();
            drop(turn);
            if !records {
                return Ok(outputs.iter().map(|y| y.shallow_clone()).collect());
            }
            self.make_context_of_pullbacks(site)?;
            let results: Vec<Tensor> =
                outputs.iter().map(|y| Ok(y.f_detach()?)).collect::<Result<_>>()?;
            // If an output is to be saved, the result in its place is: libtorch saves a node's own
            // output without a reference cycle.
            let saved: Vec<&Tensor> = saved
                .iter()
                .map(|x| {
                    let output = outputs.iter().position(|y| autograd::is_same(x, y));
                    output.map_or(*x, |i| &results[i])
                })
                .collect();
            let count = inputs.len();
            let nodes = [inputs, &results.iter().collect::<Vec<_>>()];
            tape::add_node(site, self, Traffic::Collective, nodes, &saved, move |comm, mut pulled| {
                let site = comm.site(name);
                // If a rank has lost a saved tensor, all ranks get an error before the pullback
                // communicates.
                let (saved, terms) = match pulled.take_saved() {
                    Ok(saved) => (saved, Ok(Terms::default())),
                    Err(error) => (Vec::new(), Err(error)),
                };
                let way = comm.environment().way();
                agree(site, comm, None, terms, false, way)?.1.made();
                let gradients = pullback(&comm.of_pullback(), &saved, &pulled.cotangents)?;
                if gradients.len() != count {
                    let came = gradients.len();
                    let message = format!(
                        "the pullback returned {came} gradients; one for each of {count} inputs is \
                         needed"
                    );
                    return Err(Error::Argument { call: name, message });
                }
                Ok(gradients)
            })?;
            Ok(results)
        })())
    }
}

fn check(
    call: &'static str,
    inputs: &[&Tensor],
    outputs: &[&Tensor],
    saved: &[&Tensor],
) -> Result<()> {
    let refuse = |message: String| Err(Error::Argument { call, message });
    if inputs.iter().chain(outputs).chain(saved).any(|x| !Metadata::of(x).is_defined()) {
        return Err(Error::Undefined { call });
    }
    if outputs.is_empty() {
        return refuse("a node has at least one output; none was given".to_owned());
    }
    if let Some(output) = outputs.iter().find(|y| !carries_gradient(&Metadata::of(y))) {
        return refuse(format!(
            "an output is of kind {:?}; one that carries gradients is needed",
            output.kind()
        ));
    }
    if outputs.iter().any(|y| y.requires_grad()) {
        return refuse("an output requires grad; detach it, or compute it without grad".to_owned());
    }
    Ok(())
}
