//! Started receives: in which order they take messages, and that they need no wait for it.

use mpi4tch::{Communicator, PROC_NULL, Request, Result, Source, TagMatch, mpi_sys, wait_all};
use tch::{Kind, Tensor};

use crate::common::ring::neighbours;
use crate::common::tensors::full;
use crate::common::{Context, works};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        messages_come_in_the_order_of_the_starts,
        more_receives_than_are_probed_for,
        no_message_comes_from_no_rank,
        a_probe_does_not_see_what_is_expected,
        a_receive_goes_on_while_other_calls_wait,
        a_dropped_receive_takes_its_message,
        // The last: from then on, receives are not probed for.
        a_receive_goes_on_in_raw_calls,
    ]
}

/// Sizes of messages: that are handed to MPI at once, and that are probed for.
const SIZES: [i64; 2] = [8, 4096];

fn message(count: i64, value: i64) -> Tensor {
    full(&[count], Kind::Double, value)
}

/// What a receive says about its message.
#[derive(Clone, Copy)]
struct Wanted {
    any_source: bool,
    tag: Option<i32>,
    count: i64,
}

impl Wanted {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for any_source in [false, true] {
            for tag in [None, Some(5), Some(6)] {
                all.extend(SIZES.map(|count| Self { any_source, tag, count }));
            }
        }
        all
    }

    fn envelope(self, left: i32) -> (Source, TagMatch) {
        let source = if self.any_source { Source::Any } else { left.into() };
        (source, self.tag.map_or(TagMatch::Any, Into::into))
    }
}

/// The receive that takes each message, by MPI's rule: the first that was started and that the tag fits.
fn takers(wanted: &[Wanted], tags: &[i32]) -> Option<Vec<usize>> {
    let mut left: Vec<usize> = (0..wanted.len()).collect();
    let takes = |place: usize, tag| wanted[place].tag.is_none_or(|wanted| wanted == tag);
    tags.iter()
        .map(|&tag| {
            let first = left.iter().position(|&place| takes(place, tag))?;
            Some(left.remove(first))
        })
        .collect()
}

/// All triples of receives, the last started or blocking. The messages of the left neighbour come
/// before, after, or between.
fn messages_come_in_the_order_of_the_starts(context: &Context) -> Result<()> {
    let world = &context.world;
    let all = Wanted::all();
    let mut count = 0;
    for (number, &first) in all.iter().enumerate() {
        for (other, &second) in all.iter().enumerate() {
            for &third in &all {
                let wanted = [first, second, third];
                let tags = [5, 6, 5].map(|tag| if number % 2 == 0 { tag } else { 11 - tag });
                let Some(takers) = takers(&wanted, &tags) else { continue };
                let early = (number + other) % 4;
                in_order(world, &wanted, &tags, &takers, early)?;
                count += 1;
            }
        }
    }
    assert!(count > 300, "{count} cases were tried");
    works(world)
}

/// Each rank sends `early` of the messages before it starts to receive.
fn in_order(
    world: &Communicator,
    wanted: &[Wanted],
    tags: &[i32],
    takers: &[usize],
    early: usize,
) -> Result<()> {
    let (right, left) = neighbours(world);
    let mut sends = Vec::new();
    let mut send = |i: usize| -> Result<()> {
        let x = message(wanted[takers[i]].count, i64::try_from(i).unwrap());
        sends.push(world.isend(&x, right, tags[i])?);
        Ok(())
    };
    (0..early.min(3)).try_for_each(&mut send)?;
    let irecv = |wanted: Wanted| -> Result<Request> {
        let (source, tag) = wanted.envelope(left);
        world.irecv(&message(wanted.count, -1), source, tag)
    };
    let [first, second] = [irecv(wanted[0])?, irecv(wanted[1])?];
    let late = (early.min(3)..3).collect::<Vec<_>>();
    // The blocking receive needs all messages.
    let blocks = early != 2;
    let third = if blocks {
        late.into_iter().try_for_each(&mut send)?;
        let (source, tag) = wanted[2].envelope(left);
        world.recv(&message(wanted[2].count, -1), source, tag)?
    } else {
        let third = irecv(wanted[2])?;
        late.into_iter().try_for_each(&mut send)?;
        third.wait()?
    };
    let second = second.wait()?;
    let received = [first.wait()?, second, third];
    for (i, &taker) in takers.iter().enumerate() {
        let expected = message(wanted[taker].count, i64::try_from(i).unwrap());
        assert_eq!(received[taker], expected, "message {i} of tag {}", tags[i]);
    }
    wait_all(sends).map(drop)
}

/// Blocking sends, in the reverse order of the receives; also with a receive of anything before them.
fn more_receives_than_are_probed_for(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let count = 40;
    for with_any in [false, true] {
        let like = message(SIZES[1], -1);
        let any = with_any.then(|| world.irecv(&like, Source::Any, TagMatch::Any)).transpose()?;
        let receives = (0..count).map(|tag| world.irecv(&like, left, tag));
        let receives = receives.collect::<Result<Vec<_>>>()?;
        let first = with_any.then_some(count);
        for tag in first.into_iter().chain((0..count).rev()) {
            let _ = world.send(&message(SIZES[1], tag.into()), right, tag)?;
        }
        if let Some(any) = any {
            assert_eq!(any.wait()?, message(SIZES[1], count.into()));
        }
        for (tag, y) in (0..).zip(wait_all(receives)?) {
            assert_eq!(y, message(SIZES[1], tag));
        }
    }
    works(world)
}

/// So a receive from any rank takes none of those.
fn no_message_comes_from_no_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    let right = neighbours(world).0;
    let like = message(SIZES[1], -1);
    let any = world.irecv(&like, Source::Any, 3)?;
    let zeros = message(SIZES[1], 0);
    assert_eq!(world.recv(&like, PROC_NULL, 3)?, zeros);
    assert_eq!(world.irecv(&like, PROC_NULL, 3)?.wait()?, zeros);
    assert_eq!(world.sendrecv(&like, PROC_NULL, &like, PROC_NULL, 3)?, zeros);
    assert_eq!(world.probe(PROC_NULL, 3)?.source(), PROC_NULL);
    let sent = world.isend(&message(SIZES[1], 1), right, 3)?;
    assert_eq!(any.wait()?, message(SIZES[1], 1));
    let _ = sent.wait()?;
    works(world)
}

fn a_probe_does_not_see_what_is_expected(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    // Often, as the message may come at any moment of the probe.
    for (first, second) in [(SIZES[1], SIZES[0]), (SIZES[0], SIZES[1])].repeat(100) {
        let request = world.irecv(&message(first, -1), left, 3)?;
        let sends = [
            world.isend(&message(first, 1), right, 3)?,
            world.isend(&message(second, 2), right, 3)?,
        ];
        let status = world.probe(left, TagMatch::Any)?;
        assert_eq!(status.count(Kind::Double), Some(second), "the first message was expected");
        assert_eq!(world.recv(&message(second, -1), left, 3)?, message(second, 2));
        assert_eq!(request.wait()?, message(first, 1));
        wait_all(sends)?;
    }
    works(world)
}

/// A blocking send ends although the rank that receives has not come to its wait, but to a barrier.
fn a_receive_goes_on_while_other_calls_wait(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let request = world.irecv(&message(SIZES[1], -1), left, 3)?;
    let sends = world.rank() % 2 == 1;
    if sends {
        let _ = world.send(&message(SIZES[1], 1), right, 3)?;
    }
    world.barrier()?;
    if !sends {
        let _ = world.send(&message(SIZES[1], 1), right, 3)?;
    }
    world.barrier()?;
    assert_eq!(request.wait()?, message(SIZES[1], 1));
    works(world)
}

fn a_dropped_receive_takes_its_message(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    for count in SIZES {
        drop(world.irecv(&message(count, -1), left, 3)?);
        let sends = [
            world.isend(&message(count, 1), right, 3)?,
            world.isend(&message(count, 2), right, 3)?,
        ];
        assert_eq!(world.recv(&message(count, -1), left, 3)?, message(count, 2));
        wait_all(sends)?;
    }
    works(world)
}

/// As a program does that makes MPI calls of its own beside those of this crate.
fn a_receive_goes_on_in_raw_calls(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    for _ in 0..3 {
        let request = world.irecv(&message(SIZES[1], -1), left, 3)?;
        // SAFETY: all ranks make this call, on a communicator that is alive.
        let barrier = || unsafe { mpi_sys::MPI_Barrier(world.as_raw()) };
        let sends = world.rank() % 2 == 1;
        if sends {
            let _ = world.send(&message(SIZES[1], 1), right, 3)?;
        }
        barrier();
        if !sends {
            let _ = world.send(&message(SIZES[1], 1), right, 3)?;
        }
        barrier();
        assert_eq!(request.wait()?, message(SIZES[1], 1));
    }
    works(world)
}
