//! One tape for calls on several communicators: rows and columns of a grid, stages and replicas.

use mpi4tch::{Communicator, Op, PROC_NULL, Rank, Result, Tape, testing};
use tch::{Kind, Tensor};

use crate::common::tensors::{range, tensor, variable, zeros};
use crate::common::{Context, works};
use crate::{number, same_everywhere, tape_error};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        matrix_times_vector,
        a_dead_branch_on_one_row,
        a_loss_on_one_rank,
        stages_of_replicas,
        time_and_space,
        tensor_and_data_parallel,
        ensembles,
        pencils_of_a_fourier_transform,
        communicators_of_a_loop,
        waits_are_counted_by_communicator,
        a_mismatch_on_one_row,
        calls_that_a_row_leaves_out,
        groups_are_told_apart,
        different_communicators_by_a_branch,
        messages_on_another_communicator,
        forgotten_communicators,
        strangers_are_refused,
        other_tapes_communicators_are_refused,
    ]
}

/// The ranks as a grid, with as many rows as there are columns or fewer.
struct Grid {
    tape: Tape,
    row: Communicator,
    column: Communicator,
}

impl Grid {
    /// On a tape of all ranks: made from it, or before it.
    fn new(world: &Communicator, before: bool) -> Result<Self> {
        let size = world.size();
        let rows = (1..=size).rev().find(|n| n * n <= size && size % n == 0).expect("1 does");
        let (i, j) = (world.rank() / (size / rows), world.rank() % (size / rows));
        let split = |comm: &Communicator| -> Result<_> {
            let row = comm.split(Some(i), j)?.expect("each rank has a color");
            Ok((row, comm.split(Some(j), i)?.expect("each rank has a color")))
        };
        if before {
            let (row, column) = split(world)?;
            let tape = world.tape();
            return Ok(Self { row: tape.on(&row)?, column: tape.on(&column)?, tape });
        }
        let tape = world.tape();
        let (row, column) = split(&tape)?;
        Ok(Self { tape, row, column })
    }

    /// The coordinates of this rank.
    fn place(&self) -> (Rank, Rank) {
        (self.column.rank(), self.row.rank())
    }
}

/// First and second derivatives, of a program that goes by a grid of the tape.
fn check(
    context: &Context,
    shape: &[i64],
    program: impl Fn(&Grid, &Tensor) -> Result<Tensor>,
) -> Result<()> {
    for before in [false, true] {
        let grid = Grid::new(&context.world, before)?;
        let x = testing::random(&context.world, shape, Kind::Double)?;
        testing::gradcheck(&grid.tape, &[&x], |x| program(&grid, &x[0]))?;
        testing::gradgradcheck(&grid.tape, &x, |x| program(&grid, x))?;
    }
    Ok(())
}

/// The part of the vector lies on the first row, the result on the first column.
fn matrix_times_vector(context: &Context) -> Result<()> {
    const N: i64 = 2;
    let block = |(i, j): (Rank, Rank)| {
        let number = range(N * N, Kind::Double).view([N, N]);
        (number + f64::from(3 * i + 5 * j)).sin()
    };
    let product = |grid: &Grid, x: &Tensor| {
        let x = grid.column.broadcast(x, 0)?;
        let part = block(grid.place()).matmul(&x.sin());
        grid.row.reduce(&part, Op::Sum, 0)
    };
    let grid = Grid::new(&context.world, false)?;
    let x = (range(N, Kind::Double) + f64::from(grid.place().1)).cos();
    let (i, j) = grid.place();
    let mut expected = zeros(&[N]);
    for other in 0..if j == 0 { grid.row.size() } else { 0 } {
        let x = (range(N, Kind::Double) + f64::from(other)).cos();
        expected += block((i, other)).matmul(&x.sin());
    }
    assert!(product(&grid, &x)?.detach().allclose(&expected, 1e-12, 1e-12, false));
    check(context, &[N], product)
}

/// Its adjoint is carried out by the ranks of that row only, and reached by the token alone.
fn a_dead_branch_on_one_row(context: &Context) -> Result<()> {
    check(context, &[3], |grid, x| {
        let y = grid.column.all_reduce(&x.sin(), Op::Sum)?;
        if grid.place().0 == 0 {
            let _ = grid.row.all_reduce(&(&y * 2.0), Op::Sum)?;
        }
        grid.tape.all_reduce(&y.square(), Op::Sum)
    })
}

fn a_loss_on_one_rank(context: &Context) -> Result<()> {
    check(context, &[2], |grid, x| {
        let y = grid.row.all_gather(&x.sin(), 0)?;
        let y = grid.column.all_reduce(&y.square(), Op::Sum)?;
        // Elsewhere it comes to nothing.
        Ok(if grid.tape.rank() == grid.tape.size() - 1 { y } else { zeros(&[1]) })
    })
}

/// Messages from stage to stage, by the tape's own communicator, and sums within each stage.
fn stages_of_replicas(context: &Context) -> Result<()> {
    check(context, &[3], |grid, x| {
        let (stages, replicas) = (grid.column.size(), grid.row.size());
        let (stage, rank) = (grid.column.rank(), grid.tape.rank());
        let received = if stage > 0 { Some(grid.tape.recv(x, rank - replicas, 7)?) } else { None };
        let own = received.map_or_else(|| x.sin(), |received| received * x);
        let y = grid.row.all_reduce(&own, Op::Mean)?;
        if stage < stages - 1 {
            let _ = grid.tape.send(&y, rank + replicas, 7)?;
            return Ok(zeros(&[1]));
        }
        Ok(y)
    })
}

/// Halos with walls in space, a pipeline in time: sends that are dead ends on both.
fn time_and_space(context: &Context) -> Result<()> {
    check(context, &[3], |grid, x| {
        let (space, time) = (&grid.row, &grid.column);
        let wall = |rank: Rank| if space_has(space, rank) { rank } else { PROC_NULL };
        let (left, right) = (wall(space.rank() - 1), wall(space.rank() + 1));
        let before = time.rank() - 1;
        let mut u = if before < 0 { x.sin() } else { time.recv(x, before, 0)? * 1.0 };
        for _ in 0..2 {
            let (first, last) = (u.narrow(0, 0, 1), u.narrow(0, 2, 1));
            let from_left = space.sendrecv(&last, right, &first, left, 0)?;
            let from_right = space.sendrecv(&first, left, &last, right, 1)?;
            let from_left = if left == PROC_NULL { first } else { from_left };
            let from_right = if right == PROC_NULL { last } else { from_right };
            let e = Tensor::cat(&[&from_left, &u, &from_right], 0);
            u = &u + (e.narrow(0, 0, 3) + e.narrow(0, 2, 3) - &u * 2.0) * 0.2 + u.sin() * 0.1;
        }
        if time.rank() + 1 < time.size() {
            let _ = time.send(&u, time.rank() + 1, 0)?;
            return Ok(zeros(&[1]));
        }
        Ok(u)
    })
}

fn space_has(comm: &Communicator, rank: Rank) -> bool {
    (0..comm.size()).contains(&rank)
}

/// Parameters are the mean of a column's copies, activations the sum over a row; only the first rank of
/// each row has a loss.
fn tensor_and_data_parallel(context: &Context) -> Result<()> {
    check(context, &[2, 3], |grid, parameters| {
        let parameters = grid.column.all_reduce(parameters, Op::Mean)?;
        let (i, j) = grid.place();
        let sample = tensor(&[f64::from(i + 1), f64::from(j + 2)]).cos();
        let part = sample.view([1, 2]).matmul(&parameters).tanh();
        let out = grid.row.all_reduce(&part, Op::Sum)?;
        Ok(if j == 0 { out.square() } else { zeros(&[1]) })
    })
}

/// Each row solves for itself; a functional of all of them on rank 0.
fn ensembles(context: &Context) -> Result<()> {
    check(context, &[2], |grid, control| {
        let control = grid.tape.broadcast(control, 0)?;
        let (i, j) = grid.place();
        let own = (control * f64::from(j + 1)).sin() * f64::from(i + 1);
        let member = grid.row.all_reduce(&own.square(), Op::Sum)?;
        let all = grid.column.all_gather(&member.sum(Kind::Double).view([1]), 0)?;
        let functional = all.logsumexp([0_i64], false).view([1]);
        Ok(if grid.tape.rank() == 0 { functional } else { zeros(&[1]) })
    })
}

/// The two-dimensional transform of a plane of which each rank has a block: whole lines along each axis
/// in turn, by exchanges along rows and then along columns.
fn pencils_of_a_fourier_transform(context: &Context) -> Result<()> {
    for before in [false, true] {
        let grid = Grid::new(&context.world, before)?;
        let (rows, columns) = (i64::from(grid.column.size()), i64::from(grid.row.size()));
        let transform = |x: &Tensor| -> Result<Tensor> {
            let lines = grid.row.all_to_all(x, 1, 0, 1)?.fft_fft(None, 1, "ortho");
            let block = grid.row.all_to_all(&lines, 0, 1, rows)?;
            Ok(grid.column.all_to_all(&block, 0, 1, 1)?.fft_fft(None, 0, "ortho"))
        };
        let extent = rows * columns;
        let plane = range(extent * extent, Kind::Double);
        let plane = plane.cos().view([extent, extent]).to_kind(Kind::ComplexDouble);
        let (i, j) = grid.place();
        let block = plane.narrow(0, i64::from(i) * columns, columns);
        let block = block.narrow(1, i64::from(j) * rows, rows).contiguous();
        let whole = plane.fft_fft2(None::<&[i64]>, [0_i64, 1], "ortho");
        let expected = whole.narrow(1, i64::from(j) * rows + i64::from(i), 1);
        assert!(transform(&block)?.allclose(&expected, 1e-12, 1e-12, false));
        testing::gradcheck(&grid.tape, &[&block], |x| Ok(transform(&x[0])?.sin()))?;
        testing::gradgradcheck(&grid.tape, &block, |x| Ok(transform(x)?.sin()))?;
    }
    Ok(())
}

/// Made one after another, and dropped before the backward pass.
fn communicators_of_a_loop(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let program = |x: &Tensor| {
        let mut y = x.shallow_clone();
        for i in 0..3 {
            let half = tape.split(Some((tape.rank() >> i) & 1), tape.rank())?;
            let half = half.expect("each rank has a color");
            y = half.all_reduce(&y.sin(), Op::Sum)?;
            let request = half.iall_reduce(&(&y * 0.5), Op::Mean)?;
            let next = (half.rank() + 1) % half.size();
            let before = (half.rank() + half.size() - 1) % half.size();
            // Received, and never waited for.
            let receive = half.irecv(&y, before, 3)?;
            let _ = half.send(&y, next, 3)?;
            drop(receive);
            y += request.wait()?;
        }
        Ok(y)
    };
    let x = testing::random(&tape, &[2], Kind::Double)?;
    testing::gradcheck(&tape, &[&x], |x| program(&x[0]))?;
    testing::gradgradcheck(&tape, &x, program)?;
    drop(tape);
    works(&context.world)
}

/// Which of a communicator's calls is waited for does not depend on how many there are on others.
fn waits_are_counted_by_communicator(context: &Context) -> Result<()> {
    check(context, &[2], |grid, x| {
        let mut y = x.sin();
        for _ in 0..grid.place().0 {
            y = grid.row.all_reduce(&y, Op::Mean)?;
        }
        let (a, b) = (grid.tape.iall_reduce(&y, Op::Sum)?, grid.tape.iall_reduce(x, Op::Sum)?);
        if grid.place().0 == 0 {
            y = grid.row.iall_reduce(&y, Op::Sum)?.wait()?;
        }
        let (b, a) = (b.wait()?, a.wait()?);
        Ok(a * b + y)
    })
}

fn a_mismatch_on_one_row(context: &Context) -> Result<()> {
    let grid = Grid::new(&context.world, false)?;
    let (i, j) = grid.place();
    let (line, row) = (line!(), context.world.split(Some(i), j)?.expect("each rank has a color"));
    let on_tape = grid.tape.on(&row)?;
    let last = row.size() - 1;
    if last == 0 {
        return Ok(());
    }
    let x = number(&grid.tape, 1.0);
    let y = grid.tape.all_reduce(&x, Op::Sum)?;
    let z = grid.column.all_reduce(&y, Op::Sum)?;
    if i == 0 {
        let comm = if j == last { &row } else { &on_tape };
        let _ = comm.all_reduce(&z, Op::Sum)?;
    }
    let text = tape_error(grid.tape.backward(&z.sum(Kind::Double)));
    same_everywhere(&context.world, &text)?;
    let ranks: Vec<String> = (0..=last).map(|rank| rank.to_string()).collect();
    let expected = format!(
        "\n  on the communicator of ranks {}, made by split at {}:{line}:",
        ranks.join(", "),
        file!()
    );
    assert!(text.starts_with(&expected), "{text}");
    assert!(text.contains("\n    call 1 of all ranks: all_reduce at "), "{text}");
    assert!(text.ends_with(&format!("; nothing on rank {last}")), "{text}");
    drop(grid);
    works(&context.world)
}

/// The first rank has all the weight of the others: neither its own call nor all of theirs is lost.
fn calls_that_a_row_leaves_out(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = world.size();
    if size == 1 {
        return Ok(());
    }
    // Of a bit for each rank: whether it makes the call on the tape.
    for on_tape in 1..(1 << size.min(5)) - 1 {
        let tape = world.tape();
        let x = number(world, 1.0);
        let is_on = (on_tape >> world.rank()) & 1 == 1;
        let comm: &Communicator = if is_on { &tape } else { world };
        let _ = comm.all_reduce(&x, Op::Sum)?;
        let text = tape_error(tape.backward(None));
        assert!(text.contains("\n  call 1 of all ranks: "), "{on_tape:b}: {text}");
    }
    Ok(())
}

/// What one row lacks is not made up for by another.
fn groups_are_told_apart(context: &Context) -> Result<()> {
    let world = &context.world;
    let pair = world.split(Some(world.rank() / 2), world.rank())?.expect("each has a color");
    let tape = world.tape();
    let on_tape = tape.on(&pair)?;
    let x = number(world, 1.0);
    // The first rank of one pair, the second of the other.
    let is_on = (world.rank() + world.rank() / 2) % 2 == 0;
    let comm = if is_on { &on_tape } else { &pair };
    let _ = comm.all_reduce(&x, Op::Sum)?;
    let outcome = tape.backward(None);
    if world.size() == 1 {
        return outcome;
    }
    let text = tape_error(outcome);
    assert!(text.contains("\n  on the communicator of ranks 0, 1, made by split at "), "{text}");
    if world.size() >= 4 {
        assert!(
            text.contains("\n  on the communicator of ranks 2, 3, made by split at "),
            "{text}"
        );
    }
    same_everywhere(world, &text)
}

/// Both calls are made on both communicators, and each rank has another one on the tape.
fn different_communicators_by_a_branch(context: &Context) -> Result<()> {
    let world = &context.world;
    let mut comms = [world.duplicate()?, world.duplicate()?];
    if world.rank() > 0 {
        comms.swap(0, 1);
    }
    let tape = world.tape();
    let x = number(world, 1.0);
    let on_tape = tape.on(&comms[0])?.iall_reduce(&x, Op::Sum)?;
    let off = comms[1].iall_reduce(&x, Op::Sum)?;
    let _ = mpi4tch::wait_all([on_tape, off])?;
    let outcome = tape.backward(None);
    if world.size() == 1 {
        return outcome;
    }
    let text = tape_error(outcome);
    assert!(text.contains(", made by duplicate at "), "{text}");
    same_everywhere(world, &text)
}

/// Those of equal tags and ranks are no counterparts.
fn messages_on_another_communicator(context: &Context) -> Result<()> {
    let world = &context.world;
    let (a, b) = (world.duplicate()?, world.duplicate()?);
    let tape = world.tape();
    let [sends, receives] = [tape.on(&a)?, tape.on(&b)?];
    let (right, left) = crate::common::ring::neighbours(world);
    let x = number(world, 1.0);
    let sent = sends.isend(&x, right, 4)?;
    // Each half by a communicator that is not on the tape.
    let received = a.recv(&x, left, 4)?;
    let unsent = receives.irecv(&x, left, 4)?;
    let half = b.isend(&received, right, 4)?;
    let _ = (sent.wait()?, unsent.wait()?, half.wait()?);
    let text = tape_error(tape.backward(None));
    assert!(text.contains("not received on the tape"), "{text}");
    assert!(text.contains("not sent on the tape"), "{text}");
    same_everywhere(world, &text)
}

/// The send is a dead end, and no tape carries it out.
fn forgotten_communicators(context: &Context) -> Result<()> {
    let world = &context.world;
    let forgotten = world.duplicate()?;
    let tape = world.tape();
    let x = number(world, 1.0);
    let received = match world.rank() {
        0 if world.size() > 1 => {
            let _ = forgotten.send(&x, 1, 0)?;
            None
        }
        1 => Some(forgotten.recv(&x, 0, 0)?.sum(Kind::Double)),
        _ => None,
    };
    let outcome = tape.backward(received.as_ref());
    if world.rank() != 1 {
        return outcome;
    }
    let error = outcome.expect_err("rank 0 does not get its part").to_string();
    assert!(error.contains("on no tape, and reached by Tape::backward at "), "{error}");
    assert!(error.contains("put its communicator on the tape by `Tape::on`"), "{error}");
    Ok(())
}

fn strangers_are_refused(context: &Context) -> Result<()> {
    let world = &context.world;
    let part = world.split((world.rank() > 0).then_some(0), 0)?;
    let Some(part) = part else { return Ok(()) };
    let tape = part.tape();
    let error = tape.on(world).expect_err("rank 0 is not on the tape").to_string();
    let expected = "Tape::on: rank 0 of the communicator is none of the communicator that the tape \
                    was made from; make the tape from one that has all ranks";
    assert_eq!(error, expected);
    // The same ranks in another order are no strangers.
    let reversed = part.split(Some(0), -part.rank())?.expect("each has a color");
    let reversed = tape.on(&reversed)?;
    let x = variable(&part, &[2])?;
    let y = reversed.scan(&x.sin(), Op::Sum)?;
    let gradient = tape.grad(&y.sum(Kind::Double), &[&x])?.remove(0);
    let expected = x.cos() * f64::from(reversed.size() - reversed.rank());
    assert!(gradient.allclose(&expected, 1e-12, 1e-12, false));
    Ok(())
}

fn other_tapes_communicators_are_refused(context: &Context) -> Result<()> {
    let world = &context.world;
    let comm = world.duplicate()?;
    let (first, second) = (world.tape(), world.tape());
    let on_first = first.on(&comm)?;
    // Once more is no harm.
    let again = first.on(&on_first)?;
    let error = second.on(&again).expect_err("it is on the first").to_string();
    assert_eq!(error, "Tape::on: the communicator is on another tape");
    let child = on_first.duplicate()?;
    assert!(second.on(&child).is_err());
    drop(first);
    let x = number(world, 1.0);
    // Off the tape that was dropped, on another: each call counts once.
    let y = child.all_reduce(&second.on(&on_first)?.all_reduce(&x, Op::Sum)?, Op::Mean)?;
    let gradient = second.grad(&y.sum(Kind::Double), &[&x])?.remove(0);
    assert_eq!(f64::try_from(gradient).expect("one number"), f64::from(world.size()));
    works(world)
}
