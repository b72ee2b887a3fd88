//! `MPI_Neighbor_allgather(v)`.

use std::sync::{Arc, OnceLock};

use tch::Tensor;

use super::graph::Graph;
use super::neighbors::{Neighbors, Part, Told, plan, regions, tag, with};
use crate::base::error::Result;
use crate::base::site::Site;
use crate::call::blocks::{Blocks, axis_of};
use crate::call::buffer::Input;
use crate::call::{Exchange, Plan, Region};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Operator, apply};
use crate::engine::request::{Nonblocking, Request};

impl Graph {
    /// Sends `x` to all destinations, and joins what comes from the sources along `axis`, in the order
    /// of [`sources`](Self::sources).
    ///
    /// As `MPI_Neighbor_allgather(v)`, by a message along each edge. Collective: every rank must call
    /// it. The extents along `axis` travel first, in one small message along each edge.
    ///
    /// - Shape: at least one axis. Extents along `axis` may differ from rank to rank, and may be zero;
    ///   the other extents are equal. The result's extent along `axis` is the sum over the sources;
    ///   nothing comes from [`PROC_NULL`](crate::PROC_NULL).
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: the blocks of the cotangent go back to where they came from, and are added there, one
    ///   message along each edge.
    ///
    /// # Errors
    /// [`Error::Axis`](crate::Error::Axis) if there is no such axis;
    /// [`Error::Mismatch`](crate::Error::Mismatch) on all ranks if extents along other axes, or the
    /// kinds, differ; and the errors [common to all](crate#errors).
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::PROC_NULL;
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let line = universe.world().cartesian(&[0], &[false], false)?.expect("all ranks");
    /// // The ranks beside this one: two, or one at an end of the line.
    /// let beside = line.neighbor_all_gather(&Tensor::from_slice(&[line.rank()]), 0)?;
    /// let mut expected = line.sources();
    /// expected.retain(|rank| *rank != PROC_NULL);
    /// assert_eq!(beside, Tensor::from_slice(&expected));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Neighbor_allgather")]
    #[doc(alias = "MPI_Neighbor_allgatherv")]
    #[track_caller]
    pub fn neighbor_all_gather(&self, x: &Tensor, axis: i64) -> Result<Tensor> {
        apply::<Blocking>(&NeighborAllGather::new(&self.neighbors, axis, None), self, x)
    }

    /// Starts a [`neighbor_all_gather`](Self::neighbor_all_gather).
    ///
    /// As `MPI_Ineighbor_allgather(v)`. Collective: every rank must call it. Shape, kinds: as there. The
    /// extents travel first, so the start waits for all ranks to start too.
    ///
    /// - Adjoint: the wait's pullback starts that of `neighbor_all_gather`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`neighbor_all_gather`](Self::neighbor_all_gather), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use tch::Tensor;
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let ring = universe.world().cartesian(&[0], &[true], false)?.expect("all ranks");
    /// let request = ring.ineighbor_all_gather(&Tensor::from_slice(&[ring.rank()]), 0)?;
    /// assert_eq!(request.wait()?, Tensor::from_slice(&ring.sources()));
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ineighbor_allgather")]
    #[doc(alias = "MPI_Ineighbor_allgatherv")]
    #[track_caller]
    pub fn ineighbor_all_gather(&self, x: &Tensor, axis: i64) -> Result<Request> {
        apply::<Nonblocking>(&NeighborAllGather::new(&self.neighbors, axis, None), self, x)
    }
}

/// The adjoint of [`NeighborSum`].
#[derive(Debug)]
struct NeighborAllGather {
    neighbors: Arc<Neighbors>,
    axis: i64,
    /// The extent of what comes from each source, if it is known.
    extents: Option<Arc<[i64]>>,
    told: OnceLock<Told>,
    exchange: OnceLock<Arc<Exchange>>,
}

impl NeighborAllGather {
    fn new(neighbors: &Arc<Neighbors>, axis: i64, extents: Option<Arc<[i64]>>) -> Self {
        let (neighbors, told, exchange) = (Arc::clone(neighbors), OnceLock::new(), OnceLock::new());
        Self { neighbors, axis, extents, told, exchange }
    }

    fn resolve(&self, agreed: &Agreed) -> Arc<[i64]> {
        let told = || agreed.told_here()[..self.neighbors.sources.len()].into();
        self.extents.as_ref().map_or_else(told, Arc::clone)
    }

    fn exchange(
        &self,
        comm: &Communicator,
        axis: usize,
        shape: &[i64],
        extents: &[i64],
    ) -> &Arc<Exchange> {
        self.exchange.get_or_init(|| {
            let whole = with(shape, axis, extents.iter().sum());
            let (joined, all) = (regions(&whole, axis, extents), Region::all(shape));
            Arc::new(self.neighbors.exchange(
                |number| tag(comm, number, Part::Data),
                |_| all.clone(),
                |place| joined[place].clone(),
            ))
        })
    }
}

impl Operator for NeighborAllGather {
    fn name(&self) -> &'static str {
        "neighbor_all_gather"
    }

    fn prepare(&self, site: Site, comm: &Communicator) -> Result<()> {
        comm.make_context_of_exchanges(site)
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let shape = input.shape();
        let axis = axis_of(self.name(), self.axis, shape)?;
        let terms =
            Terms { axes: Terms::axis(axis), shape: Some((shape, Some(axis))), ..Terms::default() };
        if let Some(extents) = &self.extents {
            return Ok(Terms { edges: Some(self.exchange(comm, axis, shape, extents)), ..terms });
        }
        let back = vec![0; self.neighbors.sources.len()];
        let told = self.told.get_or_init(|| Told::new(&self.neighbors, comm, shape[axis], &back));
        Ok(Terms { told_along: Some((&told.exchange, &told.words)), ..terms })
    }

    fn exchanges_sizes(&self) -> bool {
        self.extents.is_none()
    }

    fn plans_alone(&self) -> bool {
        self.extents.is_none()
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, agreed: &Agreed) -> Result<Plan<'x>> {
        let axis = axis_of(self.name(), self.axis, input.shape())?;
        let extents = self.resolve(agreed);
        let shape = Blocks::new(axis, Arc::clone(&extents)).whole(self.name(), input.shape())?;
        let exchange = self.exchange(comm, axis, input.shape(), &extents);
        plan(comm, input, shape, exchange)
    }

    fn adjoint(&self, shape: &[i64], agreed: &Agreed) -> Arc<dyn Operator> {
        Arc::new(NeighborSum {
            neighbors: Arc::clone(&self.neighbors),
            axis: self.axis,
            extents: self.resolve(agreed),
            shape: shape.into(),
            exchange: OnceLock::new(),
        })
    }
}

/// The adjoint of [`NeighborAllGather`]: each source gets back its block, and adds what comes.
#[derive(Debug)]
struct NeighborSum {
    neighbors: Arc<Neighbors>,
    axis: i64,
    /// The extent of the block of each source.
    extents: Arc<[i64]>,
    /// The shape of the result.
    shape: Arc<[i64]>,
    exchange: OnceLock<Arc<Exchange>>,
}

impl NeighborSum {
    fn exchange(&self, comm: &Communicator, input: &[i64]) -> Result<&Arc<Exchange>> {
        let axis = axis_of(self.name(), self.axis, &self.shape)?;
        Ok(self.exchange.get_or_init(|| {
            let (joined, all) = (regions(input, axis, &self.extents), Region::all(&self.shape));
            let exchange = self.neighbors.reversed().exchange(
                |number| tag(comm, number, Part::Data),
                |place| joined[place].clone(),
                |_| all.clone(),
            );
            Arc::new(Exchange { adds: true, zeros: vec![all], ..exchange })
        }))
    }
}

impl Operator for NeighborSum {
    fn name(&self) -> &'static str {
        "neighbor_all_gather"
    }

    fn prepare(&self, site: Site, comm: &Communicator) -> Result<()> {
        comm.make_context_of_exchanges(site)
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let edges = Some(self.exchange(comm, input.shape())?);
        Ok(Terms { edges, ..Terms::default() })
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        let exchange = self.exchange(comm, input.shape())?;
        plan(comm, input, self.shape.to_vec(), exchange)
    }

    fn adjoint(&self, _: &[i64], _: &Agreed) -> Arc<dyn Operator> {
        let extents = Some(Arc::clone(&self.extents));
        Arc::new(NeighborAllGather::new(&self.neighbors, self.axis, extents))
    }
}
