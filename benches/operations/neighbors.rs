//! The operations between neighbours, on a ring of ranks: on two ranks, both neighbours are the same.

use std::ffi::c_int;

use mpi4tch::{Cartesian, Communicator, Halo, Result};
use tch::{Device, Kind, Tensor};

use super::protocol::Way;
use super::raw::{Buffer, Raw, ring as raw_ring};
use super::work::{Operation, RawPass, Runs, Setting, random};

fn ring(comm: &Communicator) -> Result<Cartesian> {
    Ok(comm.cartesian(&[0], &[true], false)?.expect("all ranks are in the ring"))
}

fn operation<F>(x: Tensor, call: F) -> Operation<fn(&Communicator) -> Result<Cartesian>, F>
where
    F: Fn(&Cartesian, &Tensor) -> Result<Tensor> + 'static,
{
    Operation { x, place: ring, call, needs_tape: false }
}

/// The ranks before and after this one.
type Ends = (c_int, c_int);

/// A raw way of a pass, on a ring.
fn on_ring(
    s: &Setting,
    calls: impl Into<String>,
    make: impl Fn(Raw, Ends, Buffer, Buffer) + 'static,
) -> Result<RawPass> {
    let ends = ring(&s.world)?.shift(0, 1)?;
    let raw = Raw { comm: raw_ring(s.world.size()), ..s.raw() };
    Ok(RawPass::new(calls, move |from, into| make(raw, ends, from, into)))
}

/// Each rank's block goes to both neighbours; backward, the two cotangents are added.
pub fn neighbor_all_gather(s: &Setting) -> Result<Runs> {
    let way = s.way;
    let block = s.block(2);
    let forward = on_ring(s, s.name("neighbor_allgather"), |raw, _, from, into| {
        raw.neighbor_all_gather(from, into);
    })?;
    let received = Tensor::zeros([2 * block], (Kind::Double, Device::Cpu));
    let back = on_ring(s, s.name("neighbor_alltoall"), move |raw, _, from, into| {
        let received = Buffer::of(&received);
        raw.neighbor_all_to_all(from, received);
        into.copy_from(received.block(2, 0));
        into.add(received.block(2, 1));
    })?;
    operation(random(&[block]), move |ring, x| match way {
        Way::Started => ring.ineighbor_all_gather(x, 0)?.wait(),
        _ => ring.neighbor_all_gather(x, 0),
    })
    .runs(s, vec![forward], vec![back])
}

pub fn neighbor_all_to_all(s: &Setting) -> Result<Runs> {
    let way = s.way;
    let block = s.block(2);
    let pass = || -> Result<RawPass> {
        let mut pass = on_ring(s, s.name("neighbor_alltoall"), |raw, _, from, into| {
            raw.neighbor_all_to_all(from, into);
        })?;
        // On two ranks, Open MPI 4.1 exchanges the blocks that come from the same rank.
        pass.is_compared = s.world.size() > 2;
        Ok(pass)
    };
    operation(random(&[2 * block]), move |ring, x| match way {
        Way::Started => ring.ineighbor_all_to_all(x, 0, 0, block)?.wait(),
        _ => ring.neighbor_all_to_all(x, 0, 0, block),
    })
    .runs(s, vec![pass()?], vec![pass()?])
}

/// A field that is cut into blocks of rows, with one row of ghosts before and after a block. Raw MPI
/// copies the block into an array with room for these, as this crate does, and exchanges rows by two
/// calls. benches/halo.rs has other ways and grids.
pub fn halo_exchange(s: &Setting) -> Result<Runs> {
    let way = s.way;
    let columns = 1_i64 << (s.count().ilog2() / 2);
    let rows = s.count() / columns;
    let width = c_int::try_from(columns).expect("few enough for one call");
    let calls = match s.is_started() {
        true => "2 MPI_Irecv, 2 MPI_Isend",
        false => "2 MPI_Sendrecv",
    };
    let forward = on_ring(s, calls, move |raw, ends, from, into| {
        let [first, last] = [from.part(0, width), from.part(from.count - width, width)];
        let [before, after] = [into.part(0, width), into.part(into.count - width, width)];
        into.part(width, from.count).copy_from(from);
        exchange(raw, ends, [first, last], [before, after]);
    })?;
    let received = Tensor::zeros([2, columns], (Kind::Double, Device::Cpu));
    let back = on_ring(s, calls, move |raw, ends, from, into| {
        let [before, after] = [from.part(0, width), from.part(from.count - width, width)];
        let received = Buffer::of(&received);
        let [to_first, to_last] = [received.block(2, 0), received.block(2, 1)];
        into.copy_from(from.part(width, into.count));
        // The ghosts' cotangents go home, and are added.
        exchange(raw, ends, [before, after], [to_first, to_last]);
        into.part(0, width).add(to_first);
        into.part(into.count - width, width).add(to_last);
    })?;
    let halos = [Halo { axis: 0, along: 0, before: 1, after: 1 }];
    operation(random(&[rows, columns]), move |ring, x| match way {
        Way::Started => ring.ihalo_exchange(x, &halos)?.wait(),
        _ => ring.halo_exchange(x, &halos),
    })
    .runs(s, vec![forward], vec![back])
}

/// Sends the first buffer to the rank before and the last one to the rank after; receives what these
/// send in the other direction.
fn exchange(raw: Raw, (before, after): Ends, sent: [Buffer; 2], received: [Buffer; 2]) {
    raw.exchange(sent[0], before, received[1], after);
    raw.exchange(sent[1], after, received[0], before);
}
