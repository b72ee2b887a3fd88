//! Calls that do not go together, and of which the ranks cannot tell: they are on different
//! communicators, or one is a message. Each rank's wait names itself, and the job ends.

#[path = "common/job.rs"]
mod job;
#[allow(dead_code, reason = "the others are those of other tests")]
#[path = "common/limits.rs"]
mod limits;

use limits::Limit;
use mpi4tch::{Communicator, Op, Result};
use parking_lot::Mutex;
use tch::{Device, Kind, Tensor};

/// A call on the world or on a duplicate of it.
type Call = fn(world: &Communicator, duplicate: &Communicator) -> Result<()>;

/// A scenario: its line, and each rank's call, with the name of the one that waits.
type Scenario = (&'static str, u32, [(&'static str, Call); 2]);

#[rustfmt::skip]
const SCENARIOS: [Scenario; 4] = [
    ("a message", line!(), [("all_reduce", |w, _| w.all_reduce(&x(), Op::Sum).map(drop)), ("recv", |w, _| w.recv(&x(), 0, 0).map(drop))]),
    (LARGE_MESSAGE, line!(), [("wait", |w, _| w.iall_reduce(&x(), Op::Sum)?.wait().map(drop)), ("send", |w, _| w.send(&x(), 0, 0).map(drop))]),
    ("a communicator", line!(), [("broadcast", |w, _| w.broadcast(&x(), 0).map(drop)), ("broadcast", |_, d| d.broadcast(&x(), 0).map(drop))]),
    ("a refusal", line!(), [("barrier", |w, _| w.barrier()), ("all_reduce", |_, d| d.all_reduce(&Tensor::new(), Op::Sum).map(drop))]),
];

/// The scenario of a message that waits to be received.
const LARGE_MESSAGE: &str = "a large message";

/// Large enough that no library sends it at once, but for [`Limit::LargeMessageThatWaits`].
fn x() -> Tensor {
    Tensor::ones([1 << 20], (Kind::Double, Device::Cpu)).set_requires_grad(true)
}

/// Carried out by the ranks of a job.
#[test]
fn rank() {
    let Some((_, _, calls)) = SCENARIOS.iter().find(|(name, ..)| job::is_rank_of(name)) else {
        return;
    };
    let universe = mpi4tch::initialize().expect("MPI starts");
    let world = universe.world();
    let duplicate = world.duplicate().expect("all make it");
    let (_, call) = calls[world.rank().unsigned_abs() as usize];
    call(&world, &duplicate).expect("it does not return");
}

#[test]
fn each_wait_names_itself() {
    let missing = Mutex::new(Vec::new());
    let large_messages_end = limits::has(Limit::LargeMessageThatWaits);
    let scenarios =
        SCENARIOS.into_iter().filter(|(name, ..)| !large_messages_end || *name != LARGE_MESSAGE);
    job::for_each(scenarios, |(scenario, line, calls)| {
        let variables = [("MPI4TCH_TIMEOUT", "1.5"), ("MPI4TCH_CHECK", "local")];
        let outcome = job::run(scenario, 2, &variables);
        assert!(!outcome.status.success(), "{scenario}: {outcome:?}");
        for (rank, (call, _)) in calls.iter().enumerate() {
            let start = format!("mpi4tch: rank {rank} of 2 has waited ");
            let place = format!(" s in {call} at tests/mismatch_waits.rs:{line}:");
            let mut lines = outcome.printed.lines();
            if !lines.any(|line| line.contains(&start) && line.contains(&place)) {
                let printed = &outcome.printed;
                missing.lock().push(format!("{scenario}: {start}_{place} is not in\n{printed}"));
            }
        }
    });
    let missing = missing.into_inner();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
