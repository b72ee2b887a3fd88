//! Tensors that are one variable on all ranks: of each map and its adjoint, one makes a call.

use mpi4tch::{Replicated, ReplicatedRequest, Result, testing};
use tch::{Kind, Tensor};

use crate::common::Context;
use crate::profiling::{Call, calls, names};
use crate::{Operation, after_agreement, matrix};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        one_loss,
        varied_and_summed,
        cut_and_joined,
        broadcast_from_a_root,
        promises,
        started,
        work_while_ivary_is_under_way,
    ]
}

/// The calls of `f`, of its backward pass, and of the derivative of that.
struct Made {
    forward: Vec<Call>,
    backward: Vec<Call>,
    second: Vec<Call>,
}

impl Made {
    fn by(context: &Context, x: &Tensor, f: Operation) -> Result<Self> {
        let x = x.detach().set_requires_grad(true);
        let (y, forward) = calls(|| f(&x))?;
        let cotangent = testing::random(&context.world, &y.size(), Kind::Double)?;
        let cotangent = cotangent.set_requires_grad(true);
        let (gradient, backward) =
            calls(|| Ok(testing::vjp(&[&y], &[&cotangent], &[&x], true)?.remove(0)))?;
        let ones = gradient.ones_like();
        let (_, second) = calls(|| testing::vjp(&[&gradient], &[&ones], &[&cotangent], false))?;
        Ok(Self { forward, backward, second })
    }

    fn assert(&self, forward: &[&str], backward: &[&str], second: &[&str]) {
        assert_eq!(names(&self.forward), forward, "forward");
        assert_eq!(names(&self.backward), backward, "backward");
        assert_eq!(names(&self.second), second, "second derivative");
        let both = self.forward.first().into_iter().zip(self.backward.first());
        for (forward, backward) in both {
            assert_ne!(forward.context, backward.context, "a context for the backward pass");
        }
    }
}

fn value(y: Replicated) -> Tensor {
    y.tensor().shallow_clone()
}

/// One call forward, and one in the backward pass.
fn one_loss(context: &Context) -> Result<()> {
    let world = &context.world;
    let data = matrix(context, 4, 3)?;
    let w = Tensor::ones([3], (Kind::Double, tch::Device::Cpu)).set_requires_grad(true);
    let (loss, forward) = calls(|| {
        let w = Replicated::assume(world, &w)?;
        let local_loss = data.matmul(&w.vary()?).square().sum(Kind::Double);
        let penalty = w.map(|w| w.square().sum(Kind::Double))?;
        let loss = Replicated::sum(world, &local_loss)?;
        Replicated::combine(&[&loss, &penalty], |parts| parts[0] + parts[1])
    })?;
    assert_eq!(names(&forward), ["MPI_Allreduce"]);
    assert_eq!(forward[0].volume, 8, "the loss");
    let ((), backward) = calls(|| loss.backward())?;
    assert_eq!(names(&backward), ["MPI_Allreduce"]);
    assert_eq!(backward[0].volume, 24, "the gradient");
    assert_ne!(forward[0].context, backward[0].context);
    Ok(())
}

fn varied_and_summed(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = matrix(context, 2, 3)?;
    let f = |x: &Tensor| Replicated::assume(world, x)?.vary();
    let made = Made::by(context, &x, &f)?;
    made.assert(&[], &["MPI_Allreduce"], &[]);
    assert_eq!(made.backward[0].volume, 48);
    for sum in [Replicated::sum, Replicated::mean] {
        let f = |x: &Tensor| sum(world, x).map(value);
        let made = Made::by(context, &x, &f)?;
        made.assert(&["MPI_Allreduce"], &[], &["MPI_Allreduce"]);
        assert_eq!(made.forward[0].volume, 48);
    }
    Ok(())
}

fn cut_and_joined(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    for (extent, gather) in [(2 * size, "MPI_Allgather"), (2 * size + 1, "MPI_Allgatherv")] {
        let gather = if size == 1 { "MPI_Allgather" } else { gather };
        for axis in [0, 1] {
            let whole = if axis == 0 { [extent, 3] } else { [3, extent] };
            let whole = matrix(context, whole[0], whole[1])?;
            let f = |x: &Tensor| Replicated::assume(world, x)?.shard(axis);
            let made = Made::by(context, &whole, &f)?;
            made.assert(&[], &[gather], &[]);
            assert_eq!(made.backward[0].volume, 24 * extent);
            let block = f(&whole)?;
            let f = |x: &Tensor| Replicated::concat(world, x, axis).map(value);
            let mut made = Made::by(context, &block, &f)?;
            made.forward = after_agreement(context, made.forward);
            // Sizes travel in the forward pass only.
            let sizes = made.forward.remove(0);
            assert_eq!((sizes.name, sizes.volume), ("MPI_Allgather", 88 * size));
            made.assert(&[gather], &[], &[gather]);
            assert_eq!(made.forward[0].volume, 24 * extent);
        }
    }
    Ok(())
}

/// Whether it is recorded travels with it.
fn broadcast_from_a_root(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = matrix(context, 2, 3)?;
    for root in 0..world.size() {
        let f = |x: &Tensor| Replicated::broadcast(world, x, root).map(value);
        let mut made = Made::by(context, &x, &f)?;
        for forward in [&mut made.forward, &mut made.second] {
            *forward = after_agreement(context, std::mem::take(forward));
            let word = forward.remove(0);
            assert_eq!((word.name, word.volume), ("MPI_Allgather", 88 * i64::from(world.size())));
        }
        made.assert(&["MPI_Bcast"], &[], &["MPI_Bcast"]);
        assert_eq!(made.forward[0].volume, 48);
    }
    Ok(())
}

/// Where the ranks do not compare values, nothing is sent.
fn promises(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = matrix(context, 2, 3)?;
    let f = |x: &Tensor| {
        let x = Replicated::assume(world, x)?;
        let y = x.map(Tensor::sin)?;
        Replicated::combine(&[&x, &y], |parts| parts[0] * parts[1]).map(value)
    };
    Made::by(context, &x, &f)?.assert(&[], &[], &[]);
    Ok(())
}

/// What follows an exchange of sizes for a call that is started.
fn after_sizes(context: &Context, made: Vec<Call>) -> Vec<Call> {
    let mut made = after_agreement(context, made);
    let rest = made.split_off(2);
    assert_eq!(names(&made), ["MPI_Iallgather", "MPI_Test"]);
    rest
}

fn started(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = matrix(context, 2 * i64::from(world.size()), 3)?;
    let waited = |request: Result<ReplicatedRequest>| request?.wait().map(value);
    let reduce = ["MPI_Iallreduce", "MPI_Test"];
    let gather = ["MPI_Iallgather", "MPI_Test"];
    let f = |x: &Tensor| Replicated::assume(world, x)?.ivary()?.wait();
    Made::by(context, &x, &f)?.assert(&[], &reduce, &[]);
    let f = |x: &Tensor| Replicated::assume(world, x)?.ishard(0)?.wait();
    Made::by(context, &x, &f)?.assert(&[], &gather, &[]);
    let f = |x: &Tensor| waited(Replicated::isum(world, x));
    Made::by(context, &x, &f)?.assert(&reduce, &[], &reduce);
    let f = |x: &Tensor| waited(Replicated::imean(world, x));
    Made::by(context, &x, &f)?.assert(&reduce, &[], &reduce);
    let f = |x: &Tensor| waited(Replicated::iconcat(world, x, 0));
    let mut made = Made::by(context, &x, &f)?;
    made.forward = after_sizes(context, made.forward);
    made.assert(&gather, &[], &gather);
    let f = |x: &Tensor| waited(Replicated::ibroadcast(world, x, 0));
    let mut made = Made::by(context, &x, &f)?;
    for forward in [&mut made.forward, &mut made.second] {
        *forward = after_sizes(context, std::mem::take(forward));
    }
    let broadcast = ["MPI_Ibcast", "MPI_Test"];
    made.assert(&broadcast, &[], &broadcast);
    Ok(())
}

/// The adjoint of `ivary` is under way while the pullbacks of what lies between run.
fn work_while_ivary_is_under_way(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let w = matrix(context, 2, 3)?.set_requires_grad(true);
    let w = Replicated::assume(&tape, &w)?;
    let (loss, forward) = calls(|| {
        let request = w.ivary()?;
        let between = Replicated::sum(&tape, w.tensor())?.vary()?;
        let own = request.wait()?;
        Replicated::mean(&tape, &(own * between).sum(Kind::Double))
    })?;
    assert_eq!(names(&forward), ["MPI_Allreduce", "MPI_Allreduce"]);
    let ((), made) = calls(|| loss.backward())?;
    // The ranks compare their tapes first.
    let mut made = after_agreement(context, made);
    assert_eq!(made.remove(0).name, "MPI_Allreduce");
    assert_eq!(names(&made), ["MPI_Iallreduce", "MPI_Allreduce", "MPI_Test"]);
    Ok(())
}
