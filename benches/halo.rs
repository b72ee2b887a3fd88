//! The cost of `halo_exchange` against raw MPI: a field that is periodic in both directions, cut over a
//! grid of ranks, with one ghost cell around each block of n² doubles.
//!
//! Raw MPI keeps the block in an array with room for its ghosts; ours makes a new tensor from one
//! without, as results of operators are. So the raw work is timed with the copy of the block into that
//! array, and without it. `MPI_Neighbor_alltoallw` with datatypes of rows and columns brings no corners;
//! `MPI_Sendrecv` of packed faces, first of columns and then of whole rows, does, as ours. Bytes are
//! those of a block.
//!
//! ```text
//! cargo bench --bench halo           # on 2 ranks
//! ```

mod side_by_side;

use std::error::Error;
use std::ffi::{c_int, c_void};

use mpi4tch::mpi_sys::{
    MPI_Aint, MPI_Comm, MPI_DATATYPE_NULL, MPI_DOUBLE, MPI_Datatype, MPI_Neighbor_alltoallw,
    MPI_STATUS_IGNORE, MPI_Sendrecv, MPI_Type_commit, MPI_Type_free, MPI_Type_vector,
};
use mpi4tch::{Cartesian, Communicator, Halo, testing};
use side_by_side::{Pair, Run, compare};
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    side_by_side::run(2, [(64, 200), (512, 20), (2048, 2)], measure)
}

/// Blocks of n² doubles.
fn measure(world: &Communicator, (n, calls): (usize, u32)) -> mpi4tch::Result<()> {
    let grid = world.cartesian(&[0, 0], &[true; 2], false)?.expect("all ranks are in the grid");
    let extent = i64::try_from(n).expect("it is small");
    let x = Tensor::rand([extent, extent], (Kind::Double, Device::Cpu));
    let variable = x.copy().set_requires_grad(true);
    let cotangent = Tensor::ones([extent + 2, extent + 2], (Kind::Double, Device::Cpu));
    let halos = [0, 1].map(|axis| Halo {
        axis,
        along: usize::try_from(axis).expect("it is small"),
        before: 1,
        after: 1,
    });
    let ours = |x: &Tensor| grid.halo_exchange(x, &halos);
    let started = |x: &Tensor| grid.ihalo_exchange(x, &halos)?.wait();

    let field = Field::new(&grid, &x, n);
    let (result, _) = (ours(&x)?, field.copy().sendrecv());
    assert_eq!(result, field.as_tensor(), "both bring the same ghosts");

    let row = world.cartesian(&[1, 0], &[true; 2], false)?.expect("all ranks are in the row");
    let field_in_row = Field::new(&row, &x, n);
    let [raw, in_row] = [&field, &field_in_row].map(|field| {
        move |work: fn(&Field)| -> Run<'_> {
            Box::new(move || {
                work(field);
                Ok(())
            })
        }
    });
    let mut pairs = [
        Pair {
            work: "alltoallw, with the copy",
            raw: raw(|field| field.copy().alltoallw()),
            ours: Box::new(|| ours(&x).map(drop)),
        },
        Pair {
            work: "sendrecv, with the copy",
            raw: raw(|field| field.copy().sendrecv()),
            ours: Box::new(|| ours(&x).map(drop)),
        },
        Pair {
            work: "sendrecv, without the copy",
            raw: raw(|field| field.sendrecv()),
            ours: Box::new(|| ours(&x).map(drop)),
        },
        Pair {
            work: "sendrecv, copy; ours started",
            raw: raw(|field| field.copy().sendrecv()),
            ours: Box::new(|| started(&x).map(drop)),
        },
        Pair {
            work: "twice; ours with backward",
            raw: raw(|field| {
                field.copy().sendrecv();
                field.copy().sendrecv();
            }),
            ours: Box::new(|| {
                let y = ours(&variable)?;
                testing::vjp(&[&y], &[&cotangent], &[&variable], false).map(drop)
            }),
        },
        // Raw MPI on both sides, in one row of ranks.
        Pair {
            work: "columns, packed; by datatype",
            raw: in_row(|field| field.columns(Field::packed)),
            ours: in_row(|field| field.columns(Field::by_datatype)),
        },
    ];
    compare(&grid, 8 * n * n, calls, &mut pairs)
}

/// A block of n² doubles in an array that has room for its ghosts.
struct Field<'x> {
    block: &'x Tensor,
    array: Tensor,
    /// The first element of the array.
    data: *mut f64,
    n: usize,
    comm: MPI_Comm,
    /// The ranks before and after along each axis.
    neighbours: [(c_int, c_int); 2],
    /// A row and a column of a block, within the array.
    types: [MPI_Datatype; 2],
    /// Packed columns: one to send, one to receive.
    packed: Tensor,
}

impl<'x> Field<'x> {
    fn new(grid: &Cartesian, block: &'x Tensor, n: usize) -> Self {
        let extent = i64::try_from(n).expect("it is small");
        let options = (Kind::Double, Device::Cpu);
        let count = c_int::try_from(n).expect("it is small");
        let types = [(1, count), (count, 1)].map(|(rows, columns)| {
            let mut datatype = MPI_DATATYPE_NULL;
            // SAFETY: MPI has started; `datatype` outlives the calls.
            unsafe {
                MPI_Type_vector(rows, columns, count + 2, MPI_DOUBLE, &mut datatype);
                MPI_Type_commit(&mut datatype);
            }
            datatype
        });
        let array = Tensor::zeros([extent + 2, extent + 2], options);
        Self {
            block,
            data: array.data_ptr().cast(),
            array,
            n,
            comm: grid.as_raw(),
            neighbours: [0, 1].map(|axis| grid.shift(axis, 1).expect("the grid has two axes")),
            types,
            packed: Tensor::zeros([2, extent], options),
        }
    }

    fn as_tensor(&self) -> Tensor {
        self.array.shallow_clone()
    }

    /// The place of a cell, counted with ghosts.
    fn cell(&self, row: usize, column: usize) -> *mut f64 {
        self.data.wrapping_add(row * (self.n + 2) + column)
    }

    /// Copies the block into the array.
    fn copy(&self) -> &Self {
        let block = self.block.data_ptr().cast::<f64>();
        for row in 0..self.n {
            // SAFETY: both rows have n cells; the tensors do not overlap.
            unsafe {
                let from = block.add(row * self.n);
                std::ptr::copy_nonoverlapping(from, self.cell(row + 1, 1), self.n);
            }
        }
        self
    }

    /// Faces without corners, by one call.
    fn alltoallw(&self) {
        let [row, column] = self.types;
        let (types, ones) = ([row, row, column, column], [1; 4]);
        let places = |cells: [(usize, usize); 4]| -> [MPI_Aint; 4] {
            cells.map(|(row, column)| {
                MPI_Aint::try_from(8 * (row * (self.n + 2) + column)).expect("it is small")
            })
        };
        let n = self.n;
        let sent = places([(1, 1), (n, 1), (1, 1), (1, n)]);
        let received = places([(0, 1), (n + 1, 1), (1, 0), (1, n + 1)]);
        let array: *mut c_void = self.data.cast();
        // SAFETY: the datatypes at these places are within the array, and do not overlap.
        unsafe {
            MPI_Neighbor_alltoallw(
                array,
                ones.as_ptr(),
                sent.as_ptr(),
                types.as_ptr(),
                array,
                ones.as_ptr(),
                received.as_ptr(),
                types.as_ptr(),
                self.comm,
            )
        };
    }

    /// Columns, which are packed, and then rows with the ghosts at their ends.
    fn sendrecv(&self) {
        self.columns(Self::packed);
        let (n, (before, after)) = (self.n, self.neighbours[0]);
        for (sent, to, ghost, source) in [(1, before, n + 1, after), (n, after, 0, before)] {
            let ends = (self.cell(sent, 0), self.cell(ghost, 0));
            self.exchange(ends, (to, source), n + 2, MPI_DOUBLE);
        }
    }

    /// Sends the first and the last column, by a function that is given the columns to send and to
    /// receive, and the ranks.
    fn columns(&self, send: fn(&Self, (usize, usize), (c_int, c_int))) {
        let (n, (before, after)) = (self.n, self.neighbours[1]);
        send(self, (1, n + 1), (before, after));
        send(self, (n, 0), (after, before));
    }

    fn packed(&self, (sent, ghost): (usize, usize), ranks: (c_int, c_int)) {
        let send = self.packed.data_ptr().cast::<f64>();
        let receive = send.wrapping_add(self.n);
        for row in 0..self.n {
            // SAFETY: a cell of the array, and one of the packed column.
            unsafe { *send.add(row) = *self.cell(row + 1, sent) };
        }
        self.exchange((send, receive), ranks, self.n, MPI_DOUBLE);
        for row in 0..self.n {
            // SAFETY: as above.
            unsafe { *self.cell(row + 1, ghost) = *receive.add(row) };
        }
    }

    fn by_datatype(&self, (sent, ghost): (usize, usize), ranks: (c_int, c_int)) {
        self.exchange((self.cell(1, sent), self.cell(1, ghost)), ranks, 1, self.types[1]);
    }

    fn exchange(
        &self,
        (from, into): (*mut f64, *mut f64),
        (to, source): (c_int, c_int),
        count: usize,
        datatype: MPI_Datatype,
    ) {
        let count = c_int::try_from(count).expect("it is small");
        // SAFETY: both buffers have `count` elements of the datatype, and do not overlap.
        unsafe {
            MPI_Sendrecv(
                from.cast(),
                count,
                datatype,
                to,
                0,
                into.cast(),
                count,
                datatype,
                source,
                0,
                self.comm,
                MPI_STATUS_IGNORE,
            )
        };
    }
}

impl Drop for Field<'_> {
    fn drop(&mut self) {
        for datatype in &mut self.types {
            // SAFETY: a datatype that this value owns; MPI has not been finalized.
            unsafe { MPI_Type_free(datatype) };
        }
    }
}
