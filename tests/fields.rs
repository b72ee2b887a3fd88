//! Fields that are cut over a grid of ranks.

mod common;

use std::process::ExitCode;

use common::tensors::variable;
use common::{Context, start, without_lines, works};
use mpi4tch::{Cartesian, Communicator, Result, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            each_rank_has_its_block,
            collected_is_the_whole_again,
            adjoints,
            second_derivatives,
            on_a_tape,
            off_root_nothing_is_needed,
            other_blocks_can_be_collected,
            blocks_that_do_not_fit,
            what_is_refused,
        ],
    )
}

/// A grid, the shape of a field, and the axes that are cut.
type Case = (Cartesian, Vec<i64>, Vec<i64>);

fn cases(world: &Communicator) -> Result<Vec<Case>> {
    let all = |dims: &[i32]| -> Result<Cartesian> {
        let periodic = vec![true; dims.len()];
        Ok(world.cartesian(dims, &periodic, false)?.expect("all ranks are in it"))
    };
    Ok(vec![
        (all(&[0])?, vec![10], vec![0]),
        (all(&[0])?, vec![2, 3], vec![-1]),
        (all(&[0, 0])?, vec![5, 7], vec![0, 1]),
        (all(&[0, 0])?, vec![3, 2, 4], vec![2, 0]),
        (all(&[0, 0, 0])?, vec![2, 5, 1, 3], vec![3, -3, 0]),
        (all(&[0, 0])?, vec![0, 3], vec![0, 1]),
    ])
}

/// The whole field, equal on all ranks.
fn field(comm: &Communicator, shape: &[i64], kind: Kind) -> Result<Tensor> {
    comm.broadcast(&testing::random(comm, shape, kind)?, 0)
}

/// An axis counted from the start.
fn place(axis: i64, axes: usize) -> usize {
    let axis = if axis < 0 { axis + i64::try_from(axes).expect("few") } else { axis };
    usize::try_from(axis).expect("it is in range")
}

/// This rank's block, cut from the whole.
fn block(grid: &Cartesian, whole: &Tensor, axes: &[i64]) -> Tensor {
    let mut part = whole.shallow_clone();
    for (i, axis) in axes.iter().enumerate() {
        let own = grid.block(i, whole.size()[place(*axis, whole.dim())]);
        part = part.narrow(*axis, own.start, own.end - own.start);
    }
    part
}

fn each_rank_has_its_block(context: &Context) -> Result<()> {
    for (grid, shape, axes) in cases(&context.world)? {
        for kind in [Kind::Double, Kind::Half, Kind::Int64, Kind::Bool, Kind::ComplexFloat] {
            let whole = field(&grid, &shape, kind)?;
            for root in 0..grid.size() {
                let own = grid.distribute(&whole, &axes, root)?;
                assert_eq!(own, block(&grid, &whole, &axes), "{grid:?} {axes:?}");
            }
        }
        let whole = field(&grid, &shape, Kind::Double)?;
        let turned = whole.permute((0..shape.len() as i64).rev().collect::<Vec<_>>());
        let turned = turned.contiguous().permute((0..shape.len() as i64).rev().collect::<Vec<_>>());
        assert_eq!(grid.distribute(&turned, &axes, 0)?, block(&grid, &whole, &axes));
    }
    Ok(())
}

fn collected_is_the_whole_again(context: &Context) -> Result<()> {
    for (grid, shape, axes) in cases(&context.world)? {
        let whole = field(&grid, &shape, Kind::Float)?;
        let own = block(&grid, &whole, &axes);
        for root in 0..grid.size() {
            let collected = grid.collect(&own, &axes, root)?;
            if grid.rank() == root {
                assert_eq!(collected, whole);
                continue;
            }
            let mut nothing = own.size();
            for axis in &axes {
                nothing[place(*axis, shape.len())] = 0;
            }
            assert_eq!(collected.size(), nothing);
        }
    }
    Ok(())
}

/// Each is the other's adjoint; the inner products are those of all ranks.
fn adjoints(context: &Context) -> Result<()> {
    for (grid, shape, axes) in cases(&context.world)? {
        let root = grid.size() - 1;
        let x = variable(&grid, &shape)?;
        testing::assert_adjoint(&grid, &x, |x| grid.distribute(x, &axes, root))?;
        let own = block(&grid, &testing::random(&grid, &shape, Kind::Double)?, &axes).copy();
        testing::assert_adjoint(&grid, &own, |x| grid.collect(x, &axes, root))?;
    }
    Ok(())
}

fn second_derivatives(context: &Context) -> Result<()> {
    for (grid, shape, axes) in cases(&context.world)? {
        if shape.contains(&0) {
            continue;
        }
        let x = variable(&grid, &shape)?;
        testing::gradgradcheck(&grid, &x, |x| Ok(grid.distribute(&x.exp(), &axes, 0)?.sin()))?;
    }
    Ok(())
}

fn on_a_tape(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let grid = tape.cartesian(&[0, 0], &[false; 2], false)?.expect("all ranks");
    let x = variable(&context.world, &[4, 5])?;
    let own = grid.distribute(&x, &[0, 1], 0)?;
    let whole = grid.collect(&own.square(), &[0, 1], 0)?;
    let loss = (grid.rank() == 0).then(|| whole.sum(Kind::Double));
    tape.backward(loss.as_ref())?;
    let expected = if grid.rank() == 0 { x.detach() * 2.0 } else { x.zeros_like().detach() };
    assert_eq!(x.grad(), expected);
    Ok(())
}

/// A tensor without elements gives the kind.
fn off_root_nothing_is_needed(context: &Context) -> Result<()> {
    let world = &context.world;
    let grid = world.cartesian(&[0, 0], &[false; 2], false)?.expect("all ranks");
    let whole = field(&grid, &[5, 6], Kind::Double)?;
    let x = if grid.rank() == 0 { whole.copy() } else { Tensor::from_slice::<f64>(&[]) };
    let x = x.set_requires_grad(true);
    let own = grid.distribute(&x, &[0, 1], 0)?;
    assert_eq!(own.detach(), block(&grid, &whole, &[0, 1]));
    own.sum(Kind::Double).f_backward()?;
    assert_eq!(x.grad(), x.ones_like());
    Ok(())
}

/// Blocks need not be as `block` cuts them.
fn other_blocks_can_be_collected(context: &Context) -> Result<()> {
    let grid = context.world.cartesian(&[0, 0], &[false; 2], false)?.expect("all ranks");
    let lengths = |coordinate: i32| i64::from((coordinate * 2 + 1) % 4);
    let starts = |coordinate: i32| (0..coordinate).map(lengths).sum::<i64>();
    let [rows, columns] = [grid.dims()[0], grid.dims()[1]].map(starts);
    let whole = field(&grid, &[rows, columns, 2], Kind::Double)?;
    let [i, j] = [grid.coordinates()[0], grid.coordinates()[1]];
    let own = whole.narrow(0, starts(i), lengths(i)).narrow(1, starts(j), lengths(j));
    let collected = grid.collect(&own, &[0, 1], 0)?;
    assert!(grid.rank() != 0 || collected == whole);
    testing::assert_adjoint(&grid, &own.copy(), |x| grid.collect(x, &[0, 1], 0))
}

fn blocks_that_do_not_fit(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = world.size();
    if size == 1 {
        return Ok(());
    }
    let grid = world.cartesian(&[1, size], &[false; 2], false)?.expect("all ranks");
    let last = size - 1;
    let rows = if grid.rank() == last { 2 } else { 3 };
    let own = Tensor::zeros([rows, 4], (Kind::Float, tch::Device::Cpu));
    let error = grid.collect(&own, &[0, 1], 0).expect_err("the rows differ").to_string();
    let text = format!(
        "collect: the block of rank {last}, at [0, {last}], has shape [2, 4], which does not fit to \
         the blocks beside it"
    );
    assert_eq!(error, text);
    works(&grid)
}

fn what_is_refused(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = world.size();
    let grid = world.cartesian(&[0, 0], &[false; 2], false)?.expect("all ranks");
    let x = Tensor::zeros([4, 4], (Kind::Float, tch::Device::Cpu));
    let told = |call: &str, text: &str, root: i32, error: mpi4tch::Error| {
        let is_told = grid.rank() == root || !(0..size).contains(&root) || call == "collect";
        let expected = format!("{call}: {text}");
        if is_told {
            assert_eq!(error.to_string(), expected);
        } else {
            let error = without_lines(&error);
            assert!(error.contains(&format!("refused: {expected} on rank {root}")), "{error}");
        }
    };
    let cases: [(&[i64], i32, String); 5] = [
        (&[0], 0, "axes has 1 entries; one for each of 2 axes of the grid is needed".into()),
        (&[0, 2], 0, "axis 2 is out of range for a tensor of shape [4, 4]".into()),
        (&[1, -1], 0, "axis 1 of the tensor is listed twice".into()),
        (&[0, 1], size, format!("root {size} is out of range for {size} ranks")),
        (&[0, 1], -1, format!("root -1 is out of range for {size} ranks")),
    ];
    for (axes, root, text) in &cases {
        let error = grid.distribute(&x, axes, *root).expect_err("it is refused");
        told("distribute", text, *root, error);
        let error = grid.collect(&x, axes, *root).expect_err("it is refused");
        told("collect", text, *root, error);
    }
    if size > 1 {
        let kind = if grid.rank() == 0 { Kind::Float } else { Kind::Double };
        let error = grid.distribute(&x.to_kind(kind), &[0, 1], 0).expect_err("the kinds differ");
        assert!(without_lines(&error).contains("kind: Float on rank 0"), "{error}");
        let root = i32::from(grid.rank() == 0);
        let error = grid.distribute(&x, &[0, 1], root).expect_err("the roots differ");
        assert!(without_lines(&error).contains("root: 1 on rank 0"), "{error}");
    }
    works(&grid)
}
