//! [`Replicated`]: tensors that are one variable on all ranks.

mod communication;
mod promises;
mod started;

use std::sync::Arc;

use tch::Tensor;

use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::engine::communicator::Communicator;
use promises::{check_same, refuse_same};
pub use started::ReplicatedRequest;

/// A tensor that is the same on all ranks of a communicator, and *one* variable on all of them: a
/// parameter of a model, or a loss.
///
/// Of an ordinary tensor, every rank's copy is a variable of its own, so a loss that all ranks have
/// counts [`size`](Communicator::size) times. A replicated loss counts once, and the gradient of a
/// replicated tensor is the derivative by the one variable, the same on all ranks: it is right on
/// any number of ranks.
///
/// | map | result | calls forward | calls in the backward pass |
/// | --- | --- | --- | --- |
/// | [`vary`](Self::vary) | a tensor of this rank | none | one all_reduce |
/// | [`shard`](Self::shard) | a tensor of this rank: its block | none | one all_gather |
/// | [`sum`](Self::sum), [`mean`](Self::mean) of all ranks' tensors | replicated | one all_reduce | none |
/// | [`concat`](Self::concat) of all ranks' tensors | replicated | one all_gather | none |
/// | [`broadcast`](Self::broadcast) of one rank's tensor | replicated | one broadcast | none |
/// | [`assume`](Self::assume), [`map`](Self::map), [`combine`](Self::combine) | replicated | none | none |
///
/// The maps of the first five rows are collective: every rank must make them, and its backward pass
/// must reach them. They are calls on a [`Tape`](crate::Tape) if the communicator is on one, also
/// where they make no MPI call. A method whose name begins with an `i` only starts its call.
///
/// - Recording: a replicated tensor requires grad on all ranks or on none.
/// - Promises: `assume`, `map` and `combine` rely on the program for tensors that are the same on
///   all ranks. With `MPI4TCH_CHECK=collective`, the default in debug builds, the ranks compare
///   a hash of them when they agree on the call, and all get the same error if it differs. They
///   cannot compare where the values come from: what is computed from [`vary`](Self::vary) or
///   [`shard`](Self::shard) is each rank's own even if it is equal on all ranks, and taken for
///   replicated it would count once per rank. Make it replicated by [`sum`](Self::sum) or
///   [`mean`](Self::mean).
/// - Second derivatives need the same calls on all ranks, as for all operations: see
///   [there](crate#communication-in-the-backward-pass).
///
/// # Examples
/// Each rank has a share of the data. One call is made forward, and one in the backward pass:
/// ```
/// use mpi4tch::Replicated;
/// use tch::{Kind, Tensor};
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let data = Tensor::from_slice(&[1.0 + f64::from(world.rank())]);
///
/// let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
/// let w = Replicated::assume(&world, &w)?;
/// let local_loss = (w.vary()? * &data).square().sum(Kind::Double);
/// let loss = Replicated::sum(&world, &local_loss)?; // w² Σ data²
/// loss.backward()?;
/// assert_eq!(w.grad(), w.tensor() * 2.0 * Replicated::sum(&world, &data.square())?.tensor());
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Debug)]
pub struct Replicated {
    comm: Communicator,
    value: Tensor,
}

impl Replicated {
    /// Says that `x` is the same on all ranks, and one variable. A leaf stays the leaf: its
    /// gradient is that of the one variable. `x` must not depend on a result of
    /// [`vary`](Self::vary) or [`shard`](Self::shard): the mean of a loss that all ranks have
    /// computed from those is [`mean`](Self::mean).
    ///
    /// Local; but with `MPI4TCH_CHECK=collective`, the default in debug builds, collective: the
    /// ranks compare the kind, the shape, `requires_grad` and a hash of the elements. Elements are
    /// the same if their bits are, so 0.0 and −0.0 differ; all NaNs count as equal.
    ///
    /// - Shape, layout: any. Kinds: every kind of [`datatype`](crate::datatype).
    /// - Adjoint: the cotangent itself, no call.
    ///
    /// # Errors
    /// [`Error::Mismatch`] on all ranks if the ranks compare the tensors and these differ;
    /// [`Error::Undefined`], [`Error::Kind`], [`Error::Layout`] or [`Error::Device`] if MPI could
    /// not take the tensor.
    ///
    /// # Examples
    /// One step of a training loop. All ranks begin with the parameters of rank 0, and keep them
    /// equal as they have equal gradients:
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Device, Kind, Tensor, nn, nn::OptimizerConfig};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let store = nn::VarStore::new(Device::Cpu);
    /// let mut w = store.root().randn("w", &[3], 0.0, 1.0);
    /// tch::no_grad(|| world.broadcast_(&mut w, 0))?;
    /// let mut optimizer = nn::Sgd::default().build(&store, 0.1)?;
    ///
    /// let w = Replicated::assume(&world, &w)?;
    /// let x = Tensor::from_slice(&[1.0_f32, 2.0, f64::from(world.rank()) as f32]);
    /// let loss = Replicated::mean(&world, &w.vary()?.dot(&x).square())?;
    /// optimizer.zero_grad();
    /// loss.backward()?;
    /// optimizer.step();
    /// assert_eq!(w.grad().size(), [3]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn assume(comm: &Communicator, x: &Tensor) -> Result<Self> {
        Self::promised(comm.site("Replicated::assume"), comm, x.shallow_clone())
    }

    /// Local work `f`, which must be the same on all ranks: a function of the tensor and of what
    /// else all ranks have in common, without communication and without random numbers that differ.
    /// What `f` captures must not depend on a result of [`vary`](Self::vary) or
    /// [`shard`](Self::shard). Take other replicated tensors by [`combine`](Self::combine).
    ///
    /// Local; but with `MPI4TCH_CHECK=collective`, the default in debug builds, collective: the
    /// ranks compare the result, as [`assume`](Self::assume) does.
    ///
    /// - Adjoint: that of `f`, on every rank, no call.
    ///
    /// # Errors
    /// As for [`assume`](Self::assume), for the result of `f`.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let w = Replicated::assume(&universe.world(), &w)?;
    /// w.map(|w| w.square().sum(Kind::Double))?.backward()?;
    /// assert_eq!(w.grad(), Tensor::from_slice(&[6.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn map(&self, f: impl FnOnce(&Tensor) -> Tensor) -> Result<Self> {
        Self::promised(self.comm.site("Replicated::map"), &self.comm, f(&self.value))
    }

    /// [`map`](Self::map) of several replicated tensors, which are on one communicator. If some of
    /// them are on its tape, the result is, too.
    ///
    /// - Adjoint: that of `f`, on every rank, no call.
    ///
    /// # Errors
    /// As for [`map`](Self::map); [`Error::Argument`] if there are no parts, or if they are on
    /// different communicators or tapes.
    ///
    /// # Examples
    /// A loss with a penalty, which counts once too:
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let w = Replicated::assume(&world, &w)?;
    /// let penalty = w.map(|w| w.square().sum(Kind::Double))?;
    /// let loss = Replicated::mean(&world, &w.vary()?.sum(Kind::Double))?;
    /// Replicated::combine(&[&loss, &penalty], |parts| parts[0] + parts[1])?.backward()?;
    /// assert_eq!(w.grad(), Tensor::from_slice(&[1.0 + 6.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn combine(parts: &[&Self], f: impl FnOnce(&[&Tensor]) -> Tensor) -> Result<Self> {
        const CALL: &str = "Replicated::combine";
        let refuse = |message: &str| Error::Argument { call: CALL, message: message.to_owned() };
        let Some(first) = parts.first() else {
            return Err(refuse("no parts were given; at least one is needed"));
        };
        let site = first.comm.site(CALL);
        let on_tape = parts.iter().find(|part| part.comm.tape_record().is_some());
        let comm = &on_tape.unwrap_or(first).comm;
        let is_elsewhere = |part: &&Self| part.comm.lane() != comm.lane();
        let is_on_another_tape = |part: &&Self| match (part.comm.tape_record(), comm.tape_record())
        {
            (Some(tape), Some(own)) => !Arc::ptr_eq(tape, own),
            _ => false,
        };
        let message = if parts.iter().any(is_elsewhere) {
            "the parts are on different communicators"
        } else if parts.iter().any(is_on_another_tape) {
            "the parts are on different tapes"
        } else {
            ""
        };
        if !message.is_empty() {
            return first.comm.note(Err(refuse_same(site, &first.comm, refuse(message))));
        }
        let values: Vec<&Tensor> = parts.iter().map(|part| &part.value).collect();
        Self::promised(site, comm, f(&values))
    }

    fn promised(site: Site, comm: &Communicator, value: Tensor) -> Result<Self> {
        comm.note(check_same(site, comm, &value))?;
        Ok(Self { comm: comm.clone(), value })
    }

    /// The tensor, for looking at it, and for work on which no derivative depends.
    ///
    /// A loss that is computed from it lacks the other ranks' contributions to the gradient: for
    /// work that differs between the ranks take [`vary`](Self::vary), for work that is the same
    /// [`map`](Self::map).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let one = Tensor::from_slice(&[1_i64]);
    /// let ranks = Replicated::sum(&universe.world(), &one)?;
    /// assert_eq!(ranks.tensor().int64_value(&[0]), i64::from(universe.world().size()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    pub fn tensor(&self) -> &Tensor {
        &self.value
    }

    /// The communicator on whose ranks the tensor is the same.
    ///
    /// # Examples
    /// ```
    /// # use mpi4tch::Replicated;
    /// # let universe = mpi4tch::initialize()?;
    /// # let x = tch::Tensor::from_slice(&[1.0]);
    /// let x = Replicated::assume(&universe.world(), &x)?;
    /// assert_eq!(x.communicator().size(), universe.world().size());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[must_use]
    pub fn communicator(&self) -> &Communicator {
        &self.comm
    }

    /// The gradient of the one variable, the same on all ranks: of a leaf, and of the result of
    /// [`broadcast`](Self::broadcast), for which it is retained, without a graph of its own. It is
    /// undefined before a backward pass, and for other tensors, as libtorch does not keep their
    /// gradients.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let w = Replicated::assume(&world, &w)?;
    /// assert!(!w.grad().defined());
    /// Replicated::sum(&world, &w.vary()?.square().sum(Kind::Double))?.backward()?;
    /// assert_eq!(w.grad(), Tensor::from_slice(&[6.0 * f64::from(world.size())]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    pub fn grad(&self) -> Tensor {
        self.value.grad()
    }

    /// Carries out the backward pass for this tensor as the loss, which counts once: adds to the
    /// gradients of the leaves that it depends on.
    ///
    /// Every rank must call it. If the communicator is on a [`Tape`](crate::Tape), it is the tape's
    /// [`backward`](crate::Tape::backward), collective over the communicator that the tape was made
    /// from.
    ///
    /// Zero the gradients before a second pass: libtorch adds to them in place, and may have made views
    /// of one cotangent the gradients of two leaves, as of a and b in `a.view(-1) + b.view(-1)`.
    ///
    /// # Errors
    /// [`Error::Argument`] if the loss is complex, does not have one element, or does not require
    /// grad; [`Error::Autograd`] if a pullback fails; on a tape, the errors of its `backward`.
    ///
    /// # Examples
    /// See [`Replicated`]. On a tape:
    /// ```
    /// use mpi4tch::Replicated;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let tape = world.tape();
    /// let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let w = Replicated::assume(&tape, &w)?;
    /// let loss = Replicated::mean(&tape, &w.vary()?.square().sum(Kind::Double))?;
    /// loss.backward()?;
    /// assert_eq!(w.grad(), Tensor::from_slice(&[6.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn backward(&self) -> Result<()> {
        self.comm.backward_from("Replicated::backward", &self.value)
    }
}
