//! The memory of the device and pinned memory: who can reach it, and when it is used again.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use stand_in::Event;
use tch::{Device, Tensor};

use common::{LONG, VALUES, alone, on_device, start_copy, start_copy_to_host, values};

/// What freed memory is overwritten with.
const POISON: f64 = f64::from_bits(0xA5A5_A5A5_A5A5_A5A5);

fn pinned(values: &[f64]) -> Tensor {
    let x = on_device(&Tensor::from_slice(values));
    let pinned = start_copy_to_host(&x);
    stand_in::synchronize(0);
    pinned
}

/// Reads the first element at the tensor's address, which traps if the host cannot reach it.
fn read(memory: *const f64) -> f64 {
    // SAFETY: The memory is never unmapped, and that the access may trap is what is tested.
    unsafe { memory.read_volatile() }
}

fn address(x: &Tensor) -> *mut f64 {
    x.data_ptr().cast()
}

#[test]
fn the_host_cannot_read_the_device() {
    const CHILD: &str = "STAND_IN_CHILD";
    let Ok(reachable) = std::env::var(CHILD) else {
        let run = |reachable: &str| {
            Command::new(std::env::current_exe().unwrap())
                .args(["the_host_cannot_read_the_device", "--exact"])
                .env(CHILD, reachable)
                .output()
                .unwrap()
                .status
        };
        assert_eq!(run("false").signal(), Some(libc::SIGSEGV));
        assert!(run("true").success());
        return;
    };
    let _settings = alone(Duration::ZERO);
    stand_in::set_reachable(reachable == "true");
    let x = on_device(&Tensor::from_slice(&VALUES));
    stand_in::synchronize(0);
    assert_eq!(read(address(&x)), VALUES[0]);
}

#[test]
fn freed_memory_is_overwritten_and_used_again() {
    let _settings = alone(LONG);
    stand_in::set_reachable(true);
    let x = on_device(&Tensor::from_slice(&VALUES));
    let memory = address(&x);
    drop(x);
    assert_eq!(read(memory), VALUES[0]);
    stand_in::synchronize(0);
    assert_eq!(read(memory), POISON);
    let y = on_device(&Tensor::from_slice(&[4.0]));
    assert_eq!(address(&y), memory);
    // A tensor of another stream, or that the host cannot reach, has other memory.
    drop(y);
    stand_in::on_new_stream(0, || {
        assert_ne!(address(&on_device(&Tensor::from_slice(&VALUES))), memory);
    });
    stand_in::set_reachable(false);
    assert_ne!(address(&on_device(&Tensor::from_slice(&VALUES))), memory);
}

/// The order of the stream protects memory that is used again.
#[test]
fn a_copy_that_is_queued_may_outlive_its_tensor() {
    let _settings = alone(LONG);
    let x = on_device(&Tensor::from_slice(&VALUES));
    let memory = address(&x);
    let copy = start_copy_to_host(&x);
    drop(x);
    let y = on_device(&Tensor::from_slice(&[4.0, 5.0, 6.0]));
    assert_eq!(address(&y), memory);
    assert_eq!(values(&copy), VALUES);
    assert_eq!(values(&y), [4.0, 5.0, 6.0]);
}

#[test]
fn the_memory_of_a_new_tensor_is_in_use_until_the_queue_is_waited_for() {
    let _settings = alone(LONG);
    stand_in::set_reachable(true);
    let x = on_device(&Tensor::from_slice(&VALUES));
    for is_new in [true, false] {
        let y = x.empty_like();
        // SAFETY: Reachable memory can be written, and holds three elements.
        unsafe { address(&y).write_volatile(7.0) };
        stand_in::synchronize(0);
        assert_eq!(read(address(&y)), POISON, "new memory: {is_new}");
        // SAFETY: As above.
        unsafe { address(&y).write_volatile(7.0) };
        assert_eq!(values(&y)[0], 7.0);
    }
}

#[test]
fn memory_that_another_stream_uses_must_be_recorded() {
    let _settings = alone(Duration::ZERO);
    for is_recorded in [false, true] {
        let x = on_device(&Tensor::from_slice(&VALUES));
        stand_in::synchronize(0);
        stand_in::set_delay(LONG);
        let (copy, event) = stand_in::on_new_stream(0, || {
            if is_recorded {
                stand_in::record_stream(&x);
            }
            let copy = start_copy_to_host(&x);
            (copy, Event::record(0))
        });
        stand_in::set_delay(Duration::ZERO);
        drop(x);
        event.wait();
        assert_eq!(values(&copy), if is_recorded { VALUES } else { [POISON; 3] });
    }
}

#[test]
fn memory_can_be_made_scarce() {
    let _settings = alone(Duration::ZERO);
    let x = on_device(&Tensor::from_slice(&VALUES));
    stand_in::set_tensors_left(Some(2));
    let made = [(); 3].map(|()| x.f_empty_like());
    assert!(matches!(made, [Ok(_), Ok(_), Err(_)]), "{made:?}");
    let error = made[2].as_ref().expect_err("the third").to_string();
    assert!(error.contains("out of memory"), "{error}");
    assert!(x.f_internal_to_copy((x.kind(), Device::Cpu), true).is_err(), "pinned");
    stand_in::set_tensors_left(None);
    assert!(x.f_empty_like().is_ok());
}

#[test]
fn a_queued_copy_keeps_pinned_memory_unless_it_is_forgetful() {
    for is_forgetful in [false, true] {
        let _settings = alone(LONG);
        stand_in::set_forgetful(is_forgetful);
        let x = on_device(&Tensor::from_slice(&[0.0; 3]));
        let host = pinned(&VALUES);
        let memory = address(&host);
        start_copy(&host, &x);
        drop(host);
        assert_eq!(read(memory), if is_forgetful { POISON } else { VALUES[0] });
        let next = start_copy_to_host(&x);
        assert_eq!(address(&next) == memory, is_forgetful);
        stand_in::synchronize(0);
        assert_eq!(values(&x), if is_forgetful { [POISON; 3] } else { VALUES });
        // It is free by now in either case, or used by the copy of what was overwritten.
        assert_eq!(read(memory), POISON);
    }
}

#[test]
fn copies_between_the_host_and_the_device_are_counted() {
    let _settings = alone(Duration::ZERO);
    let counted = |f: &dyn Fn()| {
        let before = [stand_in::copies_made(), stand_in::bytes_copied()];
        f();
        [stand_in::copies_made() - before[0], stand_in::bytes_copied() - before[1]]
    };
    let host = Tensor::from_slice(&VALUES);
    let x = on_device(&host);
    assert_eq!(counted(&|| drop(on_device(&host))), [1, 24]);
    assert_eq!(counted(&|| drop(stand_in::to_host(&x.narrow(0, 0, 2)))), [1, 16]);
    assert_eq!(counted(&|| drop(start_copy_to_host(&x))), [1, 24]);
    assert_eq!(counted(&|| drop(x.copy() + &x + x.sum(None))), [0, 0]);
}
