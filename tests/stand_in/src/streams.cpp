// The devices, their streams, and events, as libtorch's autograd and its generic classes, such as
// c10::Event, see them.

#include "streams.h"

#include <array>
#include <atomic>

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "allocators.h"

namespace stand_in {

namespace {

thread_local c10::DeviceIndex device_of_thread = 0;
thread_local std::array<c10::StreamId, kDevices> streams_of_thread{};

c10::Stream stream(c10::DeviceIndex device, c10::StreamId id) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kType, device), id);
}

// A device without an index is the current one.
c10::DeviceIndex index(c10::Device device) {
  if (!device.has_index()) return device_of_thread;
  TORCH_CHECK(device.index() < kDevices, "stand_in: there is no device ", device.index(),
              "; there are ", static_cast<int>(kDevices));
  return device.index();
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kType; }

  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }

  c10::Device getDevice() const override { return c10::Device(kType, device_of_thread); }

  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }

  void setDevice(c10::Device device) const override { device_of_thread = index(device); }

  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) device_of_thread = device.index();
  }

  c10::Stream getStream(c10::Device device) const override { return current_stream(index(device)); }

  c10::Stream getDefaultStream(c10::Device device) const override {
    return stream(index(device), 0);
  }

  c10::Stream getStreamFromGlobalPool(c10::Device device, bool /*high priority*/) const override {
    static std::atomic<unsigned> given{0};
    return stream(index(device), 1 + given++ % (kStreams - 1));
  }

  c10::Stream getNewStream(c10::Device device, int /*priority*/) const override {
    return getStreamFromGlobalPool(device, false);
  }

  c10::Stream exchangeStream(c10::Stream next) const override {
    const c10::Stream before = current_stream(next.device_index());
    streams_of_thread.at(next.device_index()) = next.id();
    return before;
  }

  bool queryStream(const c10::Stream &stream) const override { return Event(stream).has_passed(); }

  void synchronizeStream(const c10::Stream &stream) const override { Event(stream).wait(); }

  void synchronizeDevice(c10::DeviceIndex device) const override { synchronize(device); }

  void recordDataPtrOnStream(const c10::DataPtr &data, const c10::Stream &stream) const override {
    record_use(data, stream);
  }

  // `event` is NULL if it has never been recorded.
  void record(void **event, const c10::Stream &stream, c10::DeviceIndex device,
              c10::EventFlag /*flag*/) const override {
    TORCH_CHECK(device == -1 || device == stream.device_index(), "stand_in: an event of device ",
                static_cast<int>(device), " cannot be recorded on ", stream);
    if (*event == nullptr) {
      *event = new Event(stream);
    } else {
      *static_cast<Event *>(*event) = Event(stream);
    }
  }

  void block(void *event, const c10::Stream &stream) const override {
    if (event != nullptr) static_cast<Event *>(event)->block(stream);
  }

  bool queryEvent(void *event) const override {
    return event == nullptr || static_cast<Event *>(event)->has_passed();
  }

  void synchronizeEvent(void *event) const override {
    if (event != nullptr) static_cast<Event *>(event)->wait();
  }

  void destroyEvent(void *event, c10::DeviceIndex /*device*/) const noexcept override {
    delete static_cast<Event *>(event);
  }
};

}  // namespace

c10::DeviceIndex current_device() { return device_of_thread; }

c10::Stream current_stream(c10::DeviceIndex device) {
  return stream(device, streams_of_thread.at(device));
}

Queue &queue(const c10::Stream &stream) {
  // Never destroyed: their threads do not end.
  static auto &queues = *new std::array<std::array<Queue, kStreams>, kDevices>();
  return queues.at(stream.device_index()).at(stream.id());
}

Event::Event(const c10::Stream &stream)
    : queue_(&stand_in::queue(stream)), ticket_(queue_->last()) {}

void Event::block(const c10::Stream &stream) const {
  Queue &other = queue(stream);
  // Within one queue, its order is enough.
  if (&other != queue_) other.submit([event = *this] { event.wait(); });
}

void synchronize(c10::DeviceIndex device) {
  for (c10::StreamId id = 0; id < kStreams; ++id) Event(stream(device, id)).wait();
}

void register_guard() { c10::impl::registerDeviceGuard(kType, new Guard()); }

}  // namespace stand_in
