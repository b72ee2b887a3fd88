//! MPI's profiling interface: this program defines MPI's functions itself, notes each call, and calls
//! the library's by their other name.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use mpi4tch::Result;
use mpi4tch::mpi_sys::{self, MPI_Comm, MPI_Datatype, MPI_Op, MPI_Request, MPI_Status};

/// A call that was made.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: &'static str,
    pub context: MPI_Comm,
    /// The larger of the buffers that this rank sends and receives, in bytes.
    pub volume: i64,
    /// The first two arguments: of a reduction, the buffers that are sent and received.
    pub buffers: [usize; 2],
    /// How often calls that were started had been looked at before.
    pub tests: usize,
}

static CALLS: Mutex<Vec<Call>> = Mutex::new(Vec::new());

/// How often a call that was started has been looked at.
static TESTS: AtomicUsize = AtomicUsize::new(0);

/// How often `f` looks at calls that were started.
pub fn tests_in(f: impl FnOnce() -> Result<()>) -> Result<usize> {
    let before = TESTS.load(Ordering::Relaxed);
    f()?;
    Ok(TESTS.load(Ordering::Relaxed) - before)
}

fn note(
    name: &'static str,
    context: MPI_Comm,
    datatype: MPI_Datatype,
    elements: &[i64],
    buffers: [usize; 2],
) {
    let mut size = 0;
    // SAFETY: the caller of the function that is noted gives a valid datatype.
    unsafe { mpi_sys::PMPI_Type_size(datatype, &mut size) };
    let volume = elements.iter().max().unwrap_or(&0) * i64::from(size);
    let mut calls = CALLS.lock().unwrap_or_else(PoisonError::into_inner);
    let tests = TESTS.load(Ordering::Relaxed);
    calls.push(Call { name, context, volume, buffers, tests });
}

/// The sum of a list with an entry per rank; 0 if only the root has the list, and this is not it.
///
/// # Safety
/// Where the list is read, it has an entry per rank of `comm`.
unsafe fn sum<T: Copy + Into<i64>>(counts: *const T, comm: MPI_Comm, root: Option<c_int>) -> i64 {
    if root.is_some_and(|root| root != rank(comm)) {
        return 0;
    }
    // SAFETY: passed on to the caller.
    (0..size(comm)).map(|i| unsafe { *counts.add(i) }.into()).sum()
}

fn rank(comm: MPI_Comm) -> c_int {
    let mut rank = 0;
    // SAFETY: the caller of the function that is noted gives a valid communicator.
    unsafe { mpi_sys::PMPI_Comm_rank(comm, &mut rank) };
    rank
}

fn size(comm: MPI_Comm) -> usize {
    let mut size = 0;
    // SAFETY: as above.
    unsafe { mpi_sys::PMPI_Comm_size(comm, &mut size) };
    usize::try_from(size).expect("a size is positive")
}

/// `count` per rank; 0 if only the root has them, and this is not it.
fn each(count: c_int, comm: MPI_Comm, root: Option<c_int>) -> i64 {
    let is_here = root.is_none_or(|root| root == rank(comm));
    if is_here { i64::from(count) * size(comm) as i64 } else { 0 }
}

/// Defines MPI's functions in front of the library's: `name = the library's(arguments), communicator,
/// datatype, elements of each buffer`.
macro_rules! noted {
    ($($name:ident = $library:ident(
           $first:ident: $first_type:ty, $second:ident: $second_type:ty,
           $($argument:ident: $type:ty),* $(,)?
       ), $comm:ident, $datatype:expr, [$($elements:expr),*];)*) => {$(
        /// MPI's function of this name, noted.
        ///
        /// # Safety
        /// As for MPI's.
        #[allow(non_snake_case, clippy::too_many_arguments)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            $first: $first_type, $second: $second_type, $($argument: $type),*
        ) -> c_int {
            let buffers = [$first as usize, $second as usize];
            // SAFETY: the lists are as MPI needs them.
            note(stringify!($name), $comm, $datatype, &[$(unsafe { $elements }),*], buffers);
            // SAFETY: passed on to the caller.
            unsafe { mpi_sys::$library($first, $second, $($argument),*) }
        }
    )*};
}

type In = *const c_void;
type Out = *mut c_void;
type Ints = *const c_int;

#[allow(unused_unsafe)]
mod functions {
    use super::*;

    noted! {
        MPI_Allreduce = PMPI_Allreduce(
            send: In, receive: Out, count: c_int, datatype: MPI_Datatype, op: MPI_Op, comm: MPI_Comm,
        ), comm, datatype, [count.into()];
        MPI_Reduce = PMPI_Reduce(
            send: In, receive: Out, count: c_int, datatype: MPI_Datatype, op: MPI_Op, root: c_int,
            comm: MPI_Comm,
        ), comm, datatype, [count.into()];
        MPI_Bcast = PMPI_Bcast(
            buffer: Out, count: c_int, datatype: MPI_Datatype, root: c_int, comm: MPI_Comm,
        ), comm, datatype, [count.into()];
        MPI_Scan = PMPI_Scan(
            send: In, receive: Out, count: c_int, datatype: MPI_Datatype, op: MPI_Op, comm: MPI_Comm,
        ), comm, datatype, [count.into()];
        MPI_Exscan = PMPI_Exscan(
            send: In, receive: Out, count: c_int, datatype: MPI_Datatype, op: MPI_Op, comm: MPI_Comm,
        ), comm, datatype, [count.into()];
        MPI_Allgather = PMPI_Allgather(
            send: In, sent: c_int, datatype: MPI_Datatype, receive: Out, received: c_int,
            receive_type: MPI_Datatype, comm: MPI_Comm,
        ), comm, datatype, [sent.into(), each(received, comm, None)];
        MPI_Allgatherv = PMPI_Allgatherv(
            send: In, sent: c_int, datatype: MPI_Datatype, receive: Out, counts: Ints,
            displacements: Ints, receive_type: MPI_Datatype, comm: MPI_Comm,
        ), comm, datatype, [sent.into(), sum(counts, comm, None)];
        MPI_Gather = PMPI_Gather(
            send: In, sent: c_int, datatype: MPI_Datatype, receive: Out, received: c_int,
            receive_type: MPI_Datatype, root: c_int, comm: MPI_Comm,
        ), comm, datatype, [sent.into(), each(received, comm, Some(root))];
        MPI_Gatherv = PMPI_Gatherv(
            send: In, sent: c_int, datatype: MPI_Datatype, receive: Out, counts: Ints,
            displacements: Ints, receive_type: MPI_Datatype, root: c_int, comm: MPI_Comm,
        ), comm, datatype, [sent.into(), sum(counts, comm, Some(root))];
        MPI_Scatter = PMPI_Scatter(
            send: In, sent: c_int, datatype: MPI_Datatype, receive: Out, received: c_int,
            receive_type: MPI_Datatype, root: c_int, comm: MPI_Comm,
        ), comm, datatype, [each(sent, comm, Some(root)), received.into()];
        MPI_Scatterv = PMPI_Scatterv(
            send: In, counts: Ints, displacements: Ints, datatype: MPI_Datatype, receive: Out,
            received: c_int, receive_type: MPI_Datatype, root: c_int, comm: MPI_Comm,
        ), comm, datatype, [sum(counts, comm, Some(root)), received.into()];
        MPI_Alltoall = PMPI_Alltoall(
            send: In, sent: c_int, datatype: MPI_Datatype, receive: Out, received: c_int,
            receive_type: MPI_Datatype, comm: MPI_Comm,
        ), comm, datatype, [each(sent, comm, None), each(received, comm, None)];
        MPI_Alltoallv = PMPI_Alltoallv(
            send: In, sent: Ints, send_displacements: Ints, datatype: MPI_Datatype, receive: Out,
            received: Ints, receive_displacements: Ints, receive_type: MPI_Datatype, comm: MPI_Comm,
        ), comm, datatype, [sum(sent, comm, None), sum(received, comm, None)];
        MPI_Alltoallw = PMPI_Alltoallw(
            send: In, sent: Ints, send_displacements: Ints, send_types: *const MPI_Datatype,
            receive: Out, received: Ints, receive_displacements: Ints,
            receive_types: *const MPI_Datatype, comm: MPI_Comm,
        ), comm, mpi_sys::MPI_BYTE, [0];
        MPI_Reduce_scatter = PMPI_Reduce_scatter(
            send: In, receive: Out, counts: Ints, datatype: MPI_Datatype, op: MPI_Op, comm: MPI_Comm,
        ), comm, datatype, [sum(counts, comm, None)];
        MPI_Iallreduce = PMPI_Iallreduce(
            send: In, receive: Out, count: c_int, datatype: MPI_Datatype, op: MPI_Op, comm: MPI_Comm,
            request: *mut MPI_Request,
        ), comm, datatype, [count.into()];
        MPI_Ibcast = PMPI_Ibcast(
            buffer: Out, count: c_int, datatype: MPI_Datatype, root: c_int, comm: MPI_Comm,
            request: *mut MPI_Request,
        ), comm, datatype, [count.into()];
        MPI_Ireduce = PMPI_Ireduce(
            send: In, receive: Out, count: c_int, datatype: MPI_Datatype, op: MPI_Op, root: c_int,
            comm: MPI_Comm, request: *mut MPI_Request,
        ), comm, datatype, [count.into()];
        MPI_Iallgather = PMPI_Iallgather(
            send: In, sent: c_int, datatype: MPI_Datatype, receive: Out, received: c_int,
            receive_type: MPI_Datatype, comm: MPI_Comm, request: *mut MPI_Request,
        ), comm, datatype, [sent.into(), each(received, comm, None)];
        MPI_Send = PMPI_Send(
            send: In, count: c_int, datatype: MPI_Datatype, dest: c_int, tag: c_int, comm: MPI_Comm,
        ), comm, datatype, [count.into()];
        MPI_Recv = PMPI_Recv(
            receive: Out, count: c_int, datatype: MPI_Datatype, source: c_int, tag: c_int,
            comm: MPI_Comm, status: *mut MPI_Status,
        ), comm, datatype, [count.into()];
        MPI_Sendrecv = PMPI_Sendrecv(
            send: In, sent: c_int, datatype: MPI_Datatype, dest: c_int, send_tag: c_int,
            receive: Out, received: c_int, receive_type: MPI_Datatype, source: c_int,
            receive_tag: c_int, comm: MPI_Comm, status: *mut MPI_Status,
        ), comm, datatype, [sent.into(), received.into()];
        MPI_Isend = PMPI_Isend(
            send: In, count: c_int, datatype: MPI_Datatype, dest: c_int, tag: c_int, comm: MPI_Comm,
            request: *mut MPI_Request,
        ), comm, datatype, [count.into()];
        MPI_Irecv = PMPI_Irecv(
            receive: Out, count: c_int, datatype: MPI_Datatype, source: c_int, tag: c_int,
            comm: MPI_Comm, request: *mut MPI_Request,
        ), comm, datatype, [count.into()];
        MPI_Reduce_scatter_block = PMPI_Reduce_scatter_block(
            send: In, receive: Out, count: c_int, datatype: MPI_Datatype, op: MPI_Op, comm: MPI_Comm,
        ), comm, datatype, [each(count, comm, None)];
    }

    /// MPI's function of this name, noted where it sees a call end.
    ///
    /// # Safety
    /// As for MPI's.
    #[allow(non_snake_case)]
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn MPI_Test(
        request: *mut MPI_Request,
        done: *mut c_int,
        status: *mut MPI_Status,
    ) -> c_int {
        TESTS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on to the caller.
        let code = unsafe { mpi_sys::PMPI_Test(request, done, status) };
        // SAFETY: MPI has written it.
        if unsafe { *done } != 0 {
            note("MPI_Test", mpi_sys::MPI_COMM_NULL, mpi_sys::MPI_BYTE, &[], [0; 2]);
        }
        code
    }

    /// MPI's function of this name, noted where it finds a message.
    ///
    /// # Safety
    /// As for MPI's.
    #[allow(non_snake_case)]
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn MPI_Improbe(
        source: c_int,
        tag: c_int,
        comm: MPI_Comm,
        found: *mut c_int,
        message: *mut mpi_sys::MPI_Message,
        status: *mut MPI_Status,
    ) -> c_int {
        // SAFETY: passed on to the caller.
        let code = unsafe { mpi_sys::PMPI_Improbe(source, tag, comm, found, message, status) };
        // SAFETY: MPI has written it.
        if unsafe { *found } != 0 {
            note("MPI_Improbe", comm, mpi_sys::MPI_BYTE, &[], [0; 2]);
        }
        code
    }

    /// With the wide counts of MPI 4.
    #[cfg(large_count)]
    mod wide {
        use super::*;
        use mpi_sys::{MPI_Aint, MPI_Count};

        type Counts = *const MPI_Count;
        type Places = *const MPI_Aint;

        noted! {
            MPI_Allgatherv_c = PMPI_Allgatherv_c(
                send: In, sent: MPI_Count, datatype: MPI_Datatype, receive: Out, counts: Counts,
                displacements: Places, receive_type: MPI_Datatype, comm: MPI_Comm,
            ), comm, datatype, [sent, sum(counts, comm, None)];
            MPI_Gatherv_c = PMPI_Gatherv_c(
                send: In, sent: MPI_Count, datatype: MPI_Datatype, receive: Out, counts: Counts,
                displacements: Places, receive_type: MPI_Datatype, root: c_int, comm: MPI_Comm,
            ), comm, datatype, [sent, sum(counts, comm, Some(root))];
            MPI_Scatterv_c = PMPI_Scatterv_c(
                send: In, counts: Counts, displacements: Places, datatype: MPI_Datatype,
                receive: Out, received: MPI_Count, receive_type: MPI_Datatype, root: c_int,
                comm: MPI_Comm,
            ), comm, datatype, [sum(counts, comm, Some(root)), received];
            MPI_Alltoallv_c = PMPI_Alltoallv_c(
                send: In, sent: Counts, send_displacements: Places, datatype: MPI_Datatype,
                receive: Out, received: Counts, receive_displacements: Places,
                receive_type: MPI_Datatype, comm: MPI_Comm,
            ), comm, datatype, [sum(sent, comm, None), sum(received, comm, None)];
            MPI_Reduce_scatter_c = PMPI_Reduce_scatter_c(
                send: In, receive: Out, counts: Counts, datatype: MPI_Datatype, op: MPI_Op,
                comm: MPI_Comm,
            ), comm, datatype, [sum(counts, comm, None)];
        }
    }
}

/// The result of `f`, and the calls that it made.
pub fn calls<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Call>)> {
    let take = || std::mem::take(&mut *CALLS.lock().unwrap_or_else(PoisonError::into_inner));
    take();
    let result = f()?;
    Ok((result, take()))
}

pub fn names(calls: &[Call]) -> Vec<&'static str> {
    calls.iter().map(|call| call.name).collect()
}
