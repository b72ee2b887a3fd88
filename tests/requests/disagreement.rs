//! Ranks that start calls that differ, or of which one is wrong: every rank learns of it when it
//! waits.

use mpi4tch::{Communicator, Error, Op, Request, Result, wait_any};
use tch::{Kind, Tensor};

use crate::common::tensors::{variable, zeros};
use crate::common::{Context, without_lines, works};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![started_calls_that_differ, a_wrong_argument_on_one_rank, a_mismatch_ends_a_test]
}

/// What a rank starts.
type Start<'a> = &'a dyn Fn(&Communicator) -> Result<Request>;

fn started_calls_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    if last == 0 {
        return Ok(());
    }
    let x = zeros(&[2]);
    let most = if last == 1 {
        "rank 0".to_owned()
    } else {
        let ranks: Vec<_> = (0..last).map(|rank| rank.to_string()).collect();
        format!("ranks {}", ranks.join(", "))
    };
    let v = x.copy().set_requires_grad(true);
    let all = vec![1; world.size().unsigned_abs() as usize];
    let long = variable(world, &[i64::from(world.size())])?;
    let cases: [(Start, Start, &str); 13] = [
        (
            &|c| c.iall_reduce(&x, Op::Sum),
            &|c| c.iall_reduce(&x, Op::Max),
            "  op: Op::Sum on {most}; Op::Max on {last}",
        ),
        (
            &|c| c.iall_reduce(&x, Op::Sum),
            &|c| c.iall_reduce(&x.to_kind(Kind::Float), Op::Sum),
            "  kind: Double on {most}; Float on {last}",
        ),
        (
            &|c| c.iall_reduce(&x, Op::Sum),
            &|c| c.iall_reduce(&zeros(&[5]), Op::Sum),
            "  shape: [2] on {most}; [5] on {last}",
        ),
        (
            &|c| c.iall_reduce(&zeros(&[5]), Op::Sum),
            &|c| c.iall_reduce(&x, Op::Sum),
            "  shape: [5] on {most}; [2] on {last}",
        ),
        (&|c| c.ibroadcast(&x, 0), &|c| c.ibroadcast(&x, 1), "  root: 0 on {most}; 1 on {last}"),
        (
            &|c| c.ibarrier(),
            &|c| c.ibroadcast(&x, 0),
            "  operation: barrier on {most}; broadcast on {last}\n  kind: Float on {most}; Double \
             on {last}",
        ),
        (
            &|c| c.iscan(&x, Op::Sum),
            &|c| c.iscan(&x.copy().set_requires_grad(true), Op::Sum),
            "  requires_grad: false on {most}; true on {last}",
        ),
        (
            &|c| c.ireduce(&zeros(&[300_000]), Op::Sum, 0),
            &|c| c.ireduce(&zeros(&[200_000]), Op::Sum, 0),
            "  shape: [300000] on {most}; [200000] on {last}",
        ),
        (
            &|c| c.iall_gather(&zeros(&[2, 3]), 0),
            &|c| c.iall_gather(&zeros(&[2, 4]), 0),
            "  shape: [_, 3] on {most}; [_, 4] on {last}",
        ),
        // These are made of calls that do not compare all of it.
        (
            &|c| c.ireduce(&v, Op::Max, 0),
            &|c| c.ireduce(&v, Op::Max, 1),
            "  root: 0 on {most}; 1 on {last}",
        ),
        (
            &|c| c.iscan(&v, Op::Max),
            &|c| c.iscan(&v, Op::Min),
            "  op: Op::Max on {most}; Op::Min on {last}",
        ),
        (
            &|c| c.ireduce_scatter(&long, 0, &all, Op::Prod),
            &|c| c.ireduce(&long, Op::Prod, 0),
            "  operation: reduce_scatter on {most}; reduce on {last}",
        ),
        (
            &|c| c.iall_reduce(&x.to_kind(Kind::Half), Op::Mean),
            &|c| c.iall_reduce(&x.to_kind(Kind::BFloat16), Op::Mean),
            "  kind: Half on {most}; BFloat16 on {last}",
        ),
    ];
    for (on_most, on_last, text) in cases {
        let comm = world.duplicate()?;
        let start = if comm.rank() == last { on_last } else { on_most };
        // What needs the others' sizes compares before it starts.
        let error = start(&comm).and_then(Request::wait).expect_err("they disagree");
        let text = text.replace("{most}", &most).replace("{last}", &format!("rank {last}"));
        assert_eq!(without_lines(&error), format!("the ranks disagree on a call:\n{text}"));
        works(&comm)?;
        let y = variable(&comm, &[2])?;
        comm.iall_reduce(&y, Op::Sum)?.wait()?.sum(Kind::Double).f_backward()?;
        assert_eq!(y.grad(), zeros(&[2]) + f64::from(comm.size()));
    }
    works(world)
}

fn a_wrong_argument_on_one_rank(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    if last == 0 {
        return Ok(());
    }
    let (x, bad) = (zeros(&[2]), Tensor::new());
    let v = x.copy().set_requires_grad(true);
    let cases: [(Start, Start, String); 5] = [
        (
            &|c| c.ibroadcast(&x, 0),
            &|c| c.ibroadcast(&x, c.size()),
            format!("broadcast: root {0} is out of range for {0} ranks", last + 1),
        ),
        (
            &|c| c.iall_reduce(&x, Op::Sum),
            &|c| c.iall_reduce(&bad, Op::Sum),
            "all_reduce: the tensor is undefined, like a gradient that was never computed"
                .to_owned(),
        ),
        (
            &|c| c.iexscan(&x, Op::Sum),
            &|c| c.iexscan(&x, Op::Mean),
            "exscan: Op::Mean is not defined; rank 0 would have the mean of nothing".to_owned(),
        ),
        (
            &|c| c.iall_gather(&x, 0),
            &|c| c.iall_gather(&x, 1),
            "all_gather: axis 1 is out of range for a tensor of shape [2]".to_owned(),
        ),
        (
            &|c| c.ireduce(&v, Op::Max, 0),
            &|c| c.ireduce(&v, Op::Max, -1),
            format!("reduce: root -1 is out of range for {} ranks", last + 1),
        ),
    ];
    for (good, wrong, text) in cases {
        let comm = world.duplicate()?;
        if comm.rank() == last {
            assert_eq!(wrong(&comm).expect_err("it is wrong").to_string(), text);
        } else {
            let error = good(&comm).and_then(Request::wait).expect_err("the last is wrong");
            let expected =
                format!("the ranks disagree on a call:\n  refused: {text} on rank {last}");
            assert_eq!(without_lines(&error), expected);
        }
        works(&comm)?;
    }
    works(world)
}

fn a_mismatch_ends_a_test(context: &Context) -> Result<()> {
    let comm = context.world.duplicate()?;
    if comm.size() == 1 {
        return Ok(());
    }
    let x = zeros(&[2]);
    for _ in 0..2 {
        let request = if comm.rank() == 0 {
            comm.iall_reduce(&x, Op::Sum)?
        } else {
            comm.iscan(&x, Op::Sum)?
        };
        let error = wait_any(&mut vec![request]).expect_err("they differ");
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    }
    works(&comm)
}
