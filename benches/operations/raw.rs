//! The calls of raw MPI, on doubles, blocking or started and waited for.

use std::ffi::{c_int, c_void};

use mpi4tch::mpi_sys::{
    self, MPI_Allgather, MPI_Allreduce, MPI_Alltoall, MPI_Alltoallv, MPI_Barrier, MPI_Bcast,
    MPI_COMM_WORLD, MPI_Comm, MPI_DOUBLE, MPI_DOUBLE_INT, MPI_Exscan, MPI_Gather, MPI_Iallgather,
    MPI_Iallreduce, MPI_Ialltoall, MPI_Ialltoallv, MPI_Ibarrier, MPI_Ibcast, MPI_Iexscan,
    MPI_Igather, MPI_Ineighbor_allgather, MPI_Ineighbor_alltoall, MPI_Irecv, MPI_Ireduce,
    MPI_Ireduce_scatter, MPI_Ireduce_scatter_block, MPI_Iscan, MPI_Iscatter, MPI_Isend, MPI_MAXLOC,
    MPI_Neighbor_allgather, MPI_Neighbor_alltoall, MPI_Recv, MPI_Reduce, MPI_Reduce_scatter,
    MPI_Reduce_scatter_block, MPI_SUCCESS, MPI_SUM, MPI_Scan, MPI_Scatter, MPI_Send, MPI_Sendrecv,
    MPI_Wait, MPI_Waitall,
};
use tch::Tensor;

/// MPI's own copies of the communicators that are needed: `as_raw` of this crate's would change how it
/// receives, as its documentation says.
pub fn reversed_world(rank: c_int) -> MPI_Comm {
    let mut comm = mpi_sys::MPI_COMM_NULL;
    // SAFETY: all ranks make this call; `comm` outlives it.
    let code = unsafe { mpi_sys::MPI_Comm_split(MPI_COMM_WORLD, 0, -rank, &mut comm) };
    assert_eq!(code, MPI_SUCCESS);
    comm
}

/// All ranks as a ring.
pub fn ring(size: c_int) -> MPI_Comm {
    let mut comm = mpi_sys::MPI_COMM_NULL;
    // SAFETY: all ranks make this call, with one axis; the others outlive it.
    let code = unsafe { mpi_sys::MPI_Cart_create(MPI_COMM_WORLD, 1, &size, &1, 0, &mut comm) };
    assert_eq!(code, MPI_SUCCESS);
    comm
}

/// The rank that collects and distributes.
pub const ROOT: c_int = 0;
pub const TAG: c_int = 1;

/// Doubles in memory that a tensor owns, for as long as it lives.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub data: *mut c_void,
    pub count: c_int,
}

impl Buffer {
    pub fn of(x: &Tensor) -> Self {
        let count = c_int::try_from(x.numel()).expect("few enough for one call");
        Self { data: x.data_ptr(), count }
    }

    /// The doubles from `start` on.
    pub fn part(self, start: c_int, count: c_int) -> Self {
        assert!(start >= 0 && count >= 0 && start + count <= self.count);
        let start = usize::try_from(start).expect("it is not negative");
        Self { data: self.data.cast::<f64>().wrapping_add(start).cast(), count }
    }

    /// One of so many equal blocks.
    pub fn block(self, blocks: c_int, number: c_int) -> Self {
        let count = self.count / blocks;
        self.part(number * count, count)
    }

    /// Copies as many doubles as this buffer has.
    pub fn copy_from(self, other: Self) {
        assert!(self.count <= other.count);
        let (from, into) = (other.data.cast::<f64>(), self.data.cast());
        // SAFETY: both have as many doubles, in tensors that do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, into, self.len()) };
    }

    /// Adds as many doubles as this buffer has.
    pub fn add(self, other: Self) {
        assert!(self.count <= other.count);
        let (from, into) = (other.data.cast::<f64>(), self.data.cast::<f64>());
        // SAFETY: there are as many doubles, in a tensor that is not written meanwhile.
        let from = unsafe { std::slice::from_raw_parts(from, self.len()) };
        // SAFETY: there are as many doubles, in a tensor that nothing else uses meanwhile.
        let into = unsafe { std::slice::from_raw_parts_mut(into, self.len()) };
        into.iter_mut().zip(from).for_each(|(x, y)| *x += y);
    }

    fn len(self) -> usize {
        usize::try_from(self.count).expect("it is not negative")
    }
}

/// Calls on a communicator.
#[derive(Clone, Copy)]
pub struct Raw {
    pub comm: MPI_Comm,
    pub rank: c_int,
    pub size: c_int,
    pub is_started: bool,
}

/// Makes the first call; or starts the second, and waits for it.
macro_rules! carry_out {
    ($raw:expr, $call:ident, $start:ident, $($argument:expr),* $(,)?) => {{
        let code = if $raw.is_started {
            let mut request = mpi_sys::MPI_REQUEST_NULL;
            // SAFETY: the buffers have as many doubles as the arguments say, do not overlap, and are
            // kept by the caller, who waits below.
            let code = unsafe { $start($($argument,)* $raw.comm, &mut request) };
            assert_eq!(code, SUCCESS);
            // SAFETY: the request is that of the call.
            unsafe { MPI_Wait(&mut request, mpi_sys::MPI_STATUS_IGNORE) }
        } else {
            // SAFETY: the buffers have as many doubles as the arguments say, and do not overlap.
            unsafe { $call($($argument,)* $raw.comm) }
        };
        assert_eq!(code, SUCCESS);
    }};
}

const SUCCESS: c_int = MPI_SUCCESS as c_int;

#[allow(clippy::macro_metavars_in_unsafe, reason = "the arguments are those of the calls below")]
impl Raw {
    pub fn world(rank: c_int, size: c_int, is_started: bool) -> Self {
        Self { comm: MPI_COMM_WORLD, rank, size, is_started }
    }

    pub fn barrier(self) {
        carry_out!(self, MPI_Barrier, MPI_Ibarrier,);
    }

    pub fn all_reduce(self, from: Buffer, into: Buffer) {
        let (data, count) = (from.data, from.count);
        carry_out!(
            self,
            MPI_Allreduce,
            MPI_Iallreduce,
            data,
            into.data,
            count,
            MPI_DOUBLE,
            MPI_SUM
        );
    }

    /// Pairs of a double and an int.
    pub fn max_loc(self, from: *mut c_void, into: *mut c_void, count: c_int) {
        carry_out!(
            self,
            MPI_Allreduce,
            MPI_Iallreduce,
            from,
            into,
            count,
            MPI_DOUBLE_INT,
            MPI_MAXLOC
        );
    }

    pub fn reduce(self, from: Buffer, into: Buffer, root: c_int) {
        let (data, count) = (from.data, from.count);
        carry_out!(
            self,
            MPI_Reduce,
            MPI_Ireduce,
            data,
            into.data,
            count,
            MPI_DOUBLE,
            MPI_SUM,
            root
        );
    }

    /// The root's buffer is the first; the others receive in the second.
    pub fn broadcast(self, from: Buffer, into: Buffer) {
        let buffer = if self.rank == ROOT { from } else { into };
        carry_out!(self, MPI_Bcast, MPI_Ibcast, buffer.data, buffer.count, MPI_DOUBLE, ROOT);
    }

    pub fn gather(self, block: Buffer, whole: Buffer) {
        let count = block.count;
        carry_out!(
            self,
            MPI_Gather,
            MPI_Igather,
            block.data,
            count,
            MPI_DOUBLE,
            whole.data,
            count,
            MPI_DOUBLE,
            ROOT
        );
    }

    pub fn scatter(self, whole: Buffer, block: Buffer) {
        let count = block.count;
        carry_out!(
            self,
            MPI_Scatter,
            MPI_Iscatter,
            whole.data,
            count,
            MPI_DOUBLE,
            block.data,
            count,
            MPI_DOUBLE,
            ROOT
        );
    }

    pub fn all_gather(self, block: Buffer, whole: Buffer) {
        let count = block.count;
        carry_out!(
            self,
            MPI_Allgather,
            MPI_Iallgather,
            block.data,
            count,
            MPI_DOUBLE,
            whole.data,
            count,
            MPI_DOUBLE
        );
    }

    pub fn all_to_all(self, from: Buffer, into: Buffer) {
        let count = from.count / self.size;
        carry_out!(
            self,
            MPI_Alltoall,
            MPI_Ialltoall,
            from.data,
            count,
            MPI_DOUBLE,
            into.data,
            count,
            MPI_DOUBLE
        );
    }

    /// With equal blocks, and the displacements at which they lie.
    pub fn all_to_all_v(
        self,
        from: Buffer,
        into: Buffer,
        counts: &[c_int],
        displacements: &[c_int],
    ) {
        let (counts, displacements) = (counts.as_ptr(), displacements.as_ptr());
        carry_out!(
            self,
            MPI_Alltoallv,
            MPI_Ialltoallv,
            from.data,
            counts,
            displacements,
            MPI_DOUBLE,
            into.data,
            counts,
            displacements,
            MPI_DOUBLE
        );
    }

    pub fn reduce_scatter_block(self, whole: Buffer, block: Buffer) {
        carry_out!(
            self,
            MPI_Reduce_scatter_block,
            MPI_Ireduce_scatter_block,
            whole.data,
            block.data,
            block.count,
            MPI_DOUBLE,
            MPI_SUM
        );
    }

    pub fn reduce_scatter(self, whole: Buffer, block: Buffer, counts: &[c_int]) {
        carry_out!(
            self,
            MPI_Reduce_scatter,
            MPI_Ireduce_scatter,
            whole.data,
            block.data,
            counts.as_ptr(),
            MPI_DOUBLE,
            MPI_SUM
        );
    }

    pub fn scan(self, from: Buffer, into: Buffer) {
        let (data, count) = (from.data, from.count);
        carry_out!(self, MPI_Scan, MPI_Iscan, data, into.data, count, MPI_DOUBLE, MPI_SUM);
    }

    pub fn exscan(self, from: Buffer, into: Buffer) {
        let (data, count) = (from.data, from.count);
        carry_out!(self, MPI_Exscan, MPI_Iexscan, data, into.data, count, MPI_DOUBLE, MPI_SUM);
    }

    /// On a ring: one block from each of two neighbours.
    pub fn neighbor_all_gather(self, block: Buffer, whole: Buffer) {
        let count = block.count;
        carry_out!(
            self,
            MPI_Neighbor_allgather,
            MPI_Ineighbor_allgather,
            block.data,
            count,
            MPI_DOUBLE,
            whole.data,
            count,
            MPI_DOUBLE
        );
    }

    /// On a ring: one block to and from each of two neighbours.
    pub fn neighbor_all_to_all(self, from: Buffer, into: Buffer) {
        let count = from.count / 2;
        carry_out!(
            self,
            MPI_Neighbor_alltoall,
            MPI_Ineighbor_alltoall,
            from.data,
            count,
            MPI_DOUBLE,
            into.data,
            count,
            MPI_DOUBLE
        );
    }

    pub fn send(self, from: Buffer, dest: c_int) {
        // SAFETY: the buffer has as many doubles.
        let code = unsafe { MPI_Send(from.data, from.count, MPI_DOUBLE, dest, TAG, self.comm) };
        assert_eq!(code, SUCCESS);
    }

    pub fn receive(self, into: Buffer, source: c_int) {
        let (data, count) = (into.data, into.count);
        let status = mpi_sys::MPI_STATUS_IGNORE;
        // SAFETY: the buffer has room for as many doubles.
        let code = unsafe { MPI_Recv(data, count, MPI_DOUBLE, source, TAG, self.comm, status) };
        assert_eq!(code, SUCCESS);
    }

    pub fn exchange(self, from: Buffer, dest: c_int, into: Buffer, source: c_int) {
        if self.is_started {
            return self.exchange_started(from, dest, into, source);
        }
        // SAFETY: the buffers have as many doubles, and do not overlap.
        let code = unsafe {
            MPI_Sendrecv(
                from.data,
                from.count,
                MPI_DOUBLE,
                dest,
                TAG,
                into.data,
                into.count,
                MPI_DOUBLE,
                source,
                TAG,
                self.comm,
                mpi_sys::MPI_STATUS_IGNORE,
            )
        };
        assert_eq!(code, SUCCESS);
    }

    fn exchange_started(self, from: Buffer, dest: c_int, into: Buffer, source: c_int) {
        let mut requests = [mpi_sys::MPI_REQUEST_NULL; 2];
        let [receipt, sending] = &mut requests;
        let (data, count, comm) = (into.data, into.count, self.comm);
        // SAFETY: the buffer has room for as many doubles, and is kept until MPI_Waitall.
        let code = unsafe { MPI_Irecv(data, count, MPI_DOUBLE, source, TAG, comm, receipt) };
        assert_eq!(code, SUCCESS);
        let (data, count) = (from.data, from.count);
        // SAFETY: the buffer has as many doubles, and is kept until MPI_Waitall.
        let code = unsafe { MPI_Isend(data, count, MPI_DOUBLE, dest, TAG, comm, sending) };
        assert_eq!(code, SUCCESS);
        let statuses = mpi_sys::MPI_STATUSES_IGNORE;
        // SAFETY: these are two requests.
        let code = unsafe { MPI_Waitall(2, requests.as_mut_ptr(), statuses) };
        assert_eq!(code, SUCCESS);
    }
}
