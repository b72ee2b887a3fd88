//! What goes wrong in mpi4torch 0.1.3, each by name. That a second wait hits a stale handle is not
//! here, as it does not compile: see the documentation of `Request`.

mod common;

use std::process::ExitCode;

use common::ring::neighbours;
use common::{Context, start};
use mpi4tch::{Error, Op, Result, mpi_sys, testing};
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            the_adjoint_of_all_gather_scatters_from_rank_1_always,
            backward_in_place_overwrites_a_cotangent_that_another_branch_shares,
            forward_in_place_does_not_bump_the_version_counter,
            requires_grad_on_some_ranks_only_hangs_the_others,
            counts_are_narrowed_to_int,
            sums_of_bytes_use_types_that_mpi_cannot_sum,
            errors_on_one_rank_hang_the_others,
            every_mpi_error_aborts,
            negative_axes_and_0_dim_tensors_are_undefined,
            joined_dummies_keep_the_graph_alive,
            isend_without_grad_joined_to_one_with_grad_crashes,
            irecv_into_a_strided_tensor_writes_out_of_bounds,
            the_tag_of_a_cotangent_is_the_users_plus_10,
        ],
    )
}

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

fn the_adjoint_of_all_gather_scatters_from_rank_1_always(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[2, 3], Kind::Double)?;
    testing::assert_adjoint(world, &x, |x| world.all_gather(x, 0))?;
    // Each rank weighs the whole differently: a cotangent from one rank alone would show.
    let variable = x.set_requires_grad(true);
    let weight = f64::from(world.rank() + 1);
    (world.all_gather(&variable, 0)? * weight).sum(Kind::Double).f_backward()?;
    let size = f64::from(world.size());
    let expected = Tensor::ones([2, 3], DOUBLE) * (size * (size + 1.0) / 2.0);
    assert_eq!(variable.grad(), expected);
    Ok(())
}

fn backward_in_place_overwrites_a_cotangent_that_another_branch_shares(
    context: &Context,
) -> Result<()> {
    let world = &context.world;
    let root = world.size() - 1;
    let (a, b) = (Tensor::ones([2], DOUBLE), Tensor::ones([2], DOUBLE));
    let (a, b) = (a.set_requires_grad(true), b.set_requires_grad(true));
    let mut y = &a * 1.0;
    world.broadcast_(&mut y, root)?;
    // One cotangent, of ones, goes to the broadcast and to b.
    (&y + &b).sum(Kind::Double).f_backward()?;
    assert_eq!(b.grad(), Tensor::ones([2], DOUBLE));
    let received = if world.rank() == root { f64::from(world.size()) } else { 0.0 };
    assert_eq!(a.grad(), Tensor::ones([2], DOUBLE) * received);
    Ok(())
}

fn forward_in_place_does_not_bump_the_version_counter(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = Tensor::ones([2], DOUBLE).set_requires_grad(true);
    let mut y = &x * 2.0;
    let loss = y.square().sum(Kind::Double);
    world.reduce_(&mut y, Op::Sum, 0)?;
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");
    Ok(())
}

fn requires_grad_on_some_ranks_only_hangs_the_others(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let x = Tensor::ones([2], DOUBLE).set_requires_grad(world.rank() == 0);
    let error = world.all_reduce(&x, Op::Sum).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }));
    assert!(error.to_string().contains("requires_grad: true on rank 0; false on"), "{error}");
    world.barrier()
}

fn counts_are_narrowed_to_int(context: &Context) -> Result<()> {
    // As if an int held two elements only. Real sizes are in tests/large_counts.rs.
    let world = &context.world;
    let x = testing::random(world, &[7], Kind::Int64)?;
    let expected = (world.all_gather(&x, 0)?, world.all_reduce(&x, Op::Sum)?);
    testing::set_largest_count(2);
    let got = (world.all_gather(&x, 0), world.all_reduce(&x, Op::Sum));
    testing::set_largest_count(i32::MAX);
    assert_eq!((got.0?, got.1?), expected);
    Ok(())
}

fn sums_of_bytes_use_types_that_mpi_cannot_sum(context: &Context) -> Result<()> {
    let world = &context.world;
    for kind in [Kind::Uint8, Kind::Int8] {
        let ones = Tensor::ones([300], (kind, Device::Cpu));
        let sum = world.all_reduce(&ones, Op::Sum)?;
        assert_eq!(sum, ones * i64::from(world.size()));
    }
    Ok(())
}

fn errors_on_one_rank_hang_the_others(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let axis = i64::from(world.rank() == 0) * 5;
    let error = world.all_gather(&Tensor::ones([2], DOUBLE), axis).unwrap_err().to_string();
    assert!(error.contains("axis 5 is out of range for a tensor of shape [2]"), "{error}");
    world.barrier()
}

fn every_mpi_error_aborts(context: &Context) -> Result<()> {
    let world = &context.world;
    let mut byte = 0_u8;
    // SAFETY: the communicator is alive, and the buffer has the one byte; MPI checks the root.
    let code = unsafe {
        mpi_sys::MPI_Bcast(
            (&raw mut byte).cast(),
            1,
            mpi_sys::MPI_BYTE,
            world.size() + 7,
            world.as_raw(),
        )
    };
    assert_ne!(code, mpi_sys::MPI_SUCCESS, "an error is returned, and the process lives on");
    world.barrier()
}

fn negative_axes_and_0_dim_tensors_are_undefined(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[2, 3], Kind::Double)?;
    assert_eq!(world.all_gather(&x, -1)?, world.all_gather(&x, 1)?);
    let scalar = Tensor::from(1.0);
    assert_eq!(world.all_reduce(&scalar, Op::Sum)?.size(), [0_i64; 0]);
    let error = world.all_gather(&scalar, 0).unwrap_err().to_string();
    assert_eq!(error, "all_gather: axis 0 is out of range for a tensor of shape []");
    Ok(())
}

fn joined_dummies_keep_the_graph_alive(context: &Context) -> Result<()> {
    let before = testing::live_pullbacks();
    let x = Tensor::ones([2], DOUBLE).set_requires_grad(true);
    let request = context.world.iall_reduce(&x, Op::Sum)?;
    let y = mpi4tch::join_dummies(&x, &[&request.dummy()])?;
    let z = mpi4tch::join_dummies(&y, &[&request.join_dummies(&[&y]).wait()?, &y])?;
    assert!(z.requires_grad());
    drop((y, z));
    assert_eq!(testing::live_pullbacks(), before);
    Ok(())
}

fn isend_without_grad_joined_to_one_with_grad_crashes(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let (x, a) = (Tensor::ones([2], DOUBLE), Tensor::ones([2], DOUBLE).set_requires_grad(true));
    let request = world.isend(&x, right, 0)?;
    let b = world.recv(&x, left, 0)?;
    let y = mpi4tch::join_dummies(&(&a + b), &[&request.dummy(), &request.wait()?])?;
    y.sum(Kind::Double).f_backward()?;
    assert_eq!(a.grad(), Tensor::ones([2], DOUBLE));
    Ok(())
}

fn irecv_into_a_strided_tensor_writes_out_of_bounds(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let whole = Tensor::zeros([4, 3], DOUBLE);
    let column = whole.select(1, 2);
    let request = world.irecv(&column, left, 0)?;
    let _ = world.send(&Tensor::ones([4], DOUBLE), right, 0)?;
    assert_eq!(request.wait()?, Tensor::ones([4], DOUBLE));
    assert_eq!(whole, Tensor::zeros([4, 3], DOUBLE));
    Ok(())
}

fn the_tag_of_a_cotangent_is_the_users_plus_10(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let (right, left) = neighbours(&tape);
    let x = Tensor::ones([2], DOUBLE).set_requires_grad(true);
    let y = tape.sendrecv(&x, right, &x.detach(), left, 1)?;
    // Of the user's own, under way through the backward pass, with either tag.
    let mine = Tensor::ones([2], DOUBLE) * 7.0;
    let world = &context.world;
    let sent = [world.isend(&mine, left, 1)?, world.isend(&mine, left, 11)?];
    tape.backward(&(y * f64::from(tape.rank() + 1)).sum(Kind::Double))?;
    assert_eq!(x.grad(), Tensor::ones([2], DOUBLE) * f64::from(right + 1));
    for tag in [1, 11] {
        assert_eq!(world.recv(&mine, right, tag)?, mine);
    }
    let _ = mpi4tch::wait_all(sent)?;
    Ok(())
}
