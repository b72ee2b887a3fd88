//! [`Tape`]: the order of communication in the backward pass, and its reachability.
//!
//! Each operation made on a tape has one more input and one more output: the *token*, a tensor
//! without elements. So every communication is reachable from the last token, and the order of
//! their adjoints is, by data dependence, the reverse of theirs. A pullback gets the token's
//! cotangent as the token of a tape of its own ([`Record::passing`]), on which it communicates: what
//! it does is ordered too when it is recorded.
//!
//! Under `create_graph` the cotangent of the last token is that token itself. So the first token's
//! gradient, from which the tape goes on, depends on all adjoints and, through them, on all that
//! was recorded before; the second backward pass goes back through both, in one order.

mod calls;
mod comparison;
mod pass;
mod record;

use std::ops::Deref;
use std::sync::Arc;

use tch::Tensor;

use crate::base::error::{Error, Result};
use crate::engine::communicator::Communicator;
pub(crate) use calls::Traffic;
use pass::{BackwardPass, loss_root};
pub(crate) use record::{Pulled, Record, add_node, carries_gradient, outlived, tapes_used};

/// A communicator whose operations are all carried out in the backward pass, in reverse order, on
/// every rank.
///
/// Each rank has a graph of its own, and a backward pass goes only through what this rank's loss
/// depends on. A rank that leaves out a communication lets the others wait for ever. On a tape no
/// communication is left out: see the [guide](crate::guide).
///
/// - Several communicators: a communicator that is made from one on the tape, by `split` or
///   `duplicate`, is on the tape too, and [`on`](Self::on) puts one on it that existed before. Their
///   calls are one sequence on each rank, and the backward pass is its reverse.
/// - Collective: [`backward`](Self::backward), [`grad`](Self::grad) and [`vjp`](Self::vjp) must be
///   called by every rank of the communicator that the tape was made from, with or without a loss of
///   its own.
/// - What counts is what a rank recorded on the tape: on each communicator its ranks must have made
///   the same operations of all ranks in the same order, and a receive for each send. Before the
///   backward pass they compare this, and if it differs all get the same [`Error::Tape`].
/// - The backward pass ends if the forward pass would end although each collective operation waited
///   for all its ranks. MPI does not promise more: a program that goes on because a broadcast has
///   returned early on its root may wait for ever in the backward pass, where it is a reduction. Sends,
///   receives from any rank, and started operations are as good in reverse.
/// - Inputs may require grad on any of the ranks, or on none.
/// - What was recorded is gone through once: results and requests of before a backward pass that
///   did not keep the graph are an [`Error::Argument`] if they are waited for, or gone back through,
///   after it.
/// - The tape keeps the graph until `backward`, `grad` or `vjp`, or until it is dropped. Communicators
///   are then off the tape, and can be put on another.
/// - A backward pass that is not the tape's is refused where it comes to a call on the tape, by an
///   error that names both: one of torch's own, as `Tensor::backward` or an optimizer makes it, at
///   once; one of another tape at its end, without this tape's calls. Passes within the tape's own
///   are its own.
///
/// Integers and truth values carry no gradient: operations on them are not recorded.
///
/// # Examples
/// ```
/// use mpi4tch::Op;
/// use tch::{Kind, Tensor};
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let tape = world.tape();
/// let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
/// let sum = tape.all_reduce(&x, Op::Sum)?;
/// // Only rank 0 has a loss.
/// let loss = (world.rank() == 0).then(|| sum.sum(Kind::Double));
/// tape.backward(loss.as_ref())?;
/// assert_eq!(x.grad(), Tensor::from_slice(&[1.0]));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Debug)]
pub struct Tape {
    comm: Communicator,
    record: Arc<Record>,
}

impl Deref for Tape {
    type Target = Communicator;

    fn deref(&self) -> &Communicator {
        &self.comm
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        self.record.close();
    }
}

impl Communicator {
    /// Returns a tape. It dereferences to this communicator, so the operations are called on the
    /// tape.
    ///
    /// Local.
    ///
    /// # Examples
    /// See [`Tape`].
    #[must_use]
    pub fn tape(&self) -> Tape {
        let record = Arc::new(Record::new(self));
        Tape { comm: self.recorded_on(Arc::clone(&record)), record }
    }
}

/// What a backward pass of a [`Tape`] leaves behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassOptions {
    /// Keeps the graph for another backward pass: the tape goes on instead of starting anew, and goes
    /// through all of it the next time.
    pub keep_graph: bool,
    /// Records the backward pass itself, for derivatives of the derivative. It keeps the graph, too.
    pub create_graph: bool,
}

impl Tape {
    /// Puts a communicator that existed before on the tape: returns the same communicator, whose calls
    /// are recorded.
    ///
    /// Local. Every rank that calls it on the communicator should do this.
    ///
    /// # Errors
    /// [`Error::Argument`] if it has ranks which the tape's communicator has not, as these would take
    /// no part in the backward pass, or if it is on another tape; [`Error::Finalized`] after the
    /// universe's end.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let row = world.split(Some(world.rank() / 2), 0)?.expect("each rank has a color");
    /// let tape = world.tape();
    /// let row = tape.on(&row)?;
    /// let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let sum = row.all_reduce(&x, Op::Sum)?;
    /// tape.backward(&sum.sum(Kind::Double))?;
    /// assert_eq!(x.grad(), Tensor::from_slice(&[f64::from(row.size())]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    pub fn on(&self, comm: &Communicator) -> Result<Communicator> {
        let refuse = |message| Err(Error::Argument { call: "Tape::on", message });
        match comm.record() {
            Some(record) if Arc::ptr_eq(record, &self.record) => return Ok(comm.clone()),
            Some(_) => return refuse("the communicator is on another tape".to_owned()),
            None => (),
        }
        let ranks = comm.handle().ranks_in("Tape::on", self.comm.handle())?;
        if let Some(rank) = ranks.iter().position(Option::is_none) {
            return refuse(format!(
                "rank {rank} of the communicator is none of the communicator that the tape was made \
                 from; make the tape from one that has all ranks"
            ));
        }
        Ok(comm.recorded_on(Arc::clone(&self.record)))
    }

    /// Carries out the backward pass on all ranks: adds to the gradients of the leaves that the
    /// losses depend on, ℓ = Σ ℓ_r. The tape starts anew.
    ///
    /// Collective: every rank must call it; one that has no loss gives `None`. A loss that does not
    /// require grad is a constant.
    ///
    /// # Errors
    /// [`Error::Tape`] on all ranks, before anything is done, if the ranks recorded different
    /// calls: go on with a new tape. [`Error::Argument`] if the loss has not one element or is
    /// complex, and [`Error::Mismatch`] on the other ranks: the tape is then as it was.
    /// [`Error::Argument`] if the loss depends on what was recorded before an earlier pass or on
    /// another tape, [`Error::Autograd`] if a pullback fails: the tape then starts anew as well.
    /// Where libtorch fails on one rank, between two communications, the other ranks wait for it: see
    /// [`MPI4TCH_TIMEOUT`](crate#waiting-for-what-does-not-come).
    ///
    /// # Examples
    /// See [`Tape`].
    #[track_caller]
    pub fn backward<'a>(&self, loss: impl Into<Option<&'a Tensor>>) -> Result<()> {
        self.backward_with(loss, PassOptions::default())
    }

    /// [`backward`](Self::backward) with options: what it leaves behind.
    ///
    /// Collective. All ranks must give the same options.
    ///
    /// # Errors
    /// As for `backward`; [`Error::Mismatch`] on all ranks if the options differ.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::PassOptions;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let loss = tape.broadcast(&x, 0)?.sum(Kind::Double);
    /// tape.backward_with(&loss, PassOptions { keep_graph: true, ..Default::default() })?;
    /// tape.backward(&loss)?;
    /// let ranks = if tape.rank() == 0 { f64::from(tape.size()) } else { 0.0 };
    /// assert_eq!(x.grad(), Tensor::from_slice(&[2.0 * ranks]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn backward_with<'a>(
        &self,
        loss: impl Into<Option<&'a Tensor>>,
        options: PassOptions,
    ) -> Result<()> {
        let pass = BackwardPass::new("Tape::backward", options);
        self.record.backward(pass, loss_root(pass.site.call, loss.into()))
    }

    /// The gradients of Σ ℓ_r with respect to this rank's `inputs`; zeros for one that no loss
    /// depends on. Nothing is added to the leaves' gradients. The tape starts anew.
    ///
    /// Collective: every rank must call it, with its own inputs, or none.
    ///
    /// # Errors
    /// As for [`backward`](Self::backward); [`Error::Argument`] if an input does not require grad,
    /// and [`Error::Mismatch`] on the other ranks.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let loss = tape.all_reduce(&x, Op::Sum)?.sum(Kind::Double) / f64::from(tape.size());
    /// let gradients = tape.grad(&loss, &[&x])?;
    /// assert_eq!(gradients[0], Tensor::from_slice(&[1.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn grad<'a>(
        &self,
        loss: impl Into<Option<&'a Tensor>>,
        inputs: &[&Tensor],
    ) -> Result<Vec<Tensor>> {
        self.grad_with(loss, inputs, PassOptions::default())
    }

    /// [`grad`](Self::grad) with options: what it leaves behind.
    ///
    /// Collective. All ranks must give the same options.
    ///
    /// # Errors
    /// As for `grad`; [`Error::Mismatch`] on all ranks if the options differ.
    ///
    /// # Examples
    /// The second derivative of Σ x³:
    /// ```
    /// use mpi4tch::{Op, PassOptions};
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let x = Tensor::from_slice(&[2.0]).set_requires_grad(true);
    /// let sum = tape.all_reduce(&x.pow_tensor_scalar(3), Op::Sum)?.sum(Kind::Double);
    /// let loss = (tape.rank() == 0).then_some(sum);
    /// let options = PassOptions { create_graph: true, ..Default::default() };
    /// let first = tape.grad_with(loss.as_ref(), &[&x], options)?.remove(0);
    /// let second = tape.grad(&first.sum(Kind::Double), &[&x])?.remove(0);
    /// assert_eq!(second, Tensor::from_slice(&[6.0 * 2.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn grad_with<'a>(
        &self,
        loss: impl Into<Option<&'a Tensor>>,
        inputs: &[&Tensor],
        options: PassOptions,
    ) -> Result<Vec<Tensor>> {
        let pass = BackwardPass::new("Tape::grad", options);
        self.record.grad(pass, loss_root(pass.site.call, loss.into()), inputs)
    }

    /// The vector-Jacobian product: the gradients of this rank's `inputs` for given cotangents of
    /// outputs on all ranks, of each rank its own. An output that does not require grad is a
    /// constant.
    ///
    /// Collective: every rank must call it, with its own outputs and inputs, or none. All must give
    /// the same options.
    ///
    /// # Errors
    /// As for [`grad_with`](Self::grad_with); [`Error::Argument`] if a cotangent has not the kind and
    /// shape of its output, and [`Error::Mismatch`] on the other ranks.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::{Op, PassOptions};
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let y = tape.all_reduce(&x, Op::Sum)?;
    /// let cotangent = Tensor::from_slice(&[f64::from(tape.rank())]);
    /// let gradients = tape.vjp(&[(&y, &cotangent)], &[&x], PassOptions::default())?;
    /// let ranks = f64::from(tape.size());
    /// assert_eq!(gradients[0], Tensor::from_slice(&[ranks * (ranks - 1.0) / 2.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn vjp(
        &self,
        outputs: &[(&Tensor, &Tensor)],
        inputs: &[&Tensor],
        options: PassOptions,
    ) -> Result<Vec<Tensor>> {
        self.record.vjp("Tape::vjp", outputs, inputs, options)
    }
}
