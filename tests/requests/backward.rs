//! The backward pass through what was started: the graph, how often it can be gone back through,
//! and when it is freed.

use std::time::Duration;

use mpi4tch::{Op, PROC_NULL, Request, Result, join_dummies, testing};
use tch::{Kind, Tensor};

use crate::common::device;
use crate::common::ring::neighbours;
use crate::common::tensors::{variable, zeros};
use crate::common::{Context, assert_freed, works};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        graphs_are_freed,
        the_graph_is_kept_for_another_pass,
        two_passes_at_once,
        second_derivatives,
        the_start_decides_what_is_recorded,
        a_result_that_nobody_waited_for,
        what_was_saved_is_lost_on_one_rank,
    ]
}

fn graphs_are_freed(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let before = testing::live_pullbacks();
    let scenarios: [(&str, &dyn Fn() -> Result<()>); 7] = [
        ("waited for, and gone back through", &|| {
            let x = variable(world, &[2])?;
            let y = world.iall_reduce(&x.sin(), Op::Prod)?.wait()?;
            Ok(y.sum(Kind::Double).f_backward()?)
        }),
        ("waited for only", &|| {
            let x = variable(world, &[2])?;
            world.iall_reduce(&x.sin(), Op::Max)?.wait().map(drop)
        }),
        ("not even waited for", &|| {
            let x = variable(world, &[2])?;
            drop(world.iall_reduce(&x.sin(), Op::Max)?);
            drop(world.isend(&x.sin(), PROC_NULL, 0)?.join_dummies(&[&x]));
            Ok(())
        }),
        ("a ring with dummies", &|| {
            let x = variable(world, &[2])?;
            let send = world.isend(&x, right, 0)?;
            let y = world.recv(&join_dummies(&x, &[&send.dummy()])?, left, 0)?;
            let sent = send.join_dummies(&[&y]).wait()?;
            Ok(join_dummies(&y, &[&sent])?.sum(Kind::Double).f_backward()?)
        }),
        ("a graph of the derivative", &|| {
            let x = variable(world, &[2])?;
            let y = world.iall_reduce(&x, Op::Prod)?.wait()?;
            let first = testing::vjp(&[&y], &[&zeros(&[2]).fill(2.0)], &[&x], true)?.remove(0);
            testing::vjp(&[&first], &[&zeros(&[2]).fill(3.0)], &[&x], false).map(drop)
        }),
        ("a pass that fails", &|| {
            let x = variable(world, &[2])?;
            let request = world.iall_reduce(&x, Op::Max)?;
            let y = join_dummies(&x, &[&request.dummy()])?;
            drop(request);
            assert!(y.sum(Kind::Double).f_backward().is_err());
            Ok(())
        }),
        ("a wait that fails", &|| {
            let x = variable(world, &[2])?;
            let mut y = x.sin();
            let request = world.iall_reduce(&y, Op::Sum)?;
            let _ = y.f_add_scalar_(1.0)?;
            assert!(request.wait().is_err());
            Ok(())
        }),
    ];
    for (name, scenario) in scenarios {
        for _ in 0..3 {
            scenario()?;
            assert_freed(before, name);
        }
    }
    works(world)
}

/// The gradient of a loss, by a pass that keeps the graph if told so.
fn gradient(loss: &Tensor, x: &Tensor, keep: bool) -> Result<Tensor> {
    Ok(Tensor::f_run_backward(&[loss], &[x], keep, false)?.remove(0))
}

fn the_graph_is_kept_for_another_pass(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = variable(world, &[2])?;
    let send = world.isend(&x, right, 0)?;
    let y = world.recv(&join_dummies(&x, &[&send.dummy()])?, left, 0)?;
    let sent = send.join_dummies(&[&y]).wait()?;
    let ring = join_dummies(&y, &[&sent])?;
    let most = world.iall_reduce(&ring, Op::Max)?.wait()?;
    let loss = ((most + ring) * f64::from(world.rank() + 1)).sum(Kind::Double);
    let once = gradient(&loss, &x, true)?;
    for pass in 0..3 {
        assert_eq!(gradient(&loss, &x, pass < 2)?, once);
    }
    // The graph is gone, and with it what it would have been gone back through.
    assert!(gradient(&loss, &x, false).is_err());
    works(world)
}

/// Two backward passes go through the same started operation at once: each waits for its own adjoint.
fn two_passes_at_once(context: &Context) -> Result<()> {
    if device::left_out_on_devices("libtorch goes back on one thread for each device") {
        return Ok(());
    }
    let world = &context.world;
    // Alone: passes of several ranks on several threads would have to agree on their order.
    let comm = mpi4tch::initialize()?.self_comm()?;
    let (x, z) = (variable(world, &[2])?, variable(world, &[2])?);
    let outer = comm.iall_reduce(&x, Op::Sum)?;
    let send = comm.isend(&join_dummies(&z, &[&outer.dummy()])?, 0, 5)?;
    let received = comm.recv(&z, 0, 5)?;
    let sent = send.wait()?;
    // In the backward pass, x's adjoint is started, then a message of the adjoint of `received` is
    // waited for, then x's adjoint.
    let y = outer.join_dummies(&[&sent]).wait()?;
    let pass = |weight: f64| {
        let (y, x) = (y.shallow_clone(), x.shallow_clone());
        let cotangent = zeros(&[2]) + weight;
        std::thread::spawn(move || -> Result<Tensor> {
            Ok(testing::vjp(&[&y], &[&cotangent], &[&x], true)?.remove(0))
        })
    };
    let passes = [pass(1.0), pass(10.0)];
    std::thread::sleep(Duration::from_millis(100));
    assert!(passes.iter().all(|pass| !pass.is_finished()), "both wait");
    for _ in 0..2 {
        let _ = testing::vjp(&[&received], &[&zeros(&[2])], &[&z], true)?;
    }
    for (pass, weight) in passes.into_iter().zip([1.0, 10.0]) {
        let gradient = pass.join().expect("no panic")?;
        assert_eq!(gradient.detach(), zeros(&[2]) + weight);
    }
    works(world)
}

fn second_derivatives(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = testing::random(world, &[3], Kind::Double)?;
    for op in [Op::Max, Op::Min, Op::Prod, Op::Sum, Op::Mean] {
        let f = |x: &Tensor| Ok(world.iall_reduce(&x.sin(), op)?.wait()? * x);
        testing::gradcheck(world, &[&x], |x| f(&x[0]))?;
        testing::gradgradcheck(world, &x, f)?;
    }
    // What lies between start and wait communicates too.
    let f = |x: &Tensor| {
        let outer = world.iall_reduce(&x.sin(), Op::Prod)?;
        let send = world.isend(&join_dummies(&x.cos(), &[&outer.dummy()])?, right, 0)?;
        let y = world.recv(&join_dummies(x, &[&send.dummy()])?, left, 0)?;
        let sent = send.join_dummies(&[&y]).wait()?;
        let inner = world.scan(&join_dummies(&(x * x), &[&sent])?, Op::Max)?;
        Ok(outer.join_dummies(&[&inner]).wait()? * y * inner)
    };
    testing::gradcheck(world, &[&x], |x| f(&x[0]))?;
    testing::gradgradcheck(world, &x, f)
}

/// The backward pass reaches the start by its dummy alone.
fn a_result_that_nobody_waited_for(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = variable(world, &[2])?;
    for op in [Op::Max, Op::Min, Op::Prod] {
        let z = variable(world, &[2])?;
        let (line, request) = (line!(), world.iall_reduce(&x, op)?);
        let y = join_dummies(&z, &[&request.dummy()])?;
        drop(request);
        let error = y.sum(Kind::Double).f_backward().expect_err("on all ranks").to_string();
        let expected = format!(
            "all_reduce: its derivative needs the result, but what was started at \
             {}:{line}:",
            file!()
        );
        assert!(error.contains(&expected), "{error}");
        assert!(error.contains(" was never waited for"), "{error}");
        works(world)?;
    }
    // A linear one needs nothing: its cotangent is zeros. Waited for on some ranks, it is theirs.
    for waits in [0, 1] {
        let (x, z) = (variable(world, &[2])?, variable(world, &[2])?);
        let request = world.iall_reduce(&x, Op::Sum)?;
        let y = join_dummies(&z, &[&request.dummy()])?;
        let loss = if world.rank() < waits {
            (y + request.wait()? * 5.0).sum(Kind::Double)
        } else {
            drop(request);
            y.sum(Kind::Double)
        };
        loss.f_backward()?;
        assert_eq!(z.grad(), zeros(&[2]) + 1.0);
        assert_eq!(x.grad(), zeros(&[2]) + 5.0 * f64::from(waits));
    }
    // So it is for messages, of even ranks to odd ones.
    let (x, z) = (variable(world, &[2])?, variable(world, &[2])?);
    let (rank, last) = (world.rank(), world.size() - 1);
    let request = match rank % 2 {
        0 => world.isend(&x, if rank < last { rank + 1 } else { PROC_NULL }, 0)?,
        _ => world.irecv(&x, rank - 1, 0)?,
    };
    let y = join_dummies(&z, &[&request.dummy()])?;
    drop(request);
    y.sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), zeros(&[2]));
    works(world)
}

fn what_was_saved_is_lost_on_one_rank(context: &Context) -> Result<()> {
    let comm = context.world.duplicate()?;
    let x = variable(&comm, &[2])?;
    let mut h = &x * 1.0;
    let y = comm.iall_reduce(&h, Op::Max)?.wait()?;
    if comm.rank() == comm.size() - 1 {
        let _ = tch::no_grad(|| h.f_fill_(3.0))?;
    }
    assert!(y.sum(Kind::Double).f_backward().is_err(), "on all ranks");
    works(&comm)
}

/// Not the wait.
fn the_start_decides_what_is_recorded(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = variable(world, &[i64::from(world.size())])?;
    for op in [Op::Sum, Op::Mean, Op::Max, Op::Min, Op::Prod] {
        let starts: [(&str, &dyn Fn() -> Result<Request>); 4] = [
            ("iall_reduce", &|| world.iall_reduce(&x, op)),
            ("ireduce", &|| world.ireduce(&x, op, 0)),
            ("iscan", &|| world.iscan(&x, op)),
            ("ireduce_scatter", &|| world.ireduce_scatter(&x, 0, 1, op)),
        ];
        for (name, start) in starts {
            let (recorded, plain) = (start()?, tch::no_grad(start)?);
            let recorded = tch::no_grad(|| recorded.wait())?;
            let plain = plain.wait()?;
            assert!(recorded.requires_grad() && !plain.requires_grad(), "{name} {op:?}");
        }
    }
    let request = world.isend(&x, right, 0)?;
    let y = world.recv(&join_dummies(&x.detach(), &[&request.dummy()])?, left, 0)?;
    let request = request.join_dummies(&[&y]);
    let sent = tch::no_grad(|| request.wait())?;
    join_dummies(&y, &[&sent])?.sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), x.ones_like().detach());
    Ok(())
}
