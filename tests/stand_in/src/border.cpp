// The functions that Rust calls; src/border.rs declares them.

#include <cstdlib>
#include <cstring>
#include <exception>

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "allocators.h"
#include "copies.h"
#include "hooks.h"
#include "operations.h"
#include "streams.h"

namespace {

using stand_in::kDevices;
using stand_in::kType;

const c10::impl::VirtualGuardImpl guard() { return c10::impl::VirtualGuardImpl(kType); }

// Tasks use libtorch, which is taken down when the process ends.
void finish() {
  for (c10::DeviceIndex device = 0; device < kDevices; ++device) stand_in::synchronize(device);
}

}  // namespace

extern "C" {

void stand_in_register() {
  static const bool is_registered = [] {
    c10::register_privateuse1_backend("stand_in");
    stand_in::register_guard();
    stand_in::register_hooks();
    c10::SetAllocator(kType, stand_in::device_allocator());
    stand_in::register_operations();
    std::atexit(finish);
    return true;
  }();
  (void)is_registered;
}

// The tensor on the device, or on the host if `device` is negative. If that fails, NULL, and
// `error` is its text, to be freed by free().
at::Tensor *stand_in_to(const at::Tensor *tensor, int32_t device, char **error) {
  try {
    const at::Device place = device < 0 ? at::Device(at::kCPU) : at::Device(kType, device);
    return new at::Tensor(tensor->to(place));
  } catch (const std::exception &failure) {
    *error = strdup(failure.what());
    return nullptr;
  }
}

// The number of the stand-in that the tensor is on; -1 if it is on none.
int32_t stand_in_device_of(const at::Tensor *tensor) {
  return tensor->device().type() == kType ? tensor->device().index() : -1;
}

at::Tensor *stand_in_meta(const at::Tensor *tensor) {
  return new at::Tensor(tensor->to(at::kMeta));
}

bool stand_in_is_on_device(const at::Tensor *tensor) { return tensor->device().type() == kType; }

void stand_in_set_delay(uint64_t nanoseconds) {
  stand_in::set_delay(std::chrono::nanoseconds(nanoseconds));
}

void stand_in_set_reachable(bool reachable) { stand_in::set_reachable(reachable); }

void stand_in_set_blocks_left(uint64_t count) { stand_in::set_blocks_left(count); }

uint64_t stand_in_copies_made() { return stand_in::copies_made(); }

uint64_t stand_in_bytes_copied() { return stand_in::bytes_copied(); }

void stand_in_set_forgetful(bool forgetful) { stand_in::set_forgetful(forgetful); }

// Makes it the current stream of its device, and returns the one that was.
int64_t stand_in_exchange_stream(int32_t device, int64_t stream) {
  const c10::Device place(kType, device);
  return guard().exchangeStream(c10::Stream(c10::Stream::UNSAFE, place, stream)).id();
}

int64_t stand_in_new_stream(int32_t device) {
  return guard().getNewStream(c10::Device(kType, device)).id();
}

void stand_in_synchronize(int32_t device) { guard().synchronizeDevice(device); }

// Of the device's current stream.
c10::Event *stand_in_record_event(int32_t device) {
  auto *event = new c10::Event(kType);
  event->record(guard().getStream(c10::Device(kType, device)));
  return event;
}

bool stand_in_event_has_passed(const c10::Event *event) { return event->query(); }

void stand_in_wait_for_event(const c10::Event *event) { event->synchronize(); }

// The event's device's current stream waits for it.
void stand_in_block_for_event(const c10::Event *event) {
  event->block(guard().getStream(event->device()));
}

void stand_in_destroy_event(c10::Event *event) { delete event; }

// The current stream of the tensor's device uses its memory.
void stand_in_record_stream(at::Tensor *tensor) {
  tensor->record_stream(guard().getStream(tensor->device()));
}

// Calls `function` when a backward pass computes the tensor's gradient.
void stand_in_on_gradient(const at::Tensor *tensor, void (*function)()) {
  tensor->register_hook([function](const at::Tensor & /*gradient*/) { function(); });
}

}  // extern "C"
