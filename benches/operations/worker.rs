//! A rank of this crate's job: prepares and times what the driver asks for.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use mpi4tch::{Communicator, Result, ThreadLevel, initialize_with};

use super::protocol::{Answer, Case, Channel, Order, Way};
use super::raw::Raw;
use super::work::{Run, Runs, Setting};
use super::{collectives, messages, neighbors};

/// An operation that can be timed.
pub struct Operation {
    pub name: &'static str,
    pub ways: &'static [Way],
    /// Whether it has a size.
    pub has_data: bool,
    prepare: fn(&Setting) -> Result<Runs>,
}

const BLOCKING: &[Way] = &[Way::Blocking];
const STARTED: &[Way] = &[Way::Blocking, Way::Started];
const COUNTS: &[Way] = &[Way::Blocking, Way::Started, Way::Counts];

macro_rules! operations {
    ($($file:ident::$name:ident $ways:ident,)*) => {
        pub const OPERATIONS: &[Operation] = &[$(Operation {
            name: stringify!($name),
            ways: $ways,
            has_data: true,
            prepare: $file::$name,
        },)* Operation {
            name: "barrier",
            ways: STARTED,
            has_data: false,
            prepare: collectives::barrier,
        }];
    };
}

operations! {
    collectives::all_reduce STARTED,
    collectives::reduce STARTED,
    collectives::broadcast STARTED,
    collectives::gather COUNTS,
    collectives::all_gather COUNTS,
    collectives::scatter COUNTS,
    collectives::reduce_scatter COUNTS,
    collectives::all_to_all COUNTS,
    collectives::all_to_all_v COUNTS,
    collectives::scan STARTED,
    collectives::exscan STARTED,
    collectives::max_loc BLOCKING,
    messages::send_recv BLOCKING,
    messages::sendrecv STARTED,
    neighbors::neighbor_all_gather STARTED,
    neighbors::neighbor_all_to_all STARTED,
    neighbors::halo_exchange STARTED,
}

/// Serves the driver until it closes the connection.
pub fn serve(socket: &Path) -> std::result::Result<(), Box<dyn Error>> {
    let mut driver = Channel::new(UnixStream::connect(socket)?);
    tch::set_num_threads(1);
    let universe = initialize_with(ThreadLevel::Serialized)?;
    let world = universe.world();
    tch::manual_seed(world.rank().into());
    driver.send(&Answer::Ready(universe.library().version().to_owned()))?;
    let mut runs = Runs::new();
    while let Some(order) = driver.receive()? {
        let answer = match order {
            Order::Prepare(case) => {
                // The memory of the case before is free for this one.
                runs.clear();
                prepare(&world, &case).map(|prepared| {
                    runs = prepared;
                    let names = |runs: &Vec<(String, Run)>| {
                        runs.iter().map(|(name, _)| name.clone()).collect()
                    };
                    Answer::Prepared(runs.iter().map(|(d, runs)| (*d, names(runs))).collect())
                })
            }
            Order::Turn { direction, work, calls, warms } => {
                let run = runs.get_mut(&direction).and_then(|runs| runs.get_mut(work));
                let (_, run) = run.ok_or("the driver asks for a work that is not prepared")?;
                time(&world, calls, warms, run).map(Answer::Time)
            }
        };
        // The error ends this rank, and so the job.
        let answer = answer.inspect_err(|error| {
            let _ = driver.send(&Answer::Error(error.to_string()));
        })?;
        driver.send(&answer)?;
    }
    drop(runs);
    drop(world);
    Ok(universe.finalize()?)
}

fn prepare(world: &Communicator, case: &Case) -> Result<Runs> {
    let operation = OPERATIONS.iter().find(|operation| operation.name == case.operation);
    let operation = operation.expect("the driver asks for operations of the list");
    let setting = Setting { world: world.clone(), way: case.way, bytes: case.bytes };
    (operation.prepare)(&setting)
}

/// The time of a call in microseconds; after one that is not counted if it `warms` up, as this rank has
/// slept before.
fn time(world: &Communicator, calls: u32, warms: bool, run: &mut Run) -> Result<f64> {
    if warms {
        run()?;
    }
    Raw::world(world.rank(), world.size(), false).barrier();
    let start = Instant::now();
    for _ in 0..calls {
        run()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(calls))
}
