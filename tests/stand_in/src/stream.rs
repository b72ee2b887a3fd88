//! Streams and events, which tch does not have. They are reached by libtorch's generic classes, as
//! those of any other device.

use tch::Tensor;

use crate::border;

/// A point in a stream, as libtorch's `c10::Event`: what was submitted before.
pub struct Event(*mut border::RawEvent);

impl Event {
    /// Records an event in the current stream of the device.
    pub fn record(index: i32) -> Event {
        // SAFETY: It may be called by any thread.
        Event(unsafe { border::stand_in_record_event(index) })
    }

    /// Whether all that was submitted before the event has been done.
    pub fn has_passed(&self) -> bool {
        // SAFETY: The event lives as long as `self`.
        unsafe { border::stand_in_event_has_passed(self.0) }
    }

    /// Waits until the event has passed.
    pub fn wait(&self) {
        // SAFETY: The event lives as long as `self`.
        unsafe { border::stand_in_wait_for_event(self.0) }
    }

    /// Lets all that is submitted to the device's current stream from now on wait for the event.
    pub fn block(&self) {
        // SAFETY: The event lives as long as `self`.
        unsafe { border::stand_in_block_for_event(self.0) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: The event is not used again.
        unsafe { border::stand_in_destroy_event(self.0) }
    }
}

/// Calls `f` with another stream of the device as this thread's current one: the next one of the
/// device's pool of three.
pub fn on_new_stream<T>(index: i32, f: impl FnOnce() -> T) -> T {
    struct Restore(i32, i64);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: The stream is one of the device.
            unsafe { border::stand_in_exchange_stream(self.0, self.1) };
        }
    }
    // SAFETY: It may be called by any thread.
    let stream = unsafe { border::stand_in_new_stream(index) };
    // SAFETY: The stream is one of the device.
    let before = unsafe { border::stand_in_exchange_stream(index, stream) };
    let _restore = Restore(index, before);
    f()
}

/// Waits until all that was submitted to the device's streams has been done.
pub fn synchronize(index: i32) {
    // SAFETY: It may be called by any thread.
    unsafe { border::stand_in_synchronize(index) }
}

/// Calls torch's `record_stream`: the current stream of the tensor's device uses the tensor's
/// memory, too, which is not used again before that stream has finished with it.
pub fn record_stream(x: &Tensor) {
    // SAFETY: The tensor is alive.
    unsafe { border::stand_in_record_stream(x.as_ptr()) }
}
