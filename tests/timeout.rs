//! `MPI4TCH_TIMEOUT`: a job in which one rank never comes says who waits for what, and ends. Without it
//! a rank that waits for long says so.

#[path = "common/job.rs"]
mod job;

use std::time::{Duration, Instant};

use mpi4tch::{
    Communicator, DataParallel, DataParallelOptions, Error, Op, Result, Universe, mpi_sys,
};
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

fn x() -> Tensor {
    Tensor::from_slice(&[1.0, 2.0])
}

/// What all ranks do, but the last only if `comes`.
type Call = fn(&Communicator, comes: bool) -> Result<()>;

/// A scenario: the call that is named, and its line.
type Scenario = (&'static str, &'static str, u32, Call);

#[rustfmt::skip]
const SCENARIOS: [Scenario; 16] = [
    ("all_reduce", "all_reduce", line!(), |c, comes| if comes { c.all_reduce(&x(), Op::Sum).map(drop) } else { Ok(()) }),
    ("barrier", "barrier", line!(), |c, comes| if comes { c.barrier() } else { Ok(()) }),
    ("recv", "recv", line!(), |c, comes| if comes { c.recv(&x(), c.size() - 1, 0).map(drop) } else { Ok(()) }),
    ("probe", "probe", line!(), |c, comes| if comes { c.probe(c.size() - 1, 0).map(drop) } else { Ok(()) }),
    ("irecv", "wait", line!(), |c, comes| if comes { c.irecv(&x(), c.size() - 1, 0)?.wait().map(drop) } else { Ok(()) }),
    ("iall_reduce", "wait", line!(), |c, comes| if comes { c.iall_reduce(&x(), Op::Sum)?.wait().map(drop) } else { Ok(()) }),
    ("wait_any", "wait_any", line!() + 1, |c, comes| if comes {
        mpi4tch::wait_any(&mut vec![c.irecv(&x(), c.size() - 1, 0)?]).map(drop)
    } else { Ok(()) }),
    ("backward", "all_reduce", line!() + 2, |c, comes| {
        let x = x().set_requires_grad(true);
        let loss = c.all_reduce(&x, Op::Sum)?.sum(Kind::Double);
        if comes { Ok(loss.f_backward()?) } else { Ok(()) }
    }),
    ("send", "send", line!(), |c, comes| if comes { c.send(&Tensor::ones([1 << 20], DOUBLE), c.size() - 1, 0).map(drop) } else { Ok(()) }),
    ("refused", "all_reduce", line!(), |c, comes| if comes { c.all_reduce(&Tensor::new(), Op::Sum).map(drop) } else { Ok(()) }),
    ("sizes", "all_gather", line!(), |c, comes| if comes { c.all_gather(&x(), 0).map(drop) } else { Ok(()) }),
    ("duplicate", "duplicate", line!(), |c, comes| if comes { c.duplicate().map(drop) } else { Ok(()) }),
    // SAFETY: MPI's own communicator lives as long as MPI.
    ("from_raw", "from_raw", line!(), |_, comes| if comes { unsafe { Communicator::from_raw(mpi_sys::MPI_COMM_WORLD) }.map(drop) } else { Ok(()) }),
    ("reversed", "the communicator of a scan's adjoint", line!() + 2, |c, comes| {
        let x = x().set_requires_grad(true);
        let loss = c.scan(&x, Op::Sum)?.sum(Kind::Double);
        if comes { Ok(loss.f_backward()?) } else { Ok(()) }
    }),
    ("train", "DataParallel::backward", line!() + 2, |c, comes| {
        let model = DataParallel::with_options(c, &[x().set_requires_grad(true)], &[], DataParallelOptions::default())?;
        if comes { model.backward(None) } else { Ok(()) }
    }),
    ("tape", "Tape::backward", line!(), |c, comes| if comes { c.tape().backward(None) } else { Ok(()) }),
];

/// Carried out by the ranks of a job.
#[test]
fn rank() {
    if job::is_rank_of("malformed") {
        return malformed();
    }
    if job::is_rank_of("patient") {
        return patient().expect("nothing takes long");
    }
    if job::is_rank_of("late") {
        return late().expect("it comes in the end");
    }
    if job::is_rank_of("end") {
        let universe = mpi4tch::initialize().expect("MPI starts");
        if universe.world().rank() == 0 {
            std::thread::sleep(Duration::from_secs(50));
        }
        return drop(universe);
    }
    if job::is_rank_of("mute") {
        let universe = mpi4tch::initialize().expect("MPI starts");
        close_stderr();
        return wait_for_ever(&universe);
    }
    let Some((_, _, _, call)) = SCENARIOS.iter().find(|(name, ..)| job::is_rank_of(name)) else {
        return;
    };
    let universe = mpi4tch::initialize().expect("MPI starts");
    let world = universe.world();
    world.barrier().expect("all are here");
    call(&world, world.rank() + 1 < world.size()).expect("it does not return");
    // The last rank is busy elsewhere.
    std::thread::sleep(Duration::from_secs(50));
}

#[test]
fn a_rank_that_never_comes() {
    let (ranks, seconds) = (3, "1.5");
    job::for_each(SCENARIOS, |(scenario, call, line, _)| {
        let outcome = job::run(scenario, ranks, &[("MPI4TCH_TIMEOUT", seconds)]);
        let printed = &outcome.printed;
        assert!(!outcome.status.success(), "{scenario}: {outcome:?}");
        for rank in 0..ranks - 1 {
            let start = format!("mpi4tch: rank {rank} of {ranks} has waited ");
            let place = format!(" s in {call} at tests/timeout.rs:{line}:");
            let found = printed.lines().any(|line| {
                let waited = line.find(&start).map(|at| &line[at + start.len()..]);
                waited.is_some_and(|rest| {
                    let (time, rest) = rest.split_once(&place).unwrap_or(("", ""));
                    let number = rest.split_once(", its call ").map(|(_, number)| number);
                    time.parse().is_ok_and(|time: f64| (1.5..10.0).contains(&time))
                        && number.is_some_and(|number| number.trim().parse::<u64>().is_ok())
                })
            });
            assert!(found, "{scenario}: {start}_{place}_ is not in\n{printed}");
        }
        assert!(!printed.contains(&format!("rank {} of {ranks} has", ranks - 1)), "{printed}");
        let end = format!(
            " ends the job: MPI4TCH_TIMEOUT is {seconds} s; ranks that have said nothing are \
                 in no call"
        );
        assert!(printed.contains(&end), "{printed}");
    });
}

/// Longer than the timeout, but not in a call.
fn patient() -> Result<()> {
    let universe = mpi4tch::initialize()?;
    let world = universe.world();
    let request = world.iall_reduce(&x(), Op::Sum)?;
    std::thread::sleep(Duration::from_secs(2));
    let _ = request.wait()?;
    for _ in 0..20 {
        world.barrier()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

#[test]
fn what_is_no_call_may_take_long() {
    let outcome = job::run("patient", 2, &[("MPI4TCH_TIMEOUT", "1.5")]);
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(!outcome.printed.contains("has waited"), "{outcome:?}");
}

/// Starts MPI with a value that means nothing, on all ranks or on the last.
fn malformed() {
    let rank =
        ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].iter().find_map(|name| std::env::var(name).ok());
    let rank: i32 = rank.and_then(|rank| rank.parse().ok()).expect("the launcher says");
    let value = std::env::var("MPI4TCH_TEST_VALUE").expect("the job has one");
    let everywhere = std::env::var("MPI4TCH_TEST_EVERYWHERE").is_ok();
    let is_here = everywhere || rank == 1;
    if is_here {
        // SAFETY: nothing else runs in this process yet.
        unsafe { std::env::set_var("MPI4TCH_TIMEOUT", &value) };
    }
    let error = mpi4tch::initialize().expect_err("the value means nothing");
    if is_here {
        assert!(matches!(error, Error::Setting { .. }));
        let expected = format!(
            "initialize: MPI4TCH_TIMEOUT is {value:?}; it may be a number of seconds above 0"
        );
        assert_eq!(error.to_string(), expected);
    } else {
        let expected = "the ranks disagree on a call:\n  refused: initialize: a setting on rank 1";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn values_that_mean_nothing() {
    job::for_each(["", "soon", "0", "-1", "inf", "NaN", "1e400", "5 s"], |value| {
        let outcome = job::run(
            "malformed",
            2,
            &[("MPI4TCH_TEST_VALUE", value), ("MPI4TCH_TEST_EVERYWHERE", "1")],
        );
        assert!(outcome.status.success(), "{value:?}: {outcome:?}");
    });
    let outcome = job::run("malformed", 3, &[("MPI4TCH_TEST_VALUE", "soon")]);
    assert!(outcome.status.success(), "{outcome:?}");
}

/// The end waits for a rank that does not come to it.
#[test]
fn an_end_that_never_comes() {
    let outcome = job::run("end", 2, &[("MPI4TCH_TIMEOUT", "1.5")]);
    assert!(!outcome.status.success(), "{outcome:?}");
    assert!(outcome.printed.contains("mpi4tch: rank 1 of 2 has waited 1."), "{outcome:?}");
    assert!(outcome.printed.contains(" s in finalize at "), "{outcome:?}");
}

/// Makes what is written to standard error fail.
fn close_stderr() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    // SAFETY: replaces an open file by another; nothing here owns the number.
    unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&full), 2) };
}

fn wait_for_ever(universe: &Universe) {
    let world = universe.world();
    if world.rank() == 0 {
        let _ = world.recv(&x(), 1, 0);
    }
    std::thread::sleep(Duration::from_secs(50));
}

#[test]
fn a_rank_that_cannot_say_why_ends_all_the_same() {
    let start = Instant::now();
    let outcome = job::run("mute", 2, &[("MPI4TCH_TIMEOUT", "1.5")]);
    assert_eq!(outcome.status.code(), Some(124), "{outcome:?}");
    assert!(start.elapsed() < Duration::from_secs(40), "{outcome:?}");
}

/// The last rank comes after a while, and on another line than before.
fn late() -> Result<()> {
    let universe = mpi4tch::initialize()?;
    let world = universe.world();
    let is_late = world.rank() + 1 == world.size();
    if is_late {
        world.barrier()?;
        std::thread::sleep(Duration::from_secs(4));
        world.all_reduce(&x(), Op::Sum).map(drop)
    } else {
        world.barrier()?;
        world.all_reduce(&x(), Op::Sum).map(drop)
    }
}

#[test]
fn a_long_wait_is_told_once() {
    let outcome = job::run("late", 2, &[("MPI4TCH_NOTICE", "1")]);
    assert!(outcome.status.success(), "{outcome:?}");
    let lines: Vec<_> = outcome.printed.lines().filter(|line| line.contains("mpi4tch: ")).collect();
    let [waits, lines_differ, goes_on] = lines[..] else { panic!("{outcome:?}") };
    assert!(waits.contains("rank 0 of 2 has waited 1."), "{waits}");
    assert!(waits.contains(" s in all_reduce at tests/timeout.rs:"), "{waits}");
    let barrier = "rank 0 made its last call that stood on another line elsewhere in barrier at ";
    assert!(lines_differ.contains(barrier), "{lines_differ}");
    let would = "mpi4tch: it waits on; MPI4TCH_TIMEOUT=<seconds> would end the job";
    assert!(goes_on.ends_with(would), "{goes_on}");
}
