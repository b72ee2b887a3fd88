//! The collectives: of a linear one the call and its adjoint's, of the others what they are made of.

use std::ffi::c_int;

use mpi4tch::{Op, Result, testing};
use tch::{Kind, Tensor};

use crate::common::Context;
use crate::profiling::{calls, names};
use crate::{Operation, after_agreement, assert_calls, assert_derivatives, matrix};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        all_reduce,
        reduce_and_broadcast,
        all_gather_and_reduce_scatter,
        large_blocks,
        gather_and_scatter,
        all_to_all,
        all_to_all_v,
        scan,
        nonlinear_reductions,
        beyond_an_int,
    ]
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
            let f = |x: &Tensor| world.reduce_scatter(x, axis, &extents, Op::Sum);
            assert_calls(context, &whole, &f, false, [reduce, gather])?;
        }
    }
    Ok(())
}

/// Large blocks are exchanged in pieces of a MiB, and added up by this crate; no rank sends its own.
fn large_blocks(context: &Context) -> Result<()> {
    let world = &context.world;
    let others = i64::from(world.size()) - 1;
    if others == 0 {
        return Ok(());
    }
    let own = 3 << 16;
    let counts = vec![own; world.size().unsigned_abs() as usize];
    let x = matrix(context, own * (others + 1), 1)?.set_requires_grad(true);
    let (y, made) = calls(|| world.reduce_scatter(&x, 0, &counts, Op::Sum))?;
    assert_eq!(names(&made), ["MPI_Alltoallv"; 2]);
    assert_eq!(made.iter().map(|call| call.volume).sum::<i64>(), others * own * 8);
    let (_, made) = calls(|| testing::vjp(&[&y], &[&y.ones_like()], &[&x], false))?;
    assert_eq!(names(&made), ["MPI_Allgather"]);
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
                let f = |x: &Tensor| world.scatter(x, axis, &extents, root);
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
            let f = |x: &Tensor| world.all_to_all(x, gather, scatter, &extents);
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

/// By each rank's own counts these travel first, one to each other rank, and then their sums.
fn all_to_all_v(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, size) = (i64::from(world.rank()), i64::from(world.size()));
    for count in [|_, _| 3, |from: i64, to: i64| (from + 2 * to) % 4] {
        let send: Vec<i64> = (0..size).map(|to| count(rank, to)).collect();
        let receive: Vec<i64> = (0..size).map(|from| count(from, rank)).collect();
        for (axis, shape) in [(0, [send.iter().sum(), 2]), (1, [2, send.iter().sum()])] {
            let x = matrix(context, shape[0], shape[1])?.set_requires_grad(true);
            let f = |x: &Tensor| world.all_to_all_v_with_counts(x, axis, &send, &receive);
            assert_calls(context, &x, &f, false, ["MPI_Alltoallv"; 2])?;
            let (y, made) = calls(|| world.all_to_all_v(&x, axis, &send))?;
            let made = after_agreement(context, made);
            assert_eq!(names(&made), ["MPI_Alltoall", "MPI_Allgather", "MPI_Alltoallv"]);
            let words = [1, 2].map(|words| 8 * words * size);
            assert_eq!([made[0].volume, made[1].volume], words, "small messages");
            assert_eq!(made[0].context, made[1].context);
            assert_ne!(made[0].context, made[2].context, "a context for control");
            assert_derivatives(context, (&x, &y), &made[2..], &["MPI_Alltoallv"])?;
        }
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

/// Where an `int` is too small, data that only moves still goes in one call.
fn beyond_an_int(context: &Context) -> Result<()> {
    let world = &context.world;
    let moved = |wide| if cfg!(large_count) { wide } else { "MPI_Alltoallw" };
    let size = i64::from(world.size());
    let x = matrix(context, 2 * size, 1)?;
    let parts: Vec<i64> = (0..size).map(|_| 2).collect();
    let wholes: Vec<i64> = (0..size).map(|_| 2 * size).collect();
    let operations: [(&str, Operation); 5] = [
        (moved("MPI_Alltoallv_c"), &|x| world.all_gather_with_counts(x, 0, &wholes)),
        (moved("MPI_Gatherv_c"), &|x| world.gather_with_counts(x, 0, &wholes, 0)),
        (moved("MPI_Scatterv_c"), &|x| world.scatter(x, 0, &parts, 0)),
        (moved("MPI_Alltoallv_c"), &|x| world.all_to_all_with_counts(x, 0, &wholes, 0, &wholes)),
        (moved("MPI_Alltoallv_c"), &|x| world.all_to_all_v_with_counts(x, 0, &parts, &parts)),
    ];
    for (name, f) in operations {
        testing::set_largest_count(1);
        let made = calls(|| f(&x));
        testing::set_largest_count(c_int::MAX);
        assert_eq!(names(&made?.1), [name]);
    }
    Ok(())
}
