//! Which MPI calls an operation makes, forward and backward, taken through MPI's profiling
//! interface: this program defines the functions itself, notes each call, and calls the library's
//! by their other name.

mod common;

use std::ffi::{c_int, c_void};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use common::Context;
use mpi4tch::mpi_sys::{self, MPI_Comm, MPI_Datatype, MPI_Op, MPI_Request, MPI_Status};
use mpi4tch::{Communicator, Op, Result, join_dummies, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            all_reduce,
            reduce_and_broadcast,
            all_gather_and_reduce_scatter,
            gather_and_scatter,
            all_to_all,
            scan,
            nonlinear_reductions,
            in_place,
            in_place_of_any_layout,
            beyond_an_int,
            started_and_waited_for,
            messages,
            work_between_start_and_wait,
        ],
    )
}

/// Starts MPI with the checks of a release build, which make no calls of their own.
fn start() -> (Context, i32, i32) {
    // SAFETY: the harness calls this before it makes any thread.
    unsafe { std::env::set_var("MPI4TCH_CHECK", "local") };
    common::start()
}

/// A call that was made.
#[derive(Clone, Debug)]
struct Call {
    name: &'static str,
    context: MPI_Comm,
    /// The larger of the buffers that this rank sends and receives, in bytes.
    volume: i64,
    /// The first two arguments: of a reduction, the buffers that are sent and received.
    buffers: [usize; 2],
}

static CALLS: Mutex<Vec<Call>> = Mutex::new(Vec::new());

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
    calls.push(Call { name, context, volume, buffers });
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
        // SAFETY: passed on to the caller.
        let code = unsafe { mpi_sys::PMPI_Test(request, done, status) };
        // SAFETY: MPI has written it.
        if unsafe { *done } != 0 {
            note("MPI_Test", mpi_sys::MPI_COMM_NULL, mpi_sys::MPI_BYTE, &[], [0; 2]);
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
fn calls<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Call>)> {
    let take = || std::mem::take(&mut *CALLS.lock().unwrap_or_else(PoisonError::into_inner));
    take();
    let result = f()?;
    Ok((result, take()))
}

fn names(calls: &[Call]) -> Vec<&'static str> {
    calls.iter().map(|call| call.name).collect()
}

type Operation<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

/// A linear operation makes the call `forward` on data, after one small call on the control context
/// if it `exchanges` sizes; its backward pass makes `backward` alone, of the same volume and in a
/// context of its own; and the second derivative `forward` again.
fn assert_calls(
    context: &Context,
    x: &Tensor,
    f: Operation,
    exchanges: bool,
    [forward, backward]: [&str; 2],
) -> Result<()> {
    let x = x.detach().set_requires_grad(true);
    let (y, mut made) = calls(|| f(&x))?;
    if exchanges {
        let sizes = made.remove(0);
        assert_eq!(sizes.name, "MPI_Allgather");
        assert_ne!(sizes.context, made[0].context, "a context for control");
        let per_rank = sizes.volume / i64::from(context.world.size());
        assert!(per_rank <= 128, "a small message, not {per_rank} bytes");
    }
    assert_eq!(names(&made), [forward], "forward");

    let cotangent = testing::random(&context.world, &y.size(), Kind::Double)?;
    let cotangent = cotangent.set_requires_grad(true);
    let (gradient, made_back) =
        calls(|| Ok(testing::vjp(&[&y], &[&cotangent], &[&x], true)?.remove(0)))?;
    assert_eq!(names(&made_back), [backward], "backward of {forward}");
    assert_eq!(made_back[0].volume, made[0].volume, "bytes of {backward} and {forward}");
    assert_ne!(made_back[0].context, made[0].context, "a context for the backward pass");

    let direction = gradient.ones_like();
    let (_, made) = calls(|| testing::vjp(&[&gradient], &[&direction], &[&cotangent], false))?;
    assert_eq!(names(&made), [forward], "second derivative of {forward}");
    Ok(())
}

/// Each rank's extent: equal, or from rank to rank one more.
fn extents(context: &Context, equal: bool) -> Vec<i64> {
    (0..i64::from(context.world.size())).map(|rank| if equal { 3 } else { rank + 1 }).collect()
}

/// This rank's of the extents.
fn own(context: &Context, extents: &[i64]) -> i64 {
    extents[usize::try_from(context.world.rank()).expect("ranks count from 0")]
}

/// The functions for equal blocks, or those for unequal ones. One block is always equal.
fn choose<const N: usize>(
    context: &Context,
    equal: bool,
    functions: [[&'static str; N]; 2],
) -> [&'static str; N] {
    functions[usize::from(!equal && context.world.size() > 1)]
}

fn matrix(context: &Context, rows: i64, columns: i64) -> Result<Tensor> {
    testing::random(&context.world, &[rows, columns], Kind::Double)
}

fn all_reduce(context: &Context) -> Result<()> {
    let x = matrix(context, 2, 3)?;
    for op in [Op::Sum, Op::Mean] {
        let f = |x: &Tensor| context.world.all_reduce(x, op);
        assert_calls(context, &x, &f, false, ["MPI_Allreduce"; 2])?;
    }
    Ok(())
}

fn reduce_and_broadcast(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = matrix(context, 2, 3)?;
    for root in 0..world.size() {
        let f = |x: &Tensor| world.reduce(x, Op::Sum, root);
        assert_calls(context, &x, &f, false, ["MPI_Reduce", "MPI_Bcast"])?;
        let f = |x: &Tensor| world.broadcast(x, root);
        assert_calls(context, &x, &f, false, ["MPI_Bcast", "MPI_Reduce"])?;
    }
    Ok(())
}

fn all_gather_and_reduce_scatter(context: &Context) -> Result<()> {
    let world = &context.world;
    for equal in [true, false] {
        let [gather, reduce] = choose(
            context,
            equal,
            [
                ["MPI_Allgather", "MPI_Reduce_scatter_block"],
                ["MPI_Allgatherv", "MPI_Reduce_scatter"],
            ],
        );
        let extents = extents(context, equal);
        let (own, total) = (own(context, &extents), extents.iter().sum());
        // Blocks as they lie, and blocks that are packed.
        for (axis, [part, whole]) in [(0, [[own, 2], [total, 2]]), (1, [[2, own], [2, total]])] {
            let part = matrix(context, part[0], part[1])?;
            let f = |x: &Tensor| world.all_gather(x, axis);
            assert_calls(context, &part, &f, true, [gather, reduce])?;
            let f = |x: &Tensor| world.all_gather_with_counts(x, axis, &extents);
            assert_calls(context, &part, &f, false, [gather, reduce])?;
            let whole = matrix(context, whole[0], whole[1])?;
            let f = |x: &Tensor| world.reduce_scatter(x, axis, own, Op::Sum);
            assert_calls(context, &whole, &f, true, [reduce, gather])?;
            let f = |x: &Tensor| world.reduce_scatter_with_counts(x, axis, &extents, Op::Sum);
            assert_calls(context, &whole, &f, false, [reduce, gather])?;
        }
    }
    Ok(())
}

fn gather_and_scatter(context: &Context) -> Result<()> {
    let world = &context.world;
    for equal in [true, false] {
        let [gather, scatter] = choose(
            context,
            equal,
            [["MPI_Gather", "MPI_Scatter"], ["MPI_Gatherv", "MPI_Scatterv"]],
        );
        let extents = extents(context, equal);
        let (own, total) = (own(context, &extents), extents.iter().sum());
        for root in 0..world.size() {
            for (axis, [part, whole]) in [(0, [[own, 2], [total, 2]]), (1, [[2, own], [2, total]])]
            {
                let part = matrix(context, part[0], part[1])?;
                let f = |x: &Tensor| world.gather(x, axis, root);
                assert_calls(context, &part, &f, true, [gather, scatter])?;
                let f = |x: &Tensor| world.gather_with_counts(x, axis, &extents, root);
                assert_calls(context, &part, &f, false, [gather, scatter])?;
                let whole = matrix(context, whole[0], whole[1])?;
                let f = |x: &Tensor| world.scatter(x, axis, own, root);
                assert_calls(context, &whole, &f, true, [scatter, gather])?;
                let f = |x: &Tensor| world.scatter_with_counts(x, axis, &extents, root);
                assert_calls(context, &whole, &f, false, [scatter, gather])?;
            }
        }
    }
    Ok(())
}

fn all_to_all(context: &Context) -> Result<()> {
    let world = &context.world;
    for equal in [true, false] {
        let [function] = choose(context, equal, [["MPI_Alltoall"], ["MPI_Alltoallv"]]);
        let extents = extents(context, equal);
        let (own, total) = (own(context, &extents), extents.iter().sum());
        for (gather, scatter, shape) in [(0, 1, [own, total]), (1, 0, [total, own])] {
            let x = matrix(context, shape[0], shape[1])?;
            let f = |x: &Tensor| world.all_to_all(x, gather, scatter, own);
            assert_calls(context, &x, &f, true, [function; 2])?;
            let f =
                |x: &Tensor| world.all_to_all_with_counts(x, gather, &extents, scatter, &extents);
            assert_calls(context, &x, &f, false, [function; 2])?;
        }
        // Along one axis the blocks are cut anew.
        let reversed: Vec<i64> = extents.iter().rev().copied().collect();
        let x = matrix(context, 2, own)?;
        let f = |x: &Tensor| world.all_to_all_with_counts(x, 1, &extents, 1, &reversed);
        let (y, made) = calls(|| f(&x.set_requires_grad(true)))?;
        assert_eq!(names(&made), ["MPI_Alltoallv"]);
        let (_, made) = calls(|| Ok(y.sum(Kind::Double).f_backward()?))?;
        assert_eq!(names(&made), ["MPI_Alltoallv"]);
    }
    Ok(())
}

fn scan(context: &Context) -> Result<()> {
    let x = matrix(context, 2, 3)?;
    let f = |x: &Tensor| context.world.scan(x, Op::Sum);
    assert_calls(context, &x, &f, false, ["MPI_Scan"; 2])?;
    let f = |x: &Tensor| context.world.exscan(x, Op::Sum);
    assert_calls(context, &x, &f, false, ["MPI_Exscan"; 2])
}

/// Max, Min and Prod: local work, a linear operator, local work.
fn nonlinear_reductions(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true);
    let backward = |y: &Tensor| calls(|| Ok(y.sum(Kind::Double).f_backward()?));
    for op in [Op::Max, Op::Min, Op::Prod] {
        // The other ranks' product is that of those before and of those after.
        let reductions: &[&str] = if op == Op::Prod {
            &["MPI_Exscan", "MPI_Exscan", "MPI_Allreduce"]
        } else {
            &["MPI_Allreduce"]
        };
        let (y, made) = calls(|| world.all_reduce(&x, op))?;
        assert_eq!(names(&made), ["MPI_Allreduce"], "{op:?}");
        assert_eq!(names(&backward(&y)?.1), reductions, "backward of {op:?}");
        let (y, made) = calls(|| world.reduce(&x, op, 0))?;
        assert_eq!(names(&made), ["MPI_Allreduce"], "{op:?}");
        assert_eq!(names(&backward(&y)?.1), reductions, "backward of {op:?}");
        let (_, made) = calls(|| world.reduce(&x.detach(), op, 0))?;
        assert_eq!(names(&made), ["MPI_Reduce"], "{op:?} without a gradient");
    }
    let ((y, _), made) = calls(|| world.max_loc(&x))?;
    assert_eq!(names(&made), ["MPI_Allreduce"; 3], "the value, its owner, the gradient's path");
    assert_eq!(names(&backward(&y)?.1), ["MPI_Allreduce"]);
    Ok(())
}

/// One call, which reads and writes the tensor itself.
fn in_place(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    let in_place = mpi_sys::MPI_IN_PLACE as usize;
    for kind in [Kind::Double, Kind::Half, Kind::ComplexDouble, Kind::Int, Kind::Uint8] {
        for op in [Op::Sum, Op::Prod, Op::Max, Op::Min, Op::BitwiseOr] {
            // Small integers: MPI may sum in another order in place.
            let mut x = testing::random(world, &[2, 3], Kind::Int)?.to_kind(kind);
            let place = x.data_ptr() as usize;
            let Ok(expected) = world.all_reduce(&x, op) else { continue };
            let (_, made) = calls(|| world.all_reduce_(&mut x, op))?;
            assert_eq!(names(&made), ["MPI_Allreduce"], "{op:?} {kind:?}");
            assert_eq!(made[0].buffers, [in_place, place], "{op:?} {kind:?}");
            assert_eq!(x, expected);

            let (_, made) = calls(|| world.reduce_(&mut x, op, last))?;
            assert_eq!(names(&made), ["MPI_Reduce"], "{op:?} {kind:?}");
            let root = world.rank() == last;
            let buffers = if root { [in_place, place] } else { [place, 0] };
            assert_eq!(made[0].buffers, buffers, "{op:?} {kind:?}");
            let (_, made) = calls(|| world.broadcast_(&mut x, 0))?;
            assert_eq!(names(&made), ["MPI_Bcast"]);
            assert_eq!(made[0].buffers[0], place);
            assert_eq!(x.data_ptr() as usize, place);
        }
    }
    Ok(())
}

/// All ranks give `MPI_IN_PLACE` or none, as MPI wants it, although each chooses its layout.
fn in_place_of_any_layout(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    let in_place = mpi_sys::MPI_IN_PLACE as usize;
    // Recorded, a view goes by a copy; what is no view does not.
    for records in [false, true] {
        let x = matrix(context, 4, 3)?.round().set_requires_grad(records);
        let y = &x * 1.0;
        let layouts: [fn(&Tensor) -> Tensor; 3] = [
            Tensor::copy,
            |y| y.transpose(0, 1).contiguous().transpose(0, 1),
            |y| y.unsqueeze(2).repeat([1, 1, 2]).select(2, 0),
        ];
        let mine = layouts[usize::try_from(world.rank()).unwrap_or(0) % 3];
        let mine = || mine(&y);
        let mut reduced = mine();
        let (_, made) = calls(|| world.all_reduce_(&mut reduced, Op::Sum))?;
        assert_eq!(names(&made), ["MPI_Allreduce"]);
        assert_eq!(made[0].buffers[0], in_place);
        assert_eq!(reduced, world.all_reduce(&y, Op::Sum)?);
        let mut reduced = mine();
        let (_, made) = calls(|| world.reduce_(&mut reduced, Op::Sum, last))?;
        assert_eq!(names(&made), ["MPI_Reduce"]);
        assert_eq!(made[0].buffers[0] == in_place, world.rank() == last, "on the root alone");
        assert_eq!(reduced, world.reduce(&y, Op::Sum, last)?);
    }
    Ok(())
}

/// Where an `int` is too small, data that only moves still goes in one call.
fn beyond_an_int(context: &Context) -> Result<()> {
    let world = &context.world;
    let moved = |wide| if cfg!(large_count) { wide } else { "MPI_Alltoallw" };
    let size = i64::from(world.size());
    let x = matrix(context, 2 * size, 1)?;
    let parts: Vec<i64> = (0..size).map(|_| 2).collect();
    let wholes: Vec<i64> = (0..size).map(|_| 2 * size).collect();
    let operations: [(&str, Operation); 4] = [
        (moved("MPI_Alltoallv_c"), &|x| world.all_gather_with_counts(x, 0, &wholes)),
        (moved("MPI_Gatherv_c"), &|x| world.gather_with_counts(x, 0, &wholes, 0)),
        (moved("MPI_Scatterv_c"), &|x| world.scatter_with_counts(x, 0, &parts, 0)),
        (moved("MPI_Alltoallv_c"), &|x| world.all_to_all_with_counts(x, 0, &wholes, 0, &wholes)),
    ];
    for (name, f) in operations {
        testing::set_largest_count(1);
        let made = calls(|| f(&x));
        testing::set_largest_count(c_int::MAX);
        assert_eq!(names(&made?.1), [name]);
    }
    Ok(())
}

/// The calls of a forward pass, and of the backward pass of its result.
fn both(x: &Tensor, f: Operation) -> Result<[Vec<&'static str>; 2]> {
    let x = x.detach().set_requires_grad(true);
    let (y, forward) = calls(|| f(&x))?;
    let ((), backward) = calls(|| Ok(y.sum(Kind::Double).f_backward()?))?;
    Ok([names(&forward), names(&backward)])
}

fn started_and_waited_for(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = matrix(context, 2, 3)?;
    let operations: [(&str, &str, Operation); 3] = [
        ("MPI_Iallreduce", "MPI_Iallreduce", &|x| world.iall_reduce(x, Op::Sum)?.wait()),
        ("MPI_Ibcast", "MPI_Ireduce", &|x| world.ibroadcast(x, 0)?.wait()),
        ("MPI_Ireduce", "MPI_Ibcast", &|x| world.ireduce(x, Op::Sum, 0)?.wait()),
    ];
    for (forward, backward, f) in operations {
        assert_eq!(both(&x, f)?, [[forward, "MPI_Test"], [backward, "MPI_Test"]]);
        assert_calls_with_test(context, &x, f, [forward, backward])?;
    }
    Ok(())
}

/// Contexts and volumes of what is started, as in [`assert_calls`].
fn assert_calls_with_test(
    context: &Context,
    x: &Tensor,
    f: Operation,
    [forward, backward]: [&str; 2],
) -> Result<()> {
    let x = x.detach().set_requires_grad(true);
    let (y, made) = calls(|| f(&x))?;
    let cotangent = testing::random(&context.world, &y.size(), Kind::Double)?;
    let cotangent = cotangent.set_requires_grad(true);
    let (gradient, back) =
        calls(|| Ok(testing::vjp(&[&y], &[&cotangent], &[&x], true)?.remove(0)))?;
    assert_eq!(names(&back), [backward, "MPI_Test"]);
    assert_eq!(back[0].volume, made[0].volume, "bytes of {backward} and {forward}");
    assert_ne!(back[0].context, made[0].context, "a context for the backward pass");
    let direction = gradient.ones_like();
    let (_, made) = calls(|| testing::vjp(&[&gradient], &[&direction], &[&cotangent], false))?;
    assert_eq!(names(&made), [forward, "MPI_Test"], "second derivative of {forward}");
    Ok(())
}

fn messages(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, size) = (world.rank(), world.size());
    let (right, left) = ((rank + 1) % size, (rank + size - 1) % size);
    let x = matrix(context, 2, 3)?;
    let f = |x: &Tensor| world.sendrecv(x, right, x, left, 0);
    assert_calls(context, &x, &f, false, ["MPI_Sendrecv"; 2])?;
    if size == 1 {
        return Ok(());
    }
    // From the even to the odd; the last may be alone.
    if rank % 2 == 0 && rank + 1 < size {
        let f = |x: &Tensor| world.send(x, rank + 1, 0);
        assert_eq!(both(&x, &f)?, [["MPI_Send"], ["MPI_Recv"]]);
        let f = |x: &Tensor| world.isend(x, rank + 1, 0)?.wait();
        assert_eq!(both(&x, &f)?, [["MPI_Isend", "MPI_Test"], ["MPI_Irecv", "MPI_Test"]]);
    } else if rank % 2 == 1 {
        let f = |x: &Tensor| world.recv(x, rank - 1, 0);
        assert_eq!(both(&x, &f)?, [["MPI_Recv"], ["MPI_Send"]]);
        let f = |x: &Tensor| world.irecv(x, rank - 1, 0)?.wait();
        assert_eq!(both(&x, &f)?, [["MPI_Irecv", "MPI_Test"], ["MPI_Isend", "MPI_Test"]]);
    }
    Ok(())
}

/// What lies between start and wait in the forward pass lies between them in the backward pass too,
/// by dummies and on a tape, and in the derivative of the derivative.
fn work_between_start_and_wait(context: &Context) -> Result<()> {
    let world = &context.world;
    let duplicate = world.duplicate()?;
    let x = matrix(context, 2, 3)?;
    let expected = ["MPI_Iallreduce", "MPI_Allreduce", "MPI_Test"];
    let between = |x: &Tensor, comm: &Communicator| {
        let request = world.iall_reduce(x, Op::Sum)?;
        let between = comm.all_reduce(&join_dummies(x, &[&request.dummy()]), Op::Sum)?;
        request.join_dummies(&[&between]).wait()
    };
    assert_eq!(both(&x, &|x| between(x, world))?, [expected; 2]);
    assert_eq!(both(&x, &|x| between(x, &duplicate))?, [expected; 2]);

    let variable = x.detach().set_requires_grad(true);
    let y = between(&variable, &duplicate)?;
    let cotangent = x.ones_like().set_requires_grad(true);
    let (gradient, made) =
        calls(|| Ok(testing::vjp(&[&y], &[&cotangent], &[&variable], true)?.remove(0)))?;
    assert_eq!(names(&made), expected, "recorded");
    let (_, made) = calls(|| testing::vjp(&[&gradient], &[&x.ones_like()], &[&cotangent], false))?;
    assert_eq!(names(&made), expected, "second derivative");

    // Also where what lies between contributes nothing.
    let (own, other) = (x.detach().set_requires_grad(true), x.detach().set_requires_grad(true));
    let request = world.iall_reduce(&own, Op::Sum)?;
    let between = duplicate.all_reduce(&join_dummies(&other, &[&request.dummy()]), Op::Sum)?;
    let y = request.join_dummies(&[&between]).wait()?;
    let (gradient, made) =
        calls(|| Ok(testing::vjp(&[&y], &[&cotangent], &[&own], true)?.remove(0)))?;
    assert_eq!(names(&made), expected, "unrelated");
    let (_, made) = calls(|| testing::vjp(&[&gradient], &[&x.ones_like()], &[&cotangent], false))?;
    assert_eq!(names(&made), expected, "second derivative, unrelated");

    let tape = world.tape();
    let (loss, made) = calls(|| {
        let request = tape.iall_reduce(&variable, Op::Sum)?;
        let between = tape.all_reduce(&variable, Op::Sum)?;
        Ok((request.wait()? + between).sum(Kind::Double))
    })?;
    assert_eq!(names(&made), expected);
    let ((), mut made) = calls(|| tape.backward(&loss))?;
    // The ranks compare their tapes first.
    assert_eq!(made.remove(0).name, "MPI_Allgather");
    assert_eq!(names(&made), expected, "on a tape");
    Ok(())
}
