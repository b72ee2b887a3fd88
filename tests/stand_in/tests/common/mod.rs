//! Shared by the tests: the device's settings are the process's, so that one test runs at a time.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tch::{Device, Tensor};

/// So long that a test surely gets to its next line before.
pub const LONG: Duration = Duration::from_millis(100);

pub const VALUES: [f64; 3] = [1.0, 2.0, 3.0];

static TURN: Mutex<()> = Mutex::new(());

/// The settings of a test. When it is dropped, they are as at first.
pub struct Settings {
    _turn: MutexGuard<'static, ()>,
}

/// Registers the device, waits for this test's turn, and sets the delay.
pub fn alone(delay: Duration) -> Settings {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    stand_in::register();
    stand_in::set_delay(delay);
    Settings { _turn: turn }
}

impl Drop for Settings {
    fn drop(&mut self) {
        stand_in::set_delay(Duration::ZERO);
        stand_in::set_reachable(false);
        stand_in::set_forgetful(false);
        stand_in::set_tensors_left(None);
        stand_in::synchronize(0);
        stand_in::synchronize(1);
    }
}

/// On the device 0.
pub fn on_device(x: &Tensor) -> Tensor {
    stand_in::to_device(x, 0)
}

/// Starts a copy of `x` to pinned memory of the host.
pub fn start_copy_to_host(x: &Tensor) -> Tensor {
    x.internal_to_copy((x.kind(), Device::Cpu), true)
}

/// Starts a copy of `from`, which is pinned or on a device, to the tensor `to` of a device.
pub fn start_copy(from: &Tensor, to: &Tensor) {
    let _ = from.internal_copy_from(to, true);
}

pub fn values(x: &Tensor) -> Vec<f64> {
    Vec::try_from(x).unwrap()
}
