//! Several threads: in jobs, and in a process that no launcher started.

#[path = "common/job.rs"]
mod job;
#[path = "common/ring.rs"]
mod ring;

use mpi4tch::{Communicator, Error, Op, Request, Result, Tape, ThreadLevel, Universe};
use ring::neighbours;
use tch::{Device, Kind, Tensor};

/// What may go to another thread, and what may be used by several.
const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_sync<T: Sync>() {}
    is_send::<Request>();
    is_send::<mpi4tch::Test>();
    is_send::<Communicator>();
    is_sync::<Communicator>();
    is_send::<Tape>();
    is_sync::<Tape>();
    is_send::<Error>();
    is_sync::<Error>();
};

/// All-reduces until that fails.
fn until_error(comm: &Communicator) -> Error {
    let x = Tensor::ones([64], (Kind::Double, Device::Cpu));
    loop {
        if let Err(error) = comm.all_reduce(&x, Op::Max) {
            return error;
        }
    }
}

/// Carried out by the ranks of a job.
#[test]
fn rank() {
    type Scenario = (&'static str, ThreadLevel, fn(&Communicator) -> Result<()>);
    let scenarios: [Scenario; 7] = [
        ("serialized", ThreadLevel::Serialized, on_other_threads),
        ("multiple", ThreadLevel::Multiple, on_other_threads),
        ("two serialized", ThreadLevel::Serialized, two_communicators),
        ("two multiple", ThreadLevel::Multiple, two_communicators),
        ("blocking", ThreadLevel::Serialized, two_that_wait),
        ("blocking multiple", ThreadLevel::Multiple, two_that_wait),
        ("funneled", ThreadLevel::Funneled, on_the_main_thread_only),
    ];
    if job::is_rank_of("end") {
        an_end_beside_a_derivative(mpi4tch::initialize().expect("MPI starts"));
        return eprintln!("end: carried out");
    }
    if job::is_rank_of("alone") {
        threads_share_mpi_and_see_its_end();
        return eprintln!("alone: carried out");
    }
    for (name, level, scenario) in scenarios {
        if job::is_rank_of(name) {
            let universe = mpi4tch::initialize_with(level).expect("MPI starts");
            // More may be given than was asked for.
            if universe.library().thread_level() == level {
                scenario(&universe.world()).expect("it works");
                eprintln!("{name}: carried out");
            }
        }
    }
}

fn double(value: f64) -> Tensor {
    Tensor::from_slice(&[value, -value])
}

/// Runs `f` on a thread of its own.
fn elsewhere<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    std::thread::spawn(f).join().expect("no panic")
}

/// Started on one thread, waited for on another, gone back through on a third.
fn on_other_threads(comm: &Communicator) -> Result<()> {
    let (right, left) = neighbours(comm);
    let (rank, size) = (f64::from(comm.rank()), f64::from(comm.size()));
    for _ in 0..20 {
        let x = double(rank + 1.0).set_requires_grad(true);
        let sum = comm.iall_reduce(&x, Op::Sum)?;
        let message = comm.isend(&x.detach(), right, 0)?;
        let clone = comm.clone();
        let receive = elsewhere(move || clone.irecv(&double(0.0), left, 0))?;
        let y = elsewhere(move || sum.wait())?;
        assert_eq!(y.detach(), double(size * (size + 1.0) / 2.0));
        assert_eq!(receive.wait()?, double(f64::from(left) + 1.0));
        let _ = elsewhere(move || message.wait())?;
        let loss = (y * (rank + 1.0)).sum(Kind::Double);
        elsewhere(move || Ok(loss.f_backward()?))?;
        assert_eq!(x.grad(), double(0.0) + size * (size + 1.0) / 2.0);
    }
    Ok(())
}

/// Each of two threads has a communicator of its own, and starts its calls.
fn two_communicators(comm: &Communicator) -> Result<()> {
    let work = |comm: Communicator, weight: f64| {
        std::thread::spawn(move || -> Result<()> {
            let size = f64::from(comm.size());
            let (right, left) = neighbours(&comm);
            for i in 0..50 {
                let own = weight * f64::from(comm.rank() + i);
                let x = double(own).set_requires_grad(true);
                let receive = comm.irecv(&double(0.0), left, i)?;
                let send = comm.isend(&double(own), right, i)?;
                let y = comm.iall_reduce(&x, Op::Sum)?.wait()?;
                assert_eq!(receive.wait()?, double(weight * f64::from(left + i)));
                let _ = send.wait()?;
                (y * weight).sum(Kind::Double).f_backward()?;
                assert_eq!(x.grad(), double(0.0) + weight * size);
            }
            Ok(())
        })
    };
    let threads = [work(comm.duplicate()?, 1.0), work(comm.duplicate()?, 1000.0)];
    for thread in threads {
        thread.join().expect("no panic")?;
    }
    Ok(())
}

/// Each of two threads has a communicator of its own, and makes calls that wait. On each rank another
/// thread comes first, so each waits while the other must go on.
fn two_that_wait(comm: &Communicator) -> Result<()> {
    let work = |comm: Communicator, weight: f64, first: bool| {
        std::thread::spawn(move || -> Result<()> {
            let (rank, size) = (comm.rank(), comm.size());
            let (right, left) = neighbours(&comm);
            for i in 0..20 {
                if !first {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                let tape = comm.tape();
                let x = double(weight * f64::from(rank + i)).set_requires_grad(true);
                let sum = tape.all_reduce(&x, Op::Sum)?;
                let beside = tape.sendrecv(&x, right, &x, left, 0)?;
                assert_eq!(beside.detach(), double(weight * f64::from(left + i)));
                let all = tape.all_gather(&x, 0)?;
                if rank == 0 {
                    let _ = tape.recv(&x, size - 1, i)?;
                }
                if rank == size - 1 {
                    let _ = tape.send(&x, 0, i)?;
                }
                tape.backward(&((sum + beside).sum(Kind::Double) + all.sum(Kind::Double)))?;
                assert_eq!(x.grad(), double(0.0) + f64::from(2 * size + 1));
            }
            Ok(())
        })
    };
    let even = comm.rank() % 2 == 0;
    let threads = [work(comm.duplicate()?, 1.0, even), work(comm.duplicate()?, 1000.0, !even)];
    for thread in threads {
        thread.join().expect("no panic")?;
    }
    // The thread that initialized waits too, while another goes on.
    let (mine, other) = (comm.duplicate()?, comm.duplicate()?);
    let elsewhere = std::thread::spawn(move || other.all_reduce(&double(1.0), Op::Sum));
    assert_eq!(mine.all_reduce(&double(1.0), Op::Sum)?, double(f64::from(comm.size())));
    let sum = elsewhere.join().expect("no panic")?;
    assert_eq!(sum, double(f64::from(comm.size())));
    Ok(())
}

/// Start and wait are refused elsewhere, and nothing is lost by it.
fn on_the_main_thread_only(comm: &Communicator) -> Result<()> {
    let text = |call: &str| {
        format!(
            "{call}: called from a thread that may not call MPI (thread level Funneled); call from \
             the main thread, or initialize with ThreadLevel::Serialized"
        )
    };
    let (right, left) = neighbours(comm);
    let clone = comm.clone();
    let errors = elsewhere(move || {
        let start = [
            clone.iall_reduce(&double(1.0), Op::Sum).err(),
            clone.isend(&double(1.0), right, 0).err(),
            clone.irecv(&double(1.0), left, 0).err(),
        ];
        let whole = [
            clone.send(&double(1.0), right, 0).err(),
            clone.sendrecv(&double(1.0), right, &double(1.0), left, 0).err(),
            clone.probe(left, 0).err(),
        ];
        Ok(start.into_iter().chain(whole).collect::<Vec<_>>())
    })?;
    let calls = ["all_reduce", "send", "recv", "send", "sendrecv", "probe"];
    for (error, call) in errors.into_iter().zip(calls) {
        assert_eq!(error.expect("refused").to_string(), text(call));
    }
    for _ in 0..2 {
        let sum = comm.iall_reduce(&double(1.0), Op::Sum)?;
        let error = elsewhere(move || sum.wait()).expect_err("refused");
        assert_eq!(error.to_string(), text("wait"));
        let receive = comm.irecv(&double(1.0), left, 0)?;
        let error = elsewhere(move || receive.test().map(drop)).expect_err("refused");
        assert_eq!(error.to_string(), text("recv"));
        let _ = comm.send(&double(1.0), right, 0)?;
    }
    // The thread that may goes on.
    let sum = comm.iall_reduce(&double(1.0), Op::Sum)?.wait()?;
    assert_eq!(sum, double(f64::from(comm.size())));
    Ok(())
}

#[test]
fn jobs_of_several_threads() {
    for scenario in [
        "serialized",
        "multiple",
        "two serialized",
        "two multiple",
        "blocking",
        "blocking multiple",
        "funneled",
    ] {
        for ranks in [2, 3] {
            let outcome = job::run(scenario, ranks, &[]);
            assert!(outcome.status.success(), "{scenario}: {outcome:?}");
            assert!(outcome.printed.contains(&format!("{scenario}: carried out")), "{outcome:?}");
        }
    }
}

/// The first derivative of a scan makes a communicator, while the universe is being dropped.
fn an_end_beside_a_derivative(universe: Universe) {
    let world = universe.world();
    let x = double(1.0).set_requires_grad(true);
    let loss = world.scan(&x, Op::Sum).expect("it works").sum(Kind::Double);
    // Nobody receives it, so that the end takes a while.
    let large = Tensor::ones([1 << 20], (Kind::Double, Device::Cpu));
    std::mem::forget(world.isend(&large, 0, 3));
    let derivative = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        loss.f_backward().map_err(|error| error.to_string())
    });
    drop(universe);
    let error = derivative.join().expect("no panic").expect_err("MPI has ended");
    assert!(error.contains("MPI has been finalized"), "{error}");
}

#[test]
fn the_end_and_a_derivative() {
    let outcome = job::run("end", 1, &[]);
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(outcome.printed.contains("end: carried out"), "{outcome:?}");
}

/// All in one process: MPI starts and ends once in a process, and on one thread.
fn threads_share_mpi_and_see_its_end() {
    let universe = mpi4tch::initialize_with(ThreadLevel::Multiple).unwrap();
    let level = universe.library().thread_level();
    let world = universe.world();

    // The thread that initialized MPI is the one to finalize it.
    let error = std::thread::spawn(|| mpi4tch::initialize().unwrap_err()).join().unwrap();
    assert!(matches!(error, Error::Thread { .. }), "{error}");

    // The end waits for calls that are under way, and lets no more begin.
    let mine = world.duplicate().unwrap();
    let other = std::thread::spawn(move || until_error(&mine));
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(universe);
    let error = other.join().unwrap();
    if level >= ThreadLevel::Serialized {
        assert!(matches!(error, Error::Finalized { .. }), "{error}");
    }
    assert!(matches!(until_error(&world), Error::Finalized { .. }));
    let error = std::thread::spawn(|| mpi4tch::initialize().unwrap_err()).join().unwrap();
    assert!(matches!(error, Error::Finalized { .. }), "{error}");
}

#[test]
fn threads_without_a_launcher() {
    let outcome = job::run_without_launcher("alone");
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(outcome.printed.contains("alone: carried out"), "{outcome:?}");
}
