//! What a call with wrong arguments says.

use mpi4tch::{Communicator, testing};
use tch::{IValue, Kind, TchError, Tensor};

use crate::common::{Context, works};
use crate::{Outcome, Script, int, tensor, text};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![texts, handles, requests, ranks_that_disagree]
}

/// The exception's text, without the lines of the module that TorchScript puts before it.
fn exception(outcome: Result<IValue, TchError>) -> String {
    match outcome {
        Err(TchError::Torch(text)) => {
            let (_, exception) = text.split_once("RuntimeError: ").expect("TorchScript's form");
            exception.trim_end().to_owned()
        }
        other => panic!("{other:?} is no exception"),
    }
}

fn texts(context: &Context) -> Outcome<()> {
    let (world, script) = (&context.world, Script::on(None)?);
    let size = world.size();
    let x = testing::random(world, &[2], Kind::Double)?;
    let check = |name, arguments, needed: &str| {
        assert_eq!(exception(script.call(name, arguments)), needed);
    };
    check(
        "all_reduce",
        vec![tensor(&x), text("avg")],
        "all_reduce: op is \"avg\"; it may be sum, prod, max, min, mean, logical_and, logical_or, \
         logical_xor, bitwise_and, bitwise_or, bitwise_xor",
    );
    check(
        "all_gather",
        vec![tensor(&x), int(3)],
        "all_gather: axis 3 is out of range for a tensor of shape [2]",
    );
    check(
        "broadcast",
        vec![tensor(&x), int(size)],
        &format!("broadcast: root {size} is out of range for {size} ranks"),
    );
    check(
        "broadcast",
        vec![tensor(&x), int(1_i64 << 32)],
        "broadcast: root 4294967296 is out of range; it must fit in 32 bits",
    );
    check(
        "recv",
        vec![tensor(&x), IValue::None, int(1_i64 << 32)],
        "recv: tag 4294967296 is out of range; it must fit in 32 bits",
    );
    check(
        "all_reduce",
        vec![tensor(&x.set_requires_grad(true)), text("logical_and")],
        "all_reduce: Op::LogicalAnd has no adjoint; detach the input first",
    );
    check(
        "reduce_scatter_list",
        vec![tensor(&x), int(0), IValue::IntList(Vec::new()), text("sum")],
        &format!("reduce_scatter: 0 counts were given for {size} ranks"),
    );
    check(
        "all_reduce",
        vec![tensor(&Tensor::new()), text("sum")],
        "all_reduce: the tensor is undefined, like a gradient that was never computed",
    );
    works(world)?;
    Ok(())
}

fn handles(context: &Context) -> Outcome<()> {
    let world = &context.world;
    let (first, second) = (world.script_handle()?, world.duplicate()?.script_handle()?);
    assert_ne!(first.number(), second.number());
    // The second keeps its communicator, which nothing else does.
    let size = Script::on(Some(&second))?.call("size", Vec::new())?;
    assert_eq!(size, int(world.size()));
    let dropped = first.number();
    drop(first);
    let script = Script::on(None)?;
    for number in [dropped, -1, i64::MAX] {
        for (name, mut arguments) in [
            ("all_reduce", vec![IValue::Tensor(Tensor::from_slice(&[1.0])), text("sum")]),
            ("barrier", Vec::new()),
        ] {
            arguments.push(int(number));
            let needed = format!(
                "{name}: no communicator has the handle {number}; a handle is valid until the \
                 torchscript::Handle is dropped"
            );
            assert_eq!(exception(script.call_with(name, arguments)), needed);
        }
    }
    assert_ne!(world.script_handle()?.number(), dropped);
    works(world)?;
    Ok(())
}

fn requests(context: &Context) -> Outcome<()> {
    let script = Script::on(None)?;
    let x = Tensor::from_slice(&[1.0]);
    let IValue::Int(number) = script.call("iall_reduce", vec![tensor(&x), text("sum")])? else {
        return Err("no number".into());
    };
    script.call_with("wait", vec![int(number)])?;
    for call in ["wait", "drop_request"] {
        let needed = format!(
            "{call}: no request has the number {number}; it is waited for, or dropped, once"
        );
        assert_eq!(exception(script.call_with(call, vec![int(number)])), needed);
    }
    works(&context.world)?;
    Ok(())
}

/// All ranks get the error of calls that differ.
fn ranks_that_disagree(context: &Context) -> Outcome<()> {
    let world: &Communicator = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let script = Script::on(None)?;
    let x = Tensor::from_slice(&[1.0]);
    let op = if world.rank() == 0 { "max" } else { "sum" };
    let text = exception(script.call("all_reduce", vec![tensor(&x), text(op)]));
    let needed = "the ranks disagree on a call:\n  op: Op::Max on rank 0; Op::Sum on rank";
    assert!(text.starts_with(needed), "{text}");
    assert!(text.contains("\n  at: src/torchscript/operations.rs:"), "{text}");
    works(world)?;
    Ok(())
}
