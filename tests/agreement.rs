//! What is wrong with a call: by itself, and between the ranks. Every rank learns of it, nobody
//! hangs, and the communicator works afterwards.

mod common;

use std::process::ExitCode;

use common::tensors::{sparse, zeros};
use common::{Context, start, without_lines, works};
use mpi4tch::{Communicator, Error, Op, Result, testing};
use tch::{Kind, Tensor};

fn main() -> ExitCode {
    harness::run(
        start,
        harness::tests![
            texts_of_wrong_arguments,
            a_mistake_on_one_rank_is_told_to_the_others,
            passes_that_differ,
            ranks_that_disagree_get_the_same_error,
            ranks_that_disagree_in_a_composed_call,
            kinds_that_differ_where_means_are_widened,
            counts_on_some_ranks_only,
            counts_that_do_not_fit_together,
            matrices_of_counts_that_do_not_balance,
            more_elements_than_an_int_counts_on_one_rank,
            sizes_that_no_integer_holds,
            shapes_of_many_axes_travel,
        ],
    )
}

/// A call, whatever it returns.
type Call<'a> = &'a dyn Fn(&Communicator) -> Result<()>;

type Mistake = fn(&Communicator) -> Result<Tensor>;

/// Each mistake with its exact text; `{p}` stands for the number of ranks.
const MISTAKES: &[(&str, Mistake)] = &[
    ("all_gather: axis 3 is out of range for a tensor of shape [2, 5]", |c| {
        c.all_gather(&zeros(&[2, 5]), 3)
    }),
    ("all_gather: axis -3 is out of range for a tensor of shape [2, 5]", |c| {
        c.all_gather(&zeros(&[2, 5]), -3)
    }),
    ("gather: axis 0 is out of range for a tensor of shape []", |c| c.gather(&zeros(&[]), 0, 0)),
    ("reduce_scatter: axis 1 is out of range for a tensor of shape [2]", |c| {
        c.reduce_scatter(&zeros(&[2]), 1, 1, Op::Sum)
    }),
    ("all_to_all: axis 1 is out of range for a tensor of shape [2]", |c| {
        c.all_to_all(&zeros(&[2]), 0, 1, 1)
    }),
    ("gather: root -1 is out of range for {p} ranks", |c| c.gather(&zeros(&[2]), 0, -1)),
    ("broadcast: root {p} is out of range for {p} ranks", |c| c.broadcast(&zeros(&[2]), c.size())),
    ("reduce: root {p} is out of range for {p} ranks", |c| {
        c.reduce(&zeros(&[2]), Op::Sum, c.size())
    }),
    ("reduce: root -1 is out of range for {p} ranks", |c| {
        c.reduce(&zeros(&[2]).set_requires_grad(true), Op::Max, -1)
    }),
    ("scatter: root {p} is out of range for {p} ranks", |c| {
        c.scatter(&zeros(&[2]), 0, 1, c.size())
    }),
    ("scatter: count -1 is negative", |c| c.scatter(&zeros(&[2]), 0, -1, 0)),
    ("reduce_scatter: count -2 is negative", |c| c.reduce_scatter(&zeros(&[2]), 0, -2, Op::Sum)),
    ("all_to_all: count -1 is negative", |c| c.all_to_all(&zeros(&[2, 2]), 0, 1, -1)),
    ("scatter: 0 counts were given for {p} ranks", |c| c.scatter(&zeros(&[2]), 0, &[], 0)),
    ("all_to_all: 9 counts were given for {p} ranks", |c| {
        c.all_to_all(&zeros(&[2, 9]), 0, 1, &[1; 9])
    }),
    ("all_to_all_v: axis 1 is out of range for a tensor of shape [2]", |c| {
        c.all_to_all_v(&zeros(&[2]), 1, &[])
    }),
    ("all_to_all_v: 0 counts were given for {p} ranks", |c| c.all_to_all_v(&zeros(&[2]), 0, &[])),
    ("all_to_all_v: 9 counts were given for {p} ranks", |c| {
        let send = vec![2; c.size() as usize];
        let x = zeros(&[2 * i64::from(c.size())]);
        c.all_to_all_v_with_counts(&x, 0, &send, &[2; 9])
    }),
    ("all_gather: 0 counts were given for {p} ranks", |c| {
        c.all_gather_with_counts(&zeros(&[2]), 0, &[])
    }),
    ("exscan: Op::Mean is not defined; rank 0 would have the mean of nothing", |c| {
        c.exscan(&zeros(&[2]), Op::Mean)
    }),
    ("scan: Op::LogicalOr is not defined for kind Double", |c| c.scan(&zeros(&[2]), Op::LogicalOr)),
    ("reduce: Op::Max is not defined for kind ComplexFloat", |c| {
        c.reduce(&zeros(&[2]).to_kind(Kind::ComplexFloat), Op::Max, 0)
    }),
    ("reduce_scatter: Op::BitwiseAnd has no adjoint; detach the input first", |c| {
        c.reduce_scatter(&zeros(&[2]).set_requires_grad(true), 0, 1, Op::BitwiseAnd)
    }),
    ("broadcast: kind Float8e5m2 has no MPI datatype", |c| {
        c.broadcast(&zeros(&[2]).to_kind(Kind::Float8e5m2), 0)
    }),
    ("gather: the tensor has no strided storage; a dense tensor is needed", |c| {
        c.gather(&sparse(), 0, 0)
    }),
    ("scatter: the tensor is undefined, like a gradient that was never computed", |c| {
        c.scatter(&Tensor::new(), 0, 1, 0)
    }),
];

fn texts_of_wrong_arguments(context: &Context) -> Result<()> {
    let world = &context.world;
    for (text, mistake) in MISTAKES {
        let expected = text.replace("{p}", &world.size().to_string());
        assert_eq!(mistake(world).unwrap_err().to_string(), expected);
        works(world)?;
    }
    Ok(())
}

fn a_mistake_on_one_rank_is_told_to_the_others(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, last) = (world.rank(), world.size() - 1);
    if last == 0 {
        return Ok(());
    }
    for (text, mistake) in MISTAKES {
        let own = text.replace("{p}", &world.size().to_string());
        let error = if rank == last {
            mistake(world).unwrap_err()
        } else {
            world.all_reduce(&zeros(&[2]), Op::Sum).unwrap_err()
        };
        if rank == last {
            assert_eq!(error.to_string(), own);
        } else {
            assert!(matches!(error, Error::Mismatch { .. }));
            let told = format!("the ranks disagree on a call:\n  refused: {own} on rank {last}");
            assert_eq!(without_lines(&error), told);
        }
        works(world)?;
    }
    Ok(())
}

/// Rank 0 goes back through a call, and the others go on, with a call that is otherwise the same.
fn passes_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    let rest = match world.size() {
        1 => return Ok(()),
        2 => "rank 1".to_owned(),
        size => {
            let ranks: Vec<String> = (1..size).map(|rank| rank.to_string()).collect();
            format!("ranks {}", ranks.join(", "))
        }
    };
    for started in [false, true] {
        let comm = world.duplicate()?;
        let x = zeros(&[3]).set_requires_grad(true);
        let (first, y) = if started {
            (line!(), comm.iall_reduce(&x, Op::Sum)?.wait()?)
        } else {
            (line!(), comm.all_reduce(&x, Op::Sum)?)
        };
        let x = x.detach();
        let text = if world.rank() == 0 {
            y.sum(Kind::Double).f_backward().unwrap_err().to_string()
        } else if started {
            comm.iall_reduce(&x, Op::Sum)?.wait().unwrap_err().to_string()
        } else {
            comm.all_reduce(&x, Op::Sum).unwrap_err().to_string()
        };
        let pass = format!("\n  pass: backward on rank 0; forward on {rest}\n  at: ");
        assert!(text.contains(&pass), "{text}");
        let back = format!("{}:{first}:", file!());
        assert!(
            text.contains(&back) && text.contains(" in the backward pass on rank 0;"),
            "{text}"
        );
        // What was started, in one pass or the other, has no counterpart there.
        works(if started { world } else { &comm })?;
    }
    Ok(())
}

/// The last rank makes the second call, the others the first; all get an error that ends so.
fn assert_disagree(world: &Communicator, most: Call, last: Call, text: &str) -> Result<()> {
    let end = world.size() - 1;
    if end == 0 {
        return Ok(());
    }
    let error = if world.rank() == end { last(world) } else { most(world) }.unwrap_err();
    let others: Vec<String> = (0..end).map(|rank| rank.to_string()).collect();
    let noun = if end == 1 { "rank" } else { "ranks" };
    let expected = text
        .replace("{most}", &format!("{noun} {}", others.join(", ")))
        .replace("{last}", &format!("rank {end}"))
        .replace("{p}", &world.size().to_string());
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert_eq!(without_lines(&error), format!("the ranks disagree on a call:\n{expected}"));
    works(world)
}

fn ranks_that_disagree_get_the_same_error(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = zeros(&[2, 3]);
    let variable = x.copy().set_requires_grad(true);
    let cases: [(Call, Call, &str); 11] = [
        (
            &|c| c.all_reduce(&x, Op::Sum).map(drop),
            &|c| c.all_reduce(&x, Op::Max).map(drop),
            "  op: Op::Sum on {most}; Op::Max on {last}",
        ),
        (
            &|c| c.broadcast(&x, 0).map(drop),
            &|c| c.broadcast(&x, 1).map(drop),
            "  root: 0 on {most}; 1 on {last}",
        ),
        (
            &|c| c.scan(&x, Op::Sum).map(drop),
            &|c| c.scan(&x.to_kind(Kind::Float), Op::Sum).map(drop),
            "  kind: Double on {most}; Float on {last}",
        ),
        (
            &|c| c.all_gather(&x, 0).map(drop),
            &|c| c.all_gather(&zeros(&[2, 4]), 0).map(drop),
            "  shape: [_, 3] on {most}; [_, 4] on {last}",
        ),
        (
            &|c| c.all_gather(&x, -2).map(drop),
            &|c| c.all_gather(&x, 1).map(drop),
            "  axis: 0 on {most}; 1 on {last}\n  shape: [_, 3] on {most}; [2, _] on {last}",
        ),
        (
            &|c| c.reduce(&x, Op::Sum, 0).map(drop),
            &|c| c.reduce(&variable, Op::Sum, 0).map(drop),
            "  requires_grad: false on {most}; true on {last}",
        ),
        (
            &|c| c.all_reduce(&x, Op::Sum).map(drop),
            &|c| c.all_reduce(&zeros(&[3, 2]), Op::Sum).map(drop),
            "  shape: [2, 3] on {most}; [3, 2] on {last}",
        ),
        (
            &|c| c.barrier(),
            &|c| c.duplicate().map(drop),
            "  operation: barrier on {most}; duplicate on {last}",
        ),
        (
            &|c| c.all_to_all(&x, 0, 1, 1).map(drop),
            &|c| c.all_to_all(&x, 1, 0, 1).map(drop),
            "  axis: 0 and 1 on {most}; 1 and 0 on {last}\n  \
             shape: [_, 3] on {most}; [2, _] on {last}",
        ),
        // The extent to cut, which is the sum of the counts on one rank only.
        (
            &|c| c.reduce_scatter(&zeros(&[2, c.size().into()]), 1, 1, Op::Sum).map(drop),
            &|c| c.reduce_scatter(&zeros(&[2, 100]), 1, 1, Op::Sum).map(drop),
            "  shape: [2, {p}] on {most}; [2, 100] on {last}",
        ),
        (
            &|c| c.max_loc(&x).map(drop),
            &|c| c.all_reduce(&x, Op::Max).map(drop),
            "  operation: max_loc on {most}; all_reduce on {last}",
        ),
    ];
    for (most, last, text) in cases {
        assert_disagree(world, most, last, text)?;
    }
    Ok(())
}

fn ranks_that_disagree_in_a_composed_call(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = zeros(&[2]).set_requires_grad(true);
    let plain = zeros(&[2]);
    let requires_grad = "  requires_grad: true on {most}; false on {last}";
    let cases: [(Call, Call, &str); 4] = [
        (
            &|c| c.reduce(&x, Op::Max, 0).map(drop),
            &|c| c.reduce(&x, Op::Max, 1).map(drop),
            "  root: 0 on {most}; 1 on {last}",
        ),
        (
            &|c| c.scan(&x, Op::Max).map(drop),
            &|c| c.scan(&x, Op::Prod).map(drop),
            "  op: Op::Max on {most}; Op::Prod on {last}",
        ),
        (&|c| c.max_loc(&x).map(drop), &|c| c.max_loc(&plain).map(drop), requires_grad),
        (
            &|c| c.all_reduce_(&mut x.sin(), Op::Mean),
            &|c| c.all_reduce_(&mut plain.sin(), Op::Mean),
            requires_grad,
        ),
    ];
    for (most, last, text) in cases {
        assert_disagree(world, most, last, text)?;
    }
    Ok(())
}

/// The sums travel in `Float`, whatever the kind.
fn kinds_that_differ_where_means_are_widened(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    let calls: [fn(&Communicator, &Tensor) -> Result<Tensor>; 7] = [
        |c, x| c.all_reduce(x, Op::Mean),
        |c, x| c.reduce(x, Op::Mean, 0),
        |c, x| c.scan(x, Op::Mean),
        |c, x| c.reduce_scatter(x, 0, 1, Op::Mean),
        |c, x| c.reduce_scatter(x, 0, &vec![1; c.size() as usize], Op::Mean),
        |c, x| c.all_reduce_(&mut x.copy(), Op::Mean).map(|()| x.copy()),
        |c, x| c.reduce_(&mut x.copy(), Op::Mean, 0).map(|()| x.copy()),
    ];
    for call in calls {
        for (most, last) in [(Kind::Half, Kind::Float), (Kind::BFloat16, Kind::Half)] {
            let [x, y] = [most, last].map(|kind| zeros(&[size]).to_kind(kind));
            assert_disagree(
                world,
                &|c| call(c, &x).map(drop),
                &|c| call(c, &y).map(drop),
                &format!("  kind: {most:?} on {{most}}; {last:?} on {{last}}"),
            )?;
        }
    }
    Ok(())
}

fn counts_on_some_ranks_only(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    let ones = vec![1; usize::try_from(size).unwrap_or(0)];
    let (ones, part, whole) = (&ones[..], zeros(&[1]), zeros(&[size]));
    let counts = format!("  counts: none on {{most}}; {ones:?} on {{last}}");
    let cases: [(Call, Call, &str); 5] = [
        (
            &|c| c.all_gather(&part, 0).map(drop),
            &|c| c.all_gather_with_counts(&part, 0, ones).map(drop),
            "",
        ),
        (
            &|c| c.gather(&part, 0, 0).map(drop),
            &|c| c.gather_with_counts(&part, 0, ones, 0).map(drop),
            "",
        ),
        (
            &|c| c.reduce_scatter(&whole, 0, 1, Op::Sum).map(drop),
            &|c| c.reduce_scatter(&whole, 0, ones, Op::Sum).map(drop),
            "",
        ),
        // Where all know the counts, all give the shape; where not, the root tells it.
        (
            &|c| c.scatter(&whole, 0, 1, 0).map(drop),
            &|c| c.scatter(&whole, 0, ones, 0).map(drop),
            "\n  shape: none on {most}; [_] on {last}",
        ),
        (
            &|c| c.all_to_all(&zeros(&[1, size]), 0, 1, 1).map(drop),
            &|c| c.all_to_all_with_counts(&zeros(&[1, size]), 0, ones, 1, ones).map(drop),
            "\n  counts to scatter: none on {most}; {ones} on {last}",
        ),
    ];
    for (most, last, more) in cases {
        let text = counts.clone() + &more.replace("{ones}", &format!("{ones:?}"));
        assert_disagree(world, most, last, &text)?;
    }
    // The extents that are joined travel, whoever knows the counts.
    let cut = zeros(&[1, size]);
    assert_disagree(
        world,
        &|c| c.all_to_all(&cut, 0, 1, 1).map(drop),
        &|c| c.all_to_all(&cut, 0, 1, ones).map(drop),
        &format!("  counts to scatter: none on {{most}}; {ones:?} on {{last}}"),
    )
}

fn counts_that_do_not_fit_together(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    let ones = vec![1; usize::try_from(size).unwrap_or(0)];
    let (ones, x) = (&ones[..], zeros(&[size + 1]));
    let sum = format!("counts {ones:?} sum to {size}, but the extent to cut is {}", size + 1);
    let errors = [
        ("scatter", world.scatter(&x, 0, 1, 0)),
        ("scatter", world.scatter(&x, 0, 1, world.size() - 1)),
        ("reduce_scatter", world.reduce_scatter(&x, 0, 1, Op::Sum)),
        ("reduce_scatter", world.reduce_scatter(&x, 0, ones, Op::Sum)),
        ("all_to_all", world.all_to_all(&zeros(&[1, size + 1]), 0, 1, 1)),
        ("all_to_all", world.all_to_all(&zeros(&[1, size + 1]), 0, 1, ones)),
        ("all_to_all", world.all_to_all_with_counts(&zeros(&[1, size + 1]), 0, ones, 1, ones)),
    ];
    for (call, error) in errors {
        assert_eq!(error.unwrap_err().to_string(), format!("{call}: {sum}"));
    }
    let error = world.all_gather_with_counts(&zeros(&[2]), 0, ones).unwrap_err().to_string();
    let rank = world.rank();
    if rank == 0 {
        assert_eq!(error, "all_gather: the count of rank 0 is 1, but its extent is 2");
    } else {
        // Every rank is refused, each with a text of its own.
        assert!(error.contains(&format!("the count of rank {rank} is 1")), "{error}");
    }
    // Counts that no sum of 64 bits holds.
    let huge = vec![i64::MAX; ones.len()];
    let error = world.reduce_scatter(&x, 0, &huge, Op::Sum).unwrap_err();
    assert!(matches!(error, Error::Counts { .. }), "{error}");
    works(world)
}

/// What one rank expects is not what the others send: nobody sends anything.
fn matrices_of_counts_that_do_not_balance(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, last) = (world.rank(), world.size() - 1);
    let size = usize::try_from(world.size()).unwrap_or(0);
    // Two each, to all and from all.
    let all = vec![2; size];
    let x = zeros(&[2 * i64::from(world.size())]).set_requires_grad(true);
    type Way = fn(&Communicator, &Tensor, &[i64], &[i64]) -> Result<Tensor>;
    let ways: [Way; 2] = [
        |c, x, send, receive| c.all_to_all_v_with_counts(x, 0, send, receive),
        |c, x, send, receive| c.iall_to_all_v_with_counts(x, 0, send, receive)?.wait(),
    ];
    if last == 0 {
        let error = world.all_to_all_v_with_counts(&x, 0, &all, &[3]).unwrap_err().to_string();
        let text = "all_to_all_v: rank 0 sends 2 to itself, and is to receive 3 from itself";
        assert_eq!(error, text);
        return works(world);
    }
    let end = usize::try_from(last).unwrap_or(0);
    for way in ways {
        // Less, nothing at all, or more than comes from the first rank.
        for wrong in [1, 0, 3, 100_000] {
            let mut received = all.clone();
            received[0] = wrong;
            let own = if rank == last { &received } else { &all };
            let error = way(world, &x, &all, own).unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error}");
            let others: Vec<String> = (0..last).map(|rank| rank.to_string()).collect();
            let noun = if last == 1 { "rank" } else { "ranks" };
            let expected = format!(
                "the ranks disagree on a call:\n  counts to receive: {all:?} on {noun} {}; \
                 {received:?} on rank {last}",
                others.join(", ")
            );
            assert_eq!(without_lines(&error), expected);
            works(world)?;
        }
        // The first rank sends one more to the last and one less to itself: the last one's counts
        // do not fit, though all sums do.
        let mut sent = all.clone();
        if rank == 0 {
            (sent[0], sent[end]) = (1, 3);
        }
        let mut received = all.clone();
        if rank == 0 {
            received[0] = 1;
        }
        let error = way(world, &x, &sent, &received).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        works(world)?;
        // With one more received where one more is sent, they do.
        if rank == last {
            received[0] = 3;
        }
        let y = way(world, &x, &sent, &received)?;
        assert_eq!(y.size(), [received.iter().sum::<i64>()]);
        y.sum(Kind::Double).f_backward()?;
    }
    // Ranks that go back through different calls, which are otherwise the same.
    let (ones, y) = (vec![1; size], zeros(&[i64::from(world.size())]).set_requires_grad(true));
    let larger = ways[0](world, &x, &all, &all)?.sum(Kind::Double);
    let smaller = ways[0](world, &y, &ones, &ones)?.sum(Kind::Double);
    let own = if rank == last { smaller } else { larger };
    let error = own.f_backward().unwrap_err().to_string();
    assert!(error.contains("the ranks disagree on a call:\n  counts to send: "), "{error}");
    works(world)
}

/// Which function of MPI is called depends on it. By the rank's own counts alone the others cannot
/// know.
fn more_elements_than_an_int_counts_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    let (rank, last) = (world.rank(), world.size() - 1);
    let size = usize::try_from(world.size()).unwrap_or(0);
    // All from the last rank: it sends one more than the limit, and each other receives less.
    let row = if rank == last { vec![1; size] } else { vec![0; size] };
    let mut column = vec![0; size];
    column[size - 1] = 1;
    let x = testing::random(world, &[row.iter().sum()], Kind::Double)?;
    let serial = |xs: &[Tensor]| xs[size - 1].split_with_sizes(vec![1; size], 0);
    testing::set_largest_count(i32::try_from(size).unwrap_or(0) - 1);
    let known = world.all_to_all_v_with_counts(&x, 0, &row, &column);
    let told = testing::assert_serial(world, &x, |x| world.all_to_all_v(x, 0, &row), serial);
    testing::set_largest_count(i32::MAX);
    told?;
    if last == 0 {
        return known.map(drop);
    }
    let others: Vec<String> = (0..last).map(|rank| rank.to_string()).collect();
    let expected = format!(
        "the ranks disagree on a call:\n  counts of every pair: known on {} {}; \
         known, beyond an int on rank {last}",
        if last == 1 { "rank" } else { "ranks" },
        others.join(", ")
    );
    assert_eq!(without_lines(&known.unwrap_err()), expected);
    testing::assert_serial(
        world,
        &x,
        |x| world.all_to_all_v_with_counts(x, 0, &row, &column),
        serial,
    )?;
    works(world)
}

/// Tensors without elements may have any extent, but no more than one.
fn sizes_that_no_integer_holds(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let extent = 1 << 62;
    let (tall, wide) = (zeros(&[extent, 0]), zeros(&[extent, 0, 0]));
    let counts = vec![extent; world.size().unsigned_abs() as usize];
    let none = vec![0; counts.len()];
    let calls: [(&str, Call); 8] = [
        ("all_gather", &|c| c.all_gather(&tall, 0).map(drop)),
        ("all_gather", &|c| c.all_gather_with_counts(&tall, 0, &counts).map(drop)),
        ("gather", &|c| c.gather(&tall, 0, 0).map(drop)),
        ("gather", &|c| c.gather_with_counts(&tall, 0, &counts, 0).map(drop)),
        ("all_to_all", &|c| c.all_to_all(&wide, 0, 1, 0).map(drop)),
        ("all_to_all", &|c| c.all_to_all_with_counts(&wide, 0, &counts, 1, &none).map(drop)),
        ("all_to_all", &|c| c.all_to_all(&tall, 0, 0, extent).map(drop)),
        ("all_to_all", &|c| c.all_to_all_with_counts(&tall, 0, &counts, 0, &counts).map(drop)),
    ];
    for (call, f) in calls {
        let error = f(world).unwrap_err().to_string();
        assert_eq!(error, format!("{call}: counts {counts:?} sum to more than an extent can be"));
        works(world)?;
    }
    // What is not sent may have any size.
    let size = i64::from(world.size());
    let long = zeros(&[1 << 40, 0, size << 40]);
    assert_eq!(world.all_to_all(&long, 0, 2, 1 << 40)?.size(), [size << 40, 0, 1 << 40]);
    Ok(())
}

/// More axes than a rank's message holds: the root's shape comes in another.
fn shapes_of_many_axes_travel(context: &Context) -> Result<()> {
    let world = &context.world;
    let size = i64::from(world.size());
    for root in 0..world.size() {
        let shape = [1, 1, 1, 2, 1, 1, 1, 1, 1, 2 * size, 3];
        let shape = if world.rank() == root { &shape[..] } else { &[] };
        let x = testing::random(world, shape, Kind::Double)?;
        assert_eq!(world.scatter(&x, -2, 2, root)?.size(), [1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 3]);
        testing::assert_adjoint(world, &x, |x| world.scatter(x, -2, 2, root))?;
        testing::gradgradcheck(world, &x, |x| Ok(world.scatter(x, 9, 2, root)?.square()))?;
    }
    Ok(())
}
