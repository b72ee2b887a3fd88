//! Tensors on devices, by the stand-in: where results are, and that everybody waits for the device who
//! must, and nobody else.

#[path = "../common/mod.rs"]
mod common;
mod direct;
mod exchanges;
mod messages;
mod order;
mod pieces;
mod places;
mod queues;
mod refused;
mod staging;
#[path = "../collectives/table.rs"]
mod table;
#[path = "../point_to_point/ways.rs"]
mod ways;

use std::process::ExitCode;
use std::time::Duration;

use common::start_on_stand_in;
use mpi4tch::{Communicator, Rank, Result, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    run_on_few_ranks();
    let tests = [
        // Before all others, whose passes go back on several threads: from then on calls are polled for, made
        // at once, and Open MPI gets no pointers in them.
        pieces::tests(),
        direct::tests(),
        pieces::tests_that_are_polled(),
        places::tests(),
        order::tests(),
        messages::tests(),
        exchanges::tests(),
        queues::tests(),
        staging::tests(),
        refused::tests(),
    ];
    harness::run(start_on_stand_in, tests.into_iter().flatten().collect())
}

/// Leaves of the rank counts that are asked for the largest up to 3: the stand-in has two devices, and the
/// waits for them take their time on each count.
fn run_on_few_ranks() {
    const NAME: &str = "MPI4TCH_TEST_RANKS";
    let asked = std::env::var(NAME).unwrap_or_default();
    let few = asked.split(',').filter_map(|count| count.trim().parse::<u32>().ok());
    let count = few.filter(|count| *count <= 3).max().unwrap_or(3);
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var(NAME, count.to_string()) };
}

/// The number of the stand-in that a tensor is on, if it is not in host memory.
type Place = Option<i32>;

/// Where the tensors of each rank are: on different devices, of which one may be the host.
const PLACES: [fn(Rank) -> Place; 3] = [
    |rank| Some(rank % 2),
    |rank| if rank == 0 { None } else { Some(rank % 2) },
    |rank| if rank == 0 { Some(1) } else { None },
];

/// The tensor there; recorded by autograd.
fn moved(x: &Tensor, place: Place) -> Tensor {
    match place {
        Some(index) => stand_in::to_device(x, index),
        None => stand_in::to_host(x),
    }
}

/// The same elements as a leaf that does not require grad.
fn leaf(x: &Tensor, place: Place) -> Tensor {
    moved(&x.detach(), place).detach()
}

/// Small numbers, of which sums and products are exact in every order.
fn whole_numbers(comm: &Communicator, shape: &[i64], kind: Kind) -> Result<Tensor> {
    if kind == Kind::Bool {
        return testing::random(comm, shape, kind);
    }
    Ok(testing::random(comm, shape, Kind::Uint8)?.remainder(3).to_kind(kind))
}

/// The delay of the other tests.
const USUAL: Duration = Duration::from_millis(1);

/// Runs `f` while the stand-in waits so long before each of its tasks.
fn with_delay<T>(milliseconds: u64, f: impl FnOnce() -> T) -> T {
    stand_in::set_delay(Duration::from_millis(milliseconds));
    let _reset = OnDrop(|| stand_in::set_delay(USUAL));
    f()
}

/// Runs `f` while large tensors go in pieces of so many bytes.
fn with_pieces<T>(bytes: usize, f: impl FnOnce() -> T) -> T {
    testing::set_staging_piece(bytes);
    let _reset = OnDrop(|| testing::set_staging_piece(4 << 20));
    f()
}

/// Calls a function when it is dropped, in a panic, too.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
