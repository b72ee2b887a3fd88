//! Halos: the cells of neighbours around the block of a field that this rank has.

mod layout;

use std::sync::{Arc, OnceLock};

use tch::Tensor;

use super::cartesian::Cartesian;
use super::grid::Grid;
use crate::base::error::Result;
use crate::base::site::Site;
use crate::call::buffer::Input;
use crate::call::{Call, Exchange, Finish, Plan};
use crate::engine::agreement::{Agreed, Terms};
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Blocking, Operator, apply};
use crate::engine::request::{Nonblocking, Request};
use layout::Layout;

/// The ghosts of a field along one of its axes: how many cells of the neighbours a rank gets before its
/// block of the field, and after it.
///
/// # Examples
/// ```
/// use mpi4tch::Halo;
/// use tch::{Device, Kind, Tensor};
///
/// let universe = mpi4tch::initialize()?;
/// let line = universe.world().cartesian(&[0], &[false], false)?.expect("all ranks");
/// // The last axis of the tensor is cut along the only axis of the grid.
/// let halo = Halo { axis: -1, along: 0, before: 1, after: 2 };
/// let block = Tensor::ones([3, 4], (Kind::Double, Device::Cpu));
/// assert_eq!(line.halo_exchange(&block, &[halo])?.size(), [3, 1 + 4 + 2]);
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Halo {
    /// The axis of the tensor; a negative one counts from the end.
    pub axis: i64,
    /// The axis of the grid along which that axis is cut.
    pub along: usize,
    /// The number of ghosts before the block.
    pub before: i64,
    /// The number of ghosts after the block.
    pub after: i64,
}

impl Cartesian {
    /// Surrounds this rank's block `x` of a field with the neighbours' cells beside it. The ghosts are
    /// zeros beyond an edge of the grid that is not periodic.
    ///
    /// As `MPI_Neighbor_alltoallw` would for each axis, by messages: axis after axis, one message to
    /// each neighbour. What is sent along an axis includes the ghosts along the axes before it, so the
    /// cells of diagonal neighbours come too, at the corners. Collective: every rank must call it, with
    /// the same halos, in any order.
    ///
    /// - Shape: extents along an axis with a halo may differ from rank to rank, but are equal on ranks
    ///   that have the same coordinate along its axis of the grid; none is less than a width of the
    ///   halo. The other extents are equal on all ranks. The result is larger by both widths.
    /// - Kinds: every kind of [`datatype`](crate::datatype), equal on all ranks.
    /// - Adjoint: the ghosts' cotangents go home and are added there, by messages to all neighbours,
    ///   diagonal ones included.
    ///
    /// # Errors
    /// [`Error::Axis`](crate::Error::Axis) if the tensor has no such axis;
    /// [`Error::Argument`](crate::Error::Argument) if the grid has none, if an axis has two halos,
    /// if a width is negative or more than the extent, or if there are more than 7 halos, and then
    /// [`Error::Mismatch`](crate::Error::Mismatch) on the other ranks; `Error::Mismatch` on all
    /// ranks if the halos or kinds differ, or if blocks beside each other do not fit; and the
    /// errors [common to all](crate#errors).
    ///
    /// # Examples
    /// The second difference along a ring:
    /// ```
    /// use mpi4tch::Halo;
    /// use tch::{Device, Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let ring = universe.world().cartesian(&[0], &[true], false)?.expect("all ranks");
    /// let x = Tensor::ones([4], (Kind::Double, Device::Cpu));
    /// let wide = ring.halo_exchange(&x, &[Halo { axis: 0, along: 0, before: 1, after: 1 }])?;
    /// let second = wide.narrow(0, 0, 4) - 2.0 * &x + wide.narrow(0, 2, 4);
    /// assert_eq!(second, x.zeros_like());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Neighbor_alltoallw")]
    #[doc(alias = "MPI_Sendrecv")]
    #[track_caller]
    pub fn halo_exchange(&self, x: &Tensor, halos: &[Halo]) -> Result<Tensor> {
        apply::<Blocking>(&HaloExchange(Halos::new(&self.grid, halos, Form::ByAxis)), self, x)
    }

    /// Starts a [`halo_exchange`](Self::halo_exchange). The messages to all neighbours are started at
    /// once, to diagonal ones too, so that the work on cells that need no ghosts can go on meanwhile.
    ///
    /// As `MPI_Ineighbor_alltoallw`. Collective: every rank must call it, with the same halos. Shape,
    /// kinds: as there.
    ///
    /// - Adjoint: the wait's pullback starts that of `halo_exchange`, the start's waits for it.
    ///
    /// # Errors
    /// As for [`halo_exchange`](Self::halo_exchange), and those of [`Request::wait`].
    ///
    /// # Examples
    /// ```
    /// use mpi4tch::Halo;
    /// use tch::{Device, Kind, Tensor};
    ///
    /// let universe = mpi4tch::initialize()?;
    /// let ring = universe.world().cartesian(&[0], &[true], false)?.expect("all ranks");
    /// let x = Tensor::ones([4], (Kind::Double, Device::Cpu));
    /// let halo = Halo { axis: 0, along: 0, before: 1, after: 1 };
    /// let request = ring.ihalo_exchange(&x, &[halo])?;
    /// // The differences within the block need no ghosts.
    /// let inner = x.narrow(0, 1, 3) - x.narrow(0, 0, 3);
    /// let wide = request.wait()?;
    /// let first = wide.narrow(0, 1, 1) - wide.narrow(0, 0, 1);
    /// assert_eq!(Tensor::cat(&[first, inner], 0), x.zeros_like());
    /// # Ok::<(), mpi4tch::Error>(())
    /// ```
    #[doc(alias = "MPI_Ineighbor_alltoallw")]
    #[track_caller]
    pub fn ihalo_exchange(&self, x: &Tensor, halos: &[Halo]) -> Result<Request> {
        apply::<Nonblocking>(&HaloExchange(Halos::new(&self.grid, halos, Form::AtOnce)), self, x)
    }
}

/// The messages by which ghosts come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Axis after axis, to the neighbours along it.
    ByAxis,
    /// To all neighbours at once, to diagonal ones too.
    AtOnce,
}

/// The halos of a field on a grid.
#[derive(Debug)]
struct Halos {
    grid: Arc<Grid>,
    list: Arc<[Halo]>,
    form: Form,
    made: OnceLock<Made>,
}

/// What is made of the halos for a field of a certain shape.
#[derive(Debug)]
struct Made {
    exchange: Arc<Exchange>,
    /// The shape of the result.
    shape: Vec<i64>,
    /// The halos in words, which the ranks compare.
    text: String,
}

impl Halos {
    fn new(grid: &Arc<Grid>, list: &[Halo], form: Form) -> Self {
        Self { grid: Arc::clone(grid), list: list.into(), form, made: OnceLock::new() }
    }

    /// The same halos, for another operator.
    fn again(&self) -> Self {
        Self::new(&self.grid, &self.list, self.form)
    }

    fn terms(&self, layout: &Layout, shape: &[i64], exchange: Exchange) -> Terms<'_> {
        let made = self.made.get_or_init(|| Made {
            exchange: Arc::new(exchange),
            shape: shape.to_vec(),
            text: layout.to_string(),
        });
        let further = Some(("halos", &*made.text));
        Terms { edges: Some(&made.exchange), further, ..Terms::default() }
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>) -> Result<Plan<'x>> {
        let Some(Made { exchange, shape, .. }) = self.made.get() else {
            unreachable!("the terms come first")
        };
        Ok(Plan {
            input: input.contiguous()?,
            shape: shape.clone().into(),
            call: Call::Exchange(Arc::clone(exchange)),
            context: comm.exchanges(),
            finish: Finish::Nothing,
        })
    }
}

/// The adjoint of [`HaloSum`].
#[derive(Debug)]
struct HaloExchange(Halos);

impl Operator for HaloExchange {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, site: Site, comm: &Communicator) -> Result<()> {
        comm.make_context_of_exchanges(site)
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let Self(halos) = self;
        let layout = Layout::around(NAME, &halos.grid, &halos.list, input.shape())?;
        let exchange = match halos.form {
            Form::ByAxis => layout.by_axis(comm, &halos.grid),
            Form::AtOnce => layout.at_once(comm, &halos.grid),
        };
        Ok(halos.terms(&layout, &layout.wide, exchange))
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        self.0.plan(comm, input)
    }

    fn adjoint(&self, _: &[i64], _: &Agreed) -> Arc<dyn Operator> {
        Arc::new(HaloSum(self.0.again()))
    }
}

/// The adjoint of [`HaloExchange`]: ghosts go home, and are added to the cells that they were copied
/// from. All messages are under way at once: going axis by axis would need a copy of the field with its
/// ghosts, in which those at corners are added to others.
#[derive(Debug)]
struct HaloSum(Halos);

impl Operator for HaloSum {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, site: Site, comm: &Communicator) -> Result<()> {
        comm.make_context_of_exchanges(site)
    }

    fn terms<'a>(&'a self, comm: &Communicator, input: &Input<'a>) -> Result<Terms<'a>> {
        let Self(halos) = self;
        let layout = Layout::within(NAME, &halos.grid, &halos.list, input.shape())?;
        Ok(halos.terms(&layout, &layout.block, layout.home(comm, &halos.grid)))
    }

    fn plan<'x>(&self, comm: &Communicator, input: Input<'x>, _: &Agreed) -> Result<Plan<'x>> {
        self.0.plan(comm, input)
    }

    fn adjoint(&self, _: &[i64], _: &Agreed) -> Arc<dyn Operator> {
        Arc::new(HaloExchange(self.0.again()))
    }
}

const NAME: &str = "halo_exchange";
