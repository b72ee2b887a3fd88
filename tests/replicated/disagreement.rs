//! Ranks that make different calls, or the same with different arguments.

use mpi4tch::{Communicator, Error, Op, Replicated, Result};
use tch::{Kind, Tensor};

use crate::common::tensors::{sparse, tensor, values, variable, zeros};
use crate::common::{Context, without_lines, works};
use crate::leaf;

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        arguments_that_differ,
        an_operation_of_the_communicator,
        arguments_that_are_refused,
        losses_that_are_refused,
        calls_that_a_tape_lacks,
        the_root_decides_what_is_recorded,
    ]
}

type Call<'a> = &'a dyn Fn(&Communicator, bool) -> Result<Tensor>;

fn value(y: Replicated) -> Tensor {
    y.tensor().shallow_clone()
}

/// What rank 0 has, and what the others have.
fn values_of(comm: &Communicator, [first, others]: [&str; 2]) -> String {
    let ranks: Vec<String> = (1..comm.size()).map(|rank| rank.to_string()).collect();
    let noun = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{first} on rank 0; {others} on {noun} {}", ranks.join(", "))
}

fn arguments_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let square = zeros(&[2, 2]);
    // The second argument tells whether it is rank 0.
    let shaped = |first: bool| zeros(if first { &[3, 2] } else { &[2, 3] });
    let kind = |first: bool| square.to_kind(if first { Kind::Float } else { Kind::Double });
    let cases: [(Call, &str, [&str; 2]); 10] = [
        (&|c, f| Replicated::sum(c, &shaped(f)).map(value), "shape", ["[3, 2]", "[2, 3]"]),
        (&|c, f| Replicated::mean(c, &shaped(f)).map(value), "shape", ["[3, 2]", "[2, 3]"]),
        (&|c, f| Replicated::isum(c, &shaped(f))?.wait().map(value), "shape", ["[3, 2]", "[2, 3]"]),
        (&|c, f| Replicated::broadcast(c, &shaped(f), 0).map(value), "shape", ["[3, 2]", "[2, 3]"]),
        (&|c, f| Replicated::concat(c, &shaped(f), 0).map(value), "shape", ["[_, 2]", "[_, 3]"]),
        (&|c, f| Replicated::sum(c, &kind(f)).map(value), "kind", ["Float", "Double"]),
        (&|c, f| Replicated::concat(c, &kind(f), 1).map(value), "kind", ["Float", "Double"]),
        (&|c, f| Replicated::concat(c, &square, i64::from(f)).map(value), "axis", ["1", "0"]),
        (&|c, f| Replicated::broadcast(c, &square, i32::from(f)).map(value), "root", ["1", "0"]),
        (
            &|c, f| Replicated::sum(c, &square.detach().set_requires_grad(f)).map(value),
            "requires_grad",
            ["true", "false"],
        ),
    ];
    for (i, (call, name, both)) in cases.iter().enumerate() {
        let error = call(world, world.rank() == 0).expect_err("they differ");
        assert!(matches!(error, Error::Mismatch { .. }), "{i}: {error}");
        let line = format!("\n  {name}: {}", values_of(world, *both));
        assert!(without_lines(&error).contains(&line), "{i}: {error}");
        works(world)?;
    }
    Ok(())
}

fn an_operation_of_the_communicator(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let x = zeros(&[2]);
    let cases: [(Call, [&str; 2]); 5] = [
        (
            &|c, f| if f { Replicated::sum(c, &x).map(value) } else { c.all_reduce(&x, Op::Sum) },
            ["Replicated::sum", "all_reduce"],
        ),
        (
            &|c, f| if f { Replicated::sum(c, &x) } else { Replicated::mean(c, &x) }.map(value),
            ["Replicated::sum", "Replicated::mean"],
        ),
        (
            &|c, f| if f { Replicated::concat(c, &x, 0).map(value) } else { c.all_gather(&x, 0) },
            ["Replicated::concat", "all_gather"],
        ),
        (
            &|c, f| if f { Replicated::broadcast(c, &x, 0).map(value) } else { c.broadcast(&x, 0) },
            ["Replicated::broadcast", "broadcast"],
        ),
        (
            &|c, f| {
                let request = if f { Replicated::isum(c, &x) } else { Replicated::imean(c, &x) };
                request?.wait().map(value)
            },
            ["Replicated::sum", "Replicated::mean"],
        ),
    ];
    for (call, both) in cases {
        let error = without_lines(&call(world, world.rank() == 0).expect_err("they differ"));
        let line = format!("\n  operation: {}", values_of(world, both));
        assert!(error.contains(&line), "{error}");
        works(world)?;
    }
    // Started and blocking are one operation.
    let sum = if world.rank() == 0 {
        Replicated::isum(world, &(x + 1.0))?.wait()?
    } else {
        Replicated::sum(world, &(x + 1.0))?
    };
    assert_eq!(values(sum.tensor()), [f64::from(world.size()); 2]);
    Ok(())
}

fn arguments_that_are_refused(context: &Context) -> Result<()> {
    let world = &context.world;
    let (size, scalar) = (world.size(), zeros(&[]));
    let one = Replicated::assume(world, &scalar)?;
    let matrix = Replicated::assume(world, &zeros(&[2, 3]))?;
    let cases: [(Result<Tensor>, String); 8] = [
        (
            one.shard(0),
            "Replicated::shard: axis 0 is out of range for a tensor of shape []".to_owned(),
        ),
        (
            matrix.shard(-3),
            "Replicated::shard: axis -3 is out of range for a tensor of shape [2, 3]".to_owned(),
        ),
        (
            matrix.ishard(2).map(|_| Tensor::new()),
            "Replicated::shard: axis 2 is out of range for a tensor of shape [2, 3]".to_owned(),
        ),
        (
            Replicated::concat(world, &scalar, 0).map(value),
            "Replicated::concat: axis 0 is out of range for a tensor of shape []".to_owned(),
        ),
        (
            Replicated::broadcast(world, &scalar, size).map(value),
            format!("Replicated::broadcast: root {size} is out of range for {size} ranks"),
        ),
        (
            Replicated::sum(world, &Tensor::new()).map(value),
            "Replicated::sum: the tensor is undefined, like a gradient that was never computed"
                .to_owned(),
        ),
        (
            Replicated::concat(world, &zeros(&[2]).to_kind(Kind::Float8e5m2), 0).map(value),
            "Replicated::concat: kind Float8e5m2 has no MPI datatype".to_owned(),
        ),
        (
            Replicated::sum(world, &sparse()).map(value),
            "Replicated::sum: the tensor has no strided storage; a dense tensor is needed"
                .to_owned(),
        ),
    ];
    for (outcome, text) in cases {
        assert_eq!(outcome.expect_err(&text).to_string(), text);
    }
    works(world)
}

fn losses_that_are_refused(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let x = variable(world, &[2])?;
    let cases: [(Tensor, &str); 3] = [
        (zeros(&[]), "the loss does not require grad; one that depends on a variable is needed"),
        (x.detach().set_requires_grad(true), "the loss has shape [2]; one element is needed"),
        (x.view_as_complex(), "the loss is of kind ComplexDouble; a real kind is needed"),
    ];
    for comm in [world, &*tape] {
        for (loss, text) in &cases {
            let requires_grad = loss.requires_grad();
            let loss = world.broadcast(&loss.detach(), 0)?.set_requires_grad(requires_grad);
            let error = Replicated::assume(comm, &loss)?.backward().expect_err(text).to_string();
            assert_eq!(error, format!("Replicated::backward: {text}"));
        }
        works(world)?;
    }
    tape.backward(None)?;
    // On a tape it is a pass of the tape's, which the ranks agree on.
    let loss = Replicated::sum(&tape, &leaf(&zeros(&[])))?;
    let outcome = if world.rank() == 0 { loss.backward() } else { tape.backward(loss.tensor()) };
    if world.size() == 1 {
        return outcome;
    }
    let error = outcome.expect_err("the ranks ask for different passes").to_string();
    let line = values_of(world, ["Replicated::backward", "Tape::backward"]);
    assert!(error.contains(&format!("\n  operation: {line}")), "{error}");
    works(world)
}

/// Calls that make no MPI call are compared all the same: their adjoints make one.
fn calls_that_a_tape_lacks(context: &Context) -> Result<()> {
    let world = &context.world;
    if world.size() == 1 {
        return Ok(());
    }
    let x = leaf(&zeros(&[4, 4]));
    type Maps = fn(&Replicated, bool) -> Result<Tensor>;
    let cases: [(Maps, &str, &str); 3] = [
        (|x, f| if f { x.vary() } else { Ok(x.tensor() * 1.0) }, "Replicated::vary at ", "nothing"),
        (
            |x, f| if f { x.vary() } else { x.shard(0) },
            "Replicated::vary at ",
            "Replicated::shard at ",
        ),
        // Of one name and on one line, and yet not the same.
        (
            |x, f| x.shard(i64::from(f)),
            "call 1 of all ranks: Replicated::shard at ",
            ", which the ranks have not agreed on",
        ),
    ];
    for (maps, one, other) in cases {
        let tape = world.tape();
        let x = Replicated::assume(&tape, &x)?;
        let y = maps(&x, world.rank() == 0)?;
        let error = tape.backward(&y.sum(Kind::Double)).expect_err("the calls differ");
        assert!(matches!(error, Error::Tape { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(one) && text.contains(other), "{text}");
        works(world)?;
    }
    Ok(())
}

/// Whatever the other ranks' tensors require.
fn the_root_decides_what_is_recorded(context: &Context) -> Result<()> {
    let world = &context.world;
    for root in 0..world.size() {
        for on_root in [false, true] {
            for elsewhere in [false, true] {
                for started in [false, true] {
                    let is_root = world.rank() == root;
                    let requires = if is_root { on_root } else { elsewhere };
                    let x = tensor(&[f64::from(world.rank())]);
                    let x = x.set_requires_grad(requires);
                    let y = if started {
                        Replicated::ibroadcast(world, &x, root)?.wait()?
                    } else {
                        Replicated::broadcast(world, &x, root)?
                    };
                    assert_eq!(values(y.tensor()), [f64::from(root)]);
                    assert_eq!(y.tensor().requires_grad(), on_root);
                    if !on_root {
                        continue;
                    }
                    Replicated::sum(world, &y.vary()?.square().sum(Kind::Double))?.backward()?;
                    let gradient = f64::from(2 * root * world.size());
                    assert_eq!(values(&y.grad()), [gradient]);
                    if requires {
                        assert_eq!(values(&x.grad()), [if is_root { gradient } else { 0.0 }]);
                    }
                }
            }
        }
        // Without recording on the root, nothing is recorded; on the others, it is what the root says.
        let x = variable(world, &[2])?;
        let broadcast = || Replicated::broadcast(world, &x, root);
        let y = if world.rank() == root { tch::no_grad(broadcast)? } else { broadcast()? };
        assert!(!y.tensor().requires_grad());
        let y = if world.rank() == root { broadcast()? } else { tch::no_grad(broadcast)? };
        assert!(y.tensor().requires_grad());
    }
    works(world)
}
