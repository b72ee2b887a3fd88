//! Starts the jobs, and gives turns to the ranks of each. The ranks of the others sleep meanwhile.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mpi4tch::mpi_sys;

use super::arguments::{Arguments, Cases};
use super::job::Job;
use super::protocol::{Case, Direction, Works};
use super::record::{About, Results};
use super::report;
use super::row::{Row, Timed};

/// The programs of peers, in benches/peers.
const PEERS: [(&str, &str); 2] =
    [("mpi4torch", "operations_mpi4torch.py"), ("mpi4jax", "operations_mpi4jax.py")];

/// What a turn should take, and how many rounds there are at least and at most.
const TURN: f64 = 1_000.0;
const MOST_CALLS: u32 = 1_000;
const LEAST_ROUNDS: usize = 3;
const MOST_ROUNDS: usize = 31;

pub fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let folder = arguments.folder();
    let mut failed = 0;
    if !arguments.report {
        let cases = arguments.cases()?;
        for &ranks in &arguments.ranks {
            let (results, failures) = measure_all(arguments, &cases, ranks)?;
            failed += failures;
            let kind = if arguments.peers { "peers" } else { "operations" };
            let vendor = match mpi_sys::loaded_vendor() {
                mpi_sys::Vendor::OpenMpi => "openmpi",
                mpi_sys::Vendor::Mpich => "mpich",
                _ => "mpi",
            };
            let path = results.write(&folder, &format!("{kind}-{vendor}-{ranks}"))?;
            println!("\nresults: {}\n", path.display());
        }
    }
    report::write(&folder)?;
    if failed == 0 { Ok(()) } else { Err(format!("{failed} cases failed").into()) }
}

/// Times all cases on so many ranks. Returns also the number of those that have failed.
fn measure_all(
    arguments: &Arguments,
    cases: &Cases,
    ranks: usize,
) -> Result<(Results<Row>, usize), Box<dyn Error>> {
    let mut jobs = launch(arguments, ranks)?;
    let about = About::here(&jobs[0].library, ranks);
    let crowded = if about.is_oversubscribed() { ", more than cores" } else { "" };
    println!("{}, {ranks} ranks{crowded}; times are medians of the slowest rank\n", about.mpi);
    println!("{}", report::heading());

    let progress = Progress::new(cases.len());
    let (mut rows, mut failed) = (Vec::new(), 0);
    for (case, share) in cases {
        progress.show(case);
        let time = Duration::from_secs_f64(share * arguments.minutes * 60.0);
        match measure(&mut jobs, case, time) {
            Ok(measured) => {
                measured.iter().for_each(|row| progress.print(&report::line(row)));
                rows.extend(measured);
            }
            Err(error) => {
                let Case { operation, way, bytes } = case;
                progress
                    .print(&format!("error: {operation} {way} {}: {error}", report::size(*bytes)));
                failed += 1;
                // The others are measured all the same.
                drop(jobs);
                jobs = match launch(arguments, ranks) {
                    Ok(jobs) => jobs,
                    Err(error) => {
                        progress.print(&format!("error: {error}"));
                        break;
                    }
                };
            }
        }
    }
    progress.finish();
    Ok((Results { about, rows }, failed))
}

/// Starts this crate's job, and those of the peers.
fn launch(arguments: &Arguments, ranks: usize) -> Result<Vec<Job>, Box<dyn Error>> {
    let mut ours = harness::mpiexec(ranks);
    ours.arg(std::env::current_exe()?);
    let mut jobs = vec![Job::start("mpi4tch", ours, ranks)?];
    if arguments.peers {
        for (name, program) in PEERS {
            jobs.push(Job::start(name, peer(program, ranks)?, ranks)?);
        }
    }
    Ok(jobs)
}

/// A peer's program under the launcher.
fn peer(program: &str, ranks: usize) -> Result<Command, Box<dyn Error>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(program);
    let folder = |name| {
        let missing = format!("{name} is not set, which `make bench-peers` does");
        std::env::var_os(name).ok_or(missing)
    };
    let folders = std::env::join_paths([folder("PEERS")?, folder("PYTORCH")?])?;
    let mut command = harness::mpiexec(ranks);
    command.args(["python3", "-W", "ignore"]).arg(path).env("PYTHONPATH", folders);
    Ok(command)
}

/// A work of a job.
struct Contender {
    job: usize,
    work: usize,
    /// The number of calls in a turn, and whether there is one before them.
    calls: u32,
    warms: bool,
    timed: Timed,
}

/// Times a case, for about so long, but for at least a few rounds.
fn measure(jobs: &mut [Job], case: &Case, time: Duration) -> Result<Vec<Row>, Box<dyn Error>> {
    // Peers first: what none of them has is left out.
    let mut works = Vec::new();
    for job in jobs.iter_mut().skip(1) {
        works.push(job.prepare(case)?);
    }
    if !works.is_empty() && works.iter().all(Works::is_empty) {
        return Ok(Vec::new());
    }
    works.insert(0, jobs[0].prepare(case)?);
    let mut rows = Vec::new();
    for direction in Direction::ALL {
        let mut contenders: Vec<Contender> = Vec::new();
        for (job, works) in works.iter().enumerate() {
            for (work, name) in works.get(&direction).into_iter().flatten().enumerate() {
                let (name, is_peer) = (name.clone(), job > 0);
                let timed = Timed { name, is_peer, times: Vec::new() };
                contenders.push(Contender { job, work, calls: 1, warms: false, timed });
            }
        }
        // Forward and backward takes as long as the two together.
        let share = if direction == Direction::Both { 0.5 } else { 0.25 };
        take_turns(jobs, direction, &mut contenders, time.mul_f64(share))?;
        let timed: Vec<Timed> = contenders.into_iter().map(|contender| contender.timed).collect();
        rows.extend(Row::of(case.clone(), direction, &timed));
    }
    Ok(rows)
}

/// Rounds in which all contenders have a turn, each time another one first.
fn take_turns(
    jobs: &mut [Job],
    direction: Direction,
    contenders: &mut [Contender],
    time: Duration,
) -> Result<(), Box<dyn Error>> {
    let mut turn = |contender: &Contender| {
        let Contender { job, work, calls, warms, .. } = *contender;
        jobs[job].turn(direction, work, calls, warms)
    };
    let start = Instant::now();
    for contender in &mut *contenders {
        // In the first call, connections are made, memory is fetched, and programs are compiled.
        turn(contender)?;
        let mut time = turn(contender)?;
        contender.warms = time < 10.0 * TURN;
        if contender.warms {
            contender.calls = 5;
            time = turn(contender)?;
            contender.calls = 1;
        }
        while contender.calls < MOST_CALLS && f64::from(contender.calls + 1) * time <= TURN {
            contender.calls += 1;
        }
    }
    for round in 0..MOST_ROUNDS {
        if round >= LEAST_ROUNDS && start.elapsed() > time {
            break;
        }
        for place in 0..contenders.len() {
            // In both orders, as what comes before may leave something in the cache.
            let place = if round % 2 == 0 { place } else { contenders.len() - 1 - place };
            let contender = (round / 2 + place) % contenders.len();
            let time = turn(&contenders[contender])?;
            contenders[contender].timed.times.push(time);
        }
    }
    Ok(())
}

/// How far the benchmark is, on standard error: a bar on a terminal, lines elsewhere.
struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
}

impl Progress {
    fn new(cases: usize) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let target = match is_terminal {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len}, {eta} left  {msg}")
            .expect("the template is right");
        let length = u64::try_from(cases).unwrap_or(0);
        let bar = ProgressBar::with_draw_target(Some(length), target).with_style(style);
        Self { bar, is_terminal }
    }

    fn show(&self, case: &Case) {
        let text = format!("{} {} {}", case.operation, case.way, report::size(case.bytes));
        if !self.is_terminal {
            let (number, of) = (self.bar.position() + 1, self.bar.length().unwrap_or(0));
            eprintln!("[{number}/{of}] {text}");
        }
        self.bar.set_message(text);
        self.bar.inc(1);
    }

    fn print(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
