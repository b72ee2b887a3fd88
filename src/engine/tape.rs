//! [`Tape`]: makes every communication reachable in the backward pass, and fixes its order.
//!
//! Each operation made on a tape has one more input and one more output: the *token*, a tensor
//! without elements. So every communication is reachable from the last token, and data dependence
//! makes the order of the adjoints the reverse of the order of the operations. A pullback
//! communicates on a record of its own (`Record::of_pullback`), whose first token is the cotangent
//! of the token; so its communication is ordered too if it is recorded.
//!
//! Under `create_graph` the cotangent of the last token is that token itself, and the tape goes on
//! from the gradient of the first token. That gradient depends on all adjoints and, through them,
//! on everything recorded before. So a second backward pass goes through the adjoints and then
//! through the operations, in one order.

mod calls;
mod checkpoint;
mod comparison;
mod pass;
mod passage;
mod recomputation;
mod record;
mod revolve;
mod run;

use std::ops::Deref;
use std::sync::Arc;

use tch::Tensor;

use crate::base::error::{Error, Result};
use crate::engine::communicator::Communicator;
pub(crate) use calls::Traffic;
use pass::BackwardPass;
pub(crate) use pass::loss_root;
pub(crate) use passage::outlived;
pub(crate) use record::{Pulled, Record, add_node, carries_gradient, note, tapes_used};
pub(crate) use run::{current_run, refuse_after_run, refuse_message_on_no_tape};

/// A communicator that records its operations. The backward pass carries out the adjoints of all of
/// them, in reverse order, on every rank.
///
/// Each rank has a graph of its own, and an ordinary backward pass visits only the operations that
/// this rank's loss depends on. If one rank skips a communication, the others wait for it for ever.
/// On a tape no communication is skipped: see the [guide](crate::guide).
///
/// - Several communicators: one tape serves the whole program. A communicator that is made from one
///   on the tape, by `split` or `duplicate`, is on the tape too, and [`on`](Self::on) puts one on
///   the tape that existed before. The calls on all of them are one sequence on each rank, and the
///   backward pass is its reverse.
/// - Collective: [`backward`](Self::backward), [`grad`](Self::grad) and [`vjp`](Self::vjp) must be
///   called by every rank of the communicator that the tape was made from, with or without a loss
///   of its own.
/// - Same calls: on each communicator, its ranks must have recorded the same collective operations
///   in the same order, and a receive for each send. Before the backward pass the ranks compare
///   what they recorded. If it does not match, all ranks get the same [`Error::Tape`].
/// - Termination: the backward pass ends if the forward pass would also end if every collective
///   operation waited for all its ranks. MPI promises no more. A program that relies on a broadcast
///   returning early on its root may wait for ever in the backward pass, where the broadcast is a
///   reduction. Sends, receives from any rank and started operations are no such case.
/// - A message on a communicator that is not on the tape is an error of the backward pass that reaches
///   it, as the other end may not be reached.
/// - Inputs may require grad on any of the ranks, or on none.
/// - One pass: a backward pass that does not keep the graph starts the tape anew. Waiting for a
///   request that was recorded before it, or going back through a result recorded before it, is
///   then an [`Error::Argument`].
/// - Lifetime: the tape keeps the graph until `backward`, `grad` or `vjp`, or until it is dropped.
///   When it is dropped, its communicators are off the tape, and can be put on another.
/// - Other backward passes that reach a call on the tape are refused, with an error that names the
///   call and the pass. A pass of torch's own, by `Tensor::backward` or an optimizer, fails there.
///   A pass of another tape skips this tape's calls and returns the error at its end. Backward
///   passes that run within a pass of this tape count as part of it.
///
/// Integers and truth values carry no gradient, so operations on them are not recorded.
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
        crate::engine::request::forget_tape(&self.record);
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
    /// ```
    /// use mpi4tch::Op;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let mean = tape.all_reduce(&x.square(), Op::Mean)?; // recorded
    /// tape.backward(&mean.sum(Kind::Double))?;
    /// assert_eq!(x.grad(), Tensor::from_slice(&[6.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    pub fn tape(&self) -> Tape {
        let record = Arc::new(Record::new(self));
        Tape { comm: self.recorded_on(Arc::clone(&record), true), record }
    }
}

/// Options of a backward pass of a [`Tape`]: whether it keeps the graph, and whether it records
/// itself.
///
/// # Examples
/// The first pass keeps the graph for the second one, which adds the same gradient again:
/// ```
/// use mpi4tch::{Op, PassOptions};
/// use tch::{Kind, Tensor};
///
/// let universe = mpi4tch::initialize()?;
/// let tape = universe.world().tape();
/// let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
/// let loss = tape.all_reduce(&x, Op::Mean)?.sum(Kind::Double);
/// tape.backward_with(&loss, PassOptions { keep_graph: true, ..Default::default() })?;
/// tape.backward_with(&loss, PassOptions::default())?;
/// assert_eq!(x.grad(), Tensor::from_slice(&[1.0 + 1.0]));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassOptions {
    /// Keeps the graph for another backward pass: the tape does not start anew, and the next pass
    /// goes through all of it again.
    pub keep_graph: bool,
    /// Records the backward pass itself, for higher derivatives. It keeps the graph, too.
    pub create_graph: bool,
}

impl Tape {
    /// Puts a communicator that existed before on the tape: returns the same communicator, whose
    /// calls are recorded.
    ///
    /// Local. If one rank of the communicator does this, all of its ranks should.
    ///
    /// # Errors
    /// [`Error::Argument`] if the communicator is on another tape, or if it has ranks that the
    /// tape's communicator lacks, which would take no part in the backward pass;
    /// [`Error::Finalized`] after the universe's end.
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
        match comm.tape_record() {
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
        Ok(comm.recorded_on(Arc::clone(&self.record), true))
    }

    /// Carries out the backward pass on all ranks, for the sum of all ranks' losses, L = Σ ℓ_r:
    /// adds to the gradients of the leaves that L depends on. The tape starts anew.
    ///
    /// Collective: every rank must call it; a rank without a loss gives `None`. A loss that does
    /// not require grad is a constant.
    ///
    /// # Errors
    /// - [`Error::Tape`] on all ranks, before the pass begins, if the ranks recorded different calls:
    ///   go on with a new tape.
    /// - [`Error::Argument`] if the loss is complex or does not have one element, and
    ///   [`Error::Mismatch`] on the other ranks: the tape is then as it was.
    /// - [`Error::Argument`] if the loss depends on operations that were recorded before an earlier
    ///   pass or on another tape, and [`Error::Autograd`] if a pullback fails: the tape then starts
    ///   anew as well. If that pass went through messages or started operations, messages of it may
    ///   still be on their way: a later pass through the same communicators is an error on all ranks.
    ///
    /// If the pass fails on one rank only, in libtorch or in a pullback of the program, the other ranks wait
    /// for it, or get an error in its next call: end the job then, or see
    /// [`MPI4TCH_TIMEOUT`](crate#waiting-for-what-does-not-come).
    ///
    /// # Examples
    /// Only rank 0 has a loss, and all ranks get their gradients:
    /// ```
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let x = Tensor::from_slice(&[f64::from(tape.rank())]).set_requires_grad(true);
    /// let all = tape.gather(&x, 0, 0)?;
    /// let loss = (tape.rank() == 0).then(|| all.square().sum(Kind::Double));
    /// tape.backward(loss.as_ref())?;
    /// assert_eq!(x.grad(), 2.0 * x.detach());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn backward<'a>(&self, loss: impl Into<Option<&'a Tensor>>) -> Result<()> {
        self.backward_with(loss, PassOptions::default())
    }

    /// [`backward`](Self::backward) under another name, from tensors and their cotangents, or from
    /// the error for which this rank refuses the pass.
    #[track_caller]
    pub(crate) fn backward_from_roots(
        &self,
        call: &'static str,
        roots: Result<Vec<(Tensor, Tensor)>>,
    ) -> Result<()> {
        self.record.backward(BackwardPass::new(call, PassOptions::default()), roots)
    }

    /// [`backward`](Self::backward) with options.
    ///
    /// Collective. All ranks must give the same options.
    ///
    /// # Errors
    /// As for [`backward`](Self::backward); [`Error::Mismatch`] on all ranks if the options differ.
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

    /// Returns the gradients of L = Σ ℓ_r by this rank's `inputs`, which are zeros for an input
    /// that L does not depend on. Nothing is added to the leaves' gradients. The tape starts anew.
    ///
    /// Collective: every rank must call it, with inputs of its own, or none.
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

    /// [`grad`](Self::grad) with options.
    ///
    /// Collective. All ranks must give the same options.
    ///
    /// # Errors
    /// As for [`grad`](Self::grad); [`Error::Mismatch`] on all ranks if the options differ.
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

    /// The vector-Jacobian product: returns the gradients of this rank's `inputs`, given cotangents
    /// of all ranks' outputs. `outputs` has this rank's outputs, each with its cotangent. An output
    /// that does not require grad is a constant.
    ///
    /// Collective: every rank must call it, with outputs and inputs of its own, or none. All must
    /// give the same options.
    ///
    /// # Errors
    /// As for [`grad_with`](Self::grad_with); [`Error::Argument`] if a cotangent differs from its
    /// output in kind or shape, and [`Error::Mismatch`] on the other ranks.
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
