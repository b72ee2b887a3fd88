//! Dummies, which tell the backward pass what comes after what.

use mpi4tch::{Error, Op, Result, join_dummies, testing};
use tch::{Kind, Tensor};

use crate::common::ring::neighbours;
use crate::common::tensors::{ones, sparse, tensor, variable, zeros};
use crate::common::{Context, assert_freed, works};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        joined_tensors,
        dummies_of_kinds_that_mpi_lacks,
        what_cannot_be_joined_is_an_error,
        joined_requests,
        no_gradient_joined_with_one,
        dummies_joined_to_a_wait_that_was_recorded,
    ]
}

/// Any subset of the inputs requires grad, of any kinds.
fn joined_tensors(_: &Context) -> Result<()> {
    let kinds = [Kind::Float, Kind::Double, Kind::ComplexFloat, Kind::Half];
    for first in kinds {
        for second in kinds {
            for subset in 0..8 {
                let before = testing::live_pullbacks();
                let input = |i: i32, shape: &[i64], kind: Kind| {
                    let x = ones(shape, kind) * f64::from(i + 1);
                    x.set_requires_grad(subset >> i & 1 != 0)
                };
                let x = input(0, &[2], Kind::Double);
                let dummies = [input(1, &[3, 1], first), input(2, &[], second)];
                let integers = tensor(&[1_i64]);
                let y = join_dummies(&x, &[&dummies[0], &integers, &dummies[1]])?;
                assert_eq!(y.data_ptr(), x.data_ptr());
                assert_eq!(y.detach(), x.detach());
                assert_eq!(y.requires_grad(), subset != 0);
                if subset != 0 {
                    (y * tensor(&[2.0, 3.0])).sum(Kind::Double).f_backward()?;
                }
                if x.requires_grad() {
                    assert_eq!(x.grad(), tensor(&[2.0, 3.0]));
                }
                for dummy in dummies.iter().filter(|dummy| dummy.requires_grad()) {
                    let gradient = dummy.grad();
                    assert_eq!(gradient.kind(), dummy.kind());
                    assert_eq!(gradient, dummy.zeros_like());
                }
                assert_freed(before, "the graph");
            }
        }
    }
    // Integers carry no gradient, and are let be.
    let dummy = zeros(&[2]).set_requires_grad(true);
    for x in [tensor(&[1_i64, 2]), tensor(&[true])] {
        let y = join_dummies(&x, &[&dummy])?;
        assert!(!y.requires_grad() && y == x);
    }
    // Nor is there one where nothing is recorded.
    assert!(!tch::no_grad(|| join_dummies(&zeros(&[1]), &[&dummy]))?.requires_grad());
    // An undefined dummy is one without gradient.
    assert_eq!(join_dummies(&dummy, &[&Tensor::new()])?, dummy);
    Ok(())
}

/// A dummy needs no datatype: nothing of it is sent.
fn dummies_of_kinds_that_mpi_lacks(_: &Context) -> Result<()> {
    use Kind::{ComplexHalf, Double, Float8e4m3fn, Float8e4m3fnuz, Float8e5m2, Float8e5m2fnuz};
    for kind in [ComplexHalf, Float8e4m3fn, Float8e4m3fnuz, Float8e5m2, Float8e5m2fnuz] {
        let x = tensor(&[1.0, 2.0]).set_requires_grad(true);
        let dummy = zeros(&[3, 1]).to_kind(kind).set_requires_grad(true);
        let other = zeros(&[2]).set_requires_grad(true);
        let y = join_dummies(&x, &[&dummy, &other])?;
        (&y * &y).sum(Double).f_backward()?;
        assert_eq!(x.grad(), tensor(&[2.0, 4.0]));
        assert_eq!((dummy.grad().kind(), dummy.grad().size()), (kind, vec![3, 1]));
        let wide = if kind == ComplexHalf { Kind::ComplexDouble } else { Double };
        assert_eq!(dummy.grad().to_kind(wide), zeros(&[3, 1]).to_kind(wide));
        assert_eq!(other.grad(), zeros(&[2]));
        // Of that kind is what is joined. torch adds none of the gradients of 8 bits.
        let narrow = dummy.detach().set_requires_grad(true);
        let y = join_dummies(&narrow, &[&x])?;
        assert!(y.requires_grad());
        y.to_kind(wide).abs().sum(Double).f_backward()?;
        assert_eq!(x.grad(), tensor(&[2.0, 4.0]));
    }
    Ok(())
}

fn what_cannot_be_joined_is_an_error(context: &Context) -> Result<()> {
    let dense = zeros(&[2, 2]).set_requires_grad(true);
    let sparse = sparse().set_requires_grad(true);
    let undefined = join_dummies(&Tensor::new(), &[&dense]).unwrap_err();
    assert!(matches!(undefined, Error::Undefined { call: "join_dummies" }), "{undefined}");
    let text = "join_dummies: the tensor has no strided storage; a dense tensor is needed";
    for (x, dummies) in [(&dense, [&dense, &sparse]), (&sparse, [&dense, &dense])] {
        assert_eq!(join_dummies(x, &dummies).unwrap_err().to_string(), text);
    }
    assert!(join_dummies(&dense, &[&sparse.detach()]).is_ok());
    // A request's wait says so, once the call has ended.
    let world = &context.world;
    let request = world.iall_reduce(&dense, Op::Sum)?.join_dummies(&[&dense, &sparse, &dense]);
    assert_eq!(request.wait().unwrap_err().to_string(), text);
    works(world)
}

/// Any of the ends of a ring may have a gradient to carry, or a dummy.
fn joined_requests(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    for kind in [Kind::Double, Kind::Float, Kind::ComplexDouble, Kind::BFloat16, Kind::Int64] {
        for subset in 0..8 {
            let before = testing::live_pullbacks();
            let carries = kind != Kind::Int64;
            let has = |i: i32| subset >> i & 1 != 0;
            let recorded = has(0) && carries;
            let x = ones(&[2], kind).set_requires_grad(recorded);
            let first = ones(&[3], Kind::Float).set_requires_grad(has(1));
            let second = ones(&[], Kind::Double).set_requires_grad(has(2));
            let receive = world.irecv(&x, left, 0)?.join_dummies(&[&first, &second]);
            let send = world.isend(&x, right, 0)?.join_dummies(&[&receive.dummy(), &first]);
            assert_eq!(receive.dummy().requires_grad(), recorded);
            assert_eq!(receive.dummy().numel(), 0);
            let sent = send.wait()?;
            let y = receive.join_dummies(&[&sent, &second]).wait()?;
            assert_eq!(y.detach(), x.detach());
            assert_eq!(y.requires_grad(), recorded);
            if recorded {
                let weight = f64::from(world.rank() + 1);
                (y * weight).abs().sum(Kind::Double).f_backward()?;
                let expected = f64::from(right + 1);
                assert_eq!(x.grad(), x.full_like(expected).detach());
                for dummy in [&first, &second].into_iter().filter(|dummy| dummy.requires_grad()) {
                    assert_eq!(dummy.grad(), dummy.zeros_like());
                }
            }
            drop((sent, x, first, second));
            assert_freed(before, &format!("{kind:?}, {subset}"));
        }
    }
    works(world)
}

/// A send of what has no gradient, joined with what has one.
fn no_gradient_joined_with_one(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let (plain, x) = (zeros(&[2]), variable(world, &[2])?);
    let z = world.all_reduce(&x, Op::Sum)?;
    let request = world.isend(&plain, right, 0)?.join_dummies(&[&z]);
    assert!(!request.dummy().requires_grad());
    let y = world.recv(&plain, left, 0)?;
    let sent = request.wait()?;
    assert!(!sent.requires_grad() && !y.requires_grad());
    join_dummies(&z, &[&sent, &y])?.sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), zeros(&[2]) + f64::from(world.size()));
    Ok(())
}

fn dummies_joined_to_a_wait_that_was_recorded(context: &Context) -> Result<()> {
    let world = &context.world;
    let (right, left) = neighbours(world);
    let (a, b) = (variable(world, &[2])?, variable(world, &[2])?);
    let (first, second) = (world.isend(&a, right, 0)?, world.isend(&b, right, 0)?);
    let like = join_dummies(&a.detach(), &[&second.dummy(), &first.dummy()])?;
    let y1 = world.recv(&like, left, 0)?;
    let y2 = world.recv(&join_dummies(&a.detach(), &[&y1])?, left, 0)?;
    // The wait for the second records that for the first.
    let s2 = second.join_dummies(&[&y2]).wait()?;
    let s1 = first.join_dummies(&[&s2]).wait()?;
    let loss = join_dummies(&(y1 * 3.0 + y2 * 5.0), &[&s1])?;
    loss.sum(Kind::Double).f_backward()?;
    assert_eq!((a.grad(), b.grad()), (a.full_like(3.0).detach(), b.full_like(5.0).detach()));
    Ok(())
}
