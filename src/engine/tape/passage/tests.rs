//! Tests, without MPI, of which backward passes may go through a tape's calls.

use parking_lot::Mutex;

use super::*;

fn variable() -> Tensor {
    Tensor::from_slice(&[1.0]).set_requires_grad(true)
}

/// 2x, with a node as a call on the tape has it.
fn twice(tape: &Arc<Record>, x: &Tensor) -> Tensor {
    let y = x.detach() * 2.0;
    let (tape, generation, site) = (Arc::clone(tape), tape.generation(), Site::new("twice"));
    autograd::add_node("twice", [x], [&y], &[], move |given| {
        let is_left_out = tape.admit(site, generation, None)? == Passage::LeftOut;
        Ok(vec![(!is_left_out).then(|| &given.cotangents[0] * 2.0)])
    })
    .unwrap();
    y
}

/// x, with a node whose pullback runs `inner`.
fn around(x: &Tensor, inner: impl Fn() -> Result<()> + Send + Sync + 'static) -> Tensor {
    let y = x.detach() * 1.0;
    autograd::add_node("around", [x], [&y], &[], move |mut given| {
        inner()?;
        Ok(vec![given.cotangents.pop()])
    })
    .unwrap();
    y
}

/// A tensor whose backward pass runs `depth` passes, each within the one before; the innermost goes
/// back from `y`.
fn nested(y: Tensor, depth: usize) -> Tensor {
    (0..depth).fold(y, |inner, _| {
        let inner = Mutex::new(inner);
        around(&variable(), move || go_back(&inner.lock()))
    })
}

fn go_back(y: &Tensor) -> Result<()> {
    autograd::backward("a pass", &[y], &[&y.ones_like()], true, false)
}

fn pass_of(tape: &Arc<Record>, y: &Tensor) -> (Result<()>, Result<()>) {
    tape.pass(Site::new("Tape::backward"), || go_back(y))
}

/// libtorch runs fewer than 100 nested passes on one thread, so the last depth takes several
/// threads.
#[test]
fn passes_within_the_tapes_own_are_its_own() {
    let tape = Arc::new(Record::without_mpi());
    for depth in [0, 1, 2, 100] {
        let x = variable();
        let y = nested(twice(&tape, &x), depth);
        let error = go_back(&y).unwrap_err().to_string();
        let expected = "on a tape, and reached by a backward pass that is not the tape's";
        assert!(error.contains(expected), "{depth}: {error}");
        assert!(!x.grad().defined(), "{depth}");
        let (outcome, left_out) = pass_of(&tape, &y);
        outcome.and(left_out).unwrap();
        assert_eq!(x.grad(), Tensor::from_slice(&[2.0]), "{depth}");
        assert!(go_back(&y).is_err(), "{depth}");
    }
}

/// A pass of another tape, within a pass of the tape or not.
#[test]
fn passes_of_another_tape_leave_calls_out() {
    let [tape, other] = [(); 2].map(|()| Arc::new(Record::without_mpi()));
    let (x, z) = (variable(), variable());
    let y = twice(&tape, &x) + twice(&other, &z);
    let (outcome, left_out) = pass_of(&other, &y);
    outcome.unwrap();
    let error = left_out.unwrap_err().to_string();
    assert!(
        error.contains("reached by Tape::backward at src/engine/tape/passage/tests.rs:"),
        "{error}"
    );
    assert!(!x.grad().defined());
    assert_eq!(z.grad(), Tensor::from_slice(&[2.0]));

    let inner = Mutex::new(twice(&tape, &x));
    let of_other = Arc::clone(&other);
    let within = around(&z, move || {
        let (outcome, left_out) = pass_of(&of_other, &inner.lock());
        outcome.and(left_out)
    });
    let (outcome, left_out) = pass_of(&tape, &within);
    outcome.and(left_out).unwrap();
    assert_eq!(x.grad(), Tensor::from_slice(&[2.0]));
}

#[test]
fn a_pass_within_a_pass_of_one_tape_leaves_it_as_it_was() {
    let tape = Arc::new(Record::without_mpi());
    let (x, z) = (variable(), variable());
    let inner = Mutex::new(twice(&tape, &x));
    let within = Arc::clone(&tape);
    let y = around(&twice(&tape, &z), move || {
        let (outcome, left_out) = pass_of(&within, &inner.lock());
        outcome.and(left_out)
    });
    let (outcome, left_out) = pass_of(&tape, &y);
    outcome.and(left_out).unwrap();
    assert_eq!([x.grad(), z.grad()], [(); 2].map(|()| Tensor::from_slice(&[2.0])));

    // If the inner pass starts the tape anew, the outer pass skips the calls that are left.
    let within = Arc::clone(&tape);
    let y = around(&twice(&tape, &z), move || {
        within.start_anew();
        Ok(())
    });
    let (outcome, left_out) = pass_of(&tape, &y);
    outcome.unwrap();
    let error = left_out.unwrap_err().to_string();
    assert!(error.contains("before the tape's last backward pass"), "{error}");
}
