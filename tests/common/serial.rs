//! The oracle: what each operation comes to on every rank, by libtorch alone on all ranks' tensors.

use mpi4tch::{Op, Rank};
use tch::{Kind, Tensor};

use super::kinds::is_floating;

/// All tensors combined; of none, the op's identity, in the shape of `like`.
fn combined(xs: &[Tensor], op: Op, like: &Tensor) -> Tensor {
    let kind = like.kind();
    let Some((first, rest)) = xs.split_first() else {
        return like.detach().full_like(identity(op, kind));
    };
    let fold = |f: fn(&Tensor, &Tensor) -> Tensor, first: Tensor| {
        rest.iter().fold(first, |a, b| f(&a, b)).to_kind(kind)
    };
    let all = || Tensor::stack(xs, 0);
    match op {
        Op::Sum => all().sum_dim_intlist(0, false, kind),
        Op::Mean => all().mean_dim(0, false, kind),
        Op::Prod => all().prod_dim_int(0, false, kind),
        Op::Max => all().amax(0, false),
        Op::Min => all().amin(0, false),
        Op::LogicalAnd => fold(Tensor::logical_and, first.not_equal(0)),
        Op::LogicalOr => fold(Tensor::logical_or, first.not_equal(0)),
        Op::LogicalXor => fold(Tensor::logical_xor, first.not_equal(0)),
        Op::BitwiseAnd => fold(Tensor::bitwise_and_tensor, first.shallow_clone()),
        Op::BitwiseOr => fold(Tensor::bitwise_or_tensor, first.shallow_clone()),
        Op::BitwiseXor => fold(Tensor::bitwise_xor_tensor, first.shallow_clone()),
        _ => unreachable!("every op is listed"),
    }
}

/// What changes nothing when it is combined with a value.
fn identity(op: Op, kind: Kind) -> tch::Scalar {
    let range = match kind {
        Kind::Bool => (0, 1),
        Kind::Uint8 => (0, 255),
        Kind::Int8 => (-128, 127),
        Kind::Int16 => (-32_768, 32_767),
        Kind::Int => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => (i64::MIN, i64::MAX),
    };
    let bits = if matches!(kind, Kind::Bool | Kind::Uint8) { range.1 } else { -1 };
    match op {
        Op::Max if is_floating(kind) => f64::NEG_INFINITY.into(),
        Op::Min if is_floating(kind) => f64::INFINITY.into(),
        Op::Max => range.0.into(),
        Op::Min => range.1.into(),
        Op::Prod | Op::LogicalAnd => 1_i64.into(),
        Op::BitwiseAnd => bits.into(),
        _ => 0_i64.into(),
    }
}

fn index(rank: Rank) -> usize {
    rank.unsigned_abs() as usize
}

/// The same on each of so many ranks.
pub fn on_every_rank(y: &Tensor, ranks: usize) -> Vec<Tensor> {
    (0..ranks).map(|_| y.shallow_clone()).collect()
}

fn on_root(y: &Tensor, elsewhere: &Tensor, root: Rank, ranks: usize) -> Vec<Tensor> {
    let mut ys = on_every_rank(elsewhere, ranks);
    ys[index(root)] = y.shallow_clone();
    ys
}

pub fn all_reduce(xs: &[Tensor], op: Op) -> Vec<Tensor> {
    on_every_rank(&combined(xs, op, &xs[0]), xs.len())
}

/// Zeros on the ranks besides the root.
pub fn reduce(xs: &[Tensor], op: Op, root: Rank) -> Vec<Tensor> {
    on_root(&combined(xs, op, &xs[0]), &xs[0].detach().zeros_like(), root, xs.len())
}

pub fn scan(xs: &[Tensor], op: Op) -> Vec<Tensor> {
    (0..xs.len()).map(|r| combined(&xs[..=r], op, &xs[0])).collect()
}

/// The op's identity on the first rank.
pub fn exscan(xs: &[Tensor], op: Op) -> Vec<Tensor> {
    (0..xs.len()).map(|r| combined(&xs[..r], op, &xs[0])).collect()
}

pub fn reduce_scatter(xs: &[Tensor], axis: i64, counts: &[i64], op: Op) -> Vec<Tensor> {
    combined(xs, op, &xs[0]).split_with_sizes(counts, axis)
}

/// Counts by which an extent is cut as equally as possible.
pub fn balanced(x: &Tensor, axis: i64, ranks: usize) -> Vec<i64> {
    let dim = i64::try_from(x.dim()).expect("few axes");
    let axis = usize::try_from(axis.rem_euclid(dim)).expect("not negative");
    let (extent, ranks) = (x.size()[axis], i64::try_from(ranks).expect("few ranks"));
    (0..ranks).map(|rank| extent / ranks + i64::from(rank < extent % ranks)).collect()
}

pub fn broadcast(xs: &[Tensor], root: Rank) -> Vec<Tensor> {
    on_every_rank(&xs[index(root)], xs.len())
}

/// Nothing on the ranks besides the root.
pub fn gather(xs: &[Tensor], axis: i64, root: Rank) -> Vec<Tensor> {
    let whole = Tensor::cat(xs, axis);
    on_root(&whole, &whole.detach().narrow(axis, 0, 0), root, xs.len())
}

pub fn all_gather(xs: &[Tensor], axis: i64) -> Vec<Tensor> {
    on_every_rank(&Tensor::cat(xs, axis), xs.len())
}

pub fn scatter(xs: &[Tensor], axis: i64, counts: &[i64], root: Rank) -> Vec<Tensor> {
    xs[index(root)].split_with_sizes(counts, axis)
}

/// Joined along one axis, and cut along the other.
pub fn all_to_all(xs: &[Tensor], axis: i64, scatter_axis: i64, counts: &[i64]) -> Vec<Tensor> {
    Tensor::cat(xs, axis).split_with_sizes(counts, scatter_axis)
}

/// Row r of the counts is how rank r cuts its tensor. Rank r gets the blocks at place r, joined.
pub fn all_to_all_v(xs: &[Tensor], axis: i64, counts: &[Vec<i64>]) -> Vec<Tensor> {
    let cut = |(x, row): (&Tensor, &Vec<i64>)| x.split_with_sizes(row, axis);
    let blocks: Vec<Vec<Tensor>> = xs.iter().zip(counts).map(cut).collect();
    let column = |to: usize| blocks.iter().map(|own| own[to].shallow_clone()).collect::<Vec<_>>();
    (0..xs.len()).map(|to| Tensor::cat(&column(to), axis)).collect()
}

/// Each rank gets the tensor of the rank `distance` before it on the ring.
pub fn shift(xs: &[Tensor], distance: usize) -> Vec<Tensor> {
    let mut ys: Vec<Tensor> = xs.iter().map(Tensor::shallow_clone).collect();
    ys.rotate_right(distance % xs.len());
    ys
}
