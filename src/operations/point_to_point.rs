//! `MPI_Send`, `MPI_Recv`, `MPI_Sendrecv`, `MPI_Probe` and their nonblocking forms.
//!
//! Sending is a linear map from the sender's tensor to the receiver's result, and its adjoint is
//! receiving. The map has no other ends: a send's own result has no elements, and the tensor that a
//! receive is given gets zeros as its gradient.

mod operators;

use tch::Tensor;

use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::base::tag::Tag;
use crate::call::Header;
use crate::call::buffer::Input;
use crate::engine::communicator::Communicator;
use crate::engine::dummies::join_dummies;
use crate::engine::operator::{Blocking, Mode, apply};
use crate::engine::request::{Nonblocking, Request};
use crate::engine::tape::refuse_message_on_no_tape;
use crate::environment::error_code::check;
use crate::environment::status::{Envelope, PROC_NULL, Pattern, Source, Status, TagMatch};
use operators::{Receive, Send, SendReceive};

impl Communicator {
    /// Sends `x` to the rank `dest`.
    ///
    /// Does what `MPI_Send` does: it may wait until `dest` receives. It calls `MPI_Isend`, so that
    /// other calls can go on while it waits.
    ///
    /// - Shape: any. The result is `x`, and shares its storage: while one of them is still to be
    ///   used, the other must not be changed in place.
    /// - Kinds: every kind of [`datatype`](crate::datatype).
    /// - Adjoint: the cotangent of the received tensor comes back from `dest` and is added:
    ///   `x̄ = ȳ + recv(dest, tag)`. The backward pass reaches the send only if the loss depends on
    ///   its result, or if the call is on a [`Tape`](crate::Tape).
    ///
    /// # Errors
    /// [`Error::Rank`] if there is no rank `dest`; [`Error::Argument`] if the tag is negative or
    /// beyond MPI's largest; and the errors [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::PROC_NULL;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// // Each rank sends to the next one, and the last rank to none.
    /// let (rank, last) = (world.rank(), world.size() - 1);
    /// let x = Tensor::from_slice(&[rank]);
    /// let x = world.send(&x, if rank < last { rank + 1 } else { PROC_NULL }, 0)?;
    /// let left = world.recv(&x, if rank > 0 { rank - 1 } else { PROC_NULL }, 0)?;
    /// assert_eq!(left, Tensor::from_slice(&[if rank > 0 { rank - 1 } else { 0 }]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Send")]
    #[track_caller]
    pub fn send(&self, x: &Tensor, dest: Rank, tag: Tag) -> Result<Tensor> {
        send::<Blocking>(self, x, dest, tag)
    }

    /// Starts to send `x` to the rank `dest`; the wait's result is `x`.
    ///
    /// Wraps `MPI_Isend`. Shape, kinds: as for [`send`](Self::send).
    ///
    /// - Adjoint: the wait's pullback starts to receive from `dest`, the start's waits for that.
    ///
    /// # Errors
    /// As for [`send`](Self::send), and those of [`Request::wait`].
    ///
    /// # Examples
    /// A ring, in which each rank gets its left neighbour's tensor:
    /// ```
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let tape = universe.world().tape();
    /// let (rank, size) = (tape.rank(), tape.size());
    /// let a = Tensor::from_slice(&[1.0 + f64::from(rank)]).set_requires_grad(true);
    /// let request = tape.isend(&a, (rank + 1) % size, 0)?;
    /// let b = tape.recv(&a, (rank + size - 1) % size, 0)?;
    /// request.wait()?;
    /// tape.backward(&(&a + b).sum(Kind::Double))?;
    /// assert_eq!(a.grad(), Tensor::from_slice(&[2.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Isend")]
    #[track_caller]
    pub fn isend(&self, x: &Tensor, dest: Rank, tag: Tag) -> Result<Request> {
        send::<Nonblocking>(self, x, dest, tag)
    }

    /// Receives a tensor like `like` from the rank `source`, or from [any](Source::Any).
    ///
    /// Does what `MPI_Recv` does. It calls `MPI_Irecv`, or on Open MPI `MPI_Improbe` and
    /// `MPI_Imrecv`, so that other calls can go on while it waits.
    ///
    /// - Shape, kind: those of `like`, which is not written. If `source` is [`PROC_NULL`], the
    ///   result is zeros.
    /// - Adjoint: the cotangent is sent to the rank that the message came from; `like` gets zeros.
    ///   If `like` does not require grad, nothing is recorded, except on a [`Tape`](crate::Tape).
    ///
    /// # Errors
    /// [`Error::Message`] if the message is longer or shorter than `like`, and, under
    /// [`MPI4TCH_CHECK=collective`](crate#checks-across-ranks), if it is of another kind or only
    /// one of the two ranks records it; [`Error::Rank`] if there is no rank `source`;
    /// [`Error::Argument`] if the tag is negative or beyond MPI's largest; and the errors
    /// [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let (rank, size) = (world.rank(), world.size());
    /// let x = Tensor::from_slice(&[rank]);
    /// let request = world.isend(&x, (rank + 1) % size, 0)?;
    /// let left = (rank + size - 1) % size;
    /// let y = world.recv(&x, left, 0)?;
    /// request.wait()?;
    /// assert_eq!(y, Tensor::from_slice(&[left]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Recv")]
    #[track_caller]
    pub fn recv(
        &self,
        like: &Tensor,
        source: impl Into<Source>,
        tag: impl Into<TagMatch>,
    ) -> Result<Tensor> {
        apply::<Blocking>(&Receive::new(self.envelope(source, tag)?, like), self, like)
    }

    /// [`recv`](Self::recv) that also returns the message's [`Status`]: its source, tag and size.
    ///
    /// # Errors
    /// As for [`recv`](Self::recv).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::{Source, TagMatch};
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let x = Tensor::from_slice(&[1.5]);
    /// let request = world.isend(&x, (world.rank() + 1) % world.size(), 7)?;
    /// let (y, status) = world.recv_with_status(&x, Source::Any, TagMatch::Any)?;
    /// request.wait()?;
    /// assert_eq!((y, status.tag()), (x, 7));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Recv")]
    #[doc(alias = "MPI_Status")]
    #[track_caller]
    pub fn recv_with_status(
        &self,
        like: &Tensor,
        source: impl Into<Source>,
        tag: impl Into<TagMatch>,
    ) -> Result<(Tensor, Status)> {
        let receive = Receive::new(self.envelope(source, tag)?, like);
        let y = apply::<Blocking>(&receive, self, like)?;
        let nothing = Status { source: PROC_NULL, tag: mpi_sys::MPI_ANY_TAG, bytes: 0 };
        Ok((y, receive.from.status().unwrap_or(nothing)))
    }

    /// Starts to receive a tensor like `like`, which the wait returns.
    ///
    /// Wraps `MPI_Irecv`. Shape, kinds: as for [`recv`](Self::recv).
    ///
    /// - Adjoint: the wait's pullback starts to send the cotangent, the start's waits for that.
    ///
    /// # Errors
    /// As for [`recv`](Self::recv); [`Error::Message`] comes from the wait.
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let x = Tensor::from_slice(&[world.rank()]);
    /// let (rank, size) = (world.rank(), world.size());
    /// let left = (rank + size - 1) % size;
    /// let request = world.irecv(&x, left, 0)?;
    /// world.send(&x, (rank + 1) % size, 0)?;
    /// assert_eq!(request.wait()?, Tensor::from_slice(&[left]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Irecv")]
    #[track_caller]
    pub fn irecv(
        &self,
        like: &Tensor,
        source: impl Into<Source>,
        tag: impl Into<TagMatch>,
    ) -> Result<Request> {
        apply::<Nonblocking>(&Receive::new(self.envelope(source, tag)?, like), self, like)
    }

    /// Sends `x` to the rank `dest`, and receives a tensor like `like` from the rank `source`, or
    /// from [any](Source::Any).
    ///
    /// Does what `MPI_Sendrecv` does: sends and receives at the same time, so that ranks that
    /// exchange tensors need not care which of them sends first. It calls `MPI_Isend`, and the
    /// functions that [`recv`](Self::recv) calls.
    ///
    /// - Shape: any for `x`; the result's is that of `like`, which is not written.
    /// - Kinds: every kind of [`datatype`](crate::datatype), the same for both.
    /// - Adjoint: `sendrecv` in the other direction: the cotangent goes to the rank that the
    ///   message came from, and x̄ comes from `dest`; `like` gets zeros.
    ///
    /// # Errors
    /// As for [`send`](Self::send) and [`recv`](Self::recv); [`Error::Argument`] if `x` and `like`
    /// differ in their kinds, or are on different devices.
    ///
    /// # Examples
    /// ```
    /// use tch::{Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let (rank, size) = (world.rank(), world.size());
    /// let x = Tensor::from_slice(&[f64::from(rank)]).set_requires_grad(true);
    /// let left = world.sendrecv(&x, (rank + 1) % size, &x, (rank + size - 1) % size, 0)?;
    /// (left * 3.0).sum(Kind::Double).backward();
    /// assert_eq!(x.grad(), Tensor::from_slice(&[3.0]));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Sendrecv")]
    #[track_caller]
    pub fn sendrecv(
        &self,
        x: &Tensor,
        dest: Rank,
        like: &Tensor,
        source: impl Into<Source>,
        tag: Tag,
    ) -> Result<Tensor> {
        let call = "sendrecv";
        let (sent, received) = (Input::new(call, x)?, Input::new(call, like)?);
        let (kinds, devices) =
            ([&sent, &received].map(Input::datatype), [sent.device(), received.device()]);
        if kinds[0] != kinds[1] {
            let [sent, like] = kinds.map(|datatype| datatype.kind);
            let message = format!("`like` is of kind {like:?}; {sent:?} is sent and needed");
            return Err(Error::Argument { call, message });
        }
        if devices[0] != devices[1] {
            let [sent, like] = devices;
            let message =
                format!("`like` is on device {like}; `x` is on {sent}, where it is needed");
            return Err(Error::Argument { call, message });
        }
        let operator = SendReceive {
            to: Envelope::new(dest.into(), tag.into()),
            from: self.envelope(source, tag)?,
            shape: like.size(),
        };
        // Adds the graph edge to `like`.
        apply::<Blocking>(&operator, self, &join_dummies(x, &[like])?)
    }

    /// Waits for a message from the rank `source`, or from [any](Source::Any), and returns its
    /// source, tag and size, without receiving it.
    ///
    /// Does what `MPI_Probe` does, by `MPI_Iprobe`.
    ///
    /// # Errors
    /// [`Error::Rank`] if there is no rank `source`; [`Error::Argument`] if the tag is negative or
    /// beyond MPI's largest; [`Error::Mpi`] if MPI fails; [`Error::Finalized`] after the universe's
    /// end.
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::TagMatch;
    /// use tch::{Device, Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let request = world.isend(&Tensor::from_slice(&[1.0, 2.0]), world.rank(), 0)?;
    /// let status = world.probe(world.rank(), TagMatch::Any)?;
    /// let count = status.count(Kind::Double).unwrap_or(0);
    /// let like = Tensor::zeros([count], (Kind::Double, Device::Cpu));
    /// assert_eq!(world.recv(&like, status.source(), status.tag())?.size(), [2]);
    /// request.wait()?;
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Probe")]
    #[track_caller]
    pub fn probe(&self, source: impl Into<Source>, tag: impl Into<TagMatch>) -> Result<Status> {
        let site = self.site("probe");
        refuse_message_on_no_tape(site, self)?;
        let envelope = self.envelope(source, tag)?;
        self.check_envelope(site.call, "source", &envelope)?;
        let (source, tag) = envelope.to_mpi();
        // A started receive that waits behind one of them must be known.
        self.flights().let_depart(site, self)?;
        let probed = self.environment().wait(site, || {
            let (mut found, mut status) = (0, Status::none());
            // SAFETY: the context is a valid communicator, as `wait` gives permission; the others
            // outlive the call.
            check("MPI_Iprobe", unsafe {
                mpi_sys::MPI_Iprobe(source, tag, self.context(), &mut found, &mut status)
            })?;
            let (source, tag) = (status.MPI_SOURCE, status.MPI_TAG);
            // Skips a message that a started receive will take.
            let is_free = || {
                let context = self.context();
                !self.environment().expects(&Pattern { context, source, tag })
            };
            Ok((found != 0 && is_free())
                .then(|| Status::of(&status).without(Header::bytes(self.handle()))))
        })?;
        envelope.resolve(probed);
        Ok(probed)
    }

    /// Checks the other rank and the tag of a message.
    fn check_envelope(
        &self,
        call: &'static str,
        role: &'static str,
        envelope: &Envelope,
    ) -> Result<()> {
        match envelope.source() {
            Source::Rank(rank) if rank != PROC_NULL && !self.has_rank(rank) => {
                return Err(Error::Rank { call, role, rank, size: self.size() });
            }
            _ => (),
        }
        let largest = self.environment().largest_tag();
        match envelope.tag() {
            TagMatch::Tag(tag) if !(0..=largest).contains(&tag) => {
                let message = format!("tag {tag} is out of range; it may be 0 to {largest}");
                Err(Error::Argument { call, message })
            }
            _ => Ok(()),
        }
    }
}

#[track_caller]
fn send<M: Mode>(comm: &Communicator, x: &Tensor, dest: Rank, tag: Tag) -> Result<M::Output> {
    let operator = Send { to: Envelope::new(dest.into(), tag.into()), shape: vec![0] };
    let sent = apply::<M>(&operator, comm, x)?;
    let x = x.shallow_clone();
    M::then([sent], move |[sent]| join_dummies(&x, &[&sent]))
}
