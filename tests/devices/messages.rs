//! Messages of one rank to another come in the order of the calls, wherever the tensors are.

use mpi4tch::{Communicator, Request, Result, Source, TagMatch, mpi_sys, testing, wait_all};
use tch::{Kind, Tensor};

use crate::common::ring::neighbours;
use crate::common::tensors::full;
use crate::common::{Context, works};
use crate::{Place, leaf, moved, with_delay};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        a_message_from_host_memory_does_not_overtake,
        receives_take_messages_in_their_order,
        a_probe_sees_the_first_message,
        statuses,
        a_message_leaves_while_its_sender_is_in_a_raw_call,
    ]
}

/// Of messages below and above the eager limit.
const COUNTS: [i64; 3] = [1, 100, 50_000];

fn message(count: i64, value: i32, place: Place) -> Tensor {
    leaf(&full(&[count], Kind::Double, i64::from(value)), place)
}

fn assert_is(y: &Tensor, count: i64, value: i32) {
    assert_eq!(moved(y, None), message(count, value, None), "message {value}");
}

/// Sends these messages with one tag, and returns what is under way. `blocking` says which of them are
/// sent by a call that blocks.
fn send_all(
    comm: &Communicator,
    count: i64,
    places: &[Place],
    blocking: Option<usize>,
) -> Result<Vec<Request>> {
    let right = neighbours(comm).0;
    let mut requests = Vec::new();
    for (i, place) in places.iter().enumerate() {
        let value = i32::try_from(i).expect("few messages");
        // On a device it is computed when it is sent.
        let x = message(count, value, *place) * 1.0;
        if blocking == Some(i) {
            let _ = comm.send(&x, right, 3)?;
        } else {
            requests.push(comm.isend(&x, right, 3)?);
        }
    }
    Ok(requests)
}

const ORDERS: [[Place; 4]; 4] = [
    [Some(0), None, Some(1), None],
    [None, Some(1), None, Some(1)],
    [Some(0), Some(1), Some(0), None],
    [Some(1), None, None, None],
];

fn a_message_from_host_memory_does_not_overtake(context: &Context) -> Result<()> {
    let world = &context.world;
    let left = neighbours(world).1;
    for count in COUNTS {
        for places in ORDERS {
            for blocking in [None, Some(1), Some(3)] {
                with_delay(8, || -> Result<()> {
                    let like = message(count, -1, None);
                    // A blocking send may wait for its receive, which is started before.
                    let receives = (0..places.len()).map(|_| world.irecv(&like, left, 3));
                    let receives = receives.collect::<Result<Vec<_>>>()?;
                    let sends = send_all(world, count, &places, blocking)?;
                    for (value, y) in (0..).zip(wait_all(receives)?) {
                        assert_is(&y, count, value);
                    }
                    wait_all(sends).map(drop)
                })?;
            }
        }
    }
    works(world)
}

/// Of receives into host memory and into that of devices, with and without names.
fn receives_take_messages_in_their_order(context: &Context) -> Result<()> {
    let world = &context.world;
    let left = neighbours(world).1;
    for count in COUNTS {
        for (i, places) in ORDERS.iter().enumerate() {
            with_delay(10, || -> Result<()> {
                let sends = send_all(world, count, &ORDERS[(i + 1) % ORDERS.len()], None)?;
                let mut receives = Vec::new();
                for (j, place) in places[..3].iter().enumerate() {
                    let like = message(count, -1, *place);
                    receives.push(match j {
                        1 => world.irecv(&like, Source::Any, TagMatch::Any)?,
                        _ => world.irecv(&like, left, 3)?,
                    });
                }
                // The blocking one is started last, and gets the last.
                let last = world.recv(&message(count, -1, places[3]), left, 3)?;
                assert_is(&last, count, 3);
                for (value, y) in (0..).zip(wait_all(receives)?) {
                    assert_is(&y, count, value);
                }
                wait_all(sends).map(drop)
            })?;
        }
    }
    works(world)
}

fn a_probe_sees_the_first_message(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    with_delay(20, || -> Result<()> {
        let sends = [
            world.isend(&(message(7, 1, Some(0)) * 1.0), right, 3)?,
            world.isend(&message(5, 2, None), right, 3)?,
        ];
        for (count, value) in [(7, 1), (5, 2)] {
            let status = world.probe(left, TagMatch::Any)?;
            assert_eq!(status.count(Kind::Double), Some(count));
            let like = message(count, -1, Some(1));
            assert_is(&world.recv(&like, status.source(), status.tag())?, count, value);
        }
        wait_all(sends).map(drop)
    })?;
    works(world)
}

fn statuses(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    for (from, to) in [(Some(0), None), (None, Some(0)), (Some(1), Some(0))] {
        let request = world.isend(&message(6, 4, from), right, 8)?;
        let (y, status) = world.recv_with_status(&message(6, 0, to), Source::Any, TagMatch::Any)?;
        assert_eq!((status.source(), status.tag()), (left, 8));
        assert_eq!(status.count(Kind::Double), Some(6));
        assert_is(&y, 6, 4);
        let _ = request.wait()?;
    }
    works(world)
}

/// A program that waits in MPI calls of its own does not advance ours: what it has started is handed to
/// MPI before, once the device has come so far.
fn a_message_leaves_while_its_sender_is_in_a_raw_call(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, last) = (world.rank(), world.size() - 1);
    for is_shared_before in [false, true] {
        with_delay(50, || -> Result<()> {
            if is_shared_before {
                let _ = world.as_raw();
            }
            // From even ranks to odd ones, which come to the barrier with the message.
            let sends = rank % 2 == 0 && rank < last;
            let start = || world.isend(&(message(5, 3, Some(0)) * 1.0), rank + 1, 3);
            let sent = sends.then(start).transpose()?;
            let raw = world.as_raw();
            if rank % 2 == 1 {
                assert_is(&world.recv(&message(5, -1, Some(1)), rank - 1, 3)?, 5, 3);
            }
            // SAFETY: all ranks make this call, on a communicator that is alive.
            unsafe { mpi_sys::MPI_Barrier(raw) };
            sent.map_or(Ok(()), |sent| sent.wait().map(drop))
        })?;
        testing::assume_no_foreign_calls()?;
    }
    works(world)
}
