//! Backward passes: their gradients, and the threads on which they run.

mod common;

use std::sync::Mutex;
use std::thread::{self, ThreadId};
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use common::{alone, on_device};

const DELAY: Duration = Duration::from_millis(2);

fn model(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let hidden = x.matmul(weight).tanh() + bias;
    (hidden.narrow(1, 0, 2) * Tensor::cat(&[&hidden, x], 1).narrow(1, 3, 2)).sum(x.kind())
}

#[test]
fn gradients_are_those_of_the_host() {
    let _settings = alone(DELAY);
    let options = (Kind::Double, Device::Cpu);
    let values = [[4, 5], [5, 3], [1, 3]].map(|shape| Tensor::randn(shape, options));
    let leaves = values.each_ref().map(|x| x.copy().set_requires_grad(true));
    model(&leaves[0], &leaves[1], &leaves[2]).backward();
    // Leaves of the device, whose gradients are there, too.
    let placed = values.each_ref().map(|x| on_device(x).set_requires_grad(true));
    model(&placed[0], &placed[1], &placed[2]).backward();
    // Leaves of the host, from which autograd records copies to the device.
    let copied = values.each_ref().map(|x| x.copy().set_requires_grad(true));
    let on = copied.each_ref().map(on_device);
    stand_in::to_host(&model(&on[0], &on[1], &on[2])).backward();
    for ((expected, placed), copied) in leaves.iter().zip(&placed).zip(&copied) {
        assert!(stand_in::is_on_device(&placed.grad()));
        assert!(stand_in::to_host(&placed.grad()).allclose(&expected.grad(), 1e-12, 0.0, false));
        assert!(!stand_in::is_on_device(&copied.grad()));
        assert!(copied.grad().allclose(&expected.grad(), 1e-12, 0.0, false));
    }
}

#[test]
fn gradients_accumulate_and_have_derivatives() {
    let _settings = alone(DELAY);
    let x = on_device(&Tensor::from_slice(&[1.0, 2.0])).set_requires_grad(true);
    for _ in 0..2 {
        (&x * &x).sum(Kind::Double).backward();
    }
    assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap(), [4.0, 8.0]);
    let cube = (&x * &x * &x).sum(Kind::Double);
    let first = Tensor::run_backward(&[cube], &[&x], true, true).remove(0);
    let second = Tensor::run_backward(&[first.sum(Kind::Double)], &[&x], false, false).remove(0);
    assert_eq!(Vec::<f64>::try_from(second).unwrap(), [6.0, 12.0]);
}

#[test]
fn convolutions_have_gradients() {
    let _settings = alone(DELAY);
    let options = (Kind::Double, Device::Cpu);
    let values =
        [vec![2, 1, 5, 5], vec![3, 1, 3, 3], vec![3]].map(|shape| Tensor::randn(shape, options));
    let gradients = |place: fn(&Tensor) -> Tensor| {
        let [x, weight, bias] = values.each_ref().map(|x| place(x).set_requires_grad(true));
        let y = x.conv2d(&weight, Some(&bias), 1, 1, 1, 1);
        (&y * &y).sum(Kind::Double).backward();
        [x, weight, bias].map(|x| stand_in::to_host(&x.grad()))
    };
    let expected = gradients(Tensor::copy);
    for (result, expected) in gradients(on_device).iter().zip(&expected) {
        assert!(result.allclose(expected, 1e-12, 0.0, false));
    }
}

static BACKWARD: Mutex<Vec<ThreadId>> = Mutex::new(Vec::new());

extern "C" fn note_thread() {
    BACKWARD.lock().unwrap().push(thread::current().id());
}

#[test]
fn backward_runs_on_threads_of_the_devices() {
    let _settings = alone(DELAY);
    for index in [0, 1, 0] {
        let x = stand_in::to_device(&Tensor::from_slice(&[1.0]), index).set_requires_grad(true);
        let y = &x * 2;
        stand_in::on_gradient(&y, note_thread);
        (y * 3).sum(Kind::Double).backward();
    }
    let threads = BACKWARD.lock().unwrap();
    assert_eq!(threads.len(), 3);
    assert!(threads[0] == threads[2] && threads[0] != threads[1], "{threads:?}");
    assert!(!threads.contains(&thread::current().id()), "{threads:?}");
}

/// A stream is current on a thread, and libtorch carries out a node on that of its forward call.
/// So the backward pass of a graph from another stream is right without any synchronization.
#[test]
fn backward_runs_on_the_streams_of_the_forward_pass() {
    let _settings = alone(Duration::from_millis(20));
    let x = on_device(&Tensor::from_slice(&[1.0, 2.0])).set_requires_grad(true);
    let y = stand_in::on_new_stream(0, || (&x * &x).exp());
    let seed = on_device(&Tensor::from_slice(&[1.0, 0.5]));
    stand_in::synchronize(0);
    (y * seed).sum(Kind::Double).backward();
    let expected = [2.0 * 1f64.exp(), 2.0 * 4f64.exp()];
    let gradient = Vec::<f64>::try_from(x.grad()).unwrap();
    assert!(gradient.iter().zip(&expected).all(|(it, expected)| (it - expected).abs() < 1e-9));
}
