//! The functions of `border.cpp`.

use std::ffi::{c_char, c_void};

use torch_sys::C_tensor;

/// `c10::Event`.
#[repr(C)]
pub struct RawEvent {
    _private: [u8; 0],
}

unsafe extern "C" {
    pub fn stand_in_register();
    pub fn stand_in_to(
        tensor: *const C_tensor,
        device: i32,
        error: *mut *mut c_char,
    ) -> *mut C_tensor;
    pub fn stand_in_device_of(tensor: *const C_tensor) -> i32;
    pub fn stand_in_meta(tensor: *const C_tensor) -> *mut C_tensor;
    pub fn stand_in_is_on_device(tensor: *const C_tensor) -> bool;
    pub fn stand_in_set_delay(nanoseconds: u64);
    pub fn stand_in_set_reachable(reachable: bool);
    pub fn stand_in_set_blocks_left(count: u64);
    pub fn stand_in_copies_made() -> u64;
    pub fn stand_in_bytes_copied() -> u64;
    pub fn stand_in_set_forgetful(forgetful: bool);
    pub fn stand_in_new_stream(device: i32) -> i64;
    pub fn stand_in_exchange_stream(device: i32, stream: i64) -> i64;
    pub fn stand_in_synchronize(device: i32);
    pub fn stand_in_record_event(device: i32) -> *mut RawEvent;
    pub fn stand_in_event_has_passed(event: *const RawEvent) -> bool;
    pub fn stand_in_wait_for_event(event: *const RawEvent);
    pub fn stand_in_block_for_event(event: *const RawEvent);
    pub fn stand_in_destroy_event(event: *mut RawEvent);
    pub fn stand_in_record_stream(tensor: *const C_tensor);
    pub fn stand_in_on_gradient(tensor: *const C_tensor, function: extern "C" fn());
    pub fn free(memory: *mut c_void);
}
