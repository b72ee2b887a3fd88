//! The collectives, each with the calls of raw MPI for its forward and its backward pass.

use std::collections::BTreeMap;
use std::ffi::c_int;

use mpi4tch::{Communicator, Op, Result};
use tch::{Device, Kind, Tensor};

use super::protocol::{Direction, OURS, Way};
use super::raw::{Buffer, ROOT, Raw, reversed_world};
use super::work::{Operation, RawPass, Run, Runs, Setting, on_world, random};

/// An operation on the world whose adjoint also runs without a tape.
fn operation<F>(x: Tensor, call: F) -> Operation<fn(&Communicator) -> Result<Communicator>, F>
where
    F: Fn(&Communicator, &Tensor) -> Result<Tensor> + 'static,
{
    Operation { x, place: on_world, call, needs_tape: false }
}

pub fn all_reduce(s: &Setting) -> Result<Runs> {
    let pass = || {
        let raw = s.raw();
        s.pass("allreduce", move |from, into| raw.all_reduce(from, into))
    };
    let way = s.way;
    operation(random(&[s.count()]), move |comm, x| match way {
        Way::Started => comm.iall_reduce(x, Op::Sum)?.wait(),
        _ => comm.all_reduce(x, Op::Sum),
    })
    .runs(s, vec![pass()], vec![pass()])
}

fn raw_reduce(s: &Setting) -> RawPass {
    let raw = s.raw();
    s.pass("reduce", move |from, into| raw.reduce(from, into, ROOT))
}

fn raw_broadcast(s: &Setting) -> RawPass {
    let raw = s.raw();
    s.pass("bcast", move |from, into| raw.broadcast(from, into))
}

pub fn reduce(s: &Setting) -> Result<Runs> {
    let way = s.way;
    operation(random(&[s.count()]), move |comm, x| match way {
        Way::Started => comm.ireduce(x, Op::Sum, ROOT)?.wait(),
        _ => comm.reduce(x, Op::Sum, ROOT),
    })
    .runs(s, vec![raw_reduce(s)], vec![raw_broadcast(s)])
}

pub fn broadcast(s: &Setting) -> Result<Runs> {
    let way = s.way;
    operation(random(&[s.count()]), move |comm, x| match way {
        Way::Started => comm.ibroadcast(x, ROOT)?.wait(),
        _ => comm.broadcast(x, ROOT),
    })
    .runs(s, vec![raw_broadcast(s)], vec![raw_reduce(s)])
}

fn raw_gather(s: &Setting) -> RawPass {
    let raw = s.raw();
    s.pass("gather", move |from, into| raw.gather(from, into))
}

fn raw_scatter(s: &Setting) -> RawPass {
    let raw = s.raw();
    s.pass("scatter", move |from, into| raw.scatter(from, into))
}

/// The same count for all ranks.
fn counts(s: &Setting, count: i64) -> Vec<i64> {
    (0..s.world.size()).map(|_| count).collect()
}

pub fn gather(s: &Setting) -> Result<Runs> {
    let (way, block) = (s.way, s.block(s.world.size()));
    let counts = counts(s, block);
    operation(random(&[block]), move |comm, x| match way {
        Way::Blocking => comm.gather(x, 0, ROOT),
        Way::Started => comm.igather(x, 0, ROOT)?.wait(),
        Way::Counts => comm.gather_with_counts(x, 0, &counts, ROOT),
    })
    .runs(s, vec![raw_gather(s)], vec![raw_scatter(s)])
}

pub fn scatter(s: &Setting) -> Result<Runs> {
    let (way, block) = (s.way, s.block(s.world.size()));
    let counts = counts(s, block);
    let whole = random(&[block * i64::from(s.world.size())]);
    operation(whole, move |comm, x| match way {
        Way::Blocking => comm.scatter(x, 0, block, ROOT),
        Way::Started => comm.iscatter(x, 0, block, ROOT)?.wait(),
        Way::Counts => comm.scatter(x, 0, &counts, ROOT),
    })
    .runs(s, vec![raw_scatter(s)], vec![raw_gather(s)])
}

fn raw_all_gather(s: &Setting) -> RawPass {
    let raw = s.raw();
    s.pass("allgather", move |from, into| raw.all_gather(from, into))
}

/// The ways of summing over all ranks and leaving a block on each, for a whole of so many doubles. The
/// fastest one depends on the MPI and the size. Only the plain operation is compared with all of them.
fn raw_reduce_scatter(s: &Setting, whole: i64) -> Vec<RawPass> {
    let raw = s.raw();
    let by_blocks =
        s.pass("reduce_scatter_block", move |from, into| raw.reduce_scatter_block(from, into));
    if s.way != Way::Blocking {
        return vec![by_blocks];
    }
    let block = c_int::try_from(whole).expect("few enough for one call") / raw.size;
    let counts: Vec<c_int> = (0..raw.size).map(|_| block).collect();
    let sums = Tensor::zeros([whole], (Kind::Double, Device::Cpu));
    let mut reduces = s.pass("reduce", move |from, into| {
        (0..raw.size).for_each(|root| raw.reduce(from.block(raw.size, root), into, root));
    });
    reduces.calls = format!("{} {}s", raw.size, reduces.calls);
    vec![
        by_blocks,
        s.pass("reduce_scatter", move |from, into| raw.reduce_scatter(from, into, &counts)),
        s.pass("allreduce", move |from, into| {
            let sums = Buffer::of(&sums);
            raw.all_reduce(from, sums);
            into.copy_from(sums.block(raw.size, raw.rank));
        }),
        reduces,
    ]
}

pub fn all_gather(s: &Setting) -> Result<Runs> {
    let (way, size) = (s.way, s.world.size());
    let block = s.block(size);
    let counts = counts(s, block);
    operation(random(&[block]), move |comm, x| match way {
        Way::Blocking => comm.all_gather(x, 0),
        Way::Started => comm.iall_gather(x, 0)?.wait(),
        Way::Counts => comm.all_gather_with_counts(x, 0, &counts),
    })
    .runs(s, vec![raw_all_gather(s)], raw_reduce_scatter(s, block * i64::from(size)))
}

pub fn reduce_scatter(s: &Setting) -> Result<Runs> {
    let (way, size) = (s.way, s.world.size());
    let block = s.block(size);
    let counts = counts(s, block);
    let whole = block * i64::from(size);
    operation(random(&[whole]), move |comm, x| match way {
        Way::Blocking => comm.reduce_scatter(x, 0, block, Op::Sum),
        Way::Started => comm.ireduce_scatter(x, 0, block, Op::Sum)?.wait(),
        Way::Counts => comm.reduce_scatter(x, 0, &counts, Op::Sum),
    })
    .runs(s, raw_reduce_scatter(s, whole), vec![raw_all_gather(s)])
}

/// Blocks, which lie in memory as MPI sends them: a tensor [1, p, …] becomes [p, 1, …].
pub fn all_to_all(s: &Setting) -> Result<Runs> {
    let (way, size) = (s.way, s.world.size());
    let ones = counts(s, 1);
    let pass = || {
        let raw = s.raw();
        s.pass("alltoall", move |from, into| raw.all_to_all(from, into))
    };
    let blocks = random(&[1, i64::from(size), s.block(size)]);
    operation(blocks, move |comm, x| match way {
        Way::Blocking => comm.all_to_all(x, 0, 1, 1),
        Way::Started => comm.iall_to_all(x, 0, 1, 1)?.wait(),
        Way::Counts => comm.all_to_all_with_counts(x, 0, &ones, 1, &ones),
    })
    .runs(s, vec![pass()], vec![pass()])
}

pub fn all_to_all_v(s: &Setting) -> Result<Runs> {
    let (way, size) = (s.way, s.world.size());
    let block = s.block(size);
    let send = counts(s, block);
    let pass = || {
        let raw = s.raw();
        let count = c_int::try_from(block).expect("few enough for one call");
        let counts: Vec<c_int> = (0..size).map(|_| count).collect();
        let places: Vec<c_int> = (0..size).map(|rank| rank * count).collect();
        s.pass("alltoallv", move |from, into| raw.all_to_all_v(from, into, &counts, &places))
    };
    operation(random(&[block * i64::from(size)]), move |comm, x| match way {
        Way::Blocking => comm.all_to_all_v(x, 0, &send),
        Way::Started => comm.iall_to_all_v(x, 0, &send)?.wait(),
        Way::Counts => comm.all_to_all_v_with_counts(x, 0, &send, &send),
    })
    .runs(s, vec![pass()], vec![pass()])
}

/// The sum over the ranks from this one to the last, which is the adjoint of a scan: a scan on a
/// communicator of the reversed ranks.
fn raw_reversed(s: &Setting, call: &str, scan: fn(Raw, Buffer, Buffer)) -> RawPass {
    let raw = Raw { comm: reversed_world(s.world.rank()), ..s.raw() };
    s.pass(call, move |from, into| scan(raw, from, into))
}

pub fn scan(s: &Setting) -> Result<Runs> {
    let (way, raw) = (s.way, s.raw());
    let forward = s.pass("scan", move |from, into| raw.scan(from, into));
    operation(random(&[s.count()]), move |comm, x| match way {
        Way::Started => comm.iscan(x, Op::Sum)?.wait(),
        _ => comm.scan(x, Op::Sum),
    })
    .runs(s, vec![forward], vec![raw_reversed(s, "scan", Raw::scan)])
}

pub fn exscan(s: &Setting) -> Result<Runs> {
    let (way, raw) = (s.way, s.raw());
    let forward = s.pass("exscan", move |from, into| raw.exscan(from, into));
    operation(random(&[s.count()]), move |comm, x| match way {
        Way::Started => comm.iexscan(x, Op::Sum)?.wait(),
        _ => comm.exscan(x, Op::Sum),
    })
    .runs(s, vec![forward], vec![raw_reversed(s, "exscan", Raw::exscan)])
}

/// Raw MPI reduces pairs of a value and a rank. That includes neither the work of making the pairs nor,
/// in the backward pass, that of choosing the elements that this rank owns.
pub fn max_loc(s: &Setting) -> Result<Runs> {
    let raw = s.raw();
    let count = s.count();
    let [pairs, owners, sums] =
        [2, 2, 1].map(|doubles| Tensor::zeros([doubles * count], (Kind::Double, Device::Cpu)));
    let forward = s.pass("allreduce", move |from, _| {
        raw.max_loc(pairs.data_ptr(), owners.data_ptr(), from.count);
    });
    let back = s.pass("allreduce", move |from, _| raw.all_reduce(from, Buffer::of(&sums)));
    operation(random(&[count]), |comm, x| Ok(comm.max_loc(x)?.0)).runs(s, vec![forward], vec![back])
}

/// A barrier has no adjoint to time: it is forward only.
pub fn barrier(s: &Setting) -> Result<Runs> {
    let (raw, comm, is_started) = (s.raw(), s.world.clone(), s.is_started());
    let raw_run: Run = Box::new(move || {
        raw.barrier();
        Ok(())
    });
    let our_run: Run = Box::new(move || match is_started {
        true => comm.ibarrier()?.wait().map(drop),
        false => comm.barrier(),
    });
    let runs = vec![(s.name("barrier"), raw_run), (OURS.to_owned(), our_run)];
    Ok(BTreeMap::from([(Direction::Forward, runs)]))
}
