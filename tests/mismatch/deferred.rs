//! A started call goes on while its rank waits in another.
//!
//! Rank 0 starts a call with rank 1, and then waits for rank 2 in another. Rank 2 comes there only
//! after a message from rank 1, which that sends after its call with rank 0. This ends if the
//! started call is not put off until rank 0 waits for it, though the ranks have yet to agree on it.

use mpi4tch::{Communicator, Op, Result, join_dummies, wait_any};
use tch::{Device, Kind, Tensor};

use crate::Test;
use crate::common::Context;

pub const TESTS: [Test; 2] =
    [("a_started_call_goes_on", forward), ("a_started_adjoint_goes_on", backward)];

type Way = fn(&Communicator, &Tensor) -> Result<Tensor>;

/// A call of ranks 0 and 2, in which rank 0 waits for rank 2.
struct Meeting {
    name: &'static str,
    /// As each makes it, on a communicator of the two.
    ways: [Way; 2],
    /// The mean of each one's result, where the elements are 1 on the first and 2 on the second.
    means: [f64; 2],
    /// The elements of each one's gradient, where the loss is the sum of all results.
    gradients: Option<[f64; 2]>,
}

const fn meeting(
    name: &'static str,
    ways: [Way; 2],
    means: [f64; 2],
    gradients: Option<[f64; 2]>,
) -> Meeting {
    Meeting { name, ways, means, gradients }
}

#[rustfmt::skip]
static MEETINGS: [Meeting; 16] = [
    meeting("all_reduce", [|c, x| c.all_reduce(x, Op::Sum); 2], [3.0, 3.0], Some([2.0, 2.0])),
    meeting("all_reduce_", [|c, x| { let mut y = x.alias_copy(); c.all_reduce_(&mut y, Op::Sum)?; Ok(y) }; 2], [3.0, 3.0], Some([2.0, 2.0])),
    meeting("iall_reduce", [|c, x| c.iall_reduce(x, Op::Sum)?.wait(); 2], [3.0, 3.0], Some([2.0, 2.0])),
    meeting("reduce", [|c, x| c.reduce(x, Op::Sum, 0); 2], [3.0, 0.0], Some([1.0, 1.0])),
    meeting("broadcast", [|c, x| c.broadcast(x, 1); 2], [2.0, 2.0], Some([0.0, 2.0])),
    meeting("all_gather", [|c, x| c.all_gather(x, 0); 2], [1.5, 1.5], Some([2.0, 2.0])),
    meeting("scan", [|c, x| c.scan(x, Op::Sum); 2], [1.0, 3.0], Some([2.0, 1.0])),
    meeting("max_loc", [|c, x| Ok(c.max_loc(x)?.0); 2], [2.0, 2.0], Some([2.0, 0.0])),
    meeting("recv", [|c, x| c.recv(x, 1, 0), |c, x| c.send(x, 0, 0)], [2.0, 2.0], Some([0.0, 2.0])),
    meeting("irecv", [|c, x| c.irecv(x, 1, 0)?.wait(), |c, x| c.send(x, 0, 0)], [2.0, 2.0], Some([0.0, 2.0])),
    meeting("wait_any", [|c, x| Ok(wait_any(&mut vec![c.irecv(x, 1, 0)?])?.1), |c, x| c.send(x, 0, 0)], [2.0, 2.0], Some([0.0, 2.0])),
    meeting("send", [|c, x| c.send(x, 1, 0), |c, x| c.recv(x, 0, 0)], [1.0, 1.0], Some([2.0, 0.0])),
    meeting("sendrecv", [|c, x| c.sendrecv(x, 1, x, 1, 0), |c, x| c.sendrecv(x, 0, x, 0, 0)], [2.0, 1.0], Some([1.0, 1.0])),
    meeting("probe", [|c, x| { let _ = c.probe(1, 0)?; c.recv(x, 1, 0) }, |c, x| c.send(x, 0, 0)], [2.0, 2.0], None),
    meeting("barrier", [|c, x| c.barrier().map(|()| x.shallow_clone()); 2], [1.0, 2.0], None),
    meeting("duplicate", [|c, x| c.duplicate().map(|_| x.shallow_clone()); 2], [1.0, 2.0], None),
];

/// Rank 1's call with rank 0, which has started its own.
static WAYS: [Way; 2] = [|c, x| c.iall_reduce(x, Op::Sum)?.wait(), |c, x| c.all_reduce(x, Op::Sum)];

/// Three of the ranks, with the communicators of the first and each of the others.
struct Three<'a> {
    world: &'a Communicator,
    with_1: Option<Communicator>,
    with_2: Option<Communicator>,
}

impl<'a> Three<'a> {
    fn of(world: &'a Communicator) -> Result<Self> {
        let rank = world.rank();
        let with = |other| world.split((rank == 0 || rank == other).then_some(0), rank);
        Ok(Self { world, with_1: with(1)?, with_2: with(2)? })
    }

    fn with_1(&self) -> &Communicator {
        self.with_1.as_ref().expect("ranks 0 and 1 have it")
    }

    fn with_2(&self) -> &Communicator {
        self.with_2.as_ref().expect("ranks 0 and 2 have it")
    }
}

fn elements(value: f64, length: i64) -> Tensor {
    Tensor::full([length], value, (Kind::Double, Device::Cpu))
}

/// Each meeting, with what rank 1 calls and how many elements the started call has.
fn programs() -> impl Iterator<Item = (&'static Meeting, &'static Way, i64)> {
    MEETINGS.iter().flat_map(|meeting| {
        WAYS.iter().flat_map(move |way| [1, 1 << 18].map(|length| (meeting, way, length)))
    })
}

fn forward(context: &Context) -> Result<()> {
    if context.world.size() < 3 {
        return Ok(());
    }
    let three = Three::of(&context.world)?;
    let signal = elements(0.0, 1);
    for (meeting, way, length) in programs() {
        println!("{}, {length} elements", meeting.name);
        let [one, two] = [1.0, 2.0].map(|value| elements(value, length));
        match three.world.rank() {
            0 => {
                let request = three.with_1().iall_reduce(&one, Op::Sum)?;
                let met = meeting.ways[0](three.with_2(), &one)?;
                assert_eq!(request.wait()?, elements(3.0, length));
                assert_eq!(met.mean(Kind::Double), elements(meeting.means[0], 1).squeeze());
            }
            1 => {
                assert_eq!(way(three.with_1(), &two)?, elements(3.0, length));
                let _ = three.world.send(&signal, 2, 0)?;
            }
            2 => {
                let _ = three.world.recv(&signal, 1, 0)?;
                let met = meeting.ways[1](three.with_2(), &two)?;
                assert_eq!(met.mean(Kind::Double), elements(meeting.means[1], 1).squeeze());
            }
            _ => (),
        }
    }
    Ok(())
}

/// The other way round, so that the backward pass is the program.
fn backward(context: &Context) -> Result<()> {
    if context.world.size() < 3 {
        return Ok(());
    }
    let three = Three::of(&context.world)?;
    let signal = elements(0.0, 1).set_requires_grad(true);
    for (meeting, way, length) in programs() {
        let Some(gradients) = meeting.gradients else { continue };
        println!("{}, {length} elements", meeting.name);
        let [x, y] = [(); 2].map(|()| elements(1.0, length).set_requires_grad(true));
        let sum = |x: &Tensor| x.sum(Kind::Double);
        match three.world.rank() {
            0 => {
                let request = three.with_1().iall_reduce(&x, Op::Sum)?;
                let met = meeting.ways[0](three.with_2(), &join_dummies(&y, &[&request.dummy()])?)?;
                let reduced = request.join_dummies(&[&met]).wait()?;
                (sum(&reduced) + sum(&met)).f_backward()?;
                assert_eq!(x.grad(), elements(2.0, length));
                assert_eq!(y.grad(), elements(gradients[0], length));
            }
            1 => {
                let received = three.world.recv(&signal, 2, 0)?;
                let reduced = way(three.with_1(), &join_dummies(&x, &[&received])?)?;
                sum(&reduced).f_backward()?;
                assert_eq!(x.grad(), elements(2.0, length));
            }
            2 => {
                let met = meeting.ways[1](three.with_2(), &y)?;
                let sent = three.world.send(&join_dummies(&signal, &[&met])?, 1, 0)?;
                (sum(&met) + sum(&sent)).f_backward()?;
                assert_eq!(y.grad(), elements(gradients[1], length));
            }
            _ => (),
        }
    }
    Ok(())
}
