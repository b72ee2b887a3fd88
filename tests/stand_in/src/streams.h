// The devices, their streams, and events.

#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include "queue.h"

namespace stand_in {

constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kDevices = 2;
// Of each device: the default one, which is 0, and those of the pool.
constexpr c10::StreamId kStreams = 4;

// The thread's current device, and its current stream of a device.
c10::DeviceIndex current_device();
c10::Stream current_stream(c10::DeviceIndex device);

// A point in a stream: what was submitted to it before.
class Event {
 public:
  explicit Event(const c10::Stream &stream);

  bool has_passed() const { return queue_->has_finished(ticket_); }
  void wait() const { queue_->wait(ticket_); }
  // What is submitted to the stream from now on waits for the event.
  void block(const c10::Stream &stream) const;

 private:
  const Queue *queue_;
  Queue::Ticket ticket_;
};

Queue &queue(const c10::Stream &stream);

// Waits for all that has been submitted to the device.
void synchronize(c10::DeviceIndex device);

void register_guard();

}  // namespace stand_in
