//! Communicators: how they are made, what they hold, and when they end.

mod common;

use std::process::ExitCode;
use std::thread;

use common::tensors::variable;
use common::{Context, communicators, start, without_lines};
use mpi4tch::{Communicator, Error, Op, Result, mpi_sys, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            left_over_messages_are_not_inherited,
            splits_follow_colors_and_keys,
            splits_nest,
            a_bad_color_is_an_error_on_all_ranks,
            other_calls_are_an_error_on_all_ranks,
            shared_memory_keeps_the_order,
            self_is_alone,
            clones_are_the_same_communicator,
            messages_do_not_meet,
            raw_handles_are_taken_in,
            fortran_handles_make_the_round_trip,
            what_is_no_communicator_is_refused,
            adjoints_on_every_kind,
            derivatives_across_kinds,
            contexts_come_back,
            ranks_may_drop_at_different_times,
            children_outlive_their_parents,
            graphs_hold_their_communicators,
            dropped_on_another_thread,
        ],
    )
}

/// The ranks of `comm` by their numbers in the world, in order.
fn members(world: &Communicator, comm: &Communicator) -> Result<Vec<i64>> {
    let own = Tensor::from_slice(&[i64::from(world.rank())]);
    Ok(Vec::try_from(comm.all_gather(&own, 0)?).unwrap())
}

/// The world's ranks that `choose` takes, ordered by `key` and then by rank.
fn expected(
    world: &Communicator,
    choose: impl Fn(i32) -> bool,
    key: impl Fn(i32) -> i32,
) -> Vec<i64> {
    let mut ranks: Vec<i32> = (0..world.size()).filter(|&rank| choose(rank)).collect();
    ranks.sort_by_key(|&rank| key(rank));
    ranks.into_iter().map(i64::from).collect()
}

fn splits_follow_colors_and_keys(context: &Context) -> Result<()> {
    let world = &context.world;
    let rank = world.rank();
    let colors: [fn(i32) -> Option<i32>; 5] = [
        |_| Some(0),
        |rank| Some(rank % 2),
        |rank| Some(7 * rank),
        |rank| (rank % 3 != 1).then_some(i32::MAX),
        |_| None,
    ];
    let keys: [fn(i32) -> i32; 4] = [
        |_| 0,
        |rank| -rank,
        |rank| (rank * 5) % 3,
        |rank| [i32::MAX, i32::MIN][rank as usize % 2],
    ];
    for color in colors {
        for key in keys {
            match (world.split(color(rank), key(rank))?, color(rank)) {
                (Some(comm), Some(_)) => {
                    let ranks = expected(world, |other| color(other) == color(rank), key);
                    assert_eq!(members(world, &comm)?, ranks);
                    assert_eq!(ranks[comm.rank() as usize], i64::from(rank));
                    assert_eq!(comm.size() as usize, ranks.len());
                }
                (None, None) => {}
                (comm, color) => panic!("color {color:?} gave {comm:?}"),
            }
        }
    }
    Ok(())
}

fn splits_nest(context: &Context) -> Result<()> {
    let world = &context.world;
    let half = world.split(Some(world.rank() % 2), -world.rank())?.expect("has a color");
    let quarter = half.split(Some(half.rank() / 2), -half.rank())?.expect("has a color");
    let same = quarter.duplicate()?;
    drop(half);
    drop(quarter);
    assert!(same.size() <= 2);
    assert!(members(world, &same)?.contains(&i64::from(world.rank())));
    let x = testing::random(&same, &[3], Kind::Double)?;
    testing::assert_adjoint(&same, &x, |x| same.scan(x, Op::Sum))
}

fn a_bad_color_is_an_error_on_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    for bad in 0..world.size() {
        let color = if world.rank() == bad { -3 } else { 0 };
        let error = world.split(Some(color), 0).unwrap_err();
        let refused = "split: color -3 is negative; None is the color of no communicator";
        if world.rank() == bad {
            assert!(matches!(error, Error::Argument { .. }));
            assert_eq!(error.to_string(), refused);
        } else {
            assert!(matches!(error, Error::Mismatch { .. }));
            let needed = format!("refused: {refused} on rank {bad}");
            assert!(error.to_string().contains(&needed), "{error}");
        }
    }
    // Nothing was made, and nothing is out of step.
    assert_eq!(world.duplicate()?.size(), world.size());
    world.barrier()
}

fn other_calls_are_an_error_on_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let first = world.rank() == 0;
    let error = if first { world.duplicate() } else { world.split_shared() }.unwrap_err();
    let others: Vec<String> = (1..world.size()).map(|rank| rank.to_string()).collect();
    let noun = if others.len() == 1 { "rank" } else { "ranks" };
    assert_eq!(
        without_lines(&error),
        format!(
            "the ranks disagree on a call:\n  operation: duplicate on rank 0; split_shared on \
             {noun} {}",
            others.join(", ")
        )
    );
    world.barrier()
}

fn shared_memory_keeps_the_order(context: &Context) -> Result<()> {
    let (world, node) = (&context.world, context.world.split_shared()?);
    // The tests run on one machine, or on two hosts on which no ranks share memory.
    let on_two_hosts = std::env::var_os("MPI4TCH_WIRE").is_some();
    let expected = if on_two_hosts { (0, 1) } else { (world.rank(), world.size()) };
    assert_eq!((node.rank(), node.size()), expected);
    assert_eq!(members(world, &node)?.len(), node.size() as usize);
    Ok(())
}

fn self_is_alone(context: &Context) -> Result<()> {
    let universe = mpi4tch::initialize()?;
    // Local: the others need not call it.
    if context.world.rank() == 0 {
        let this = universe.self_comm()?;
        assert_eq!((this.rank(), this.size()), (0, 1));
        assert_eq!(this.as_raw(), universe.self_comm()?.as_raw());
        let x = Tensor::from_slice(&[2.0, 3.0]);
        assert_eq!(this.all_reduce(&x, Op::Sum)?, x);
        assert_eq!(this.duplicate()?.size(), 1);
    }
    Ok(())
}

fn clones_are_the_same_communicator(context: &Context) -> Result<()> {
    let comm = context.world.duplicate()?;
    let clone = comm.clone();
    assert_eq!(clone.as_raw(), comm.as_raw());
    drop(comm);
    // More are made, so what is dead is freed: the clone is not.
    context.world.duplicate()?;
    context.world.duplicate()?;
    assert_eq!(members(&context.world, &clone)?.len(), context.world.size() as usize);
    Ok(())
}

fn messages_do_not_meet(context: &Context) -> Result<()> {
    let mut handles = Vec::new();
    let kinds = communicators(&context.world);
    for (name, comm) in &kinds {
        assert!(!handles.contains(&comm.to_fortran()), "{name} has a context of its own");
        handles.push(comm.to_fortran());
        let mut result = -1;
        // SAFETY: both are alive, and `result` outlives the call.
        unsafe {
            mpi_sys::MPI_Comm_compare(comm.as_raw(), context.world.as_raw(), &mut result);
        }
        match *name {
            "world" => assert_eq!(result, mpi_sys::MPI_IDENT),
            "grid" => assert!([mpi_sys::MPI_CONGRUENT, mpi_sys::MPI_SIMILAR].contains(&result)),
            _ => assert_ne!(result, mpi_sys::MPI_IDENT),
        }
    }
    Ok(())
}

fn raw_handles_are_taken_in(context: &Context) -> Result<()> {
    let world = &context.world;
    let mut theirs = mpi_sys::MPI_COMM_NULL;
    // SAFETY: the world is alive, and `theirs` outlives the call.
    unsafe {
        mpi_sys::MPI_Comm_split(mpi_sys::MPI_COMM_WORLD, 0, -world.rank(), &mut theirs);
    }
    // SAFETY: it was just made.
    let ours = unsafe { Communicator::from_raw(theirs) }?;
    assert_ne!(ours.as_raw(), theirs);
    // Theirs to free; ours lives on.
    // SAFETY: nobody uses it any more.
    unsafe { mpi_sys::MPI_Comm_free(&mut theirs) };
    assert_eq!(members(world, &ours)?, expected(world, |_| true, |rank| -rank));
    let x = testing::random(&ours, &[3], Kind::Double)?;
    testing::assert_adjoint(&ours, &x, |x| ours.exscan(x, Op::Sum))
}

fn fortran_handles_make_the_round_trip(context: &Context) -> Result<()> {
    for (name, comm) in communicators(&context.world) {
        let same = Communicator::from_fortran(comm.to_fortran())?;
        assert_eq!((same.rank(), same.size()), (comm.rank(), comm.size()), "{name}");
        assert_ne!(same.to_fortran(), comm.to_fortran(), "{name}");
        assert_eq!(members(&context.world, &same)?, members(&context.world, &comm)?, "{name}");
    }
    // SAFETY: MPI's own communicator has a number at any time.
    let number = unsafe { mpi_sys::MPI_Comm_c2f(mpi_sys::MPI_COMM_WORLD) };
    assert_eq!(Communicator::from_fortran(number)?.size(), context.world.size());
    Ok(())
}

fn what_is_no_communicator_is_refused(context: &Context) -> Result<()> {
    let world = &context.world;
    // SAFETY: null is allowed.
    let error = unsafe { Communicator::from_raw(mpi_sys::MPI_COMM_NULL) }.unwrap_err();
    assert_eq!(error.to_string(), "from_raw: the communicator is MPI_COMM_NULL");
    // SAFETY: the null handle has a number at any time.
    let null = unsafe { mpi_sys::MPI_Comm_c2f(mpi_sys::MPI_COMM_NULL) };
    let error = Communicator::from_fortran(null).unwrap_err();
    assert_eq!(error.to_string(), "from_fortran: the communicator is MPI_COMM_NULL");
    for number in [-1, i32::MIN, 123_456, 0x4400_0009, i32::MAX] {
        let error = Communicator::from_fortran(number).unwrap_err();
        assert!(matches!(error, Error::Argument { .. } | Error::Mpi { .. }), "{number}: {error}");
    }
    if world.size() == 1 {
        return Ok(());
    }
    // Between the first rank and the others.
    let first = world.rank() == 0;
    let side = world.split(Some(i32::from(first)), 0)?.expect("has a color");
    let mut inter = mpi_sys::MPI_COMM_NULL;
    // SAFETY: both are alive, and `inter` outlives the call.
    unsafe {
        let leader = i32::from(first);
        mpi_sys::MPI_Intercomm_create(side.as_raw(), 0, world.as_raw(), leader, 0, &mut inter);
    }
    // SAFETY: it was just made.
    let error = unsafe { Communicator::from_raw(inter) }.unwrap_err();
    assert_eq!(
        error.to_string(),
        "from_raw: an intercommunicator has two groups; a communicator of one is needed"
    );
    // SAFETY: nobody uses it any more.
    unsafe { mpi_sys::MPI_Comm_free(&mut inter) };
    Ok(())
}

fn adjoints_on_every_kind(context: &Context) -> Result<()> {
    let mut kinds = communicators(&context.world);
    kinds.push(("split_shared", context.world.split_shared()?));
    kinds.push(("from_fortran", Communicator::from_fortran(kinds[2].1.to_fortran())?));
    for (name, comm) in kinds {
        let (rank, size) = (i64::from(comm.rank()), i64::from(comm.size()));
        let x = testing::random(&comm, &[2, rank + 1], Kind::Double)?;
        testing::assert_adjoint(&comm, &x, |x| comm.all_gather(x, 1))?;
        testing::assert_serial(
            &comm,
            &x,
            |x| comm.all_gather(x, 1),
            |all| all.iter().map(|_| Tensor::cat(all, 1)).collect(),
        )?;
        let x = testing::random(&comm, &[size, 3], Kind::Double)?;
        testing::assert_adjoint(&comm, &x, |x| comm.reduce_scatter(x, 0, 1, Op::Sum))?;
        testing::assert_adjoint(&comm, &x, |x| comm.all_to_all(x, 1, 0, 1))?;
        let ones = vec![1; comm.size().unsigned_abs() as usize];
        testing::assert_adjoint(&comm, &x, |x| comm.all_to_all_v(x, 0, &ones))?;
        testing::assert_adjoint(&comm, &x, |x| comm.all_reduce(x, Op::Sum))?;
        for exclusive in [false, true] {
            let scan = |x: &Tensor| {
                if exclusive { comm.exscan(x, Op::Sum) } else { comm.scan(x, Op::Sum) }
            };
            testing::assert_adjoint(&comm, &x, scan)?;
            testing::assert_serial(&comm, &x, scan, |all| {
                (0..all.len())
                    .map(|rank| {
                        let ranks = &all[..if exclusive { rank } else { rank + 1 }];
                        ranks.iter().fold(x.zeros_like(), |sum, x| sum + x)
                    })
                    .collect()
            })?;
        }
        for root in 0..comm.size() {
            testing::assert_adjoint(&comm, &x, |x| comm.broadcast(x, root))?;
            testing::assert_adjoint(&comm, &x, |x| comm.reduce(x, Op::Sum, root))?;
            testing::assert_adjoint(&comm, &x, |x| comm.gather(x, 0, root))?;
            testing::assert_adjoint(&comm, &x, |x| comm.scatter(x, 0, 1, root))?;
        }
        testing::gradgradcheck(&comm, &x, |x| comm.all_reduce(x, Op::Prod))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    Ok(())
}

/// One graph may go through several communicators.
fn derivatives_across_kinds(context: &Context) -> Result<()> {
    let world = &context.world;
    let half = world.split(Some(world.rank() % 2), 0)?.expect("has a color");
    let x = testing::random(world, &[3], Kind::Double)?;
    testing::gradcheck(world, &[&x], |x| {
        let within = half.all_reduce(&x[0].sin(), Op::Sum)?;
        world.scan(&(within * &x[0]), Op::Sum)
    })
}

/// MPICH has about 2000 contexts, and each communicator takes three.
fn contexts_come_back(context: &Context) -> Result<()> {
    let world = context.world.duplicate()?;
    let mut kept = Vec::new();
    // MPICH has some 2000 contexts, and each communicator takes three. Many ranks on few cores
    // take long to make one.
    let rounds = if world.size() <= 3 { 500 } else { 50 };
    for i in 0..rounds {
        let duplicate = world.duplicate()?;
        let part = world.split((i % 5 != 4).then_some(world.rank() % 2), i)?;
        if let Some(part) = &part
            && i % 50 == 0
        {
            // What is made from one that is dropped goes with it.
            part.duplicate()?.duplicate()?.split_shared()?;
        }
        if i % 100 == 0 {
            kept.push(duplicate.clone());
        }
    }
    for kept in &kept {
        assert_eq!(members(&world, kept)?.len(), world.size() as usize);
    }
    Ok(())
}

fn ranks_may_drop_at_different_times(context: &Context) -> Result<()> {
    let world = &context.world;
    let mut held = Vec::new();
    for i in 0..60 {
        held.push((i, world.duplicate()?));
        if let Some(part) = world.split(Some((world.rank() + i) % 2), 0)? {
            held.push((i, part));
        }
        // Each rank keeps another choice for another while, and none for longer than 12 rounds.
        held.retain(|(made, _)| i - made < 1 + (7 * made + 5 * world.rank()) % 12);
        if i % 20 == 0 {
            let sum = world.duplicate()?.all_reduce(&Tensor::from_slice(&[1]), Op::Sum)?;
            assert_eq!(sum, Tensor::from_slice(&[world.size()]));
        }
    }
    Ok(())
}

fn children_outlive_their_parents(context: &Context) -> Result<()> {
    let world = &context.world;
    let grandchild = {
        let child = world.split(Some(world.rank() % 2), -world.rank())?.expect("has a color");
        // One of the child's children on one rank only.
        let kept = child.duplicate()?;
        let other = child.duplicate()?;
        if world.rank() == 0 {
            kept
        } else {
            drop(kept);
            other
        }
    };
    for _ in 0..20 {
        world.duplicate()?;
    }
    assert_eq!(grandchild.size(), (world.size() + 1 - world.rank() % 2) / 2);
    assert!(grandchild.to_fortran() != world.to_fortran());
    Ok(())
}

fn graphs_hold_their_communicators(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = variable(world, &[4])?;
    let y = {
        let duplicate = world.duplicate()?;
        let part = world.split(Some(world.rank() % 2), -world.rank())?.expect("has a color");
        part.scan(&duplicate.all_reduce(&x, Op::Sum)?, Op::Sum)?
    };
    for _ in 0..20 {
        world.duplicate()?;
        world.split(Some(0), 0)?;
    }
    // Σ over ranks of the weights (0 + 1 + … below and with it) in either part.
    y.sum(Kind::Double).f_backward()?;
    let part = |color: i32| i64::from((world.size() + 1 - color) / 2);
    let scale = [0, 1].into_iter().map(|color| part(color) * (part(color) + 1) / 2).sum::<i64>();
    assert_eq!(x.grad(), x.ones_like() * scale as f64);
    // Nobody holds them now: they go, and nobody notices.
    drop(y);
    for _ in 0..3 {
        world.duplicate()?;
    }
    world.barrier()
}

fn dropped_on_another_thread(context: &Context) -> Result<()> {
    let world = &context.world;
    for _ in 0..10 {
        let comm = world.duplicate()?;
        let dropper = (world.rank() % 2 == 0).then(|| {
            let comm = comm.clone();
            thread::spawn(move || drop(comm))
        });
        world.split_shared()?;
        drop(comm);
        if let Some(dropper) = dropper {
            dropper.join().expect("dropping does not panic");
        }
    }
    world.barrier()
}

/// Some MPIs give the number of a freed context to the next one that is made.
fn left_over_messages_are_not_inherited(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) =
        ((world.rank() + 1) % world.size(), (world.rank() + world.size() - 1) % world.size());
    let number = |value: i64| Tensor::from_slice(&[value]);
    for i in 0..10 {
        let comm = world.duplicate()?;
        let receive = comm.irecv(&number(0), left, 1)?;
        let _ = comm.isend(&number(i), right, 1)?.wait()?;
        // Never received.
        drop(comm.isend(&number(-1), right, 1)?);
        assert_eq!(receive.wait()?, number(i));
    }
    Ok(())
}
