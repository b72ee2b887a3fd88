//! [`Tape::checkpoint`] and [`Tape::checkpoint_steps`]: less memory for the graph, against running a
//! function again in the backward pass.

use parking_lot::ReentrantMutex;
use tch::Tensor;

use super::Tape;
use super::calls::Label;
use super::recomputation::{Loop, Step};
use crate::autograd::Metadata;
use crate::base::error::{Error, Result};

impl Tape {
    /// Runs `f` without a graph, and once more in the backward pass, with one. So the graph between
    /// its inputs and outputs, with all that it saves, lives only while the backward pass goes through
    /// it. Returns the outputs of `f`.
    ///
    /// `f` may communicate, on communicators of this tape that it has captured. In the backward pass
    /// its communication is made again and then gone back through, at the checkpoint's place in the
    /// order, on every rank. It is made in a context of its own: it meets neither the messages of the
    /// forward pass nor cotangents, whatever their tags.
    ///
    /// - Collective over no communicator: each rank makes the checkpoints that it needs. But the ranks
    ///   that communicate within `f` must do so in the same checkpoint. Before the backward pass they
    ///   compare the calls of the first run, and in which checkpoint each was made.
    /// - Same calls: `f` must do the same when it is run again. The default generator of random
    ///   numbers on the CPU is in the same state then, and wildcards of receives match what they
    ///   matched in the first run. Work that has other effects is done twice.
    /// - Shape: any number of inputs and outputs of any shape and kind. None needs to require grad.
    /// - Gradients: variables that `f` has captured and that are not its inputs get their gradients in
    ///   [`backward`](Self::backward). In [`grad`](Self::grad) and under `create_graph` they are an
    ///   error, as a part of the gradient would be lost.
    /// - Captured tensors must be the same when `f` is run again: a parameter that the program updates
    ///   before the backward pass, or another tensor that it changes in place, gives the gradient of
    ///   another program, without an error. Of inputs and states such a change is an error.
    /// - Requests that `f` waits for are those that it has started. The result of another request is
    ///   an input.
    /// - Memory: an output that shares memory with an input, with another output, or with a tensor that
    ///   `f` has captured is copied.
    /// - Adjoint: that of `f`. Second derivatives keep the graph of the second run.
    /// - Nesting: `f` may make checkpoints of the same tape, by a `Weak<Tape>` that it has captured (an
    ///   `Arc` would keep the tape alive through its own graph).
    /// - Random numbers on devices other than the CPU are not repeated.
    ///
    /// # Errors
    /// [`Error::Undefined`] if an input or an output is undefined; [`Error::Argument`] if `f` panics,
    /// changes an input in place, or sends or receives a message on no tape; the error of `f` if it
    /// returns one. The other ranks are not told, and wait if they need this one: see
    /// [`MPI4TCH_TIMEOUT`](crate#waiting-for-what-does-not-come).
    ///
    /// The backward pass fails with [`Error::Tape`] on all ranks if the ranks' calls differ, and with
    /// [`Error::Autograd`] if `f` fails when it is run again, or if it then makes other calls, gives them
    /// other arguments, returns other shapes or kinds, or records calls on another tape. The wait for a
    /// call that `f` has started is an [`Error::Argument`] after the end of `f`.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let x = Tensor::from_slice(&[3.0]).set_requires_grad(true);
    /// let comm = (*tape).clone();
    /// let y = tape.checkpoint(&[&x], move |x| {
    ///     Ok(vec![comm.all_reduce(&x[0].square(), Op::Mean)?])
    /// })?;
    /// tape.backward(&y[0].sum(Kind::Double))?;
    /// assert_eq!(x.grad(), Tensor::from_slice(&[6.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn checkpoint(
        &self,
        inputs: &[&Tensor],
        f: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + 'static,
    ) -> Result<Vec<Tensor>> {
        let site = self.site("Tape::checkpoint");
        let step: Step = ReentrantMutex::new(Box::new(move |_, inputs| f(inputs)));
        let whole = Loop { site, label: Label::Function, steps: 1, slots: 1, step };
        self.note(whole.record(&self.record, self, inputs))
    }

    /// Runs a loop of `steps` steps with at most `slots` of its states in memory between the passes and
    /// during them, the initial one among them, and the graph of one step at a time. Returns the state
    /// after the last step.
    ///
    /// `step(i, state)` returns the state after step `i`. In the backward pass the states that are not
    /// kept are computed again, in the order that needs the fewest steps (Griewank and Walther's
    /// revolve). With n = `steps` + 1, the least r for which C(`slots` + r, r) ≥ n, and
    /// t = r n − C(`slots` + r, r − 1), `step` runs t + n − 1 times in both passes together. That is
    /// twice for each step if all states are kept.
    ///
    /// - Each step is a [`checkpoint`](Self::checkpoint), and all that is said there holds for it. All
    ///   ranks that communicate in the steps must give the same `steps` and `slots`.
    /// - Shape: the number of tensors in the state, their shapes and their kinds may change from step to
    ///   step.
    /// - Changes in place: states that are kept must not be changed later, by a step that uses a buffer
    ///   again for instance. The backward pass returns an error if it needs such a state.
    /// - While a step runs, its input and its output are in memory besides the states that are kept.
    /// - Adjoint: that of the loop. Under `create_graph` all steps are run again with one graph, which
    ///   is kept: no memory is saved then. A second pass, after one with `keep_graph`, finds only the
    ///   initial state, and runs up to `steps` steps more.
    ///
    /// Memory and time of 1000 steps on a state of 1 MiB, which is passed to the next of two ranks in
    /// each step (`cargo bench --bench checkpoint`):
    ///
    /// | states kept | peak of memory | time of both passes | steps run |
    /// | --- | --- | --- | --- |
    /// | 10 | 58 MiB | 3.9 s | 4640 |
    /// | 30 | 94 MiB | 3.4 s | 3475 |
    /// | 100 | 265 MiB | 3.1 s | 2900 |
    /// | the whole graph | 2012 MiB | 1.8 s | 1000 |
    ///
    /// (Two shared cores, so the times are rough. The time of the whole graph includes the first use of
    /// all its memory.)
    ///
    /// # Errors
    /// As for [`checkpoint`](Self::checkpoint); [`Error::Argument`] if `slots` is 0.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Op;
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let x = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    /// let comm = (*tape).clone();
    /// let last = tape.checkpoint_steps(&[&x], 100, 5, move |_, state| {
    ///     let mean = comm.all_reduce(&state[0], Op::Mean)?;
    ///     Ok(vec![&state[0] * 0.5 + mean * 0.5])
    /// })?;
    /// tape.backward(&last[0].sum(Kind::Double))?;
    /// assert!((f64::try_from(x.grad())? - 1.0).abs() < 1e-12);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[track_caller]
    pub fn checkpoint_steps(
        &self,
        state: &[&Tensor],
        steps: usize,
        slots: usize,
        step: impl Fn(usize, &[Tensor]) -> Result<Vec<Tensor>> + Send + 'static,
    ) -> Result<Vec<Tensor>> {
        let site = self.site("Tape::checkpoint_steps");
        if slots == 0 {
            let message = "0 slots were given; at least one is needed, for the initial state";
            let error = Error::Argument { call: site.call, message: message.to_owned() };
            return self.note(Err(error));
        }
        if steps == 0 {
            if state.iter().any(|x| !Metadata::of(x).is_defined()) {
                return self.note(Err(Error::Undefined { call: site.call }));
            }
            return Ok(state.iter().map(|x| x.shallow_clone()).collect());
        }
        let label = Label::Steps { steps, slots };
        let step: Step = ReentrantMutex::new(Box::new(step));
        let whole = Loop { site, label, steps, slots, step };
        self.note(whole.record(&self.record, self, state))
    }
}
