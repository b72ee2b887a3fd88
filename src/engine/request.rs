//! [`Request`]: an operation that was started and is to be waited for.
//!
//! A started operation F is two nodes of the graph, *start* (x → h) and *wait* (h → y), where h,
//! the handle, is a tensor without elements that carries the edge between them. In the backward
//! pass the wait's pullback starts F*, and the start's pullback waits for it. Operations between
//! start and wait in the forward pass have their pullbacks between the two in the backward pass.
//! The request of F* is kept in a slot that the two nodes share, with an entry for each backward
//! pass under way. Both pullbacks communicate by differentiable operators, so `create_graph`
//! records them.

mod alike;
mod nodes;
mod order;
mod queues;
mod several;

use std::sync::Arc;

use parking_lot::Mutex;
use tch::Tensor;

use crate::autograd::{self, Recording};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::base::way::Way;
use crate::call::buffer::Input;
use crate::engine::agreement::{Admission, Agreed, Proposal};
use crate::engine::communicator::Communicator;
use crate::engine::dummies::join_dummies;
use crate::engine::execution::Started;
use crate::engine::operator::{Derivative, Mode, Operator, Ready, agree_on_parts, note_arguments};
use crate::engine::tape::{self, Traffic};
use nodes::{Nodes, ResultLike};
use order::{Due, Owed};
pub(crate) use order::{forget_tape, settle_messages, settle_tape};
pub use several::{wait_all, wait_any, wait_some};

/// An operation that was started and is to be waited for.
///
/// The methods of [`Communicator`](crate::Communicator) whose names begin with an `i` return
/// requests. The input tensor must not be changed before the wait, which returns the result.
///
/// - Adjoint: that of the operation. In the backward pass, the pullback of [`wait`](Self::wait)
///   starts the adjoint operation, and the pullback of the start waits for it. Work between start
///   and wait overlaps with the communication in both passes.
/// - Recording: whether gradients are recorded when the operation is started decides for the wait
///   too, with or without `tch::no_grad` there.
/// - Order: collective operations must be started in the same order on all ranks and, if they are
///   to be differentiated, waited for in the same order too. Messages may be waited for in any
///   order.
/// - Dropping a request is safe: its buffers are kept until MPI has finished with them, and only
///   the result is lost. On a [`Tape`](crate::Tape) its adjoint is still carried out, with zeros.
///   There a collective operation must then be dropped by all ranks, and a receive from any rank
///   must not be dropped, as its sender would never be known.
///
/// # Examples
/// ```
/// use mpi4tch::Op;
/// use tch::{Kind, Tensor};
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let x = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
/// let request = world.iall_reduce(&x, Op::Sum)?;
/// let meanwhile = x.square(); // beside the communication
/// let y = request.wait()?;
/// (y + meanwhile).sum(Kind::Double).backward();
/// assert_eq!(x.grad(), 2.0 * x.detach() + f64::from(world.size()));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
///
/// A request is waited for once:
/// ```compile_fail,E0382
/// # use mpi4tch::Op;
/// # let universe = mpi4tch::initialize()?;
/// # let x = tch::Tensor::from_slice(&[1.0]);
/// let request = universe.world().iall_reduce(&x, Op::Sum)?;
/// request.wait()?;
/// request.wait()?;
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[must_use = "a request is to be waited for"]
#[doc(alias = "MPI_Request")]
pub struct Request {
    /// The MPI calls under way.
    parts: Vec<Part>,
    /// Local work on their results. If there is none, there is one part, whose result is the
    /// request's.
    finish: Option<LocalWork>,
}

type LocalWork = Box<dyn FnOnce(Vec<Tensor>) -> Result<Tensor> + Send>;

/// The outcome of [`Request::test`], and of
/// [`ReplicatedRequest::test`](crate::ReplicatedRequest::test), for which the type `Y` of the result is
/// [`Replicated`](crate::Replicated), and the type `R` of the request is `ReplicatedRequest`.
///
/// # Examples
/// ```
/// use mpi4tch::{Op, Test};
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let request = world.iall_reduce(&Tensor::from_slice(&[1]), Op::Sum)?;
/// let sum = match request.test()? {
///     Test::Done(sum) => sum,
///     Test::Pending(request) => request.wait()?, // after other work
/// };
/// assert_eq!(sum, Tensor::from_slice(&[world.size()]));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Debug)]
pub enum Test<Y = Tensor, R = Request> {
    /// The operation has ended; this is its result.
    Done(Y),
    /// The operation is still under way; this is the request.
    Pending(R),
}

/// One MPI call under way.
struct Part {
    started: Started,
    comm: Communicator,
    /// The node of the wait, if the operation is recorded.
    owed: Option<Owed>,
    /// The run of a checkpoint that has started it, if it has a result.
    run: Option<u64>,
}

/// The mode of calls that are only started.
pub(crate) struct Nonblocking;

impl Mode for Nonblocking {
    type Output = Request;

    #[track_caller]
    fn carry_out<D: Derivative>(
        operator: &dyn Operator,
        comm: &Communicator,
        x: &Tensor,
        derivative: impl FnOnce(&[i64], &Agreed) -> D,
    ) -> Result<Request> {
        let site = comm.site(operator.name());
        let (ready, start) = Ready::to_start(operator, site, comm, x)?;
        let Ready { plan, agreed, records, mut traced, .. } = ready;
        let site = Site { seal: start.seal(), ..site };
        // The request must not keep the admission, which is for the start alone.
        let comm = &comm.unadmitted();
        let nodes = records.then(|| {
            let result = ResultLike {
                shape: plan.result_shape().to_vec(),
                datatype: plan.input.datatype(),
                device: plan.input.device(),
            };
            Nodes::new(derivative(plan.input.shape(), &agreed), result)
        });
        let started = Started::new(plan, site, comm, x, start)?;
        let owed = match nodes {
            Some(nodes) => {
                let node = nodes.add_start(site, comm, operator.traffic(), x)?;
                traced.note_place(comm);
                Some(Owed(Due::new(site, comm, operator.traffic(), node, started.written())))
            }
            None => None,
        };
        let is_send = matches!(operator.traffic(), Traffic::Messages { receive: None, .. });
        let run = if is_send { None } else { tape::current_run() };
        let started = started.traced_by(traced);
        let part = Part { started, comm: comm.clone(), owed, run };
        Ok(Request { parts: vec![part], finish: None })
    }

    #[track_caller]
    fn agree(
        operator: &dyn Operator,
        comm: &Communicator,
        x: &Tensor,
    ) -> Result<(Agreed, Communicator)> {
        let site = comm.site(operator.name());
        let begin = || {
            let input = Input::new(site.call, x).map_err(|e| Proposal::refuse(site, comm, e))?;
            let subject = Some((input.datatype(), comm.records(input.view())));
            let terms = operator.terms(comm, &input);
            note_arguments(comm, &input, &terms, operator.recorded_by().is_some());
            Proposal::begin(site, comm, subject, terms)
        };
        if operator.exchanges_sizes() {
            return agree_on_parts(operator, site, comm, x, Way::Polls);
        }
        let begun = Admission::Begun(Arc::new(Mutex::new(comm.note(begin())?)));
        Ok((Agreed::default(), comm.admitted(begun)))
    }

    fn then<const N: usize>(
        outputs: [Request; N],
        f: impl FnOnce([Tensor; N]) -> Result<Tensor> + Send + 'static,
    ) -> Result<Request> {
        let mut parts = Vec::with_capacity(N);
        let works = outputs.map(|request| {
            let count = request.parts.len();
            parts.extend(request.parts);
            (count, request.finish)
        });
        let records = autograd::is_recording();
        let finish = move |results: Vec<Tensor>| {
            let mut results = results.into_iter();
            let mut outputs = Vec::with_capacity(N);
            for (count, work) in works {
                let own: Vec<Tensor> = results.by_ref().take(count).collect();
                outputs.push(finished(own, work)?);
            }
            let outputs =
                outputs.try_into().unwrap_or_else(|_| unreachable!("one result per output"));
            let _recording = Recording::set(records);
            f(outputs)
        };
        Ok(Request { parts, finish: Some(Box::new(finish)) })
    }
}

fn finished(mut results: Vec<Tensor>, work: Option<LocalWork>) -> Result<Tensor> {
    match work {
        Some(work) => work(results),
        None => Ok(results.swap_remove(0)),
    }
}

impl Request {
    /// Waits for the operation's end, and returns its result.
    ///
    /// Does what `MPI_Wait` does. Meanwhile other threads of this rank can make calls, if the
    /// [thread level](crate::ThreadLevel) allows them to call MPI.
    ///
    /// - Adjoint: starts the adjoint operation; see [`Request`].
    ///
    /// # Errors
    /// [`Error::InFlight`] if the input tensor was changed after the start;
    /// [`Error::Message`] if the message has another length, or kind, than the tensor to receive;
    /// [`Error::Mismatch`] on all ranks if they disagree on the operation; [`Error::Mpi`] if MPI
    /// fails; [`Error::Finalized`] after the universe's end.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = world.iall_reduce(&Tensor::from_slice(&[1]), Op::Sum)?;
    /// let meanwhile: i32 = (0..world.size()).map(|_| 1).sum(); // beside the communication
    /// assert_eq!(request.wait()?, Tensor::from_slice(&[meanwhile]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Wait")]
    #[track_caller]
    pub fn wait(self) -> Result<Tensor> {
        self.complete(Site::new("wait"), None)
    }

    /// Tests whether the operation has ended, and returns its result, or the request if it has not.
    ///
    /// Wraps `MPI_Test`. MPI may make progress only during its calls, of which this is one.
    ///
    /// - Adjoint: if it returns the result, as for [`wait`](Self::wait).
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::{Op, Test};
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let mut request = universe.world().iall_reduce(&Tensor::from_slice(&[1_i64]), Op::Sum)?;
    /// let y = loop {
    ///     match request.test()? {
    ///         Test::Done(y) => break y,
    ///         Test::Pending(again) => request = again,
    ///     }
    /// };
    /// assert_eq!(y, Tensor::from_slice(&[i64::from(universe.world().size())]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Test")]
    #[track_caller]
    pub fn test(self) -> Result<Test> {
        Ok(if self.has_ended()? { Test::Done(self.wait()?) } else { Test::Pending(self) })
    }

    /// A tensor without elements that depends on the start. If it is joined to another tensor by
    /// [`join_dummies`](crate::join_dummies), the backward pass reaches the start only after the
    /// operations that use the joined tensor.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// # let x = tch::Tensor::from_slice(&[1.0]);
    /// let request = universe.world().iall_reduce(&x, mpi4tch::Op::Mean)?;
    /// let y = mpi4tch::join_dummies(&x, &[&request.dummy()])?;
    /// assert_eq!(y, request.wait()?);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    pub fn dummy(&self) -> Tensor {
        let owed = self.parts.iter().find_map(|part| part.owed.as_ref());
        owed.map_or_else(
            || Tensor::zeros([0], (tch::Kind::Float, tch::Device::Cpu)),
            |owed| owed.0.handle(),
        )
    }

    /// Makes the wait depend on the dummies too: the backward pass reaches the operations that made
    /// them only after the wait. See [`join_dummies`](crate::join_dummies).
    ///
    /// It has no effect if the operation is not recorded, as its wait has then no part in the
    /// backward pass. Errors of `join_dummies` are returned by the wait.
    ///
    /// # Examples
    /// ```
    /// # let universe = mpi4tch::initialize()?;
    /// # let x = tch::Tensor::from_slice(&[1.0]);
    /// let before = tch::Tensor::from_slice(&[2.0]).set_requires_grad(true);
    /// let request = universe.world().iall_reduce(&x, mpi4tch::Op::Sum)?;
    /// let y = request.join_dummies(&[&before]).wait()?;
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    pub fn join_dummies(mut self, dummies: &[&Tensor]) -> Self {
        for owed in self.parts.iter().filter_map(|part| part.owed.as_ref()) {
            if let Err(error) = owed.0.update(|handle| join_dummies(handle, dummies)) {
                self.finish = Some(Box::new(|_| Err(error)));
                break;
            }
        }
        self
    }

    /// A request whose operation has failed: its wait returns the error.
    fn failed(error: Error) -> Self {
        Self { parts: Vec::new(), finish: Some(Box::new(|_| Err(error))) }
    }

    /// Whether all calls have ended. Advances the queues of started calls first.
    fn has_ended(&self) -> Result<bool> {
        for part in &self.parts {
            if !part.started.flight.test()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether all calls have ended.
    ///
    /// # Safety
    /// MPI can be called.
    unsafe fn look(&self) -> bool {
        // SAFETY: passed on to the caller.
        self.parts.iter().all(|part| unsafe { part.started.flight.look() })
    }

    /// Waits for all parts, and returns the result. A pullback gives its communicator as `comm`, on
    /// which the wait is recorded.
    fn complete(self, site: Site, comm: Option<&Communicator>) -> Result<Tensor> {
        let results: Vec<Result<Tensor>> =
            self.parts.into_iter().map(|part| part.complete(site, comm)).collect();
        finished(results.into_iter().collect::<Result<_>>()?, self.finish)
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sites = self.parts.iter().map(|part| part.started.flight.site().to_string());
        f.debug_tuple("Request").field(&sites.collect::<Vec<_>>()).finish()
    }
}

impl Part {
    fn complete(self, site: Site, comm: Option<&Communicator>) -> Result<Tensor> {
        let start = self.started.flight.site();
        let y = self.started.result(site);
        // The pullback of the wait starts the adjoint, so the wait has the number of the call.
        let site = Site { number: start.number, ..site };
        let y = y.and_then(|y| tape::refuse_after_run(start, self.run).map(|()| y));
        self.comm.note(match &self.owed {
            Some(owed) => y.and_then(|y| owed.0.result(site, comm, y)),
            None => y,
        })
    }
}
