//! Tests of the nodes, without MPI.

use std::panic::catch_unwind;
use std::sync::Arc;

use super::*;

fn variable(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

/// y = 2x as one node with this pullback.
fn twice<F>(x: &Tensor, saved: fn(&Tensor, &Tensor) -> Vec<Tensor>, pullback: F) -> Tensor
where
    F: Fn(Backward) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
{
    let y = tch::no_grad(|| x * 2.0);
    let saved = saved(x, &y);
    add_node("twice", [x], [&y], &saved.iter().collect::<Vec<_>>(), pullback).unwrap();
    y
}

fn nothing(_: &Tensor, _: &Tensor) -> Vec<Tensor> {
    vec![]
}

/// The pullback of `twice`: 2ȳ.
fn doubled(backward: Backward) -> Result<Vec<Option<Tensor>>> {
    Ok(vec![Some(&backward.cotangents[0] * 2.0)])
}

/// Fails whenever it is called.
fn failing(_: Backward) -> Result<Vec<Option<Tensor>>> {
    Err(Error::Finalized { call: "a call" })
}

#[test]
fn cotangents_reach_the_input() {
    let x = variable(&[1.0, 3.0]);
    let y = twice(&x, nothing, doubled);
    (&y * &y).sum(tch::Kind::Double).backward();
    assert_eq!(x.grad(), Tensor::from_slice(&[8.0, 24.0]));
}

#[test]
fn errors_and_panics_come_out_of_backward_and_the_process_lives_on() {
    let x = variable(&[1.0]);
    let error = twice(&x, nothing, failing).f_backward().unwrap_err().to_string();
    assert!(error.contains("backward of twice: a call: MPI has been finalized"), "{error}");

    let y = twice(&x, nothing, |_| panic!("the {} is wet", "powder"));
    let error = y.f_backward().unwrap_err().to_string();
    assert!(error.contains("backward of twice panicked: the powder is wet"), "{error}");

    let y = twice(&x, nothing, |_| Ok(vec![]));
    let error = y.f_backward().unwrap_err().to_string();
    assert!(error.contains("one gradient per input"), "{error}");

    twice(&x, nothing, doubled).f_backward().unwrap();
    assert_eq!(x.grad(), Tensor::from_slice(&[2.0]));
}

#[test]
fn an_undefined_cotangent_is_zeros() {
    let x = variable(&[1.0, 2.0]);
    let (y, z) =
        tch::no_grad(|| (&x * 1.0, Tensor::ones([3], (tch::Kind::Float, tch::Device::Cpu))));
    let pullback = |backward: Backward| {
        let [ȳ, z̄] = &backward.cotangents[..] else { panic!("two outputs") };
        assert_eq!(*ȳ, Tensor::from_slice(&[0.0, 0.0]));
        assert_eq!(z̄.size(), [3]);
        Ok(vec![Some(ȳ + z̄.sum(tch::Kind::Double))])
    };
    add_node("two", [&x], [&y, &z], &[], pullback).unwrap();
    z.sum(tch::Kind::Float).backward();
    assert_eq!(x.grad(), Tensor::from_slice(&[3.0, 3.0]));
}

#[test]
fn an_input_without_gradient_gets_none() {
    let (a, b) = (variable(&[1.0]), variable(&[2.0]));
    let y = tch::no_grad(|| &a + &b);
    let pullback = |mut backward: Backward| Ok(vec![None, backward.cotangents.pop()]);
    add_node("second", [&a, &b], [&y], &[], pullback).unwrap();
    y.backward();
    assert!(!a.grad().defined());
    assert_eq!(b.grad(), Tensor::from_slice(&[1.0]));
}

/// One of a pair, which tells whether the other has been dropped.
struct Witness(Arc<()>);

impl Witness {
    fn new() -> (Self, Self) {
        let shared = Arc::new(());
        (Self(Arc::clone(&shared)), Self(shared))
    }

    fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

#[test]
fn the_last_output_frees_the_graph() {
    // A saved output would keep itself alive, but for libtorch's SavedVariable.
    let saved: [fn(&Tensor, &Tensor) -> Vec<Tensor>; 3] =
        [nothing, |x, _| vec![x.shallow_clone()], |_, y| vec![y.shallow_clone()]];
    for saved in saved {
        let x = variable(&[1.0]);
        let (held, witness) = Witness::new();
        let y = twice(&x, saved, move |backward| {
            let _ = &held;
            doubled(backward)
        });
        let z = &y + 1.0;
        drop(y);
        assert!(!witness.is_alone(), "z needs the node");
        drop(z);
        assert!(witness.is_alone());
    }
}

#[test]
fn a_refused_record_drops_the_pullback() {
    let x = variable(&[1.0]);
    let integers = Tensor::from_slice(&[1_i64]);
    let (held, witness) = Witness::new();
    let error = add_node("refused", [&x], [&integers], &[], move |backward| {
        let _ = &held;
        doubled(backward)
    });
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("refused: ") && error.contains("not support dtype"), "{error}");
    assert!(witness.is_alone());
}

#[test]
fn saved_tensors_come_back_and_are_guarded() {
    let of_both = |x: &Tensor, y: &Tensor| vec![x.shallow_clone(), y.shallow_clone()];
    let product = |backward: Backward| {
        let [x, y] = &backward.saved?[..] else { panic!("two saved") };
        Ok(vec![Some(x * y * &backward.cotangents[0])])
    };
    let x = variable(&[3.0]);
    twice(&x, of_both, product).backward();
    assert_eq!(x.grad(), Tensor::from_slice(&[18.0]));

    let mut y = twice(&x, of_both, product);
    let loss = &y * 1.0;
    let _ = tch::no_grad(|| y.fill_(0.0));
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(error.contains("modified by an inplace operation"), "{error}");
}

#[test]
fn what_a_pullback_does_is_recorded_with_create_graph() {
    let cubed = |backward: Backward| {
        assert!(is_recording());
        let x = &backward.saved?[0];
        Ok(vec![Some(x * x * &backward.cotangents[0])])
    };
    let x = variable(&[3.0]);
    let one = variable(&[1.0]);
    let y = twice(&x, |x, _| vec![x.shallow_clone()], cubed);
    let first = grad("test", &[&y], &[&one], &[&x], true, true).unwrap().remove(0).unwrap();
    assert_eq!(first.detach(), Tensor::from_slice(&[9.0]));
    let second = grad("test", &[&first], &[&one], &[&x, &one], false, false).unwrap();
    assert_eq!(second[0].as_ref().unwrap(), &Tensor::from_slice(&[6.0]));
    assert_eq!(second[1].as_ref().unwrap(), &Tensor::from_slice(&[9.0]));
}

/// tch's `no_grad` does not restore the switch if its closure panics.
#[test]
fn a_panic_that_was_caught_leaves_recording_as_it_was() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            tch::no_grad(|| panic!("in a destructor"));
        }
    }
    let x = variable(&[3.0]);
    let panics = Panics;
    let y = twice(&x, nothing, move |backward| {
        let _ = &panics;
        doubled(backward)
    });
    drop(y);
    assert!(is_recording());

    let y = twice(&x, nothing, |_| tch::no_grad(|| panic!("in a pullback")));
    y.f_backward().unwrap_err();
    assert!(is_recording());

    for on in [false, true] {
        let _recording = Recording::set(!on);
        let inner = || {
            let _recording = Recording::set(on);
            assert_eq!(is_recording(), on);
            panic!("under a guard");
        };
        assert!(catch_unwind(inner).is_err());
        assert_eq!(is_recording(), !on);
    }
}

#[test]
fn long_chains_are_freed_without_recursion() {
    let x = variable(&[1.0]);
    let mut y = twice(&x, nothing, doubled);
    for _ in 0..200_000 {
        y = twice(&y, nothing, |backward| Ok(backward.cotangents.into_iter().map(Some).collect()));
    }
    y.f_backward().unwrap();
    drop(y);
}

#[test]
fn pullbacks_run_on_other_threads() {
    let x = variable(&[1.0]);
    let y = twice(&x, nothing, doubled);
    std::thread::spawn(move || y.f_backward().unwrap()).join().unwrap();
    assert_eq!(x.grad(), Tensor::from_slice(&[2.0]));
}

/// A new tensor of so many bytes, and where its elements are.
fn of_bytes(bytes: i64) -> (Tensor, usize) {
    let (tensor, data) = empty("a test", &[bytes], 0).unwrap();
    (tensor, data as usize)
}

fn kept_bytes() -> usize {
    unsafe extern "C" {
        /// See `memory.h`.
        safe fn mpi4tch_kept_bytes() -> usize;
    }
    mpi4tch_kept_bytes()
}

/// One test, as other threads' tensors of this size would change what is kept.
#[test]
fn memory_of_large_tensors_is_used_again() {
    const SIZE: i64 = 8 << 20;
    let first = of_bytes(SIZE);
    let place = first.1;
    drop(first);
    assert_eq!(kept_bytes(), 8 << 20);
    // Not much smaller: a quarter of the block may be unused.
    let (mut second, there) = of_bytes(SIZE * 9 / 10);
    assert_eq!((there, kept_bytes()), (place, 0));
    let _ = second.fill_(7);
    let view = second.narrow(0, 3, 5);
    drop(second);
    assert_eq!(kept_bytes(), 0, "a view still uses it");
    assert_eq!(view, Tensor::from_slice(&[7_u8; 5]));
    drop(view);
    let small = of_bytes(SIZE / 2);
    assert_ne!(small.1, place);
    drop(small);
    // No more is used and kept than was once used.
    for i in 0..100 {
        let large = of_bytes(SIZE - (i << 12));
        let _ = large.0.shallow_clone().fill_(1);
        assert!(kept_bytes() + (8 << 20) <= 13 << 20, "{}", kept_bytes());
    }
    // A tensor that is resized keeps its elements.
    let (mut tensor, _) = of_bytes(SIZE / 8);
    let _ = tensor.fill_(3);
    let _ = tensor.resize_([SIZE / 4]);
    assert_eq!(tensor.narrow(0, 0, SIZE / 8).min().int64_value(&[]), 3);
    let _ = tensor.resize_([16]);
    drop(tensor);
    // Many at once: what is kept has a limit.
    let many: Vec<_> = (0..40).map(|_| of_bytes(SIZE)).collect();
    drop(many);
    assert_eq!(kept_bytes(), 256 << 20);
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            std::thread::spawn(move || {
                for i in 0..200 {
                    let (mut tensor, _) = of_bytes((1 + (i * 7 + thread) % 16) << 18);
                    let _ = tensor.fill_(thread);
                    assert_eq!(tensor.max().int64_value(&[]), thread);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(kept_bytes() <= 256 << 20);
}

/// Also if a leaf is itself an output, and nothing else has its node.
#[test]
fn leaves_are_told_apart() {
    let leaves: Vec<Tensor> = (0..20).map(|_| variable(&[1.0])).collect();
    let has_others = |y: &Tensor, x: &Tensor| has_other_leaves("test", &[y], &[x]).unwrap();
    for pair in leaves.windows(2) {
        let (x, other) = (&pair[0], &pair[1]);
        assert!(!has_others(x, x));
        assert!(has_others(other, x));
        assert!(!has_others(&x.sin(), x));
        assert!(has_others(&(x * other), x));
    }
}
