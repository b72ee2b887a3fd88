//! What is wrong with a call where the ranks compare only what they exchange anyway, as release
//! builds do: the calls that exchange sizes still fail on all ranks, and the communicator works
//! afterwards.

mod common;

use std::process::ExitCode;

use common::tensors::zeros;
use common::{Context, start_with_local_checks, without_lines, works};
use mpi4tch::{Communicator, Error, Op, Replicated, Request, Result, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start_with_local_checks,
        harness::tests![
            mistakes_are_told_where_sizes_are_exchanged,
            ranks_that_disagree_where_sizes_are_exchanged,
            counts_that_do_not_fit_together,
            mistakes_on_all_ranks,
            requires_grad_may_differ_where_nobody_goes_back,
            requires_grad_must_agree_where_it_decides_what_is_called,
            requires_grad_must_agree_where_a_node_is_the_users_own,
            promises_are_kept_by_the_program,
            replicated_tensors_that_differ,
            replicated_tensors_that_differ_on_a_tape,
        ],
    )
}

type Call = fn(&Communicator, &Tensor) -> Result<Tensor>;

/// The calls that exchange sizes, on a square with a row per rank.
const EXCHANGING: [(&str, Call); 6] = [
    ("gather", |c, x| c.gather(x, 0, 0)),
    ("all_gather", |c, x| c.all_gather(x, 0)),
    ("scatter", |c, x| c.scatter(x, 0, 1, c.size() - 1)),
    ("all_to_all", |c, x| c.all_to_all(x, 0, 1, 1)),
    ("all_to_all_v", |c, x| c.all_to_all_v(x, 0, &vec![1; c.size().unsigned_abs() as usize])),
    ("reduce_scatter", |c, x| c.reduce_scatter(x, 0, 1, Op::Sum)),
];

fn square(world: &Communicator) -> Tensor {
    let size = i64::from(world.size());
    zeros(&[size, size])
}

fn mistakes_are_told_where_sizes_are_exchanged(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    let mistakes = [
        ("kind Float8e5m2 has no MPI datatype", zeros(&[2]).to_kind(Kind::Float8e5m2)),
        ("the tensor is undefined, like a gradient that was never computed", Tensor::new()),
    ];
    for (call, f) in EXCHANGING {
        for (text, mistake) in &mistakes {
            let x = if world.rank() == last { mistake } else { &square(world) };
            let error = f(world, x).unwrap_err();
            let own = format!("{call}: {text}");
            if world.rank() == last {
                assert_eq!(error.to_string(), own);
            } else {
                assert!(matches!(error, Error::Mismatch { .. }), "{error}");
                let told =
                    format!("the ranks disagree on a call:\n  refused: {own} on rank {last}");
                assert_eq!(without_lines(&error), told);
            }
            works(world)?;
        }
    }
    Ok(())
}

fn ranks_that_disagree_where_sizes_are_exchanged(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    if last == 0 {
        return Ok(());
    }
    let most: Vec<String> = (0..last).map(|rank| rank.to_string()).collect();
    let noun = if last == 1 { "rank" } else { "ranks" };
    let others = format!("{noun} {}", most.join(", "));
    let expect = |outcome: Result<Tensor>, text: &str| -> Result<()> {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        assert_eq!(without_lines(&error), format!("the ranks disagree on a call:\n  {text}"));
        works(world)
    };
    for (_, f) in EXCHANGING {
        let kind = if world.rank() == last { Kind::Float } else { Kind::Double };
        let text = format!("kind: Double on {others}; Float on rank {last}");
        expect(f(world, &square(world).to_kind(kind)), &text)?;
    }
    // Another call that exchanges sizes.
    let x = square(world);
    let other = if world.rank() == last { world.gather(&x, 0, 0) } else { world.all_gather(&x, 0) };
    expect(other, &format!("operation: all_gather on {others}; gather on rank {last}"))?;
    let other = world.scatter(&x, 0, 1, world.rank() / last);
    expect(other, &format!("root: 0 on {others}; 1 on rank {last}"))
}

fn counts_that_do_not_fit_together(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    let ones = vec![1; world.size().unsigned_abs() as usize];
    let x = zeros(&[1, size + 1]);
    let sum = format!("counts {ones:?} sum to {size}, but the extent to cut is {}", size + 1);
    for root in 0..world.size() {
        let error = world.scatter(&x, 1, 1, root).unwrap_err().to_string();
        assert_eq!(error, format!("scatter: {sum}"));
        works(world)?;
    }
    let error = world.reduce_scatter(&x, 1, 1, Op::Sum).unwrap_err().to_string();
    assert_eq!(error, format!("reduce_scatter: {sum}"));
    works(world)?;
    let error = world.all_to_all(&x, 0, 1, 1).unwrap_err().to_string();
    assert_eq!(error, format!("all_to_all: {sum}"));
    works(world)
}

/// Calls that exchange nothing check what each rank can see by itself.
fn mistakes_on_all_ranks(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = world.size();
    let x = zeros(&[2]);
    let errors = [
        (
            world.all_reduce(&x, Op::BitwiseOr),
            "all_reduce: Op::BitwiseOr is not defined for kind Double".to_owned(),
        ),
        (
            world.broadcast(&x, size),
            format!("broadcast: root {size} is out of range for {size} ranks"),
        ),
        (
            world.exscan(&x, Op::Mean),
            "exscan: Op::Mean is not defined; rank 0 would have the mean of nothing".to_owned(),
        ),
        (
            world.all_gather_with_counts(&x, 0, &[]),
            format!("all_gather: 0 counts were given for {size} ranks"),
        ),
    ];
    for (error, text) in errors {
        assert_eq!(error.unwrap_err().to_string(), text);
    }
    works(world)
}

/// Whether a call is recorded is compared only where all terms are.
fn requires_grad_may_differ_where_nobody_goes_back(context: &Context) -> Result<()> {
    let world = &context.world;
    for (_, f) in EXCHANGING {
        let x = square(world).set_requires_grad(world.rank() == 0);
        assert_eq!(f(world, &x)?.requires_grad(), world.rank() == 0);
    }
    // On all ranks, derivatives are as ever.
    for (_, f) in EXCHANGING {
        let x = testing::random(world, &square(world).size(), Kind::Double)?;
        testing::assert_adjoint(world, &x, |x| f(world, x))?;
    }
    works(world)
}

/// What is not linear is made by other calls of MPI's where it is recorded.
fn requires_grad_must_agree_where_it_decides_what_is_called(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let size = i64::from(world.size());
    let counts = vec![60_000; usize::try_from(size).unwrap_or(1)];
    type Operation<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;
    let calls: [Operation; 5] = [
        &|x| world.reduce(x, Op::Max, 0),
        &|x| world.scan(x, Op::Min)?.f_add_scalar(0).map_err(Into::into),
        &|x| world.reduce_scatter(x, 0, &counts, Op::Prod),
        &|x| world.ireduce_scatter(x, 0, &counts, Op::Max)?.wait(),
        &|x| Ok(world.max_loc(x)?.0),
    ];
    for (i, call) in calls.iter().enumerate() {
        for rank in [0, world.size() - 1] {
            let x = zeros(&[60_000 * size]).set_requires_grad(world.rank() == rank);
            let error = call(&x).expect_err("the ranks make other calls").to_string();
            assert!(error.contains("\n  requires_grad: "), "{i}: {error}");
            works(world)?;
        }
    }
    Ok(())
}

/// The ranks without the node would not go back through it.
fn requires_grad_must_agree_where_a_node_is_the_users_own(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let x = Tensor::from_slice(&[1.0]).set_requires_grad(world.rank() == 0);
    let y = x.detach() * 2.0;
    let node = world.custom("twice", &[&x], &[&y], &[], |_, _, _| Ok(vec![None]));
    let error = node.expect_err("only rank 0 records it").to_string();
    assert!(error.contains("requires_grad: true on rank 0; false on rank"), "{error}");
    works(world)
}

/// What is said to be the same is not compared, and no rank waits for another.
fn promises_are_kept_by_the_program(context: &Context) -> Result<()> {
    let world = &context.world;
    let rank = i64::from(world.rank());
    if rank == 0 {
        let error = Replicated::assume(world, &Tensor::new()).expect_err("undefined").to_string();
        let text = "the tensor is undefined, like a gradient that was never computed";
        assert_eq!(error, format!("Replicated::assume: {text}"));
    }
    let own = Replicated::assume(world, &zeros(&[rank]))?;
    let own = own.map(|x| x + 1.0)?;
    let both = Replicated::combine(&[&own, &own], |parts| parts[0] + parts[1])?;
    assert_eq!(both.tensor().size(), [rank]);
    if rank == 0 {
        let tapes = [world.tape(), world.tape()];
        let [here, there] = tapes.each_ref().map(|tape| Replicated::assume(tape, &zeros(&[1])));
        let parts = [&here?, &there?];
        let error = Replicated::combine(&parts, |parts| parts[0].shallow_clone());
        let text = "Replicated::combine: the parts are on different tapes";
        assert_eq!(error.expect_err(text).to_string(), text);
    }
    works(world)
}

/// A variable of another size on rank 0, which it says is the same on all ranks.
fn of_different_sizes(comm: &Communicator) -> Result<(Tensor, Replicated)> {
    let count = if comm.rank() == 0 { 16 } else { 200_000 };
    let x = zeros(&[count, 2]).set_requires_grad(true);
    let replicated = Replicated::assume(comm, &x)?;
    Ok((x, replicated))
}

type Maps = fn(&Replicated) -> Result<Tensor>;

const MAPS: [Maps; 4] = [
    Replicated::vary,
    |x| x.shard(0),
    |x| x.ivary().and_then(Request::wait),
    |x| x.ishard(0).and_then(Request::wait),
];

/// The adjoints, which communicate, are an error on all ranks.
fn replicated_tensors_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    for maps in MAPS {
        let (x, replicated) = of_different_sizes(world)?;
        let loss = maps(&replicated)?.sum(Kind::Double);
        let loss = Replicated::sum(world, &loss)?;
        let error = loss.backward().expect_err("the sizes differ").to_string();
        assert!(error.contains("the ranks disagree on a call:"), "{error}");
        assert!(
            error.contains("\n  shape: [16, 2] on rank 0; [200000, 2] on rank")
                || error.contains("\n  counts: "),
            "{error}"
        );
        assert!(!x.grad().defined());
        works(world)?;
    }
    Ok(())
}

/// There the adjoint of what was started needs no agreement, so the tape compares what the ranks
/// recorded: otherwise the adjoint would write beyond the memory of rank 0.
fn replicated_tensors_that_differ_on_a_tape(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    for maps in MAPS {
        let tape = world.tape();
        let (x, replicated) = of_different_sizes(&tape)?;
        let loss = maps(&replicated)?.sum(Kind::Double);
        let loss = Replicated::sum(&tape, &loss)?;
        let error = loss.backward().expect_err("the sizes differ");
        assert!(matches!(error, Error::Tape { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("\n  call 1 of all ranks: Replicated::"), "{text}");
        assert!(text.contains(", which the ranks have not agreed on"), "{text}");
        assert!(!x.grad().defined());
        works(world)?;
    }
    Ok(())
}
