//! Started operations: a computation stands between start and wait.

use std::ffi::c_int;

use mpi4tch::{Communicator, Op, Request, Result, Test, wait_all};
use tch::{Device, Kind, Tensor};

use crate::computation::Computation;
use crate::raw::{Buffers, Call};
use crate::thread::Caller;
use crate::timing::{Pass, Row, Way, in_turns, roughly, rows, timed};

/// 4 MiB of floats.
const COUNT: c_int = 1 << 20;

/// An operation, with the MPI call of each pass.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    start: fn(&Communicator, &Tensor) -> Result<Vec<Request>>,
    forward: Call,
    backward: Call,
}

pub const CASES: [Case; 3] = [
    Case {
        name: "iall_reduce",
        start: |comm, x| Ok(vec![comm.iall_reduce(x, Op::Sum)?]),
        forward: Call::AllReduce,
        backward: Call::AllReduce,
    },
    Case {
        name: "iall_gather",
        start: |comm, x| Ok(vec![comm.iall_gather(x, 0)?]),
        forward: Call::AllGather,
        backward: Call::ReduceScatter,
    },
    Case {
        name: "isend, irecv",
        start: |comm, x| Ok(vec![comm.irecv(x, other(comm), 1)?, comm.isend(x, other(comm), 1)?]),
        forward: Call::Messages,
        backward: Call::Messages,
    },
];

/// The rank on the other host.
fn other(comm: &Communicator) -> c_int {
    comm.rank() ^ 1
}

fn buffers(world: &Communicator) -> Buffers {
    Buffers::new(COUNT, world.size(), other(world))
}

fn input() -> Tensor {
    Tensor::ones([i64::from(COUNT)], (Kind::Float, Device::Cpu))
}

/// Looks at each request that is pending.
fn test_all(requests: &mut Vec<Test>) -> Result<()> {
    let test = |request: Test| match request {
        Test::Pending(request) => request.test(),
        done => Ok(done),
    };
    *requests = std::mem::take(requests).into_iter().map(test).collect::<Result<_>>()?;
    Ok(())
}

pub fn forward(world: &Communicator, case: Case) -> Result<Vec<Row>> {
    let x = input();
    let alone = || wait_all((case.start)(world, &x)?).map(drop);
    let computation = Computation::of(world, roughly(world, alone)?)?;
    let compute = || computation.run(|| Ok(()));
    let both = || {
        let requests = (case.start)(world, &x)?;
        compute()?;
        wait_all(requests).map(drop)
    };
    let both_with_tests = || {
        let requests = (case.start)(world, &x)?;
        let mut requests: Vec<Test> = requests.into_iter().map(Test::Pending).collect();
        computation.run(|| test_all(&mut requests))?;
        let pending = requests.into_iter().filter_map(|request| match request {
            Test::Pending(request) => Some(request),
            Test::Done(_) => None,
        });
        wait_all(pending).map(drop)
    };
    let mut buffers = [(); 3].map(|()| buffers(world));
    let [first, second, third] = &mut buffers;
    let mut ways: [Way<'_>; 8] = [
        Box::new(|| timed(world, compute)),
        Box::new(|| {
            timed(world, || {
                first.start(case.forward).wait();
                Ok(())
            })
        }),
        Box::new(|| {
            timed(world, || {
                let under_way = second.start(case.forward);
                compute()?;
                under_way.wait();
                Ok(())
            })
        }),
        Box::new(|| {
            timed(world, || {
                let mut under_way = third.start(case.forward);
                computation.run(|| {
                    under_way.test();
                    Ok(())
                })?;
                under_way.wait();
                Ok(())
            })
        }),
        Box::new(|| timed(world, alone)),
        Box::new(|| timed(world, both)),
        Box::new(|| timed(world, both_with_tests)),
        Box::new(|| {
            let caller = Caller::start(world)?;
            let time = timed(world, both)?;
            caller.end()?;
            Ok(time)
        }),
    ];
    let times = in_turns(world, &mut ways)?;
    let by = [
        ("MPI", 1, 2),
        ("MPI, with tests", 1, 3),
        ("mpi4tch", 4, 5),
        ("mpi4tch, with tests", 4, 6),
        ("mpi4tch, with a thread", 4, 7),
    ];
    Ok(rows(case.name, Pass::Forward, &times, &by))
}

pub fn backward(world: &Communicator, case: Case) -> Result<Vec<Row>> {
    let x = input().set_requires_grad(true);
    // The backward pass of the operation, and of the computation that is given.
    let pass = |computation: Option<&Computation>| -> Result<f64> {
        let tape = world.tape();
        let requests = (case.start)(&tape, &x)?;
        let computed = computation.map(Computation::record).transpose()?;
        let results = wait_all(requests)?;
        let loss = computed.into_iter().fold(results[0].f_sum(Kind::Double)?, |sum, y| sum + y);
        timed(world, || tape.backward(&loss))
    };
    let mut buffers = [(); 3].map(|()| buffers(world));
    let [first, second, third] = &mut buffers;
    let time = roughly(world, || {
        first.start(case.backward).wait();
        Ok(())
    })?;
    let computation = &Computation::of(world, time)?;
    let mut ways: [Way<'_>; 6] = [
        Box::new(|| {
            let loss = computation.record()?;
            timed(world, || Ok(loss.f_backward()?))
        }),
        Box::new(|| {
            timed(world, || {
                second.start(case.backward).wait();
                Ok(())
            })
        }),
        Box::new(|| {
            let loss = computation.record()?;
            timed(world, || {
                let under_way = third.start(case.backward);
                loss.f_backward()?;
                under_way.wait();
                Ok(())
            })
        }),
        Box::new(|| pass(None)),
        Box::new(|| pass(Some(computation))),
        Box::new(|| {
            let caller = Caller::start(world)?;
            let time = pass(Some(computation))?;
            caller.end()?;
            Ok(time)
        }),
    ];
    let times = in_turns(world, &mut ways)?;
    let by = [("MPI", 1, 2), ("mpi4tch", 3, 4), ("mpi4tch, with a thread", 3, 5)];
    Ok(rows(case.name, Pass::Backward, &times, &by))
}
