// Devices other than the CPU: memory on them and near them, copies, and events. All goes through
// libtorch's interfaces of devices, so that nothing here depends on CUDA or on any other backend.

#include "../../wrapper.h"

#include <memory>
#include <optional>
#include <string>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/impl/InlineDeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "border.h"

namespace {

using c10::impl::VirtualGuardImpl;
using mpi4tch::give;
using mpi4tch::guarded;
using mpi4tch::tensor;

c10::Device device_of(mpi4tch_device device) {
  const auto type = static_cast<c10::DeviceType>(device.type);
  // There is one CPU, and libtorch names it without a number.
  return type == c10::DeviceType::CPU ? c10::Device(type) : c10::Device(type, device.index);
}

c10::Stream current_stream(c10::Device device) {
  return VirtualGuardImpl(device.type()).getStream(device);
}

const c10::Event &event_of(const void *event) { return *static_cast<const c10::Event *>(event); }

// The memory of the device may have been allocated for another stream than the current one.
void record_use(const at::Tensor &t) {
  const c10::Device device = t.device();
  if (device.is_cpu()) return;
  VirtualGuardImpl(device.type())
      .recordDataPtrOnStream(t.storage().data_ptr(), current_stream(device));
}

at::Generator default_generator(size_t place) {
  if (place == 0) return at::detail::getDefaultCPUGenerator();
  const auto type = at::accelerator::getAccelerator(/*checked=*/true).value();
  const auto index = static_cast<c10::DeviceIndex>(place - 1);
  return at::globalContext().getAcceleratorHooksInterface(type).getDefaultGenerator(index);
}

}  // namespace

bool mpi4tch_device_is_reached(mpi4tch_device device) {
  return at::accelerator::isAccelerator(static_cast<c10::DeviceType>(device.type));
}

char *mpi4tch_device_name(mpi4tch_device device) {
  const std::string name = device_of(device).str();
  return mpi4tch_text(name.data(), name.size());
}

char *mpi4tch_empty_on(mpi4tch_device device, const int64_t *sizes, size_t dim, int32_t kind,
                       mpi4tch_tensor *result, void **data) {
  return guarded([&] {
    const auto options =
        at::TensorOptions().dtype(static_cast<at::ScalarType>(kind)).device(device_of(device));
    at::Tensor t = at::empty(at::IntArrayRef(sizes, dim), options);
    *data = t.mutable_data_ptr();
    *result = give(std::move(t));
  });
}

char *mpi4tch_empty_near(mpi4tch_device device, const int64_t *sizes, size_t dim, int32_t kind,
                         mpi4tch_tensor *result, void **data) {
  return guarded([&] {
    const auto type = static_cast<c10::DeviceType>(device.type);
    at::Tensor t(at::detail::empty_generic(at::IntArrayRef(sizes, dim),
                                           at::globalContext().getPinnedMemoryAllocator(type),
                                           c10::DispatchKeySet(c10::DispatchKey::CPU),
                                           static_cast<at::ScalarType>(kind), std::nullopt));
    *data = t.mutable_data_ptr();
    *result = give(std::move(t));
  });
}

char *mpi4tch_queue_copy(const void *from, const void *to) {
  return guarded([&] {
    // As if MPI wrote the memory: autograd does not see it, and no version changes.
    const at::AutoDispatchBelowADInplaceOrView guard;
    tensor(to).copy_(tensor(from), /*non_blocking=*/true);
    record_use(tensor(from));
    record_use(tensor(to));
  });
}

char *mpi4tch_queue_add(const void *from, const void *to) {
  return guarded([&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    tensor(to).add_(tensor(from));
    record_use(tensor(from));
    record_use(tensor(to));
  });
}

char *mpi4tch_queue_zeros(const void *to) {
  return guarded([&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    tensor(to).zero_();
    record_use(tensor(to));
  });
}

char *mpi4tch_record_use(const void *pointer) {
  return guarded([&] { record_use(tensor(pointer)); });
}

char *mpi4tch_exchange_device(mpi4tch_device device, mpi4tch_device *before) {
  return guarded([&] {
    const c10::Device of = device_of(device);
    *before = {device.type, VirtualGuardImpl(of.type()).exchangeDevice(of).index()};
  });
}

char *mpi4tch_record_event(mpi4tch_device device, void **event) {
  return guarded([&] {
    const c10::Device of = device_of(device);
    auto recorded = std::make_unique<c10::Event>(of.type());
    recorded->record(current_stream(of));
    *event = recorded.release();
  });
}

char *mpi4tch_has_passed(const void *event, bool *passed) {
  return guarded([&] { *passed = event_of(event).query(); });
}

char *mpi4tch_wait_for_event(const void *event) {
  return guarded([&] { event_of(event).synchronize(); });
}

char *mpi4tch_queue_wait(mpi4tch_device device, const void *event) {
  return guarded([&] { event_of(event).block(current_stream(device_of(device))); });
}

void mpi4tch_drop_event(void *event) { delete static_cast<c10::Event *>(event); }

size_t mpi4tch_generator_count(void) {
  const auto type = at::accelerator::getAccelerator(/*checked=*/false);
  return 1 + (type.has_value() ? static_cast<size_t>(at::accelerator::deviceCount()) : 0);
}

char *mpi4tch_generator(size_t place, mpi4tch_tensor *result) {
  return guarded([&] {
    at::Generator generator = default_generator(place);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    *result = give(generator.get_state());
  });
}

char *mpi4tch_set_generator(size_t place, const void *state) {
  return guarded([&] {
    at::Generator generator = default_generator(place);
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(tensor(state));
  });
}
