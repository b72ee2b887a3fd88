//! What is still under way when MPI ends: the job ends well, and says where it was started.

#[path = "common/job.rs"]
mod job;
#[allow(dead_code, reason = "the others are those of other tests")]
#[path = "common/limits.rs"]
mod limits;

use limits::Limit;
use mpi4tch::{Communicator, Op, Request, Result, testing};
use parking_lot::Mutex;
use tch::{Device, Kind, Tensor};

fn ones(count: i64) -> Tensor {
    Tensor::ones([count], (Kind::Double, Device::Cpu))
}

/// What a rank starts, if anything.
type Start = fn(&Communicator) -> Result<Option<Request>>;

/// What is said of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    /// Nothing, or that nobody waited for it: it may have ended by itself.
    Perhaps,
    /// That nobody waited for it.
    NotWaitedFor,
    /// That, and that it does not end.
    Endless,
    /// That, by one of the ranks 0 and 1 at least, which send to each other: when the first has given up,
    /// MPI may take the other's message. A rank that sends to itself says it.
    EndlessAtFirst,
}

use Said::{Endless, EndlessAtFirst, NotWaitedFor, Perhaps};

/// A scenario: the ranks that start the call, the call, its line, and what is said.
type Scenario = (&'static str, fn(i32) -> bool, &'static str, u32, Said, Start);

const LARGE: i64 = 1_000_000;

/// The scenario of a message that waits to be received.
const LARGE_ISEND: &str = "large isend";

/// Sends to the other of two neighbours, or to itself.
fn other(c: &Communicator) -> i32 {
    if c.rank() ^ 1 < c.size() { c.rank() ^ 1 } else { c.rank() }
}

#[rustfmt::skip]
const SCENARIOS: [Scenario; 11] = [
    ("completed iall_reduce", |_| true, "all_reduce", line!(), Perhaps, |c| c.iall_reduce(&ones(2), Op::Sum).map(Some)),
    ("completed large iall_reduce", |_| true, "all_reduce", line!(), Perhaps, |c| c.iall_reduce(&ones(LARGE), Op::Sum).map(Some)),
    ("recorded iall_reduce", |_| true, "all_reduce", line!(), Perhaps, |c| c.iall_reduce(&ones(2).set_requires_grad(true), Op::Max).map(Some)),
    ("ibarrier", |_| true, "barrier", line!(), Perhaps, |c| c.ibarrier().map(Some)),
    ("irecv of what nobody sends", |_| true, "recv", line!(), NotWaitedFor, |c| c.irecv(&ones(2), other(c), 1).map(Some)),
    ("large irecv of what nobody sends", |_| true, "recv", line!(), NotWaitedFor, |c| c.irecv(&ones(LARGE), other(c), 1).map(Some)),
    ("isend that is received", |_| true, "send", line!(), Perhaps, |c| { let r = c.isend(&ones(LARGE), other(c), 1)?; let _ = c.recv(&ones(LARGE), other(c), 1)?; Ok(Some(r)) }),
    ("small isend", |_| true, "send", line!(), Perhaps, |c| c.isend(&ones(1), other(c), 1).map(Some)),
    (LARGE_ISEND, |_| true, "send", line!(), EndlessAtFirst, |c| c.isend(&ones(LARGE), other(c), 1).map(Some)),
    ("iall_reduce without rank 0", |r| r != 0, "all_reduce", line!(), Endless, |c| if c.rank() == 0 { Ok(None) } else { c.iall_reduce(&ones(2), Op::Sum).map(Some) }),
    ("large iall_reduce without rank 0", |r| r != 0, "all_reduce", line!(), Endless, |c| if c.rank() == 0 { Ok(None) } else { c.iall_reduce(&ones(LARGE), Op::Sum).map(Some) }),
];

/// What becomes of the request.
const FATES: [&str; 3] = ["alive", "dropped", "forgotten"];

/// Carried out by the ranks of a job.
#[test]
fn rank() {
    for (name, _, _, _, _, start) in SCENARIOS {
        for fate in FATES {
            if !job::is_rank_of(&format!("{name}, {fate}")) {
                continue;
            }
            let universe = mpi4tch::initialize().expect("MPI starts");
            testing::assume_no_foreign_calls().expect("MPI has started");
            let request = start(&universe.world()).expect("it can be started");
            match fate {
                "alive" => {
                    drop(universe);
                    drop(request);
                }
                "dropped" => drop(request),
                _ => std::mem::forget(request),
            }
        }
    }
}

fn check(
    scenario: Scenario,
    fate: &str,
    ranks: usize,
    level: &str,
) -> std::result::Result<(), String> {
    let (name, starts, call, line, said, _) = scenario;
    let outcome = job::run(&format!("{name}, {fate}"), ranks, &[("MPI4TCH_CHECK", level)]);
    let case = format!("{name}, {fate}, {ranks} ranks, {level}: {outcome:?}");
    if !outcome.status.success() {
        return Err(case);
    }
    let endless = ", started there, has no counterpart on other ranks, and does not end";
    // How many of the ranks 0 and 1 have said that the call does not end.
    let mut first = 0;
    for rank in 0..ranks {
        let about = format!("mpi4tch: rank {rank} of {ranks}: {call} at tests/finalize.rs:{line}:");
        let lines: Vec<_> = outcome.printed.lines().filter(|line| line.contains(&about)).collect();
        let says = |text: &str| lines.iter().any(|line| line.ends_with(text));
        let waited = says(", started there, was never waited for");
        let ends = !says(endless);
        let once = lines.iter().enumerate().all(|(i, line)| !lines[..i].contains(line));
        let right = match said {
            Perhaps => ends,
            NotWaitedFor => waited && ends,
            Endless => waited && !ends,
            EndlessAtFirst if rank < 2 => {
                first += usize::from(!ends);
                waited
            }
            EndlessAtFirst => waited && !ends,
        } && once;
        if starts(i32::try_from(rank).unwrap_or(0)) && !right {
            return Err(case);
        }
    }
    if said == EndlessAtFirst && first == 0 { Err(case) } else { Ok(()) }
}

#[test]
fn requests_at_the_end() {
    let failures = Mutex::new(Vec::new());
    let fates = [("alive", 2, "collective"), ("dropped", 3, "local"), ("forgotten", 2, "local")];
    // The fates take turns, unless all tests are wanted.
    let all = std::env::var_os("MPI4TCH_TEST_ALL").is_some();
    let large_messages_end = limits::has(Limit::LargeMessageThatWaits);
    let scenarios = SCENARIOS.into_iter().enumerate();
    let scenarios =
        scenarios.filter(|(_, scenario)| !large_messages_end || scenario.0 != LARGE_ISEND);
    job::for_each(scenarios, |(number, scenario)| {
        for (turn, (fate, ranks, level)) in fates.into_iter().enumerate() {
            if all || number % fates.len() == turn {
                failures.lock().extend(check(scenario, fate, ranks, level).err());
            }
        }
    });
    let failures = failures.into_inner();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
