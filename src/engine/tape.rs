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

mod comparison;
mod record;

use std::ops::Deref;
use std::sync::Arc;

use tch::Tensor;

use crate::autograd::{self, View};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::communicator::Communicator;
use crate::engine::agreement::{Terms, Told, agree};
pub(crate) use comparison::Traffic;
use comparison::{decode, differences, encode, fingerprint};
use record::first_token;
pub(crate) use record::{Pulled, Record, outlived, record, recorded_on};

/// A communicator whose operations are all carried out in the backward pass, in reverse order, on
/// every rank.
///
/// Each rank has a graph of its own, and a backward pass goes only through what this rank's loss
/// depends on. A rank that leaves out a communication lets the others wait for ever. On a tape no
/// communication is left out: see the [guide](crate::guide).
///
/// - Collective: [`backward`](Self::backward) and [`grad`](Self::grad) must be called by every
///   rank, with or without a loss of its own.
/// - What counts is what a rank recorded on the tape: ranks must have made the same operations of
///   all ranks in the same order, and a receive for each send. Before the backward pass they
///   compare this, and if it differs all get the same [`Error::Tape`].
/// - Inputs may require grad on any of the ranks, or on none.
/// - What was recorded is gone through once: results and requests of before a backward pass that
///   did not keep the graph are an [`Error::Argument`] if they are waited for, or gone back through,
///   after it.
/// - The tape keeps the graph until `backward` or `grad`, or until it is dropped.
/// - Communicators made from it, by `split` or `duplicate`, are not on the tape. Where a program goes
///   by several, as by the rows and columns of a grid, make the tape of the one that has all their
///   ranks; calls on the others are gone through as they are [without a
///   tape](crate#communication-in-the-backward-pass).
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

impl Communicator {
    /// A tape for operations on this communicator, which are its too: [`Tape`] dereferences to
    /// one.
    ///
    /// Local.
    ///
    /// # Examples
    /// See [`Tape`].
    #[must_use]
    pub fn tape(&self) -> Tape {
        let record = Arc::new(Record::new(first_token()));
        Tape { comm: self.on(Arc::clone(&record)), record }
    }
}

impl Communicator {
    /// The tape that this communicator is on.
    pub(crate) fn own_tape(&self) -> Option<Tape> {
        let record = Arc::clone(self.record()?);
        Some(Tape { comm: self.clone(), record })
    }
}

impl Tape {
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
        self.backward_with(loss, false, false)
    }

    /// [`backward`](Self::backward) that keeps the graph for another backward pass if `keep_graph`,
    /// and records itself if `create_graph`, for derivatives of the derivative. With either, the
    /// tape goes on instead of starting anew, and goes through all of it the next time.
    ///
    /// Collective. All ranks must give the same options.
    ///
    /// # Errors
    /// As for `backward`; [`Error::Mismatch`] on all ranks if the options differ.
    ///
    /// # Examples
    /// ```
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let loss = tape.broadcast(&x, 0)?.sum(Kind::Double);
    /// tape.backward_with(&loss, true, false)?;
    /// tape.backward(&loss)?;
    /// let ranks = if tape.rank() == 0 { f64::from(tape.size()) } else { 0.0 };
    /// assert_eq!(x.grad(), Tensor::from_slice(&[2.0 * ranks]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn backward_with<'a>(
        &self,
        loss: impl Into<Option<&'a Tensor>>,
        keep_graph: bool,
        create_graph: bool,
    ) -> Result<()> {
        let pass = Pass { site: Site::new("Tape::backward"), keep_graph, create_graph };
        let (call, loss) = (pass.site.call, loss.into());
        self.comm.note(self.carry_out(pass, check_loss(call, loss), loss, |roots, leaf| {
            let (outputs, cotangents) = roots.as_lists();
            autograd::backward(call, &outputs, &cotangents, pass.keeps(), create_graph)?;
            Ok(((), autograd::take_grad(leaf)))
        }))
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
    /// let gradients = tape.grad(Some(&loss), &[&x])?;
    /// assert_eq!(gradients[0], Tensor::from_slice(&[1.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn grad(&self, loss: Option<&Tensor>, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        self.grad_with(loss, inputs, false, false)
    }

    /// [`grad`](Self::grad), with the options of [`backward_with`](Self::backward_with).
    ///
    /// Collective. All ranks must give the same options.
    ///
    /// # Errors
    /// As for `grad`; [`Error::Mismatch`] on all ranks if the options differ.
    ///
    /// # Examples
    /// The second derivative of Σ x³:
    /// ```
    /// use mpi4tch::Op;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let x = Tensor::from_slice(&[2.0]).set_requires_grad(true);
    /// let sum = tape.all_reduce(&x.pow_tensor_scalar(3), Op::Sum)?.sum(Kind::Double);
    /// let loss = (tape.rank() == 0).then_some(sum);
    /// let first = tape.grad_with(loss.as_ref(), &[&x], false, true)?.remove(0);
    /// let second = tape.grad(Some(&first.sum(Kind::Double)), &[&x])?.remove(0);
    /// assert_eq!(second, Tensor::from_slice(&[6.0 * 2.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn grad_with(
        &self,
        loss: Option<&Tensor>,
        inputs: &[&Tensor],
        keep_graph: bool,
        create_graph: bool,
    ) -> Result<Vec<Tensor>> {
        let pass = Pass { site: Site::new("Tape::grad"), keep_graph, create_graph };
        let call = pass.site.call;
        let checked = check_loss(call, loss).and_then(|()| check_inputs(call, inputs));
        let gradients = self.comm.note(self.carry_out(pass, checked, loss, |roots, leaf| {
            let (outputs, cotangents) = roots.as_lists();
            // The first token is an input as well, so that nothing is left out on the way to it.
            let with_leaf: Vec<&Tensor> = inputs.iter().copied().chain([leaf]).collect();
            let keeps = pass.keeps();
            let mut gradients =
                autograd::grad(call, &outputs, &cotangents, &with_leaf, keeps, create_graph)?;
            let token = gradients.pop().flatten();
            Ok((gradients, token))
        }))?;
        inputs
            .iter()
            .zip(gradients)
            .map(|(input, gradient)| match gradient {
                None => Ok(input.f_zeros_like()?),
                // Zeros that nobody has summed up lie in one place.
                Some(gradient) if gradient.stride().contains(&0) => Ok(gradient.f_contiguous()?),
                Some(gradient) => Ok(gradient),
            })
            .collect()
    }

    /// What the backward pass starts from.
    fn roots(&self, loss: Option<&Tensor>, create_graph: bool) -> Result<Roots> {
        let token = self.record.token();
        let seed = if create_graph { token.shallow_clone() } else { token.f_detach()? };
        let mut roots = Roots { outputs: vec![token], cotangents: vec![seed] };
        if let Some(loss) = loss.filter(|loss| loss.requires_grad()) {
            roots.outputs.push(loss.shallow_clone());
            roots.cotangents.push(loss.f_ones_like()?);
        }
        Ok(roots)
    }

    /// Runs a backward pass, if the ranks agree on it, from the roots and to the first token, whose
    /// gradient it gives beside its result; goes on from there.
    fn carry_out<T>(
        &self,
        pass: Pass,
        checked: Result<()>,
        loss: Option<&Tensor>,
        run: impl FnOnce(&Roots, &Tensor) -> Result<(T, Option<Tensor>)>,
    ) -> Result<T> {
        self.agree(pass, checked)?;
        let roots = self.roots(loss, pass.create_graph)?;
        let leaf = self.record.thread().leaf.shallow_clone();
        let (outcome, left_out) = self.record.pass(pass.site, || run(&roots, &leaf));
        // A pass that failed leaves nothing to go on from, unless nothing has become of the graph. If
        // it failed on this rank only, and others go on, the next one finds that the tapes differ.
        if !pass.keeps() || (outcome.is_err() && pass.create_graph) {
            self.record.start_anew();
        }
        let (result, token) = outcome?;
        if let Some(token) = token.filter(|_| pass.create_graph) {
            self.record.thread().token = token;
        }
        left_out.map(|()| result)
    }

    /// Compares what the ranks recorded, and what they ask for.
    fn agree(&self, pass: Pass, checked: Result<()>) -> Result<()> {
        let comm = &self.comm;
        let settled = comm.messages().map_or(Ok(()), |messages| messages.settle_tape(&self.record));
        let checked = checked.and(settled);
        let counts = fingerprint(comm.rank(), &self.record.thread().calls);
        let told = Told { counts, shape: &[] };
        let terms = checked.map(|()| Terms { told: Some(told), ..Terms::default() });
        let site = Site { call: pass.operation(), ..pass.site };
        let (agreed, turn) = agree(site, comm, None, terms, true, comm.environment().way())?;
        turn.made();
        let (collective, messages) = (agreed.counts(0), agreed.counts(1));
        let balance = messages.iter().fold(0_i64, |sum, part| sum.wrapping_add(*part));
        if balance == 0 && collective.iter().all(|other| *other == collective[0]) {
            return Ok(());
        }
        let text = encode(comm.rank(), &self.record.thread().calls);
        let texts = comm.exchange(pass.site, text.as_bytes())?;
        let all: Vec<_> = texts.iter().map(|text| decode(text)).collect();
        Err(Error::Tape { differences: differences(&all) })
    }
}

/// A backward pass and its options.
#[derive(Clone, Copy)]
struct Pass {
    site: Site,
    keep_graph: bool,
    create_graph: bool,
}

impl Pass {
    /// What the ranks must have in common.
    fn operation(self) -> &'static str {
        match (self.site.call, self.keep_graph, self.create_graph) {
            ("Tape::backward", false, false) => "Tape::backward",
            ("Tape::backward", true, false) => "Tape::backward with keep_graph",
            ("Tape::backward", _, true) => "Tape::backward with create_graph",
            (_, false, false) => "Tape::grad",
            (_, true, false) => "Tape::grad with keep_graph",
            (_, _, true) => "Tape::grad with create_graph",
        }
    }

    fn keeps(self) -> bool {
        self.keep_graph || self.create_graph
    }
}

struct Roots {
    outputs: Vec<Tensor>,
    cotangents: Vec<Tensor>,
}

impl Roots {
    fn as_lists(&self) -> (Vec<&Tensor>, Vec<&Tensor>) {
        (self.outputs.iter().collect(), self.cotangents.iter().collect())
    }
}

fn check_loss(call: &'static str, loss: Option<&Tensor>) -> Result<()> {
    let refuse = |message: String| Err(Error::Argument { call, message });
    match loss {
        Some(loss) if !loss.defined() => refuse("the loss is undefined".to_owned()),
        Some(loss) if View::of(loss).count() != 1 => {
            refuse(format!("the loss has shape {:?}; one element is needed", loss.size()))
        }
        Some(loss) if loss.is_complex() => {
            refuse(format!("the loss is of kind {:?}; a real kind is needed", loss.kind()))
        }
        _ => Ok(()),
    }
}

fn check_inputs(call: &'static str, inputs: &[&Tensor]) -> Result<()> {
    match inputs.iter().position(|input| !input.defined() || !input.requires_grad()) {
        Some(i) => {
            let message = format!("input {i} does not require grad");
            Err(Error::Argument { call, message })
        }
        None => Ok(()),
    }
}
