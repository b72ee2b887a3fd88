//! What was started, and waiting for it: in both passes, in any order, or not at all.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use common::{Context, start};
use mpi4tch::{
    Communicator, Error, Op, PROC_NULL, Rank, Request, Result, Test, join_dummies, testing,
    wait_all, wait_any, wait_some,
};
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            memory_stays_while_mpi_uses_it,
            dummies_joined_to_a_wait_that_was_recorded,
            a_mismatch_ends_a_test,
            what_was_saved_is_lost_on_one_rank,
            tested_until_done,
            all_in_order,
            any_by_any,
            some_by_some,
            no_requests_at_all,
            one_of_several_fails,
            joined_tensors,
            joined_requests,
            no_gradient_joined_with_one,
            graphs_are_freed,
            the_graph_is_kept_for_another_pass,
            two_passes_at_once,
            second_derivatives,
            a_tensor_changed_in_flight,
            dropped_and_forgotten,
            memory_of_the_dropped_is_freed,
            memory_of_the_completed_is_freed,
            a_result_that_nobody_waited_for,
            started_calls_that_differ,
            a_wrong_argument_on_one_rank,
        ],
    )
}

fn double(values: &[f64]) -> Tensor {
    Tensor::from_slice(values)
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Double, Device::Cpu))
}

fn variable(comm: &Communicator, shape: &[i64]) -> Result<Tensor> {
    Ok(testing::random(comm, shape, Kind::Double)?.set_requires_grad(true))
}

fn neighbours(comm: &Communicator) -> (Rank, Rank) {
    let (rank, size) = (comm.rank(), comm.size());
    ((rank + 1) % size, (rank + size - 1) % size)
}

fn rotated(xs: &[Tensor]) -> Vec<Tensor> {
    let mut ys: Vec<Tensor> = xs.iter().map(Tensor::shallow_clone).collect();
    ys.rotate_right(1);
    ys
}

/// Everybody is here, and calls can be made and started.
fn works(comm: &Communicator) -> Result<()> {
    let (right, left) = neighbours(comm);
    let (one, size) = (Tensor::from_slice(&[1]), Tensor::from_slice(&[comm.size()]));
    assert_eq!(comm.all_reduce(&one, Op::Sum)?, size);
    assert_eq!(comm.iall_reduce(&one, Op::Sum)?.wait()?, size);
    let own = Tensor::from_slice(&[comm.rank()]);
    assert_eq!(comm.ibroadcast(&own, 0)?.wait()?, Tensor::from_slice(&[0]));
    let receive = comm.irecv(&own, left, 77)?;
    let _ = comm.isend(&own, right, 77)?.wait()?;
    assert_eq!(receive.wait()?, Tensor::from_slice(&[left]));
    comm.barrier()
}

fn until_done(mut request: Request) -> Result<Tensor> {
    loop {
        match request.test()? {
            Test::Done(y) => return Ok(y),
            Test::Pending(again) => request = again,
        }
    }
}

fn tested_until_done(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let x = testing::random(world, &[3], Kind::Double)?;
    let sum = |xs: &[Tensor]| {
        let sum = Tensor::stack(xs, 0).sum_dim_intlist(0, false, Kind::Double);
        xs.iter().map(|_| sum.shallow_clone()).collect()
    };
    let reduce = |x: &Tensor| until_done(world.iall_reduce(x, Op::Sum)?);
    testing::assert_serial(world, &x, reduce, sum)?;
    let ring = |x: &Tensor| {
        let receive = world.irecv(x, left, 0)?;
        let sent = world.isend(&join_dummies(x, &[&receive.dummy()]), right, 0)?;
        let sent = until_done(sent.join_dummies(&[&receive.dummy()]))?;
        until_done(receive.join_dummies(&[&sent]))
    };
    testing::assert_serial(world, &x, ring, rotated)?;
    // It does not wait: there is nothing yet.
    let request = world.irecv(&x, left, 0)?;
    let Test::Pending(request) = request.test()? else { panic!("nobody has sent") };
    world.barrier()?;
    let _ = world.send(&x, right, 0)?;
    assert_eq!(until_done(request)?.size(), [3]);
    Ok(())
}

fn all_in_order(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = testing::random(world, &[2], Kind::Double)?;
    let expected = [
        world.all_reduce(&x, Op::Sum)?,
        world.scan(&x, Op::Max)?,
        world.all_gather(&x, 0)?,
        world.broadcast(&x, world.size() - 1)?,
    ];
    let requests = [
        world.iall_reduce(&x, Op::Sum)?,
        world.iscan(&x, Op::Max)?,
        world.iall_gather(&x, 0)?,
        world.ibroadcast(&x, world.size() - 1)?,
    ];
    // A sum may be rounded in another order.
    for (result, expected) in wait_all(requests)?.iter().zip(expected) {
        assert!(result.allclose(&expected, 1e-12, 1e-12, false), "{result} for {expected}");
    }
    Ok(())
}

/// Requests for a message of each rank, and the sends of this one's.
fn exchange(comm: &Communicator, x: &Tensor) -> Result<(Vec<Request>, Vec<Request>)> {
    let all = 0..comm.size();
    let like = x.detach();
    let receives = all.clone().map(|r| comm.irecv(&like, r, r)).collect::<Result<_>>()?;
    let sends = all.map(|r| comm.isend(x, r, comm.rank())).collect::<Result<_>>()?;
    Ok((receives, sends))
}

/// The place that an entry had at first.
fn take_place(places: &mut Vec<Rank>, place: usize) -> f64 {
    f64::from(places.remove(place) + 1)
}

fn any_by_any(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, &[2])?;
    let all = context.world.all_gather(&x.detach(), 0)?;
    let (mut receives, sends) = exchange(&tape, &x)?;
    let mut places: Vec<Rank> = (0..tape.size()).collect();
    let mut loss = zeros(&[]);
    while !receives.is_empty() {
        let (place, y) = wait_any(&mut receives)?;
        let weight = take_place(&mut places, place);
        assert_eq!(places.len(), receives.len());
        #[expect(clippy::cast_possible_truncation, reason = "a rank")]
        let from = weight as i64 - 1;
        assert_eq!(y.detach(), all.narrow(0, from * 2, 2));
        loss += (y * weight).sum(Kind::Double);
    }
    let _ = wait_all(sends)?;
    tape.backward(&loss)?;
    let weight = f64::from((tape.rank() + 1) * tape.size());
    assert_eq!(x.grad(), zeros(&[2]) + weight);
    Ok(())
}

fn some_by_some(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, &[2])?;
    let all = context.world.all_gather(&x.detach(), 0)?;
    let (mut receives, mut sends) = exchange(&tape, &x)?;
    let mut places: Vec<Rank> = (0..tape.size()).collect();
    let mut loss = zeros(&[]);
    while !receives.is_empty() {
        let (before, done) = (receives.len(), wait_some(&mut receives)?);
        assert!(!done.is_empty() && done.len() + receives.len() == before);
        assert!(done.is_sorted_by_key(|(place, _)| *place));
        for (place, y) in done.iter().rev() {
            let weight = take_place(&mut places, *place);
            #[expect(clippy::cast_possible_truncation, reason = "a rank")]
            let from = weight as i64 - 1;
            assert_eq!(y.detach(), all.narrow(0, from * 2, 2));
            loss += (y * weight).sum(Kind::Double);
        }
    }
    while !sends.is_empty() {
        let _ = wait_some(&mut sends)?;
    }
    tape.backward(&loss)?;
    let weight = f64::from((tape.rank() + 1) * tape.size());
    assert_eq!(x.grad(), zeros(&[2]) + weight);
    Ok(())
}

fn no_requests_at_all(_: &Context) -> Result<()> {
    assert_eq!(wait_all([])?.len(), 0);
    let error = wait_any(&mut Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "wait_any: there are no requests to wait for");
    let error = wait_some(&mut Vec::new()).unwrap_err().to_string();
    assert_eq!(error, "wait_some: there are no requests to wait for");
    Ok(())
}

fn one_of_several_fails(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let start = || -> Result<Vec<Request>> {
        Ok(vec![
            world.irecv(&zeros(&[2]), left, 0)?,
            world.irecv(&zeros(&[3]), left, 1)?,
            world.irecv(&zeros(&[2]), left, 2)?,
            world.isend(&zeros(&[2]), right, 0)?,
            world.isend(&zeros(&[2]), right, 1)?,
            world.isend(&zeros(&[2]), right, 2)?,
        ])
    };
    let text = format!(
        "recv: the message of rank {left} with tag 1 has 2 elements of Double; `like` has 3 of \
         Double"
    );
    assert_eq!(wait_all(start()?).unwrap_err().to_string(), text);
    works(world)?;
    let mut requests = start()?;
    let mut failures = 0;
    for left in (0..requests.len()).rev() {
        if let Err(error) = wait_any(&mut requests) {
            assert_eq!(error.to_string(), text);
            failures += 1;
        }
        // Also what failed is taken out.
        assert_eq!(requests.len(), left);
    }
    assert_eq!(failures, 1);
    let mut requests = start()?;
    let (mut results, mut failures) = (0, 0);
    // So that several are found at once.
    world.barrier()?;
    while !requests.is_empty() {
        match wait_some(&mut requests) {
            Ok(done) => results += done.len(),
            Err(error) => {
                assert_eq!(error.to_string(), text);
                failures += 1;
            }
        }
    }
    assert_eq!((results, failures), (5, 1), "nothing is lost");
    works(world)
}

/// Any subset of the inputs requires grad, of any kinds.
fn joined_tensors(_: &Context) -> Result<()> {
    let kinds = [Kind::Float, Kind::Double, Kind::ComplexFloat, Kind::Half];
    for first in kinds {
        for second in kinds {
            for subset in 0..8 {
                let before = testing::live_pullbacks();
                let input = |i: i32, shape: &[i64], kind: Kind| {
                    let x = Tensor::ones(shape, (kind, Device::Cpu)) * f64::from(i + 1);
                    x.set_requires_grad(subset >> i & 1 != 0)
                };
                let x = input(0, &[2], Kind::Double);
                let dummies = [input(1, &[3, 1], first), input(2, &[], second)];
                let integers = Tensor::from_slice(&[1_i64]);
                let y = join_dummies(&x, &[&dummies[0], &integers, &dummies[1]]);
                assert_eq!(y.data_ptr(), x.data_ptr());
                assert_eq!(y.detach(), x.detach());
                assert_eq!(y.requires_grad(), subset != 0);
                if subset != 0 {
                    (y * double(&[2.0, 3.0])).sum(Kind::Double).f_backward()?;
                }
                if x.requires_grad() {
                    assert_eq!(x.grad(), double(&[2.0, 3.0]));
                }
                for dummy in dummies.iter().filter(|dummy| dummy.requires_grad()) {
                    let gradient = dummy.grad();
                    assert_eq!(gradient.kind(), dummy.kind());
                    assert_eq!(gradient, dummy.zeros_like());
                }
                assert_eq!(testing::live_pullbacks(), before);
            }
        }
    }
    // Integers carry no gradient, and are let be.
    let dummy = zeros(&[2]).set_requires_grad(true);
    for x in [Tensor::from_slice(&[1_i64, 2]), Tensor::from_slice(&[true])] {
        let y = join_dummies(&x, &[&dummy]);
        assert!(!y.requires_grad() && y == x);
    }
    // Nor is there one where nothing is recorded.
    assert!(!tch::no_grad(|| join_dummies(&zeros(&[1]), &[&dummy])).requires_grad());
    assert!(!join_dummies(&Tensor::new(), &[&dummy]).defined());
    Ok(())
}

/// Any of the ends of a ring may have a gradient to carry, or a dummy.
fn joined_requests(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    for kind in [Kind::Double, Kind::Float, Kind::ComplexDouble, Kind::BFloat16, Kind::Int64] {
        for subset in 0..8 {
            let before = testing::live_pullbacks();
            let carries = kind != Kind::Int64;
            let has = |i: i32| subset >> i & 1 != 0;
            let recorded = has(0) && carries;
            let x = Tensor::ones([2], (kind, Device::Cpu)).set_requires_grad(recorded);
            let first = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(has(1));
            let second = Tensor::ones([], (Kind::Double, Device::Cpu)).set_requires_grad(has(2));
            let receive = world.irecv(&x, left, 0)?.join_dummies(&[&first, &second]);
            let send = world.isend(&x, right, 0)?.join_dummies(&[&receive.dummy(), &first]);
            assert_eq!(receive.dummy().requires_grad(), recorded);
            assert_eq!(receive.dummy().numel(), 0);
            let sent = send.wait()?;
            let y = receive.join_dummies(&[&sent, &second]).wait()?;
            assert_eq!(y.detach(), x.detach());
            assert_eq!(y.requires_grad(), recorded);
            if recorded {
                let weight = f64::from(world.rank() + 1);
                (y * weight).abs().sum(Kind::Double).f_backward()?;
                let expected = f64::from(right + 1);
                assert_eq!(x.grad(), x.full_like(expected).detach());
                for dummy in [&first, &second].into_iter().filter(|dummy| dummy.requires_grad()) {
                    assert_eq!(dummy.grad(), dummy.zeros_like());
                }
            }
            drop((sent, x, first, second));
            assert_eq!(testing::live_pullbacks(), before, "{kind:?}, {subset}");
        }
    }
    works(world)
}

/// A send of what has no gradient, joined with what has one.
fn no_gradient_joined_with_one(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let (plain, x) = (zeros(&[2]), variable(world, &[2])?);
    let z = world.all_reduce(&x, Op::Sum)?;
    let request = world.isend(&plain, right, 0)?.join_dummies(&[&z]);
    assert!(!request.dummy().requires_grad());
    let y = world.recv(&plain, left, 0)?;
    let sent = request.wait()?;
    assert!(!sent.requires_grad() && !y.requires_grad());
    join_dummies(&z, &[&sent, &y]).sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), zeros(&[2]) + f64::from(world.size()));
    Ok(())
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
            let y = world.recv(&join_dummies(&x, &[&send.dummy()]), left, 0)?;
            let sent = send.join_dummies(&[&y]).wait()?;
            Ok(join_dummies(&y, &[&sent]).sum(Kind::Double).f_backward()?)
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
            let y = join_dummies(&x, &[&request.dummy()]);
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
            assert_eq!(testing::live_pullbacks(), before, "{name}");
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
    let y = world.recv(&join_dummies(&x, &[&send.dummy()]), left, 0)?;
    let sent = send.join_dummies(&[&y]).wait()?;
    let ring = join_dummies(&y, &[&sent]);
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
    let world = &context.world;
    // Alone: passes of several ranks on several threads would have to agree on their order.
    let comm = mpi4tch::initialize()?.self_comm()?;
    let (x, z) = (variable(world, &[2])?, variable(world, &[2])?);
    let outer = comm.iall_reduce(&x, Op::Sum)?;
    let send = comm.isend(&join_dummies(&z, &[&outer.dummy()]), 0, 5)?;
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
        let send = world.isend(&join_dummies(&x.cos(), &[&outer.dummy()]), right, 0)?;
        let y = world.recv(&join_dummies(x, &[&send.dummy()]), left, 0)?;
        let sent = send.join_dummies(&[&y]).wait()?;
        let inner = world.scan(&join_dummies(&(x * x), &[&sent]), Op::Max)?;
        Ok(outer.join_dummies(&[&inner]).wait()? * y * inner)
    };
    testing::gradcheck(world, &[&x], |x| f(&x[0]))?;
    testing::gradgradcheck(world, &x, f)
}

fn a_tensor_changed_in_flight(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let assert_changed = |result: Result<Tensor>, call: &str, line: u32| {
        let error = result.expect_err("the tensor was changed");
        assert!(matches!(error, Error::InFlight { .. }));
        let (text, start) = (error.to_string(), format!("tests/requests.rs:{line}:"));
        let before = format!("{call}: the tensor was changed in place between the start, at ");
        assert!(text.starts_with(&(before + &start)), "{text}");
        assert!(text.ends_with(", and the wait"), "{text}");
    };
    for recorded in [false, true] {
        let mut x = testing::random(world, &[4], Kind::Double)?.set_requires_grad(recorded).sin();
        let (line, request) = (line!(), world.iall_reduce(&x, Op::Sum)?);
        let _ = x.f_add_scalar_(1.0)?;
        assert_changed(request.wait(), "all_reduce", line);

        // A view, by its base; and the base, by a view.
        let part = x.narrow(0, 1, 2);
        let (line, request) = (line!(), world.isend(&part, right, 0)?);
        let _ = x.f_fill_(3.0)?;
        let like = part.detach().set_requires_grad(recorded);
        let _ = world.recv(&like, left, 0)?;
        assert_changed(request.wait(), "send", line);
        let (line, request) = (line!(), world.isend(&x, right, 0)?);
        let _ = x.narrow(0, 0, 1).f_zero_()?;
        let like = x.detach().set_requires_grad(recorded);
        let _ = world.recv(&like, left, 0)?;
        assert_changed(request.test().map(|_| Tensor::new()), "send", line);

        // In place of itself, by this crate.
        let (line, request) = (line!(), world.ibroadcast(&x, 0)?);
        world.all_reduce_(&mut x, Op::Sum)?;
        assert_changed(wait_all([request]).map(|_| Tensor::new()), "broadcast", line);
    }
    works(world)
}

fn dropped_and_forgotten(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    for _ in 0..1000 {
        drop(world.iall_reduce(&zeros(&[3]), Op::Sum)?);
    }
    works(world)?;
    for length in [1, 300_000] {
        let x = testing::random(world, &[length], Kind::Double)?;
        // The buffers go, the messages come.
        drop(world.isend(&(&x * 2.0), right, 0)?);
        std::mem::forget(world.isend(&(&x * 3.0), right, 1)?);
        let all = world.all_gather(&x, 0)?.narrow(0, i64::from(left) * length, length);
        drop(world.irecv(&x, left, 2)?);
        std::mem::forget(world.irecv(&x, left, 3)?);
        assert_eq!(world.recv(&x, left, 0)?, &all * 2.0);
        assert_eq!(world.recv(&x, left, 1)?, &all * 3.0);
        // These go to the requests that nobody has any more.
        let _ = wait_all([world.isend(&x, right, 2)?, world.isend(&x, right, 3)?])?;
        works(world)?;
    }
    for _ in 0..20 {
        std::mem::forget(world.iall_reduce(&zeros(&[3]), Op::Sum)?);
    }
    works(world)
}

/// The memory that this process has allocated and not freed, in MB. Its resident memory says less:
/// glibc before 2.38 does not use a freed block of aligned memory for the next of that size.
fn allocated() -> i64 {
    // SAFETY: it only reads the allocator's counters.
    let info = unsafe { libc::mallinfo() };
    // The counters wrap around.
    let bytes = info.uordblks.cast_unsigned().wrapping_add(info.hblkhd.cast_unsigned());
    i64::from(bytes) / 1_000_000
}

/// Runs `f` in rounds of 100 times, for which 1 MB each would be 100 MB. MPI may keep memory of its
/// own, but not more in each round.
fn assert_frees(world: &Communicator, f: impl Fn(&Tensor) -> Result<()>) -> Result<()> {
    let mut rounds = Vec::new();
    for _ in 0..4 {
        let before = allocated();
        for i in 0..100 {
            f(&Tensor::ones([125_000], (Kind::Double, Device::Cpu)))?;
            if i % 10 == 0 {
                world.barrier()?;
            }
        }
        works(world)?;
        rounds.push(allocated() - before);
    }
    assert!(rounds.iter().any(|more| *more < 50), "MB more in each round: {rounds:?}");
    Ok(())
}

fn memory_of_the_dropped_is_freed(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    assert_frees(world, |x| world.iall_reduce(x, Op::Sum).map(drop))?;
    assert_frees(world, |x| world.iall_reduce(&x.set_requires_grad(true), Op::Max).map(drop))?;
    let turn = std::cell::Cell::new(0);
    assert_frees(world, |x| {
        let requests = [world.irecv(x, left, 0)?, world.isend(x, right, 0)?];
        turn.set(turn.get() + 1);
        // MPI goes on only while it is called: now and then it is, until these have come too.
        if turn.get() % 5 == 0 {
            let _ = wait_all(requests)?;
        }
        Ok(())
    })
}

fn memory_of_the_completed_is_freed(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    assert_frees(world, |x| world.iall_reduce(x, Op::Sum)?.wait().map(drop))?;
    assert_frees(world, |x| {
        let x = x.set_requires_grad(true);
        let y = world.iall_reduce(&x, Op::Max)?.wait()?;
        Ok(y.sum(Kind::Double).f_backward()?)
    })?;
    assert_frees(world, |x| {
        let requests = [world.irecv(x, left, 0)?, world.isend(x, right, 0)?];
        wait_all(requests).map(drop)
    })
}

/// The backward pass reaches the start by its dummy alone.
fn a_result_that_nobody_waited_for(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = variable(world, &[2])?;
    for op in [Op::Max, Op::Min, Op::Prod] {
        let z = variable(world, &[2])?;
        let (line, request) = (line!(), world.iall_reduce(&x, op)?);
        let y = join_dummies(&z, &[&request.dummy()]);
        drop(request);
        let error = y.sum(Kind::Double).f_backward().expect_err("on all ranks").to_string();
        let expected = format!(
            "all_reduce: its derivative needs the result, but what was started at \
             tests/requests.rs:{line}:"
        );
        assert!(error.contains(&expected), "{error}");
        assert!(error.contains(" was never waited for"), "{error}");
        works(world)?;
    }
    // A linear one needs nothing: its cotangent is zeros. Waited for on some ranks, it is theirs.
    for waits in [0, 1] {
        let (x, z) = (variable(world, &[2])?, variable(world, &[2])?);
        let request = world.iall_reduce(&x, Op::Sum)?;
        let y = join_dummies(&z, &[&request.dummy()]);
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
    let y = join_dummies(&z, &[&request.dummy()]);
    drop(request);
    y.sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), zeros(&[2]));
    works(world)
}

/// What a rank starts.
type Start<'a> = &'a dyn Fn(&Communicator) -> Result<Request>;

fn started_calls_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    if last == 0 {
        return Ok(());
    }
    let x = zeros(&[2]);
    let most = if last == 1 {
        "rank 0".to_owned()
    } else {
        let ranks: Vec<_> = (0..last).map(|rank| rank.to_string()).collect();
        format!("ranks {}", ranks.join(", "))
    };
    let cases: [(Start, Start, &str); 9] = [
        (
            &|c| c.iall_reduce(&x, Op::Sum),
            &|c| c.iall_reduce(&x, Op::Max),
            "  op: Op::Sum on {most}; Op::Max on {last}",
        ),
        (
            &|c| c.iall_reduce(&x, Op::Sum),
            &|c| c.iall_reduce(&x.to_kind(Kind::Float), Op::Sum),
            "  kind: Double on {most}; Float on {last}",
        ),
        (
            &|c| c.iall_reduce(&x, Op::Sum),
            &|c| c.iall_reduce(&zeros(&[5]), Op::Sum),
            "  shape: [2] on {most}; [5] on {last}",
        ),
        (
            &|c| c.iall_reduce(&zeros(&[5]), Op::Sum),
            &|c| c.iall_reduce(&x, Op::Sum),
            "  shape: [5] on {most}; [2] on {last}",
        ),
        (&|c| c.ibroadcast(&x, 0), &|c| c.ibroadcast(&x, 1), "  root: 0 on {most}; 1 on {last}"),
        (
            &|c| c.ibarrier(),
            &|c| c.ibroadcast(&x, 0),
            "  operation: barrier on {most}; broadcast on {last}\n  kind: Float on {most}; Double \
             on {last}",
        ),
        (
            &|c| c.iscan(&x, Op::Sum),
            &|c| c.iscan(&x.copy().set_requires_grad(true), Op::Sum),
            "  requires_grad: false on {most}; true on {last}",
        ),
        (
            &|c| c.ireduce(&zeros(&[300_000]), Op::Sum, 0),
            &|c| c.ireduce(&zeros(&[200_000]), Op::Sum, 0),
            "  shape: [300000] on {most}; [200000] on {last}",
        ),
        (
            &|c| c.iall_gather(&zeros(&[2, 3]), 0),
            &|c| c.iall_gather(&zeros(&[2, 4]), 0),
            "  shape: [_, 3] on {most}; [_, 4] on {last}",
        ),
    ];
    for (on_most, on_last, text) in cases {
        let comm = world.duplicate()?;
        let start = if comm.rank() == last { on_last } else { on_most };
        // What needs the others' sizes compares before it starts.
        let error = start(&comm).and_then(Request::wait).expect_err("they disagree").to_string();
        let text = text.replace("{most}", &most).replace("{last}", &format!("rank {last}"));
        assert_eq!(error, format!("the ranks disagree on a call:\n{text}"));
        works(&comm)?;
        let y = variable(&comm, &[2])?;
        comm.iall_reduce(&y, Op::Sum)?.wait()?.sum(Kind::Double).f_backward()?;
        assert_eq!(y.grad(), zeros(&[2]) + f64::from(comm.size()));
    }
    works(world)
}

fn a_wrong_argument_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    if last == 0 {
        return Ok(());
    }
    let (x, bad) = (zeros(&[2]), Tensor::new());
    let cases: [(Start, Start, String); 4] = [
        (
            &|c| c.ibroadcast(&x, 0),
            &|c| c.ibroadcast(&x, c.size()),
            format!("broadcast: root {0} is out of range for {0} ranks", last + 1),
        ),
        (
            &|c| c.iall_reduce(&x, Op::Sum),
            &|c| c.iall_reduce(&bad, Op::Sum),
            "all_reduce: the tensor is undefined, like a gradient that was never computed"
                .to_owned(),
        ),
        (
            &|c| c.iexscan(&x, Op::Sum),
            &|c| c.iexscan(&x, Op::Mean),
            "exscan: Op::Mean is not defined; rank 0 would have the mean of nothing".to_owned(),
        ),
        (
            &|c| c.iall_gather(&x, 0),
            &|c| c.iall_gather(&x, 1),
            "all_gather: axis 1 is out of range for a tensor of shape [2]".to_owned(),
        ),
    ];
    for (good, wrong, text) in cases {
        let comm = world.duplicate()?;
        if comm.rank() == last {
            assert_eq!(wrong(&comm).expect_err("it is wrong").to_string(), text);
        } else {
            let error = good(&comm).and_then(Request::wait).expect_err("the last is wrong");
            let expected =
                format!("the ranks disagree on a call:\n  refused: {text} on rank {last}");
            assert_eq!(error.to_string(), expected);
        }
        works(&comm)?;
    }
    works(world)
}

fn memory_stays_while_mpi_uses_it(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let mut x = Tensor::full([400_000], 7.0, (Kind::Double, tch::Device::Cpu));
    let (like, half) = (x.copy(), x.narrow(0, 0, 200_000).copy());
    // libtorch leaves a tensor that it could not resize in a state of its own: others of the memory.
    let resize = |x: &Tensor| x.detach().f_resize_([1_200_000]).map(|_| ());
    let first = world.isend(&x, right, 0)?;
    let second = world.isend(&x.narrow(0, 0, 200_000), right, 1)?;
    assert!(resize(&x).is_err());
    assert_eq!(world.recv(&like, left, 0)?, like);
    let _ = first.wait()?;
    assert!(resize(&x).is_err(), "the other is under way");
    // Another tensor takes the place, of which MPI knows nothing.
    let other = x.detach();
    x.set_data(&Tensor::zeros([1], (Kind::Double, tch::Device::Cpu)));
    assert_eq!(world.recv(&half, left, 1)?, half);
    let _ = second.wait();
    assert!(resize(&other).is_ok());
    Ok(())
}

fn dummies_joined_to_a_wait_that_was_recorded(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let (a, b) = (variable(world, &[2])?, variable(world, &[2])?);
    let (first, second) = (world.isend(&a, right, 0)?, world.isend(&b, right, 0)?);
    let like = join_dummies(&a.detach(), &[&second.dummy(), &first.dummy()]);
    let y1 = world.recv(&like, left, 0)?;
    let y2 = world.recv(&join_dummies(&a.detach(), &[&y1]), left, 0)?;
    // The wait for the second records that for the first.
    let s2 = second.join_dummies(&[&y2]).wait()?;
    let s1 = first.join_dummies(&[&s2]).wait()?;
    let loss = join_dummies(&(y1 * 3.0 + y2 * 5.0), &[&s1]);
    loss.sum(Kind::Double).f_backward()?;
    assert_eq!((a.grad(), b.grad()), (a.full_like(3.0).detach(), b.full_like(5.0).detach()));
    Ok(())
}

fn a_mismatch_ends_a_test(context: &Context) -> Result<()> {
    let comm = context.world.duplicate()?;
    if comm.size() == 1 {
        return Ok(());
    }
    let x = zeros(&[2]);
    for _ in 0..2 {
        let request = if comm.rank() == 0 {
            comm.iall_reduce(&x, Op::Sum)?
        } else {
            comm.iscan(&x, Op::Sum)?
        };
        let error = mpi4tch::wait_any(&mut vec![request]).expect_err("they differ");
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    }
    works(&comm)
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
