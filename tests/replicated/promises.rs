//! Tensors that the program says are the same on all ranks, which the ranks compare here.

use mpi4tch::{Communicator, Error, Replicated, Result, testing};
use tch::{Kind, Tensor};

use crate::common::tensors::{full, sparse, tensor, zeros};
use crate::common::{Context, without_lines, works};
use crate::{common_random, leaf};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![
        the_same_by_any_layout,
        bits_are_compared,
        every_element_is_compared,
        values_that_differ,
        tensors_that_differ,
        results_that_differ,
        tensors_that_are_refused,
        parts_that_are_refused,
        parts_on_a_tape,
        other_calls,
    ]
}

fn refusal(outcome: Result<Replicated>) -> Error {
    outcome.expect_err("it is refused")
}

/// The ranks besides the last, for an error's text.
fn others(comm: &Communicator) -> String {
    let ranks: Vec<String> = (0..comm.size() - 1).map(|rank| rank.to_string()).collect();
    format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, ranks.join(", "))
}

fn is_last(comm: &Communicator) -> bool {
    comm.rank() == comm.size() - 1
}

/// The error of ranks that disagree, which names lines of this file.
fn text_of(error: &Error) -> String {
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    let text = error.to_string();
    let lines = text.split("\n  at: ").nth(1).expect("it names the ranks' lines");
    assert!(lines.starts_with(concat!(file!(), ":")), "{text}");
    without_lines(error)
}

/// All ranks get an error of what the last has and what the others have.
fn assert_differ(
    comm: &Communicator,
    outcome: Result<Replicated>,
    name: &str,
    [most, last]: [&str; 2],
) -> Result<()> {
    if comm.size() == 1 {
        outcome?;
        return Ok(());
    }
    let error = refusal(outcome);
    let text = text_of(&error);
    let line =
        format!("\n  {name}: {most} on {}; {last} on rank {}", others(comm), comm.size() - 1);
    assert!(text.contains(&line), "{text}");
    works(comm)
}

/// As [`assert_differ`], where only the values differ.
fn assert_values_differ(comm: &Communicator, outcome: Result<Replicated>) -> Result<()> {
    if comm.size() == 1 {
        return outcome.map(drop);
    }
    let error = refusal(outcome);
    let text = text_of(&error);
    let hashes: Vec<&str> =
        text.match_indices("hash ").map(|(i, _)| &text[i + 5..i + 21]).collect();
    assert_eq!(hashes.len(), 2, "{text}");
    assert!(hashes.iter().all(|hash| hash.chars().all(|c| c.is_ascii_hexdigit())), "{text}");
    let [most, last] = [hashes[0], hashes[1]];
    let expected = format!(
        "the ranks disagree on a call:\n  values: hash {most} on {}; hash {last} on rank {}",
        others(comm),
        comm.size() - 1
    );
    assert_eq!(text, expected);
    works(comm)
}

fn the_same_by_any_layout(context: &Context) -> Result<()> {
    let world = &context.world;
    let layouts: [fn(&Tensor) -> Tensor; 4] = [
        Tensor::shallow_clone,
        |x| x.transpose(0, 1).contiguous().transpose(0, 1),
        |x| x.conj().conj_physical().resolve_conj().conj().conj(),
        |x| x.conj_physical().conj(),
    ];
    let x = common_random(world, &[3, 4], Kind::ComplexDouble)?;
    let layout = layouts[world.rank().unsigned_abs() as usize % layouts.len()];
    let replicated = Replicated::assume(world, &layout(&x))?;
    assert!(replicated.tensor().equal(&x));
    for kind in crate::common::kinds::KINDS {
        for shape in [&[][..], &[0], &[2, 3]] {
            Replicated::assume(world, &common_random(world, shape, kind)?)?;
        }
    }
    Ok(())
}

fn bits_are_compared(context: &Context) -> Result<()> {
    let world = &context.world;
    let zero = if is_last(world) { -0.0 } else { 0.0 };
    assert_values_differ(world, Replicated::assume(world, &tensor(&[zero])))?;
    // A NaN is a NaN, whatever its sign and its other bits.
    let nan = f64::from_bits(f64::NAN.to_bits() | u64::from(world.rank().unsigned_abs()));
    let nan = if world.rank() % 2 == 0 { nan } else { -nan };
    let x = tensor(&[nan, 1.0, nan, nan]);
    Replicated::assume(world, &x)?;
    for kind in [Kind::Half, Kind::BFloat16, Kind::Float] {
        Replicated::assume(world, &x.to_kind(kind))?;
    }
    Replicated::assume(world, &x.view([2, 2]).view_as_complex())?;
    // But not any number.
    let x = if is_last(world) { tensor(&[1.0, nan]) } else { tensor(&[nan, nan]) };
    assert_values_differ(world, Replicated::assume(world, &x))?;
    assert_values_differ(world, Replicated::assume(world, &x.view_as_complex()))
}

/// Elements are looked at piece by piece: all of them.
fn every_element_is_compared(context: &Context) -> Result<()> {
    let world = &context.world;
    let count = (1 << 20) + 3;
    let x = full(&[count], Kind::Uint8, 0.0);
    Replicated::assume(world, &x)?;
    for place in [0, (1 << 20) - 1, 1 << 20, count - 1] {
        let other = x.copy();
        if is_last(world) {
            let _ = other.get(place).fill_(1);
        }
        assert_values_differ(world, Replicated::assume(world, &other))?;
    }
    Ok(())
}

fn values_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    for comm in [world, &*tape] {
        let x = zeros(&[2]) + f64::from(i32::from(is_last(world)));
        assert_values_differ(comm, Replicated::assume(comm, &x))?;
        assert_values_differ(comm, Replicated::assume(comm, &leaf(&x)))?;
    }
    // They are named, whichever they are.
    if world.size() == 3 {
        let x = tensor(&[f64::from(world.rank() % 2)]);
        let text = without_lines(&refusal(Replicated::assume(world, &x)));
        assert!(text.contains(" on ranks 0, 2; hash "), "{text}");
        assert!(text.ends_with(" on rank 1"), "{text}");
    }
    tape.backward(None)
}

fn tensors_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = is_last(world);
    let x = zeros(if last { &[3] } else { &[2] });
    assert_differ(world, Replicated::assume(world, &x), "shape", ["[2]", "[3]"])?;
    let x = zeros(&[2]).to_kind(if last { Kind::Int64 } else { Kind::Double });
    assert_differ(world, Replicated::assume(world, &x), "kind", ["Double", "Int64"])?;
    let x = zeros(&[2]).set_requires_grad(!last);
    assert_differ(world, Replicated::assume(world, &x), "requires_grad", ["true", "false"])
}

fn results_that_differ(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = Replicated::assume(world, &zeros(&[2]))?;
    let rank = f64::from(i32::from(is_last(world)));
    assert_values_differ(world, x.map(|x| x + rank))?;
    assert_values_differ(world, Replicated::combine(&[&x, &x], |x| x[0] + x[1] + rank))?;
    // Those of other calls do not.
    let y = testing::random(world, &[2], Kind::Double)?;
    let results = [
        Replicated::sum(world, &y)?,
        Replicated::concat(world, &y, 0)?.map(|y| y.narrow(0, 0, 2))?,
    ];
    Replicated::combine(&[&results[0], &results[1]], |x| x[0] * x[1].sin()).map(drop)
}

fn tensors_that_are_refused(context: &Context) -> Result<()> {
    let world = &context.world;
    let last = world.size() - 1;
    let mistakes = [
        ("the tensor is undefined, like a gradient that was never computed", Tensor::new()),
        ("kind Float8e5m2 has no MPI datatype", zeros(&[2]).to_kind(Kind::Float8e5m2)),
        ("the tensor has no strided storage; a dense tensor is needed", sparse()),
    ];
    for (text, mistake) in &mistakes {
        let x = if is_last(world) { mistake.shallow_clone() } else { zeros(&[2]) };
        let good = Replicated::assume(world, &zeros(&[2]))?;
        let calls: [(&str, &dyn Fn() -> Result<Replicated>); 3] = [
            ("Replicated::assume", &|| Replicated::assume(world, &x)),
            ("Replicated::map", &|| good.map(|_| x.shallow_clone())),
            ("Replicated::combine", &|| Replicated::combine(&[&good], |_| x.shallow_clone())),
        ];
        for (call, f) in calls {
            let (error, own) = (refusal(f()), format!("{call}: {text}"));
            if is_last(world) {
                assert_eq!(error.to_string(), own);
            } else {
                let told =
                    format!("the ranks disagree on a call:\n  refused: {own} on rank {last}");
                assert_eq!(without_lines(&error), told);
            }
            works(world)?;
        }
    }
    Ok(())
}

fn parts_that_are_refused(context: &Context) -> Result<()> {
    let world = &context.world;
    let first = |parts: &[&Tensor]| parts[0].shallow_clone();
    let error = refusal(Replicated::combine(&[], first)).to_string();
    assert_eq!(error, "Replicated::combine: no parts were given; at least one is needed");
    let x = zeros(&[2]);
    let (tape, another) = (world.tape(), world.tape());
    let assume = |comm: &Communicator| Replicated::assume(comm, &x);
    let duplicate = world.duplicate()?;
    for (a, b, text) in [
        (world, &duplicate, "the parts are on different communicators"),
        (&tape, &duplicate, "the parts are on different communicators"),
        (&tape, &another, "the parts are on different tapes"),
    ] {
        let (a, b) = (assume(a)?, assume(b)?);
        let error = refusal(Replicated::combine(&[&a, &a, &b], first)).to_string();
        assert_eq!(error, format!("Replicated::combine: {text}"));
        works(world)?;
    }
    // On one rank only, it is told.
    let (here, there) = (assume(world)?, assume(&duplicate)?);
    let parts = [&here, if is_last(world) { &there } else { &here }];
    let error = refusal(Replicated::combine(&parts, first)).to_string();
    let text = "Replicated::combine: the parts are on different communicators";
    assert!(error.contains(text), "{error}");
    works(world)
}

/// What is combined with a part on a tape is on the tape: its adjoint is reached on all ranks, though
/// the loss of only one depends on it.
fn parts_on_a_tape(context: &Context) -> Result<()> {
    let world = &context.world;
    let tape = world.tape();
    let w = Replicated::assume(world, &leaf(&tensor(&[3.0])))?;
    let x = Replicated::assume(&tape, &leaf(&tensor(&[5.0])))?;
    for parts in [[&w, &x], [&x, &w]] {
        let product = Replicated::combine(&parts, |parts| parts[0] * parts[1])?;
        let own = product.vary()?;
        let own = if is_last(world) { own } else { zeros(&[1]) };
        Replicated::sum(&tape, &own.sum(Kind::Double))?.backward()?;
    }
    assert_eq!(w.grad(), tensor(&[2.0 * 5.0]));
    assert_eq!(x.grad(), tensor(&[2.0 * 3.0]));
    Ok(())
}

fn other_calls(context: &Context) -> Result<()> {
    let world = &context.world;
    let x = tensor(&[1.0]);
    let calls: [fn(&Communicator, &Tensor) -> Result<Replicated>; 2] = [
        |comm, x| Replicated::sum(comm, x),
        |comm, x| comm.all_reduce(x, mpi4tch::Op::Sum).and_then(|y| Replicated::assume(comm, &y)),
    ];
    let names = ["Replicated::sum", "all_reduce"];
    for (call, name) in calls.iter().zip(names) {
        let outcome = if is_last(world) { call(world, &x) } else { Replicated::assume(world, &x) };
        assert_differ(world, outcome, "operation", ["Replicated::assume", name])?;
    }
    Ok(())
}
