//! `MPI_Alltoallv`.

use std::sync::Arc;

use tch::Tensor;

use super::counts::Counts;
use crate::base::error::{Error, Result};
use crate::base::rank::index;
use crate::call::blocks::{Blocks, axis_of, check_shape, elements_of_row};
use crate::call::buffer::Input;
use crate::call::{Bulk, Call, Finish, Plan, largest_count};
use crate::engine::agreement::{Agreed, Pairs, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Operator, apply};
use crate::engine::request::{Nonblocking, Request};

impl Communicator {
    /// Cuts `x` along `axis` into one block per rank, of the extents `send`, and sends each rank
    /// its block. Joins the blocks received from all ranks along the same axis, in order of the
    /// ranks.
    ///
    /// The blocks form a matrix of counts: row r is the `send` of rank r, and column r has the
    /// counts that rank r receives. A count may be zero.
    ///
    /// Wraps `MPI_Alltoallv`. Collective: every rank must call it. Each rank's counts travel first,
    /// one to each other rank, and then each rank's sums, in two small messages. If every rank
    /// knows the counts that it receives,
    /// [`all_to_all_v_with_counts`](Self::all_to_all_v_with_counts) saves them.
    ///
    /// - Shape: at least one axis, with the sum of `send` along `axis`; the other extents are equal
    ///   on all ranks. The result has the sum of the counts received along `axis`.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: the cotangent's blocks go back to where they came from: `all_to_all_v` with the
    ///   transposed matrix of counts, one call, with the counts known.
    ///
    /// # Errors
    /// [`Error::Axis`] if there is no such axis; [`Error::Counts`] if `send` does not have one
    /// entry per rank, has a negative one or does not sum to the extent, or, on all ranks, if a sum
    /// is larger than an extent can be; [`Error::Mismatch`] on all ranks if they disagree; and the
    /// errors [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use tch::{Device, Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// // Rank r sends r rows to each rank.
    /// let (rank, size) = (i64::from(world.rank()), i64::from(world.size()));
    /// let send = vec![rank; size as usize];
    /// let rows = Tensor::full([rank * size, 2], rank, (Kind::Int64, Device::Cpu));
    /// let received = world.all_to_all_v(&rows, 0, &send)?;
    /// assert_eq!(received.size(), [size * (size - 1) / 2, 2]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Alltoallv")]
    #[track_caller]
    pub fn all_to_all_v(&self, x: &Tensor, axis: i64, send: &[i64]) -> Result<Tensor> {
        apply::<Blocking>(&AllToAllV::new(axis, send, None), self, x)
    }

    /// Starts an [`all_to_all_v`](Self::all_to_all_v).
    ///
    /// Wraps `MPI_Ialltoallv`. Collective: every rank must call it. Shape, kinds: as there.
    /// The counts travel first, so the start waits for the other ranks to start too;
    /// [`iall_to_all_v_with_counts`](Self::iall_to_all_v_with_counts) does not.
    ///
    /// - Adjoint: the wait's pullback starts that of `all_to_all_v`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`all_to_all_v`](Self::all_to_all_v), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// // Every rank sends its only element to rank 0.
    /// let mut send = vec![0; world.size() as usize];
    /// send[0] = 1;
    /// let request = world.iall_to_all_v(&Tensor::from_slice(&[world.rank()]), 0, &send)?;
    /// let ranks: Vec<_> = (0..world.size()).filter(|_| world.rank() == 0).collect();
    /// assert_eq!(request.wait()?, Tensor::from_slice(&ranks));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ialltoallv")]
    #[track_caller]
    pub fn iall_to_all_v(&self, x: &Tensor, axis: i64, send: &[i64]) -> Result<Request> {
        apply::<Nonblocking>(&AllToAllV::new(axis, send, None), self, x)
    }

    /// [`all_to_all_v`](Self::all_to_all_v) where each rank knows the counts that it receives:
    /// `receive` has the extent of the block from each rank. Nothing but the data travels.
    ///
    /// Wraps `MPI_Alltoallv`. Collective: every rank must call it. The count that a rank is to
    /// receive from another must be the count that the other sends. If the ranks [compare their
    /// calls](crate#checks-across-ranks), they compare these counts too, by a sum that is part of
    /// the agreement on every call. Shape, kinds, adjoint: as there.
    ///
    /// # Errors
    /// As for [`all_to_all_v`](Self::all_to_all_v). [`Error::Counts`] also if `receive` does not
    /// have one entry per rank, has a negative one, or differs from `send` in the count from this
    /// rank to itself. [`Error::Mismatch`] on all ranks, with the counts of each, if a rank is to
    /// receive other counts than are sent; also if some ranks, but not all, send or receive more
    /// than 2³¹ − 1 elements, as the ranks would then call different MPI functions. (In
    /// `all_to_all_v` the ranks know each other's sums, and call the same function.)
    ///
    /// # Examples
    /// ```
    /// use tch::{Device, Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// // Rank r sends s rows to rank s, which receives s rows from each.
    /// let send: Vec<i64> = (0..world.size().into()).collect();
    /// let receive = vec![world.rank().into(); send.len()];
    /// let rows = Tensor::ones([send.iter().sum(), 2], (Kind::Float, Device::Cpu));
    /// let received = world.all_to_all_v_with_counts(&rows, 0, &send, &receive)?;
    /// assert_eq!(received.size(), [receive.iter().sum(), 2]);
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Alltoallv")]
    #[track_caller]
    pub fn all_to_all_v_with_counts(
        &self,
        x: &Tensor,
        axis: i64,
        send: &[i64],
        receive: &[i64],
    ) -> Result<Tensor> {
        apply::<Blocking>(&AllToAllV::new(axis, send, Some(receive)), self, x)
    }

    /// Starts an [`all_to_all_v_with_counts`](Self::all_to_all_v_with_counts).
    ///
    /// Wraps `MPI_Ialltoallv`. Collective: every rank must call it. Shape, kinds: as there.
    ///
    /// - Adjoint: the wait's pullback starts that of `all_to_all_v`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`all_to_all_v_with_counts`](Self::all_to_all_v_with_counts), and those of
    /// [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let world = universe.world();
    /// let ones = vec![1; world.size() as usize];
    /// let x = Tensor::from_slice(&vec![world.rank(); ones.len()]);
    /// let request = world.iall_to_all_v_with_counts(&x, 0, &ones, &ones)?;
    /// let ranks: Vec<_> = (0..world.size()).collect();
    /// assert_eq!(request.wait()?, Tensor::from_slice(&ranks));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ialltoallv")]
    #[track_caller]
    pub fn iall_to_all_v_with_counts(
        &self,
        x: &Tensor,
        axis: i64,
        send: &[i64],
        receive: &[i64],
    ) -> Result<Request> {
        apply::<Nonblocking>(&AllToAllV::new(axis, send, Some(receive)), self, x)
    }
}

/// Its own adjoint, with the counts sent and the counts received exchanged.
#[derive(Debug)]
struct AllToAllV {
    axis: i64,
    send: Arc<[i64]>,
    /// The counts that this rank is to receive, if it knows them.
    receive: Option<Arc<[i64]>>,
    /// The largest extent along the axis of any rank's input or result, if this rank knows it.
    most: Option<i64>,
}

impl AllToAllV {
    fn new(axis: i64, send: &[i64], receive: Option<&[i64]>) -> Self {
        Self { axis, send: send.into(), receive: receive.map(Arc::from), most: None }
    }

    /// The counts that this rank is to receive, and the largest extent that it knows of.
    fn resolve(&self, agreed: &Agreed) -> (Arc<[i64]>, i64) {
        let largest = |extents: &[i64]| extents.iter().copied().max().unwrap_or(0);
        match &self.receive {
            Some(receive) => {
                let own = self.send.iter().sum::<i64>().max(receive.iter().sum());
                (Arc::clone(receive), self.most.unwrap_or(own))
            }
            None => {
                let most = largest(&agreed.counts(0)).max(largest(&agreed.counts(1)));
                (agreed.told_here().into(), most)
            }
        }
    }

    /// Checks the counts that this rank is to receive, as far as one rank can.
    fn check_received(&self, comm: &Communicator, receive: &[i64]) -> Result<()> {
        Counts::from(receive).check(self.name(), comm)?;
        let (rank, own) = (comm.rank(), index(comm.rank()));
        let (sent, received) = (self.send[own], receive[own]);
        if sent == received {
            return Ok(());
        }
        let message =
            format!("rank {rank} sends {sent} to itself, and is to receive {received} from itself");
        Err(Error::Counts { call: self.name(), message })
    }
}

impl Operator for AllToAllV {
    fn name(&self) -> &'static str {
        "all_to_all_v"
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let axis = axis_of(self.name(), self.axis, input.shape())?;
        Counts::from(&*self.send).check(self.name(), comm)?;
        Counts::check_sum(self.name(), &self.send, input.shape()[axis])?;
        let mut terms = Terms {
            axes: Terms::axis(axis),
            shape: Some((input.shape(), Some(axis))),
            ..Terms::default()
        };
        let Some(receive) = &self.receive else {
            return Ok(Terms { told_each: Some(&self.send), ..terms });
        };
        self.check_received(comm, receive)?;
        Blocks::new(axis, Arc::clone(receive)).whole(self.name(), input.shape())?;
        let (_, most) = self.resolve(&Agreed::default());
        let largest = most.saturating_mul(elements_of_row(input.shape(), axis));
        let wide = largest > largest_count();
        terms.pairs = Some(Pairs { send: &self.send, receive, wide });
        Ok(terms)
    }

    fn exchanges_sizes(&self) -> bool {
        self.receive.is_none()
    }

    fn bulk(&self, _comm: &Communicator, input: &Input) -> Bulk {
        let axis = axis_of(self.name(), self.axis, input.shape());
        let received = |axis| {
            let (_, most) = self.resolve(&Agreed::default());
            most.saturating_mul(elements_of_row(input.shape(), axis))
        };
        Bulk::Blocks(axis.map_or(0, received).max(input.count()))
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        let axis = axis_of(self.name(), self.axis, input.shape())?;
        let (receive, most) = self.resolve(agreed);
        if let Some(rank) = agreed.counts(1).iter().position(|&sum| sum < 0) {
            let message =
                format!("what rank {rank} is to receive sums to more than an extent can be");
            return Err(Error::Counts { call: self.name(), message });
        }
        let (sent, received) =
            (Blocks::new(axis, Arc::clone(&self.send)), Blocks::new(axis, receive));
        // Checks the largest result that this rank knows of. Where sums were exchanged it is the
        // largest of all ranks, so that all ranks fail or none does.
        check_shape(self.name(), &received.shape_with(input.shape(), most))?;
        let shape = received.whole(self.name(), input.shape())?;
        let row = elements_of_row(&shape, axis);
        let call = Call::AllToAll {
            send: sent.parts(input.shape()),
            receive: received.parts(&shape),
            largest: most.saturating_mul(row),
            common: false,
        };
        let input = input.packed(&sent)?;
        let finish = Finish::unpacked(received, &shape);
        Ok(Plan { input, shape: shape.into(), call, context: comm.context(), finish })
    }

    fn adjoint(&self, _shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator> {
        let (receive, most) = self.resolve(agreed);
        Arc::new(Self {
            axis: self.axis,
            send: receive,
            receive: Some(Arc::clone(&self.send)),
            most: Some(most),
        })
    }
}
