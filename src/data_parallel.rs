//! [`DataParallel`]: one model that all ranks train, each on its part of the data.

mod bucket;
mod buckets;
mod model;
mod options;
mod pass;

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tch::{Kind, Tensor, nn};

use crate::autograd::{self, LeafHook};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::base::way::Way;
use crate::engine::agreement::{Terms, Turn, agree};
use crate::engine::communicator::Communicator;
use crate::engine::tape::{Tape, loss_root};
use buckets::Buckets;
use model::Model;
pub use options::DataParallelOptions;
use pass::{Share, State};

/// A model that all ranks train, each on its part of the data: after
/// [`backward`](Self::backward) the parameters' gradients are the mean of all ranks' gradients.
///
/// Every rank has a copy of the model. [`new`](Self::new) gives all of them the values of rank 0. The
/// copies stay equal if all ranks then make the same steps, by any optimizer, from the same
/// gradients, and those are equal bit for bit.
///
/// - Speed: gradients are summed in buckets, each as soon as the backward pass has computed its
///   gradients. A gradient of 256 KiB or more is summed where it lies; smaller ones share a flat
///   buffer of [`bucket_bytes`](DataParallelOptions::bucket_bytes), of which they become views.
///   Gradients that the program has kept of an earlier step do not change. On
///   ranks that share memory the sums are made by `MPI_Allreduce`. Elsewhere, or if the backward
///   pass communicates otherwise, they are started by `MPI_Iallreduce`, and go on beside the rest
///   of the backward pass.
/// - Parameters that a batch does not use: their gradient on this rank counts as zeros. If no rank
///   uses a parameter, its gradient stays as it is.
/// - Parameters that do not require grad are left out. That may change between two passes, as by
///   `VarStore::freeze`, and so may the kinds of parameters, as by `VarStore::half` or `load`, on all
///   ranks alike.
/// - Sparse gradients, as those of an embedding with `sparse`, become dense.
/// - Other backward passes that reach a parameter are refused, as they would leave gradients that
///   nobody averaged: `Tensor::backward` and `Optimizer::backward_step` fail. Call `backward`, and
///   then the optimizer's `step`. To add up gradients without communication, use
///   [`accumulate`](Self::accumulate).
/// - Gradients that were there before a pass are averaged with the new ones. So call the
///   optimizer's `zero_grad` before each step.
/// - Buffers, as the running statistics of a batch norm, are made equal by `new` only, and each
///   rank then goes on with its own.
/// - Lifetime: when it is dropped, the parameters are as they were before, with their values and
///   gradients. A parameter can be in one `DataParallel` at a time.
///
/// # Examples
/// ```
/// use mpi4tch::DataParallel;
/// use tch::nn::{self, Module, OptimizerConfig};
/// use tch::{Device, Kind, Tensor};
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let store = nn::VarStore::new(Device::Cpu);
/// let layer = nn::linear(store.root(), 3, 1, Default::default());
/// let model = DataParallel::new(&world, &store)?;
/// let mut optimizer = nn::Sgd::default().build(&store, 0.1)?;
///
/// let batch = Tensor::randn([8, 3], (Kind::Float, Device::Cpu)); // this rank's part
/// for _ in 0..3 {
///     let loss = layer.forward(&batch).square().mean(Kind::Float);
///     optimizer.zero_grad();
///     model.backward(&loss)?;
///     optimizer.step();
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "DistributedDataParallel")]
pub struct DataParallel {
    /// Dropped before the state, to which they refer.
    hooks: Vec<LeafHook>,
    state: Arc<Mutex<State>>,
    comm: Communicator,
    options: DataParallelOptions,
    /// Whether all ranks share memory, so that the ranks themselves move the data.
    share_memory: bool,
}

impl DataParallel {
    /// Makes the model in `store` one that all ranks train: gives all ranks the values of rank 0,
    /// of the parameters and of the buffers. Variables that are added to the store later are no part
    /// of it.
    ///
    /// Collective: every rank must call it, with a model of the same variables. Its communication is
    /// on a duplicate of `comm`, and on no tape.
    ///
    /// # Errors
    /// As for [`with_options`](Self::with_options).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::DataParallel;
    /// use tch::{Device, nn};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let store = nn::VarStore::new(Device::Cpu);
    /// let layer = nn::linear(store.root(), 3, 1, Default::default()); // random on each rank
    /// let model = DataParallel::new(&world, &store)?;
    /// let weights = layer.ws.detach();
    /// assert_eq!(weights, world.broadcast(&weights, 0)?);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn new(comm: &Communicator, store: &nn::VarStore) -> Result<Self> {
        Self::make(comm, Model::of_store(store), DataParallelOptions::default())
    }

    /// [`new`](Self::new) for parameters and buffers that need not be in a store, with options.
    /// `parameters` are in the order of their creation, or of their use in the forward pass. A
    /// variable that is in the list several times counts once.
    ///
    /// Collective: every rank must call it, with variables of the same kinds and shapes.
    ///
    /// # Errors
    /// [`Error::Argument`] if an option is out of range, if there are no parameters, if a parameter
    /// is no leaf, carries no gradient, or has a hook already, as that of another `DataParallel`, or
    /// if a variable is not dense, in memory, and of a kind that MPI can send, and then
    /// [`Error::Mismatch`] on the other ranks; [`Error::Mismatch`] on all ranks if variables differ,
    /// with their names.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::{DataParallel, DataParallelOptions};
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let w = Tensor::from_slice(&[1_f32, 2.0]).set_requires_grad(true);
    /// let options = DataParallelOptions { reduce_in: Some(Kind::BFloat16), ..Default::default() };
    /// let model = DataParallel::with_options(&world, &[w.shallow_clone()], &[], options)?;
    /// let batch = Tensor::from_slice(&[f32::from(world.rank() as i16), 1.0]);
    /// model.backward(&(&w * batch).sum(Kind::Float))?;
    /// let mean = (world.size() - 1) as f32 / 2.0;
    /// assert_eq!(w.grad(), Tensor::from_slice(&[mean, 1.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn with_options(
        comm: &Communicator,
        parameters: &[Tensor],
        buffers: &[Tensor],
        options: DataParallelOptions,
    ) -> Result<Self> {
        Self::make(comm, Model::new(parameters, buffers), options)
    }

    #[track_caller]
    fn make(comm: &Communicator, model: Model, options: DataParallelOptions) -> Result<Self> {
        let site = comm.site("DataParallel::new");
        comm.note((|| {
            let comm = comm.plain().at(site);
            let checked = options
                .check(site.call)
                .and_then(|()| model.check(site.call))
                .and_then(|()| model.check_hooks(site.call));
            let made = checked.and_then(|()| Buckets::new(&model.parameters, &options));
            let (terms, buckets) = match made {
                Ok(buckets) => (Ok(Terms::default()), Some(buckets)),
                Err(error) => (Err(error), None),
            };
            let (_, turn) = agree(site, &comm, None, terms, true, comm.environment().way())?;
            let Some(buckets) = buckets else { unreachable!("an error is never agreed on") };
            turn.made();
            model.compare(site, &comm, &turn, &options)?;
            drop(turn);
            let share_memory = comm.split_shared()?.size() == comm.size();
            let comm = comm.duplicate()?;
            model.broadcast(&comm)?;
            let comm = comm.plain();
            let state = State::new(comm.clone(), model, buckets);
            let state = Arc::new(Mutex::new(state));
            let hooks = add_hooks(site.call, &state)?;
            Ok(Self { hooks, state, comm, options, share_memory })
        })())
    }

    /// Carries out the backward pass of `loss`, and makes the mean over all ranks the gradients of
    /// the parameters, equal bit for bit on all ranks.
    ///
    /// Wraps `MPI_Allreduce` or `MPI_Iallreduce`, once for each bucket. Collective: every rank must
    /// call it; a rank that has no batch left gives `None`, and counts with zero gradients. If
    /// batches differ in size, use [`backward_weighted`](Self::backward_weighted).
    ///
    /// The loss is this rank's own, such as the mean over its part of the batch. If it communicates
    /// on a tape, use [`backward_on`](Self::backward_on).
    ///
    /// A gradient that the parameter still has is changed in place, so a loss cannot depend on it.
    ///
    /// # Errors
    /// - [`Error::Argument`] if the loss does not have one element, is complex, or does not require
    ///   grad, or within another backward pass of this `DataParallel`, and then [`Error::Mismatch`] on
    ///   the other ranks: nothing has changed then.
    /// - [`Error::Mismatch`] if other ranks call something else, or train other parameters.
    /// - [`Error::Autograd`] if the backward pass fails, and then [`Error::Mismatch`] on the other
    ///   ranks: the gradients are then to be zeroed.
    /// - [`Error::Argument`] if a gradient changes after it has been summed, which can happen if a
    ///   pullback carries out backward passes of its own, the first time that it does.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::DataParallel;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let w = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    /// let parameters = [w.shallow_clone()];
    /// let model = DataParallel::with_options(&world, &parameters, &[], Default::default())?;
    /// let sample = f64::from(world.rank()); // this rank's own
    /// model.backward(&(&w * sample).sum(Kind::Double))?;
    /// let mean = f64::from(world.size() - 1) / 2.0;
    /// assert_eq!(w.grad(), Tensor::from_slice(&[mean]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn backward<'a>(&self, loss: impl Into<Option<&'a Tensor>>) -> Result<()> {
        let site = self.comm.site("DataParallel::backward");
        self.train(site, loss.into(), None, |roots| pass(site.call, &roots?))
    }

    /// [`backward`](Self::backward) with a weighted mean: the gradients become Σ w ḡ / Σ w, with
    /// each rank's weight w. If the loss is a mean over the samples of this rank, and the weight is
    /// their number, the result is the gradient of the mean over all samples.
    ///
    /// Collective, as there. The weights travel first, in one small message. Gradients that were
    /// there before are weighted too. A rank of weight 0 whose gradients are infinite makes those of all
    /// ranks NaN: give `None` for a batch that is not to count.
    ///
    /// # Errors
    /// As for [`backward`](Self::backward); [`Error::Argument`] if the weight is negative or not
    /// finite, and then [`Error::Mismatch`] on the other ranks; on all ranks if all weights are 0.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::{DataParallel, DataParallelOptions};
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let w = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    /// let parameters = [w.shallow_clone()];
    /// let model = DataParallel::with_options(&world, &parameters, &[], Default::default())?;
    /// // Rank 0 has the samples 1 and 2, and the others have none.
    /// let samples = Tensor::from_slice(&[1.0, 2.0]);
    /// let loss = (world.rank() == 0).then(|| (&w * &samples).mean(Kind::Double));
    /// model.backward_weighted(loss.as_ref(), if loss.is_some() { 2.0 } else { 0.0 })?;
    /// assert_eq!(w.grad(), Tensor::from_slice(&[1.5]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn backward_weighted<'a>(
        &self,
        loss: impl Into<Option<&'a Tensor>>,
        weight: f64,
    ) -> Result<()> {
        let site = self.comm.site("DataParallel::backward_weighted");
        self.train(site, loss.into(), Some(weight), |roots| pass(site.call, &roots?))
    }

    /// [`backward`](Self::backward) where the loss itself communicates on a tape: the pass is the
    /// tape's. It is for models that are also cut over ranks.
    ///
    /// Collective over the communicator that the tape was made from, which has all ranks of this
    /// `DataParallel`. Ranks that hold the same part of the model form a `DataParallel`, and all of
    /// them call this, each with its own. The gradients are then those of the sum of all ranks'
    /// losses, as on a tape, divided by the number of ranks of the `DataParallel`. So a loss that
    /// the ranks of one part have in common must be counted once, as
    /// [`Replicated`](crate::Replicated) counts it.
    ///
    /// # Errors
    /// As for [`backward`](Self::backward) and for [`Tape::backward`]. If one `DataParallel` fails,
    /// so does the pass on all ranks of the tape.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::{DataParallel, Op};
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let w = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    /// let parameters = [w.shallow_clone()];
    /// let model = DataParallel::with_options(&world, &parameters, &[], Default::default())?;
    /// let tape = world.tape();
    /// let normalized = &w / tape.all_reduce(&w, Op::Sum)?;
    /// model.backward_on(&tape, &normalized.sum(Kind::Double))?;
    /// assert!(w.grad().double_value(&[0]).abs() < 1e-12); // Σ w/Σw is 1 for all w
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn backward_on<'a>(&self, tape: &Tape, loss: impl Into<Option<&'a Tensor>>) -> Result<()> {
        let site = self.comm.site("DataParallel::backward_on");
        self.train(site, loss.into(), None, |roots| tape.backward_from_roots(site.call, roots))
    }

    /// Carries out the backward pass of `loss`, and adds to the gradients of this rank. The next
    /// [`backward`](Self::backward) averages what has been added up: several batches make one step.
    ///
    /// Local: it makes no MPI call, unless the loss itself communicates.
    ///
    /// # Errors
    /// [`Error::Argument`] if the loss does not have one element, is complex, or does not require
    /// grad, or within a backward pass of this `DataParallel`; [`Error::Autograd`] if the backward
    /// pass fails.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::DataParallel;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let w = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let parameters = [w.shallow_clone()];
    /// let model = DataParallel::with_options(&world, &parameters, &[], Default::default())?;
    /// model.accumulate(&w.square().sum(Kind::Double))?;
    /// model.backward(&w.sum(Kind::Double))?;
    /// assert_eq!(w.grad(), Tensor::from_slice(&[6.0 + 1.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn accumulate(&self, loss: &Tensor) -> Result<()> {
        let call = ACCUMULATE;
        self.comm.note((|| {
            let roots = roots(call, Some(loss))?;
            {
                let mut state = self.state.lock();
                state.check_idle(call)?;
                state.begin_accumulation();
            }
            let outcome = pass(call, &roots);
            let parted = self.state.lock().end_accumulation();
            outcome.and(parted)
        })())
    }

    /// Carries out a backward pass, from `loss`, by `run`, and sums the gradients over the ranks.
    fn train(
        &self,
        site: Site,
        loss: Option<&Tensor>,
        weight: Option<f64>,
        run: impl FnOnce(Result<Roots>) -> Result<()>,
    ) -> Result<()> {
        self.state.lock().check_idle(site.call)?;
        self.comm.note(match self.agree(site, loss, weight) {
            // On a tape, the ranks that are not in this communicator wait for the pass.
            Err(error) => run(Err(error)),
            Ok((roots, turn, share)) => {
                let (roots, share) = scaled(roots, share);
                self.state.lock().begin_sums(site, turn, share);
                let outcome = run(roots);
                self.state.lock().end_sums(outcome)
            }
        })
    }

    /// Agrees on a backward pass. Returns its roots, its turn, and the weight of this rank's
    /// gradients.
    fn agree(
        &self,
        site: Site,
        loss: Option<&Tensor>,
        weight: Option<f64>,
    ) -> Result<(Roots, Arc<Turn>, f64)> {
        let comm = &self.comm;
        let prepared = (|| {
            let roots = roots(site.call, loss)?;
            check_weight(site.call, weight)?;
            Ok((roots, self.state.lock().prepare(site.call, &self.options)?))
        })();
        let (prepared, error) = match prepared {
            Ok(prepared) => (prepared, None),
            Err(error) => (Default::default(), Some(error)),
        };
        let (roots, hash): (Roots, u64) = prepared;
        let terms = error.map_or(Ok(Terms::default()), Err);
        let (_, turn) = agree(site, comm, None, terms, true, self.way())?;
        if !comm.is_equal_on_all(site, turn.way(), hash)? {
            turn.made();
            self.state.lock().model.compare(site, comm, &turn, &self.options)?;
            let message = "the ranks have different buckets".to_owned();
            return Err(Error::Argument { call: site.call, message });
        }
        let share = match weight {
            None => 1.0 / f64::from(comm.size()),
            Some(weight) => {
                let word = [weight.to_bits().cast_signed()];
                let words = comm.all_gather_control(site, turn.way(), &word)?;
                // Added up in the same order on all ranks, so that all have the same sum.
                let total: f64 = words.iter().map(|[w]| f64::from_bits(w.cast_unsigned())).sum();
                if total == 0.0 || !total.is_finite() {
                    turn.made();
                    return Err(Error::Argument { call: site.call, message: wrong_total(total) });
                }
                weight / total
            }
        };
        Ok((roots, turn, share))
    }

    /// How the sums are made. On ranks that share memory nothing is gained by starting them, as the
    /// ranks themselves move the data, and MPI's blocking functions are faster. But a rank that
    /// waits in one must not keep others from their communication in the backward pass.
    fn way(&self) -> Way {
        if self.share_memory && autograd::live_pullbacks() == 0 {
            self.comm.environment().way()
        } else {
            Way::Polls
        }
    }
}

impl fmt::Debug for DataParallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataParallel")
            .field("comm", &self.comm)
            .field("parameters", &self.hooks.len())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

const ACCUMULATE: &str = "DataParallel::accumulate";

/// The roots of a backward pass: tensors and their cotangents.
type Roots = Vec<(Tensor, Tensor)>;

/// The root of a pass that starts from a loss; none if this rank has no loss.
fn roots(call: &'static str, loss: Option<&Tensor>) -> Result<Roots> {
    let roots = loss_root(call, loss)?;
    if loss.is_some() && roots.is_empty() {
        let or_none = if call == ACCUMULATE { "" } else { ", or None" };
        let message = format!(
            "the loss does not require grad; a loss that depends on the parameters is needed{or_none}"
        );
        return Err(Error::Argument { call, message });
    }
    Ok(roots)
}

/// The roots with their cotangents multiplied by this rank's share of the sum.
fn scaled(roots: Roots, share: f64) -> (Result<Roots>, Share) {
    let exact = Share { cotangent: share, correction: 1.0 };
    let [(loss, one)] = &roots[..] else { return (Ok(roots), exact) };
    let scaled = |share: f64| -> Result<Tensor> {
        Ok(one.f_mul(&Tensor::from(share))?.f_to_kind(one.f_kind()?)?)
    };
    let rounds = matches!(one.f_kind(), Ok(Kind::Half | Kind::BFloat16));
    let (cotangent, share) = match scaled(share) {
        Ok(rounded) if rounds && share != 0.0 => match rounded.f_double_value(&[]) {
            // Too small for the kind.
            Ok(0.0) => (scaled(1.0), Share { cotangent: 1.0, correction: share }),
            Ok(value) => (Ok(rounded), Share { cotangent: value, correction: share / value }),
            Err(error) => (Err(error.into()), exact),
        },
        other => (other, exact),
    };
    (cotangent.map(|cotangent| vec![(loss.shallow_clone(), cotangent)]), share)
}

fn check_weight(call: &'static str, weight: Option<f64>) -> Result<()> {
    match weight {
        Some(weight) if !(weight.is_finite() && weight >= 0.0) => {
            let message =
                format!("the weight is {weight}; a finite number of at least 0 is needed");
            Err(Error::Argument { call, message })
        }
        _ => Ok(()),
    }
}

fn wrong_total(total: f64) -> String {
    if total == 0.0 {
        return "the weights of all ranks are 0; one above 0 is needed".to_owned();
    }
    format!("the weights of all ranks add up to {total}; a finite sum is needed")
}

/// Goes back from the roots, by libtorch alone.
fn pass(call: &'static str, roots: &Roots) -> Result<()> {
    if roots.is_empty() {
        return Ok(());
    }
    let (outputs, cotangents): (Vec<_>, Vec<_>) = roots.iter().map(|(y, c)| (y, c)).unzip();
    autograd::backward(call, &outputs, &cotangents, false, false)
}

/// Adds a hook to each parameter, which notes that its gradient has been added to.
fn add_hooks(call: &'static str, state: &Arc<Mutex<State>>) -> Result<Vec<LeafHook>> {
    let locked = state.lock();
    let parameters = locked.parameters().iter().enumerate();
    parameters
        .map(|(i, parameter)| {
            // Weak, as the state holds the parameter, and the parameter the hook.
            let state = Arc::downgrade(state);
            let hook = LeafHook::new(call, &parameter.tensor, move || {
                state.upgrade().map_or(Ok(()), |state| state.lock().note_gradient(i))
            })?;
            hook.ok_or_else(|| {
                let message = format!("{} has been given a hook meanwhile", parameter.name);
                Error::Argument { call, message }
            })
        })
        .collect()
}
