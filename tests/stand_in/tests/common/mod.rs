//! Shared by the tests: the device's settings are the process's, so that one test runs at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tch::Tensor;

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
        stand_in::synchronize(0);
        stand_in::synchronize(1);
    }
}

/// On the device 0.
pub fn on_device(x: &Tensor) -> Tensor {
    stand_in::to_device(x, 0)
}
