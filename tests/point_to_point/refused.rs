//! What is wrong with a message, or with the call that sends or receives it.

use mpi4tch::{
    Communicator, Error, PROC_NULL, Rank, Result, Source, Tag, TagMatch, mpi_sys, testing,
};
use tch::{Kind, Tensor};

use crate::common::limits::{self, Limit};
use crate::common::ring::{away, neighbours};
use crate::common::tensors::{ones, zeros};
use crate::common::{Context, works};
use crate::ways::{WAYS, check_ring};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        messages_that_do_not_fit,
        messages_that_only_one_side_records,
        wrong_arguments,
        beyond_an_int,
    ]
}

/// Receives what the left neighbour sends, in each way, and returns the errors.
fn refused(world: &Communicator, sent: &Tensor, like: &Tensor) -> Result<Vec<String>> {
    let (right, left) = neighbours(world);
    let text = |result: Result<Tensor>| match result {
        Err(Error::Message { call, message }) => format!("{call}: {message}"),
        other => panic!("an error about the message was expected, not {other:?}"),
    };
    let request = world.isend(sent, right, 3)?;
    let mut texts = vec![text(world.recv(like, left, 3))];
    let _ = request.wait()?;
    works(world)?;
    let request = world.irecv(like, Source::Any, TagMatch::Any)?;
    let sending = world.isend(sent, right, 3)?;
    texts.push(text(request.wait()));
    let _ = sending.wait()?;
    works(world)?;
    if sent.kind() == like.kind() {
        texts.push(text(world.sendrecv(sent, right, like, left, 3)));
        works(world)?;
    }
    Ok(texts)
}

/// How many elements, and of which kind.
type Elements = (i64, Kind);

fn is_longer(sent: Elements, like: Elements) -> bool {
    let bytes = |(count, kind): Elements| count.unsigned_abs() * kind.elt_size_in_bytes() as u64;
    bytes(sent) > bytes(like)
}

/// What is said of a message that is too long, where MPI has lost what it brought.
fn longer(call: &str, from: Rank, like: Elements, sent: Elements) -> String {
    if !is_mpich() || !is_longer(sent, like) {
        return String::new();
    }
    let bytes = like.0.unsigned_abs() * like.1.elt_size_in_bytes() as u64;
    format!(
        "{call}: the message of rank {from} with tag 3 is longer than `like`; `like` has {} \
         elements of {:?}, which are {bytes} bytes",
        like.0, like.1
    )
}

fn is_mpich() -> bool {
    mpi_sys::loaded_vendor() == mpi_sys::Vendor::Mpich
}

fn messages_that_do_not_fit(context: &Context) -> Result<()> {
    let world = &context.world;
    let left = away(world, -1);
    let of = |count: i64, kind| ones(&[count], kind);
    for (sent, like) in [
        ((2, Kind::Double), (3, Kind::Double)),
        ((0, Kind::Double), (3, Kind::Double)),
        ((3, Kind::Double), (0, Kind::Double)),
        ((5, Kind::Double), (3, Kind::Double)),
        ((3, Kind::Float), (3, Kind::Int)),
        ((3, Kind::Half), (3, Kind::BFloat16)),
        ((4, Kind::Float), (2, Kind::Double)),
        ((3, Kind::Double), (3, Kind::Float)),
        ((1, Kind::Bool), (1, Kind::Uint8)),
        ((300_000, Kind::Double), (200_000, Kind::Double)),
        ((200_000, Kind::Double), (300_000, Kind::Double)),
        ((300_000, Kind::Double), (1, Kind::Double)),
    ] {
        let is_to_oneself = left == world.rank();
        if is_to_oneself
            && is_longer(sent, like)
            && limits::has(Limit::MessageToOneselfThatDoesNotFit)
        {
            continue;
        }
        let expected = format!(
            "the message of rank {left} with tag 3 has {} elements of {:?}; `like` has {} of {:?}",
            sent.0, sent.1, like.0, like.1
        );
        let texts = refused(world, &of(sent.0, sent.1), &of(like.0, like.1))?;
        for (text, call) in texts.iter().zip(["recv", "recv", "sendrecv"]) {
            if *text != longer(call, left, like, sent) {
                assert_eq!(*text, format!("{call}: {expected}"), "{sent:?} into {like:?}");
            }
        }
    }
    Ok(())
}

fn messages_that_only_one_side_records(context: &Context) -> Result<()> {
    let world = &context.world;
    let left = away(world, -1);
    for (recorded, what) in [
        (true, "requires grad, but `like` does not"),
        (false, "does not require grad, but `like` does"),
    ] {
        let sent = zeros(&[2]).set_requires_grad(recorded);
        let like = zeros(&[2]).set_requires_grad(!recorded);
        let (right, left_rank) = neighbours(world);
        let expected = format!("recv: the message of rank {left} with tag 3 {what}");
        let request = world.isend(&sent, right, 3)?;
        let error = world.recv(&like, left_rank, 3).expect_err("one side only").to_string();
        assert_eq!(error, expected);
        let _ = request.wait()?;
        works(world)?;
        let request = world.irecv(&like, left_rank, 3)?;
        let _ = world.send(&sent, right, 3)?;
        assert_eq!(request.wait().expect_err("one side only").to_string(), expected);
        works(world)?;
    }
    Ok(())
}

fn largest_tag() -> Tag {
    let (mut value, mut found) = (std::ptr::null_mut::<i32>(), 0);
    // SAFETY: MPI is initialized; the attribute's value is a pointer to an int that MPI keeps.
    unsafe {
        let out = (&raw mut value).cast();
        mpi_sys::MPI_Comm_get_attr(mpi_sys::MPI_COMM_WORLD, mpi_sys::MPI_TAG_UB, out, &mut found);
        assert_ne!(found, 0);
        *value
    }
}

fn wrong_arguments(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = world.size();
    let x = zeros(&[2]);
    let status = |result: Result<mpi4tch::Status>| result.map(drop);
    let request = |result: Result<mpi4tch::Request>| result.map(drop);
    let tensor = |result: Result<Tensor>| result.map(drop);
    let rank = |call: &str, role: &str, rank: Rank| {
        format!("{call}: {role} {rank} is out of range for {size} ranks")
    };
    let mut cases = Vec::new();
    for bad in [size, -7, i32::MAX] {
        cases.extend([
            (rank("send", "dest", bad), tensor(world.send(&x, bad, 0))),
            (rank("send", "dest", bad), request(world.isend(&x, bad, 0))),
            (rank("recv", "source", bad), tensor(world.recv(&x, bad, 0))),
            (rank("recv", "source", bad), request(world.irecv(&x, bad, 0))),
            (rank("recv", "source", bad), world.recv_with_status(&x, bad, TagMatch::Any).map(drop)),
            (rank("probe", "source", bad), status(world.probe(bad, 0))),
            (rank("sendrecv", "dest", bad), tensor(world.sendrecv(&x, bad, &x, 0, 0))),
            (rank("sendrecv", "source", bad), tensor(world.sendrecv(&x, 0, &x, bad, 0))),
        ]);
    }
    let largest = largest_tag();
    for bad in [Some(-1), Some(i32::MIN), largest.checked_add(1)].into_iter().flatten() {
        let tag =
            |call: &str| format!("{call}: tag {bad} is out of range; it may be 0 to {largest}");
        cases.extend([
            (tag("send"), tensor(world.send(&x, 0, bad))),
            (tag("send"), request(world.isend(&x, PROC_NULL, bad))),
            (tag("recv"), tensor(world.recv(&x, Source::Any, bad))),
            (tag("recv"), request(world.irecv(&x, 0, bad))),
            (tag("probe"), status(world.probe(0, bad))),
            (tag("sendrecv"), tensor(world.sendrecv(&x, 0, &x, 0, bad))),
        ]);
    }
    cases.push((
        "sendrecv: `like` is of kind Float; Double is sent and needed".to_owned(),
        tensor(world.sendrecv(&x, 0, &x.to_kind(Kind::Float), 0, 0)),
    ));
    let undefined = "the tensor is undefined, like a gradient that was never computed";
    cases.extend([
        (format!("send: {undefined}"), tensor(world.send(&Tensor::new(), 0, 0))),
        (format!("send: {undefined}"), request(world.isend(&Tensor::new(), 0, 0))),
        (format!("recv: {undefined}"), tensor(world.recv(&Tensor::new(), 0, 0))),
        (format!("sendrecv: {undefined}"), tensor(world.sendrecv(&x, 0, &Tensor::new(), 0, 0))),
        (format!("sendrecv: {undefined}"), tensor(world.sendrecv(&Tensor::new(), 0, &x, 0, 0))),
        (
            "recv: kind Float8e5m2 has no MPI datatype".to_owned(),
            tensor(world.recv(&x.to_kind(Kind::Float8e5m2), 0, 0)),
        ),
    ]);
    for (expected, result) in cases {
        assert_eq!(result.expect_err("wrong").to_string(), expected);
    }
    // The largest tag is a tag.
    let (right, left) = neighbours(world);
    let _ = world.sendrecv(&x, right, &x, left, largest)?;
    works(world)
}

/// As if an int held two.
fn beyond_an_int(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let outcome = (|| -> Result<()> {
        for kind in [Kind::Double, Kind::ComplexFloat, Kind::Bool, Kind::BFloat16] {
            for length in [3, 7, 1_000] {
                testing::set_largest_count(2);
                let x = testing::random(world, &[length], kind)?;
                for (_, way) in WAYS {
                    check_ring(world, &x, way)?;
                }
                let request = world.isend(&x, right, 0)?;
                assert_eq!(world.probe(left, 0)?.count(kind), Some(length));
                let (_, status) = world.recv_with_status(&x, left, 0)?;
                assert_eq!(status.count(kind), Some(length));
                let _ = request.wait()?;
            }
        }
        for (sent, like) in [(7, 5), (5, 7)] {
            let is_to_oneself = left == world.rank();
            if is_to_oneself && sent > like && limits::has(Limit::MessageToOneselfThatDoesNotFit) {
                continue;
            }
            let texts = refused(world, &zeros(&[sent]), &zeros(&[like]))?;
            let expected = format!(
                "recv: the message of rank {left} with tag 3 has {sent} elements of Double; `like` \
                 has {like} of Double"
            );
            let [sent, like] = [(sent, Kind::Double), (like, Kind::Double)];
            if texts[0] != longer("recv", left, like, sent) {
                assert_eq!(texts[0], expected);
            }
        }
        Ok(())
    })();
    testing::set_largest_count(i32::MAX);
    outcome
}
