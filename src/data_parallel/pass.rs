//! A backward pass of [`DataParallel`](super::DataParallel): the hooks, by which a bucket's sum is
//! begun as soon as its gradients are there.

use std::collections::VecDeque;
use std::sync::Arc;

use tch::Tensor;

use super::DataParallelOptions;
use super::bucket::part;
use super::buckets::Buckets;
use super::model::{Model, Variable};
use crate::autograd::{self, Recording};
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::site::Site;
use crate::engine::agreement::{Turn, differences};
use crate::engine::communicator::Communicator;
use crate::engine::execution::Started;
use crate::operations::sum_in_place;

/// The state that the hooks share.
pub(super) struct State {
    pub(super) comm: Communicator,
    pub(super) model: Model,
    pub(super) buckets: Buckets,
    /// For each parameter, how often a pass in which others may be nested has added to its gradient,
    /// at most.
    most_often: Vec<u32>,
    pass: Option<Pass>,
}

/// The backward pass that is being carried out.
enum Pass {
    /// The gradients are only added up on this rank. `may_nest` is that of [`Sums`].
    Accumulates {
        may_nest: bool,
    },
    Sums(Box<Sums>),
}

/// The sums of a backward pass over the ranks.
struct Sums {
    site: Site,
    turn: Arc<Turn>,
    /// Whether backward passes may be nested in this one, so that a gradient may be added to again.
    may_nest: bool,
    /// How often each gradient has been added to.
    added: Vec<u32>,
    /// How many gradients each bucket lacks.
    missing: Vec<usize>,
    /// The tensors that are summed, of the buckets that have been begun.
    begun: Vec<Tensor>,
    /// Those that have only been started.
    under_way: VecDeque<Started>,
    /// The first error.
    outcome: Result<()>,
    /// See [`Share`].
    correction: f64,
}

/// The weight of a rank's gradients.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// The loss's cotangent: the weight as a number of the loss's kind.
    pub(super) cotangent: f64,
    /// What the gradients are multiplied by besides, as a kind of 16 bits rounds the weight.
    pub(super) correction: f64,
}

impl State {
    pub(super) fn new(comm: Communicator, model: Model, buckets: Buckets) -> Self {
        let most_often = vec![0; model.parameters.len()];
        Self { comm, model, buckets, most_often, pass: None }
    }

    pub(super) fn parameters(&self) -> &[Variable] {
        &self.model.parameters
    }

    /// Refuses a pass within another one, whose turn on the communicator it is.
    pub(super) fn check_idle(&self, call: &'static str) -> Result<()> {
        if self.pass.is_none() {
            return Ok(());
        }
        let message = "called within a backward pass of the same DataParallel".to_owned();
        Err(Error::Argument { call, message })
    }

    /// Prepares the buckets for another pass. Returns their hash, which the ranks compare.
    pub(super) fn prepare(
        &mut self,
        call: &'static str,
        options: &DataParallelOptions,
    ) -> Result<u64> {
        if !self.buckets.fit(self.parameters()) {
            self.model.check(call)?;
            self.model.convert_gradients()?;
            self.buckets = Buckets::new(self.parameters(), options)?;
        }
        for bucket in &mut self.buckets.list {
            bucket.prepare(&self.model.parameters)?;
        }
        Ok(self.buckets.hash)
    }

    pub(super) fn begin_accumulation(&mut self) {
        self.pass = Some(Pass::Accumulates { may_nest: autograd::live_pullbacks() != 0 });
    }

    pub(super) fn end_accumulation(&mut self) -> Result<()> {
        self.pass = None;
        self.part_gradients()
    }

    /// See [`Bucket::part`](super::bucket::Bucket::part).
    fn part_gradients(&self) -> Result<()> {
        self.buckets.list.iter().try_for_each(|bucket| bucket.part(self.parameters()))
    }

    /// Begins a pass that the ranks have agreed on.
    pub(super) fn begin_sums(&mut self, site: Site, turn: Arc<Turn>, share: Share) {
        let mut sums = Sums {
            site,
            turn,
            may_nest: autograd::live_pullbacks() != 0,
            added: vec![0; self.model.parameters.len()],
            missing: self.buckets.list.iter().map(|bucket| bucket.members.len()).collect(),
            begun: Vec::with_capacity(self.buckets.list.len()),
            under_way: VecDeque::new(),
            outcome: Ok(()),
            correction: share.correction,
        };
        sums.fail(self.weigh(share.cotangent));
        self.pass = Some(Pass::Sums(Box::new(sums)));
    }

    fn weigh(&self, weight: f64) -> Result<()> {
        if weight == 1.0 {
            return self.part_gradients();
        }
        let weight = Tensor::from(weight);
        self.buckets.list.iter().try_for_each(|bucket| bucket.weigh(self.parameters(), &weight))
    }

    /// Called by the hook of a parameter, whose gradient has been added to.
    pub(super) fn note_gradient(&mut self, parameter: usize) -> Result<()> {
        let Self { comm, model, buckets, most_often, pass } = self;
        let name = &model.parameters[parameter].name;
        let sums = match pass {
            Some(Pass::Sums(sums)) => sums,
            // Another pass within this one may add to the gradient, which may be a view.
            Some(Pass::Accumulates { may_nest: true }) => {
                return part(&model.parameters[parameter].tensor);
            }
            Some(Pass::Accumulates { may_nest: false }) => return Ok(()),
            None => return Err(foreign_pass(name)),
        };
        let Some(bucket) = buckets.of_parameter[parameter] else { return Ok(()) };
        sums.added[parameter] += 1;
        if sums.may_nest && sums.added[parameter] == 1 {
            part(&model.parameters[parameter].tensor)?;
        }
        if bucket < sums.begun.len() {
            sums.fail(Err(added_too_late(sums.site, name)));
            return Ok(());
        }
        let last = if sums.may_nest { most_often[parameter] } else { 1 };
        if sums.added[parameter] == last {
            sums.missing[bucket] -= 1;
        }
        while sums.missing.get(sums.begun.len()) == Some(&0)
            // libtorch still refers to the gradient that has just been added to.
            && !buckets.list[sums.begun.len()].is_gradient_of(parameter)
        {
            sums.begin_next(comm, model, buckets);
        }
        sums.go_on();
        Ok(())
    }

    /// Sums the gradients that are left, those of parameters that the loss does not depend on among
    /// them, and waits for all sums. `outcome` is that of the backward pass on this rank. If it has
    /// failed on any rank, all get an error.
    pub(super) fn end_sums(&mut self, outcome: Result<()>) -> Result<()> {
        let Self { comm, model, buckets, most_often, pass } = self;
        let Some(Pass::Sums(mut sums)) = pass.take() else { return outcome };
        sums.fail(outcome);
        while sums.begun.len() < buckets.list.len() {
            sums.begin_next(comm, model, buckets);
        }
        for started in std::mem::take(&mut sums.under_way) {
            sums.fail(started.result(sums.site).map(drop));
        }
        if sums.may_nest {
            for (most, added) in most_often.iter_mut().zip(&sums.added) {
                *most = (*most).max(*added);
            }
        }
        let undefined = sums.share(comm, model)?;
        sums.turn.made();
        for (bucket, summed) in buckets.list.iter().zip(&sums.begun) {
            bucket.distribute(&model.parameters, summed, |i| !undefined(i))?;
        }
        Ok(())
    }
}

impl Sums {
    /// Keeps an error. The pass goes on, as the other ranks wait for this one.
    fn fail(&mut self, outcome: Result<()>) {
        if self.outcome.is_ok() {
            self.outcome = outcome;
        }
    }

    /// Sums the gradients of the next bucket, or starts to.
    fn begin_next(&mut self, comm: &Communicator, model: &Model, buckets: &Buckets) {
        let bucket = &buckets.list[self.begun.len()];
        let collected = bucket.collect(&model.parameters).or_else(|error| {
            // The other ranks sum theirs.
            self.fail(Err(error));
            bucket.nothing()
        });
        let summed = collected.and_then(|mut collected| {
            if self.correction != 1.0 {
                let _recording = Recording::off();
                let _ = collected.f_mul_scalar_(self.correction)?;
            }
            let started = sum_in_place(self.site, comm, &collected, &self.turn)?;
            self.under_way.extend(started);
            Ok(collected)
        });
        self.begun.push(summed.unwrap_or_else(|error| {
            self.turn.failed();
            self.outcome = std::mem::replace(&mut self.outcome, Ok(())).and(Err(error));
            Tensor::new()
        }));
    }

    /// Gives MPI a chance to go on with what was started.
    fn go_on(&mut self) {
        for started in &self.under_way {
            match started.flight.test() {
                Ok(true) => (),
                // MPI goes on with all that was started.
                Ok(false) => return,
                Err(error) => return self.fail(Err(error)),
            }
        }
    }

    /// Tells the other ranks how the pass went here. Returns which gradients are undefined on all
    /// ranks, or an error if the pass failed on any.
    fn share(
        &mut self,
        comm: &Communicator,
        model: &Model,
    ) -> Result<impl Fn(usize) -> bool + use<>> {
        let count = model.parameters.len();
        // A bit for each parameter whose gradient is undefined, then one for success.
        let mut bits = vec![0_u64; count / 64 + 1];
        let mut set = |i: usize| bits[i / 64] |= 1 << (i % 64);
        for (i, Variable { tensor, .. }) in model.parameters.iter().enumerate() {
            if !tensor.grad().defined() {
                set(i);
            }
        }
        if self.outcome.is_ok() {
            set(count);
        }
        let bits = comm.intersect_control(self.site, self.turn.way(), bits)?;
        let is_set = move |i: usize| bits[i / 64] >> (i % 64) & 1 == 1;
        if is_set(count) {
            return Ok(is_set);
        }
        self.turn.made();
        let outcome = std::mem::replace(&mut self.outcome, Ok(()));
        let text = outcome.as_ref().err().map_or(String::new(), ToString::to_string);
        let texts = comm.exchange(self.site, text.as_bytes())?;
        outcome?;
        let told = texts.iter().map(|text| match String::from_utf8_lossy(text) {
            text if text.is_empty() => Vec::new(),
            text => vec![("refused".to_owned(), text.into_owned())],
        });
        let ranks: Vec<Rank> = (0..comm.size()).collect();
        Err(Error::Mismatch { differences: differences(&told.collect::<Vec<_>>(), &ranks) })
    }
}

/// The error of a backward pass that is not that of the parameter's DataParallel.
fn foreign_pass(name: &str) -> Error {
    let message = format!(
        "{name} is reached by a backward pass that is not its DataParallel's: by `Tensor::backward`, \
         an optimizer's `backward_step`, a tape, or another DataParallel. Its gradient would not be \
         averaged over the ranks. Go back by `backward`, `backward_on` or `accumulate` of its \
         DataParallel, or freeze it meanwhile by `set_requires_grad(false)`"
    );
    Error::Argument { call: "DataParallel", message }
}

/// The error of a gradient that is added to after its sum has been begun.
fn added_too_late(site: Site, name: &str) -> Error {
    let message = format!(
        "the gradient of {name} was added to again after its sum over the ranks had been begun, by \
         a backward pass within this one that earlier passes did not have; the next pass allows for \
         it"
    );
    Error::Argument { call: site.call, message }
}
