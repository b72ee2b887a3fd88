//! Groups and grids of ranks: against what MPI itself says of them.

mod common;

use std::process::ExitCode;

use common::tensors::{tensor, variable};
use common::{Context, start, without_lines, works};
use mpi4tch::{Cartesian, Communicator, Error, Op, PROC_NULL, Result, mpi_sys, testing};
use tch::Kind;

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            groups_are_sets_in_order,
            groups_refuse_wrong_ranks,
            communicators_of_groups,
            groups_that_differ,
            coordinates_are_those_of_mpi,
            shifts_are_those_of_mpi,
            extents_that_mpi_chooses,
            ranks_that_are_left_over,
            parts_of_grids,
            blocks_cover_an_extent,
            what_a_grid_refuses,
            grids_that_differ,
            derivatives_on_grids,
            grids_of_a_tape_are_on_it,
        ],
    )
}

/// The processes of a group by their ranks in the world.
fn members(world: &Communicator, group: &mpi4tch::Group) -> Result<Vec<Option<i32>>> {
    let all: Vec<i32> = (0..group.size()).collect();
    group.translate(&all, &world.group()?)
}

fn some(ranks: impl IntoIterator<Item = i32>) -> Vec<Option<i32>> {
    ranks.into_iter().map(Some).collect()
}

fn groups_are_sets_in_order(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = world.size();
    let all = world.group()?;
    assert_eq!((all.size(), all.rank()), (size, Some(world.rank())));
    let reversed = all.include(&(0..size).rev().collect::<Vec<_>>())?;
    assert_eq!(members(world, &reversed)?, some((0..size).rev()));
    assert_eq!(reversed.rank(), Some(size - 1 - world.rank()));
    assert_ne!(all == reversed, size > 1, "the order counts");
    let even: Vec<i32> = (0..size).step_by(2).collect();
    let odd = all.exclude(&even)?;
    assert_eq!(members(world, &odd)?, some((1..size).step_by(2)));
    assert_eq!(odd.rank(), (world.rank() % 2 == 1).then_some(world.rank() / 2));
    let even = all.include(&even)?;
    assert_eq!(
        members(world, &odd.union(&even))?,
        some((1..size).step_by(2).chain((0..size).step_by(2)))
    );
    assert_eq!(odd.union(&all).size(), size);
    assert_eq!(
        members(world, &reversed.intersection(&even))?,
        some((0..size).rev().filter(|r| r % 2 == 0))
    );
    assert_eq!(reversed.difference(&odd), reversed.intersection(&even));
    assert_eq!(even.intersection(&odd).size(), 0);
    assert_eq!(even.translate(&[0], &odd)?, [None]);
    assert_eq!(even.translate(&[0], &reversed)?, [Some(size - 1)]);
    // A group of another communicator has the same processes.
    let other = world.split(Some(0), -world.rank())?.expect("each rank has a color");
    assert_eq!(other.group()?, reversed);
    Ok(())
}

fn groups_refuse_wrong_ranks(context: &Context) -> Result<()> {
    let all = context.world.group()?;
    let size = all.size();
    for rank in [-1, size, i32::MAX] {
        let text = format!("rank {rank} is out of range for {size} ranks");
        let errors = [
            ("Group::include", all.include(&[0, rank]).err()),
            ("Group::exclude", all.exclude(&[rank]).err()),
            ("Group::translate", all.translate(&[rank], &all).err()),
        ];
        for (call, error) in errors {
            assert_eq!(error.expect("it is refused").to_string(), format!("{call}: {text}"));
        }
    }
    let error = all.include(&[0, 0]).expect_err("it is refused").to_string();
    assert_eq!(error, "Group::include: rank 0 is listed twice");
    let error = all.exclude(&[0, 0]).expect_err("it is refused").to_string();
    assert_eq!(error, "Group::exclude: rank 0 is listed twice");
    Ok(())
}

fn communicators_of_groups(context: &Context) -> Result<()> {
    let world = &context.world;
    let all = world.group()?;
    let chosen: Vec<i32> = (0..world.size()).rev().filter(|rank| rank % 3 != 1).collect();
    let group = all.include(&chosen)?;
    for _ in 0..3 {
        match world.create(&group)? {
            Some(comm) => {
                assert_eq!(Some(comm.rank()), group.rank());
                assert_eq!(comm.size(), group.size());
                assert_eq!(comm.group()?, group);
                works(&comm)?;
                testing::assert_adjoint(&comm, &variable(&comm, &[3])?, |x| {
                    comm.all_reduce(x, Op::Sum)
                })?;
            }
            None => assert_eq!(group.rank(), None),
        }
    }
    assert!(world.create(&all.include(&[])?)?.is_none(), "a group of nobody");
    works(world)
}

fn groups_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    if last == 0 {
        return Ok(());
    }
    let all = world.group()?;
    let own = all.include(if world.rank() == last { &[0] } else { &[0, 1] })?;
    let text = without_lines(&world.create(&own).expect_err("the groups differ"));
    assert!(text.contains("ranks: [0, 1] on rank"), "{text}");
    assert!(text.contains(&format!("[0] on rank {last}")), "{text}");
    // A group with processes that the communicator lacks, on one of its ranks.
    let half = world.split(Some(i32::from(world.rank() == last)), 0)?.expect("each has a color");
    let group = if half.rank() == 0 { all } else { half.group()? };
    let error = half.create(&group).expect_err("it is refused").to_string();
    let told = "create: a process of the group is not in the communicator";
    if half.rank() == 0 {
        assert_eq!(error, told);
    } else {
        assert!(error.contains(&format!("refused: {told} on rank 0")), "{error}");
    }
    works(&half)?;
    works(world)
}

/// Grids of all shapes that all ranks, or some, fit in.
fn grids(world: &Communicator) -> Result<Vec<Cartesian>> {
    let size = world.size();
    let mut grids = Vec::new();
    for periodic in [false, true] {
        for dims in
            [vec![size], vec![1, size], vec![size, 1, 1], vec![0, 0], vec![2, 0], vec![2, 2]]
        {
            let given: i32 = dims.iter().filter(|extent| **extent != 0).product();
            if given > size || (dims.contains(&0) && size % given != 0) {
                continue;
            }
            let mut periodic = vec![periodic; dims.len()];
            periodic[0] = true;
            grids.extend(world.cartesian(&dims, &periodic, false)?);
        }
    }
    Ok(grids)
}

fn coordinates_are_those_of_mpi(context: &Context) -> Result<()> {
    for grid in grids(&context.world)? {
        let axes = i32::try_from(grid.dims().len()).expect("few");
        for rank in 0..grid.size() {
            let mut coordinates = vec![-1; grid.dims().len()];
            // SAFETY: the communicator is a grid of so many axes.
            unsafe {
                mpi_sys::MPI_Cart_coords(grid.as_raw(), rank, axes, coordinates.as_mut_ptr());
            }
            assert_eq!(grid.coordinates_of(rank)?, coordinates);
            assert_eq!(grid.rank_at(&coordinates)?, rank);
            if rank == grid.rank() {
                assert_eq!(grid.coordinates(), coordinates);
            }
            for (axis, periodic) in grid.periodic().iter().enumerate() {
                let mut beyond = coordinates.clone();
                beyond[axis] -= 3 * grid.dims()[axis];
                assert_eq!(grid.rank_at(&beyond).ok(), periodic.then_some(rank));
            }
        }
    }
    Ok(())
}

fn shifts_are_those_of_mpi(context: &Context) -> Result<()> {
    for grid in grids(&context.world)? {
        for axis in 0..grid.dims().len() {
            for displacement in [-5, -2, -1, 0, 1, 2, 7] {
                let (mut source, mut destination) = (-1, -1);
                let direction = i32::try_from(axis).expect("few");
                // SAFETY: the communicator is a grid with this axis.
                unsafe {
                    mpi_sys::MPI_Cart_shift(
                        grid.as_raw(),
                        direction,
                        displacement,
                        &mut source,
                        &mut destination,
                    );
                }
                let own = grid.shift(axis, displacement)?;
                assert_eq!(own, (source, destination), "{grid:?}, axis {axis}, by {displacement}");
            }
        }
    }
    Ok(())
}

fn extents_that_mpi_chooses(context: &Context) -> Result<()> {
    let world = &context.world;
    let grid = world.cartesian(&[0, 0, 0], &[false; 3], true)?.expect("all ranks");
    let mut dims = [0; 3];
    // SAFETY: a list of three.
    unsafe { mpi_sys::MPI_Dims_create(world.size(), 3, dims.as_mut_ptr()) };
    assert_eq!(grid.dims(), dims);
    works(&grid)
}

fn ranks_that_are_left_over(context: &Context) -> Result<()> {
    let world = &context.world;
    let fewer = (world.size() - 1).max(1);
    let grid = world.cartesian(&[fewer], &[true], false)?;
    assert_eq!(grid.is_some(), world.rank() < fewer);
    if let Some(grid) = grid {
        assert_eq!(grid.size(), fewer);
        works(&grid)?;
    }
    // A grid without axes has one place.
    let point = world.cartesian(&[], &[], false)?;
    assert_eq!(point.is_some(), world.rank() == 0);
    works(world)
}

fn parts_of_grids(context: &Context) -> Result<()> {
    let world = &context.world;
    let grid = world.cartesian(&[0, 0], &[true, false], false)?.expect("all ranks");
    let own = tensor(&[i64::from(grid.rank())]);
    for keep in [[true, false], [false, true], [true, true], [false, false]] {
        let part = grid.sub(&keep)?;
        let kept = |list: &[i32]| -> Vec<i32> {
            list.iter().zip(keep).filter(|(_, keep)| *keep).map(|(x, _)| *x).collect()
        };
        assert_eq!(part.dims(), kept(grid.dims()));
        assert_eq!(part.coordinates(), kept(grid.coordinates()));
        let ranks = Vec::<i64>::try_from(part.all_gather(&own, 0)?).expect("numbers");
        let expected: Vec<i64> = (0..grid.size())
            .filter(|rank| {
                let there = grid.coordinates_of(*rank).expect("it is in the grid");
                (0..2).all(|i| keep[i] || there[i] == grid.coordinates()[i])
            })
            .map(i64::from)
            .collect();
        assert_eq!(ranks, expected);
        works(&part)?;
    }
    let error = grid.sub(&[true]).expect_err("it is refused").to_string();
    let told = "sub: keep has 1 entries; one for each of 2 axes is needed";
    assert!(error.starts_with(told), "{error}");
    works(&grid)
}

fn blocks_cover_an_extent(context: &Context) -> Result<()> {
    let line = context.world.cartesian(&[0], &[false], false)?.expect("all ranks");
    for extent in [0, 1, 2, 7, 100] {
        let own = line.block(0, extent);
        let bounds = line.all_gather(&tensor(&[own.start, own.end]), 0)?;
        let bounds = Vec::<i64>::try_from(bounds).expect("numbers");
        assert_eq!((bounds[0], bounds[bounds.len() - 1]), (0, extent));
        for pair in bounds[1..bounds.len() - 1].chunks(2) {
            assert_eq!(pair[0], pair[1]);
        }
        assert!(own.end - own.start <= extent / i64::from(line.size()) + 1);
        assert_eq!(line.block(1, extent), 0..extent, "the grid has no such axis");
    }
    assert_eq!(line.block(0, -3), 0..0);
    Ok(())
}

fn what_a_grid_refuses(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = world.size();
    let more = size + 1;
    let cases: [(&[i32], &[bool], String); 5] = [
        (
            &[1, 1],
            &[true],
            "dims has 2 entries, and periodic 1; one for each axis is needed in both".into(),
        ),
        (&[-1], &[true], "dims has the extent -1; 0 lets MPI choose".into()),
        (
            &[more],
            &[true],
            format!("a grid with dims [{more}] has at least {more} places, for {size} ranks"),
        ),
        (
            &[i32::MAX, i32::MAX, i32::MAX],
            &[true; 3],
            format!(
                "a grid with dims [2147483647, 2147483647, 2147483647] has at least \
                 9223372036854775807 places, for {size} ranks"
            ),
        ),
        (
            &[i32::MAX, 0],
            &[true; 2],
            format!(
                "a grid with dims [2147483647, 0] has at least 2147483647 places, for {size} ranks"
            ),
        ),
    ];
    for (dims, periodic, text) in cases {
        let error = world.cartesian(dims, periodic, false).expect_err("it is refused");
        assert_eq!(error.to_string(), format!("cartesian: {text}"));
    }
    if size == 3 {
        let error = world.cartesian(&[2, 0], &[true; 2], false).expect_err("it is refused");
        let text =
            "cartesian: 3 ranks cannot be put in a grid with dims [2, 0]: 2 does not divide 3";
        assert_eq!(error.to_string(), text);
    }
    let grid = world.cartesian(&[0, 0], &[false, true], false)?.expect("all ranks");
    let error = |outcome: Option<Error>| outcome.expect("it is refused").to_string();
    assert_eq!(
        error(grid.coordinates_of(size).err()),
        format!("coordinates_of: rank {size} is out of range for {size} ranks")
    );
    assert_eq!(
        error(grid.rank_at(&[0]).err()),
        "rank_at: [0] are not the coordinates in a grid of 2 axes"
    );
    assert_eq!(
        error(grid.rank_at(&[-1, 0]).err()),
        format!(
            "rank_at: [-1, 0] are outside of a grid with dims {:?}, which is not periodic along \
             axis 0",
            grid.dims()
        )
    );
    assert_eq!(error(grid.shift(2, 1).err()), "shift: axis 2 is out of range for a grid of 2 axes");
    assert_eq!(grid.shift(0, grid.dims()[0])?, (PROC_NULL, PROC_NULL));
    assert_eq!(grid.shift(0, i32::MIN)?, (PROC_NULL, PROC_NULL));
    assert_eq!(grid.shift(1, 0)?, (grid.rank(), grid.rank()));
    works(world)
}

fn grids_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    if last == 0 {
        return Ok(());
    }
    let is_last = world.rank() == last;
    let text = without_lines(
        &world.cartesian(&[0], &[is_last], false).expect_err("the ranks give other arguments"),
    );
    assert!(text.contains("grid: dims [0], periodic [false], reorder false on rank"), "{text}");
    let text = world
        .cartesian(if is_last { &[-1] } else { &[0] }, &[true], false)
        .expect_err("a rank refuses")
        .to_string();
    assert!(text.contains("cartesian: dims has the extent -1; 0 lets MPI choose"), "{text}");
    works(world)
}

fn derivatives_on_grids(context: &Context) -> Result<()> {
    let world = &context.world;
    for grid in grids(world)? {
        let x = variable(&grid, &[2, 3])?;
        testing::assert_adjoint(&grid, &x, |x| grid.scan(x, Op::Sum))?;
        let (source, destination) = grid.shift(0, 1)?;
        testing::assert_adjoint(&grid, &x, |x| grid.sendrecv(x, destination, x, source, 3))?;
        testing::gradcheck(&grid, &[&x], |x| grid.all_reduce(&x[0], Op::Prod))?;
    }
    Ok(())
}

fn grids_of_a_tape_are_on_it(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let grid = tape.cartesian(&[0, 0], &[true, true], false)?.expect("all ranks");
    let row = grid.sub(&[false, true])?;
    let first = tape.create(&row.group()?.include(&[])?)?;
    assert!(first.is_none());
    let x = tensor(&[1.0]).set_requires_grad(true);
    // The results reach no loss, but their adjoints are carried out.
    let y = grid.all_reduce(&x, Op::Sum)?;
    let _unused = row.all_reduce(&y, Op::Sum)?;
    let loss = (world.rank() == 0).then(|| y.sum(Kind::Double));
    tape.backward(loss.as_ref())?;
    assert_eq!(x.grad(), tensor(&[1.0]));
    works(world)
}
