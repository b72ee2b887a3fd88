//! What has not been waited for is a wrong value, and what has been waited for is right.

mod common;

use std::time::Duration;

use stand_in::Event;
use tch::{Kind, Tensor};

use common::{LONG, VALUES, alone, on_device, start_copy, start_copy_to_host, values};

#[test]
fn a_copy_to_the_host_is_there_after_its_event() {
    let _settings = alone(LONG);
    let x = on_device(&Tensor::from_slice(&VALUES));
    let copy = start_copy_to_host(&x);
    let event = Event::record(0);
    assert_ne!(values(&copy), VALUES);
    assert!(!event.has_passed());
    event.wait();
    assert!(event.has_passed());
    assert_eq!(values(&copy), VALUES);
}

#[test]
fn a_copy_to_the_device_reads_the_host_until_its_event() {
    let _settings = alone(LONG);
    let x = on_device(&Tensor::from_slice(&VALUES));
    let mut pinned = start_copy_to_host(&x);
    stand_in::synchronize(0);
    // The host writes too early.
    start_copy(&pinned, &x);
    let _ = pinned.fill_(7.0);
    assert_eq!(values(&x), [7.0; 3]);
    // The host writes after the event.
    let _ = pinned.fill_(8.0);
    start_copy(&pinned, &x);
    Event::record(0).wait();
    let _ = pinned.fill_(9.0);
    assert_eq!(values(&x), [8.0; 3]);
}

#[test]
fn a_copy_from_memory_that_is_not_pinned_is_waited_for() {
    let _settings = alone(LONG);
    let mut host = Tensor::from_slice(&VALUES);
    let x = on_device(&Tensor::from_slice(&[0.0; 3]));
    start_copy(&host, &x);
    let _ = host.fill_(7.0);
    assert_eq!(values(&x), VALUES);
}

#[test]
fn results_are_computed_later() {
    let _settings = alone(LONG);
    stand_in::set_reachable(true);
    let x = on_device(&Tensor::from_slice(&VALUES)) * 2;
    let memory = x.data_ptr().cast::<f64>();
    // SAFETY: Reachable memory can be read, and holds three elements.
    let read = || unsafe { [memory.read_volatile(), memory.add(2).read_volatile()] };
    assert_ne!(read(), [2.0, 6.0]);
    stand_in::synchronize(0);
    assert_eq!(read(), [2.0, 6.0]);
}

#[test]
fn streams_are_ordered_by_events_only() {
    let _settings = alone(LONG);
    for is_ordered in [false, true] {
        let x = on_device(&Tensor::from_slice(&[0.0; 3]));
        let pinned = start_copy_to_host(&on_device(&Tensor::from_slice(&VALUES)));
        stand_in::synchronize(0);
        start_copy(&pinned, &x);
        let event = Event::record(0);
        // Another stream's tasks are done at once, and so before.
        stand_in::set_delay(Duration::ZERO);
        let copy = stand_in::on_new_stream(0, || {
            if is_ordered {
                event.block();
            }
            let copy = start_copy_to_host(&x);
            Event::record(0).wait();
            copy
        });
        assert_eq!(values(&copy) == VALUES, is_ordered);
        stand_in::synchronize(0);
        stand_in::set_delay(LONG);
    }
}

#[test]
fn an_event_waits_for_what_came_before_it_only() {
    let _settings = alone(Duration::ZERO);
    assert!(Event::record(1).has_passed());
    let x = on_device(&Tensor::from_slice(&VALUES));
    let first = start_copy_to_host(&x);
    let event = Event::record(0);
    stand_in::set_delay(LONG);
    let second = start_copy_to_host(&x);
    event.wait();
    assert_eq!(values(&first), VALUES);
    assert_ne!(values(&second), VALUES);
    stand_in::synchronize(0);
    assert_eq!(values(&second), VALUES);
}

#[test]
fn devices_wait_for_copies_between_them() {
    let _settings = alone(LONG);
    let x = on_device(&Tensor::from_slice(&VALUES)) * 2;
    let mut y = stand_in::to_device(&x, 1);
    drop(x);
    // Overwritten after the copy, as both are tasks of device 0.
    let z = on_device(&Tensor::from_slice(&VALUES));
    assert_eq!(values(&y), [2.0, 4.0, 6.0]);
    assert_eq!(y.kind(), Kind::Double);
    // The copy must not be overtaken by what the destination's device was to do before.
    let _ = y.fill_(7.0);
    stand_in::set_delay(Duration::ZERO);
    start_copy(&z, &y);
    assert_eq!(values(&y), VALUES);
}
