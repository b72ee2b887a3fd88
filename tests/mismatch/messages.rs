//! Messages of every length, received into tensors of every length, in every way.

use mpi4tch::{Communicator, Error, Request, Result, Source, TagMatch, Test as Tested, wait_any};
use tch::{Device, Kind, Tensor};

use crate::Test;
use crate::calls::{Afterwards, pairs};
use crate::common::Context;
use crate::common::limits::{self, Limit};
use crate::common::ring::neighbours;

pub const TESTS: [Test; 3] = [
    ("doubles", |context| lengths(context, Kind::Double)),
    ("bytes", |context| lengths(context, Kind::Uint8)),
    ("cotangents", cotangents),
];

/// From nothing to what no library sends at once.
const LENGTHS: [i64; 11] = [0, 1, 2, 511, 512, 513, 600, 4095, 4096, 65_536, 1 << 20];

const TAG: i32 = 5;

/// Sends a tensor to the right, and receives one like another from the left.
type Way = fn(&Communicator, &Tensor, &Tensor) -> Result<Tensor>;

const WAYS: [(&str, Way); 9] = [
    ("recv", |c, x, like| sending(c, x, |left| c.recv(like, left, TAG))),
    ("recv of any", |c, x, like| sending(c, x, |_| c.recv(like, Source::Any, TagMatch::Any))),
    ("recv_with_status", |c, x, like| {
        sending(c, x, |left| c.recv_with_status(like, left, TAG).map(|(y, _)| y))
    }),
    ("probe, recv", |c, x, like| {
        sending(c, x, |left| c.probe(left, TAG).and_then(|_| c.recv(like, left, TAG)))
    }),
    ("irecv before the send", |c, x, like| {
        let request = c.irecv(like, neighbours(c).1, TAG)?;
        sending(c, x, |_| request.wait())
    }),
    ("irecv of any before the send, test", |c, x, like| {
        let request = c.irecv(like, Source::Any, TagMatch::Any)?;
        sending(c, x, |_| tested(request))
    }),
    ("irecv, wait_any", |c, x, like| {
        sending(c, x, |left| {
            wait_any(&mut vec![c.irecv(like, left, TAG)?]).map(|(_, received)| received)
        })
    }),
    ("irecv of what has come", |c, x, like| {
        sending(c, x, |left| {
            let _ = c.probe(left, TAG)?;
            c.irecv(like, left, TAG)?.wait()
        })
    }),
    ("sendrecv", |c, x, like| {
        let (right, left) = neighbours(c);
        c.sendrecv(x, right, like, left, TAG)
    }),
];

/// Receives while the own message is under way.
fn sending(
    comm: &Communicator,
    x: &Tensor,
    receive: impl FnOnce(i32) -> Result<Tensor>,
) -> Result<Tensor> {
    let (right, left) = neighbours(comm);
    let request = comm.isend(x, right, TAG)?;
    let received = receive(left);
    let _ = request.wait()?;
    received
}

fn tested(mut request: Request) -> Result<Tensor> {
    loop {
        match request.test()? {
            Tested::Done(y) => return Ok(y),
            Tested::Pending(again) => request = again,
        }
    }
}

/// What a rank sends: other numbers on each rank, and in each place.
fn numbers(rank: i32, length: i64, kind: Kind) -> Tensor {
    let numbers = Tensor::arange(length, (Kind::Int64, Device::Cpu)) + i64::from(rank);
    numbers.remainder(251).to_kind(kind)
}

fn lengths(context: &Context, kind: Kind) -> Result<()> {
    let comm = context.world.duplicate()?;
    let afterwards = Afterwards::new(&comm);
    let left = neighbours(&comm).1;
    for (sent, length) in pairs(&comm, 1, LENGTHS.into_iter()) {
        let is_to_oneself = comm.size() == 1;
        if is_to_oneself && length < sent && limits::has(Limit::MessageToOneselfThatDoesNotFit) {
            continue;
        }
        let x = numbers(comm.rank(), sent, kind);
        let expected = numbers(left, sent, kind);
        let like = Tensor::zeros([length], (kind, Device::Cpu));
        for (name, way) in WAYS {
            println!("{name}: {sent} of {kind:?} into {length}");
            match way(&comm, &x, &like) {
                Ok(y) if sent == length => assert!(y == expected, "wrong contents"),
                Err(Error::Message { .. }) if sent != length => (),
                Ok(_) => panic!("what was received is not what was sent"),
                Err(error) => return Err(error),
            }
        }
        afterwards.works(&comm)?;
    }
    Ok(())
}

/// A message to the last rank, and the reception there.
type Message =
    (fn(&Communicator, &Tensor) -> Result<Tensor>, fn(&Communicator, &Tensor) -> Result<Tensor>);

const MESSAGES: [Message; 3] = [
    (|c, x| c.send(x, c.size() - 1, TAG), |c, like| c.recv(like, 0, TAG)),
    (|c, x| c.isend(x, c.size() - 1, TAG)?.wait(), |c, like| c.irecv(like, 0, TAG)?.wait()),
    (
        |c, x| c.isend(x, c.size() - 1, TAG)?.wait(),
        |c, like| c.recv(like, Source::Any, TagMatch::Any),
    ),
];

/// Two messages; the sender goes back through one, and the receiver through the other.
fn cotangents(context: &Context) -> Result<()> {
    let comm = context.world.duplicate()?;
    let afterwards = Afterwards::new(&comm);
    let last = comm.size() - 1;
    if last == 0 {
        return Ok(());
    }
    let differ = pairs(&comm, 1, LENGTHS.into_iter()).filter(|(first, second)| first != second);
    for (first, second) in differ {
        for (send, receive) in MESSAGES {
            println!("{first} elements back from {second}");
            let leaf = |length| {
                Tensor::ones([length], (Kind::Double, Device::Cpu)).set_requires_grad(true)
            };
            if comm.rank() == 0 {
                let [x, _] = [send(&comm, &leaf(first))?, send(&comm, &leaf(second))?];
                let error = x.sum(Kind::Double).f_backward().expect_err("it is another's");
                assert!(error.to_string().contains("the message of rank"), "{error}");
            } else if comm.rank() == last {
                let [_, y] = [receive(&comm, &leaf(first))?, receive(&comm, &leaf(second))?];
                y.sum(Kind::Double).f_backward()?;
            }
        }
        afterwards.works(&comm)?;
    }
    Ok(())
}
