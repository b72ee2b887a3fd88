//! Every operation, against the method of the same name: values, derivatives and second derivatives.

use std::collections::BTreeSet;

use mpi4tch::{Communicator, Op, PROC_NULL, Result, Source, TagMatch, testing, torchscript};
use tch::{IValue, Kind, Tensor};

use crate::common::kinds::is_defined;
use crate::common::ring::neighbours;
use crate::common::{Context, communicators};
use crate::{Outcome, Script, int, tensor, text};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        every_operation,
        every_op,
        the_schemas_are_written_down,
        the_page_shows_the_script
    ]
}

fn every_operation(context: &Context) -> Outcome<()> {
    every_operation_on(&context.world, &Script::on(None)?)?;
    for (_, comm) in communicators(&context.world) {
        let handle = comm.script_handle()?;
        every_operation_on(&comm, &Script::on(Some(&handle))?)?;
    }
    Ok(())
}

fn every_operation_on(comm: &Communicator, script: &Script) -> Outcome<()> {
    collectives(comm, script)?;
    messages(comm, script)?;
    others(comm, script)?;
    let all: BTreeSet<String> = torchscript::schemas().iter().map(|s| method_of(s)).collect();
    assert_eq!(*script.called.borrow(), all);
    Ok(())
}

/// The method of the module that calls the operation.
fn method_of(schema: &str) -> String {
    schema.split('(').next().unwrap_or_default().replace('.', "_")
}

/// A blocking collective call: the method of the module, its arguments after the tensor, and the
/// method of the communicator.
struct Case<'a> {
    name: &'static str,
    x: &'a Tensor,
    arguments: Box<dyn Fn() -> Vec<IValue> + 'a>,
    method: Box<Method<'a>>,
}

type Method<'a> = dyn Fn(&Tensor) -> Result<Vec<Tensor>> + 'a;

macro_rules! case {
    ($name:literal, $x:ident, [$($argument:expr),*], $method:expr) => {
        Case {
            name: $name,
            x: &$x,
            arguments: Box::new(|| vec![$($argument),*]),
            method: Box::new(|x| {
                let method = $method;
                Ok(list(method(x)?))
            }),
        }
    };
}

/// The tensors that a method returns.
trait Results {
    fn list(self) -> Vec<Tensor>;
}

impl Results for Tensor {
    fn list(self) -> Vec<Tensor> {
        vec![self]
    }
}

impl Results for (Tensor, Tensor) {
    fn list(self) -> Vec<Tensor> {
        vec![self.0, self.1]
    }
}

fn list(results: impl Results) -> Vec<Tensor> {
    results.list()
}

/// Blocks differ: rank r has, or gets, r + 1 rows.
#[rustfmt::skip]
fn collectives(comm: &Communicator, script: &Script) -> Outcome<()> {
    let counts: Vec<i64> = (1..=i64::from(comm.size())).collect();
    let reversed: Vec<i64> = counts.iter().rev().copied().collect();
    let (own, total) = (i64::from(comm.rank()) + 1, counts.iter().sum());
    let alike = vec![own; counts.len()];
    let ints = |list: &[i64]| IValue::IntList(list.to_vec());
    let root = comm.size() - 1;
    let random = |shape: [i64; 2]| testing::random(comm, &shape, Kind::Double);
    let (same, block, whole, wide) = (random([2, 3])?, random([own, 3])?, random([total, 3])?, random([own, total])?);
    let cases = [
        case!("all_reduce", same, [text("max")], |x| comm.all_reduce(x, Op::Max)),
        case!("reduce", same, [text("prod"), int(root)], |x| comm.reduce(x, Op::Prod, root)),
        case!("broadcast", same, [int(root)], |x| comm.broadcast(x, root)),
        case!("gather", block, [int(0), int(root)], |x| comm.gather(x, 0, root)),
        case!("gather_with_counts", block, [int(0), ints(&counts), int(root)], |x| comm.gather_with_counts(x, 0, &counts, root)),
        case!("scatter", whole, [int(0), int(own), int(root)], |x| comm.scatter(x, 0, own, root)),
        case!("scatter_list", whole, [int(0), ints(&reversed), int(root)], |x| comm.scatter(x, 0, &reversed, root)),
        case!("all_gather", block, [int(-2)], |x| comm.all_gather(x, -2)),
        case!("all_gather_with_counts", block, [int(0), ints(&counts)], |x| comm.all_gather_with_counts(x, 0, &counts)),
        case!("reduce_scatter", whole, [int(0), int(own), text("sum")], |x| comm.reduce_scatter(x, 0, own, Op::Sum)),
        case!("reduce_scatter_list", whole, [int(0), ints(&reversed), text("min")], |x| comm.reduce_scatter(x, 0, &reversed, Op::Min)),
        case!("all_to_all", wide, [int(0), int(1), int(own)], |x| comm.all_to_all(x, 0, 1, own)),
        case!("all_to_all_list", wide, [int(0), int(1), ints(&reversed)], |x| comm.all_to_all(x, 0, 1, &reversed)),
        case!("all_to_all_with_counts", wide, [int(0), ints(&counts), int(1), ints(&reversed)], |x| comm.all_to_all_with_counts(x, 0, &counts, 1, &reversed)),
        case!("all_to_all_v", whole, [int(0), ints(&counts)], |x| comm.all_to_all_v(x, 0, &counts)),
        case!("all_to_all_v_with_counts", whole, [int(0), ints(&counts), ints(&alike)], |x| comm.all_to_all_v_with_counts(x, 0, &counts, &alike)),
        case!("scan", same, [text("mean")], |x| comm.scan(x, Op::Mean)),
        case!("exscan", same, [text("sum")], |x| comm.exscan(x, Op::Sum)),
        case!("max_loc", same, [], |x| comm.max_loc(x)),
        case!("min_loc", same, [], |x| comm.min_loc(x)),
    ];
    for Case { name, x, arguments, method } in cases {
        let started = format!("i{name}");
        let has_started_form = !name.ends_with("_loc");
        for name in [Some(name), has_started_form.then_some(started.as_str())].into_iter().flatten() {
            let scripted = |x: &Tensor| {
                let all = [tensor(x)].into_iter().chain(arguments()).collect();
                script.tensors(script.call(name, all)?)
            };
            assert_same(comm, x, name, &scripted, &|x| Ok(method(x)?))?;
        }
    }
    Ok(())
}

type Function<'a> = &'a dyn Fn(&Tensor) -> Outcome<Vec<Tensor>>;

/// The scripted function has the method's values, gradient and second derivative.
fn assert_same(
    comm: &Communicator,
    x: &Tensor,
    name: &str,
    scripted: Function,
    method: Function,
) -> Outcome<()> {
    let (x, other) = (x.detach().set_requires_grad(true), x.detach().set_requires_grad(true));
    let (ys, needed) = (scripted(&x)?, method(&other)?);
    assert_close(&ys, &needed, name);
    let cotangent = testing::random(comm, &ys[0].size(), Kind::Double)?.set_requires_grad(true);
    let direction = testing::random(comm, &x.size(), Kind::Double)?;
    let [derivatives, others] = [(&ys[0], &x), (&needed[0], &other)].map(|(y, x)| {
        let gradient = testing::vjp(&[y], &[&cotangent], &[x], true)?.remove(0);
        assert!(comm.size() == 1 || gradient.requires_grad(), "{name}");
        let second = testing::vjp(&[&gradient], &[&direction], &[&cotangent], false)?.remove(0);
        Result::Ok([gradient, second])
    });
    assert_close(&derivatives?, &others?, &format!("derivatives of {name}"));
    Ok(())
}

/// Equal but for rounding: a started call may sum in another order.
fn assert_close(ys: &[Tensor], needed: &[Tensor], name: &str) {
    let describe = |x: &Tensor| (x.kind(), x.size());
    let [a, b] = [ys, needed].map(|list| list.iter().map(describe).collect::<Vec<_>>());
    assert_eq!(a, b, "{name}");
    for (y, needed) in ys.iter().zip(needed) {
        assert!(y.allclose(needed, 1e-12, 1e-12, false), "{name}: {y} instead of {needed}");
    }
}

/// Each rank sends to the next one, by every function in turn.
fn messages(comm: &Communicator, script: &Script) -> Outcome<()> {
    let (right, left) = neighbours(comm);
    let last = comm.size() - 1;
    let next = if comm.rank() < last { right } else { PROC_NULL };
    let before = if comm.rank() > 0 { left } else { PROC_NULL };
    let null = script.call_with("proc_null", Vec::new())?;
    assert_eq!(null, int(PROC_NULL));
    let x = testing::random(comm, &[3], Kind::Double)?;
    let one = |mut list: Vec<Tensor>| list.remove(0);
    let call = |name, arguments| Outcome::Ok(one(script.tensors(script.call(name, arguments)?)?));

    let line = |x: &Tensor| {
        let sent = call("send", vec![tensor(x), int(next), int(7)])?;
        Ok(vec![call("recv", vec![tensor(&sent), int(before), int(7)])?])
    };
    let line_in_rust = |x: &Tensor| Ok(vec![comm.recv(&comm.send(x, next, 7)?, before, 7)?]);
    assert_same(comm, &x, "send, recv", &line, &line_in_rust)?;

    let ring = |x: &Tensor| {
        let receive = script.call("irecv", vec![tensor(x), int(left), int(8)])?;
        let sent = call("isend", vec![tensor(x), int(right), int(8)])?;
        Ok(vec![one(script.tensors(receive)?) * sent])
    };
    let ring_in_rust = |x: &Tensor| {
        let receive = comm.irecv(x, left, 8)?;
        let sent = comm.isend(x, right, 8)?.wait()?;
        Ok(vec![receive.wait()? * sent])
    };
    assert_same(comm, &x, "isend, irecv", &ring, &ring_in_rust)?;

    let exchange = |x: &Tensor| {
        let arguments = vec![tensor(x), int(right), tensor(x), int(left), int(9)];
        Ok(vec![call("sendrecv", arguments)?])
    };
    let exchange_in_rust = |x: &Tensor| Ok(vec![comm.sendrecv(x, right, x, left, 9)?]);
    assert_same(comm, &x, "sendrecv", &exchange, &exchange_in_rust)?;

    // Of any rank, with any tag.
    let request = comm.isend(&x, right, 10)?;
    let theirs = call("recv", vec![tensor(&x), IValue::None, IValue::None])?;
    let _ = request.wait()?;
    let request = comm.isend(&x, right, 11)?;
    assert_eq!(comm.recv(&x, Source::Any, TagMatch::Any)?, theirs);
    let _ = request.wait()?;
    comm.barrier()?;
    Ok(())
}

fn others(comm: &Communicator, script: &Script) -> Outcome<()> {
    assert_eq!(script.call("rank", Vec::new())?, int(comm.rank()));
    assert_eq!(script.call("size", Vec::new())?, int(comm.size()));
    assert_eq!(script.call("barrier", Vec::new())?, IValue::Tuple(Vec::new()));
    let ended = script.tensors(script.call("ibarrier", Vec::new())?)?;
    assert_eq!(ended[0].size(), [0]);
    let x = testing::random(comm, &[2], Kind::Double)?;
    given_up(comm, script, &x)?;
    let joined = |x: &Tensor| {
        let dummies = IValue::TensorList(vec![x.square(), x.exp()]);
        script.tensors(script.call_with("join_dummies", vec![tensor(&x.sin()), dummies])?)
    };
    let joined_in_rust =
        |x: &Tensor| Ok(vec![mpi4tch::join_dummies(&x.sin(), &[&x.square(), &x.exp()])?]);
    assert_same(comm, &x, "join_dummies", &joined, &joined_in_rust)
}

/// A request that is dropped is gone: nothing is left of its node, and it cannot be waited for.
fn given_up(comm: &Communicator, script: &Script, x: &Tensor) -> Outcome<()> {
    let before = testing::live_pullbacks();
    let x = x.detach().set_requires_grad(true);
    let request = script.call("iall_reduce", vec![tensor(&x), text("sum")])?;
    assert!(testing::live_pullbacks() > before);
    let IValue::Int(number) = request else { return Err("no number".into()) };
    let dropped = script.call_with("drop_request", vec![int(number)])?;
    assert_eq!(dropped, IValue::Tuple(Vec::new()));
    assert!(script.call_with("wait", vec![int(number)]).is_err());
    comm.barrier()?;
    assert_eq!(testing::live_pullbacks(), before);
    Ok(())
}

fn every_op(context: &Context) -> Outcome<()> {
    let (world, script) = (&context.world, Script::on(None)?);
    let names = [
        "sum",
        "prod",
        "max",
        "min",
        "mean",
        "logical_and",
        "logical_or",
        "logical_xor",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
    ];
    for (name, op) in names.into_iter().zip(Op::ALL) {
        for kind in [Kind::Int, Kind::Float] {
            if is_defined(op, kind) {
                let x = testing::random(world, &[5], kind)?;
                let ys =
                    script.tensors(script.call("all_reduce", vec![tensor(&x), text(name)])?)?;
                assert_eq!(ys, [world.all_reduce(&x, op)?], "{name}");
            }
        }
    }
    Ok(())
}

const SCRIPT: &str = include_str!("script.py");

/// The page of the documentation.
fn page() -> String {
    let lines = include_str!("../../src/torchscript.rs").lines();
    let lines = lines.filter_map(|line| line.strip_prefix("//!"));
    lines.map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line))).collect()
}

/// In the script that made the modules, and on the page.
fn the_schemas_are_written_down(_: &Context) {
    let schemas = torchscript::schemas().join("\n");
    assert!(SCRIPT.contains(&format!("\"\"\"\n{schemas}\n\"\"\"")));
    assert!(page().contains(&format!("```text\n{schemas}\n```")));
}

/// The page's Python program defines its operations and its module as the script does.
fn the_page_shows_the_script(_: &Context) -> Outcome<()> {
    let page = page();
    let (_, program) = page.split_once("```python\n").ok_or("no program")?;
    let (schemas, rest) = program.split_once("):\n    library.define(").ok_or("no schemas")?;
    let (_, module) = rest.split_once("class Regression").ok_or("no module")?;
    let (module, save) = module.split_once("\n\n\n").ok_or("nothing after the module")?;
    assert!(SCRIPT.contains(&format!("class Regression{module}\n\n\n")));
    assert!(SCRIPT.contains(save.lines().next().ok_or("it is not saved")?));
    let known = torchscript::schemas();
    let quoted: Vec<&str> =
        schemas.lines().filter_map(|line| line.strip_prefix("    \"")).collect();
    assert_eq!(quoted.len(), 3);
    for schema in quoted {
        assert!(known.contains(&schema.trim_end_matches("\",")), "{schema}");
    }
    Ok(())
}
