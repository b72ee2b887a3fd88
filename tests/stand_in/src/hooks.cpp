#include "hooks.h"

#include <array>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/DeviceGuard.h>

#include "allocators.h"
#include "copies.h"
#include "streams.h"

namespace stand_in {

namespace {

// The random operations run on the CPU, which takes its own generators only.
class Generator final : public c10::GeneratorImpl {
 public:
  Generator(c10::Device device, at::Generator engine)
      : c10::GeneratorImpl(device, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        engine_(std::move(engine)) {}

  void set_current_seed(uint64_t seed) override { engine_.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { engine_.set_offset(offset); }
  uint64_t get_offset() const override { return engine_.get_offset(); }
  uint64_t current_seed() const override { return engine_.current_seed(); }
  uint64_t seed() override { return engine_.seed(); }
  void set_state(const c10::TensorImpl &state) override { impl().set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return impl().get_state(); }

  const at::Generator &engine() const { return engine_; }

 private:
  c10::GeneratorImpl &impl() const { return *engine_.unsafeGetGeneratorImpl(); }

  Generator *clone_impl() const override { return new Generator(device(), engine_.clone()); }

  at::Generator engine_;
};

at::Generator new_generator(c10::DeviceIndex device) {
  return at::make_generator<Generator>(c10::Device(kType, device),
                                       at::detail::createCPUGenerator());
}

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex /*device*/) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }

  void setCurrentDevice(c10::DeviceIndex device) const override { exchangeDevice(device); }

  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    return guard().exchangeDevice(c10::Device(kType, device)).index();
  }

  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return exchangeDevice(device);
  }

  at::Allocator *getPinnedMemoryAllocator() const override { return pinned_allocator(); }
  bool isPinnedPtr(const void *data) const override { return is_pinned(data); }

  at::Device getDeviceFromPtr(void *data) const override {
    const c10::DeviceIndex device = device_of(data);
    TORCH_CHECK(device >= 0, "stand_in: ", data, " is not the memory of a device");
    return at::Device(kType, device);
  }

  const at::Generator &getDefaultGenerator(c10::DeviceIndex device) const override {
    return default_generator(device);
  }

  at::Generator getNewGenerator(c10::DeviceIndex device) const override {
    return new_generator(device >= 0 ? device : current_device());
  }

  void resizePrivateUse1Bytes(const c10::Storage &storage, size_t size) const override {
    resize(storage, size);
  }

 private:
  static const c10::impl::DeviceGuardImplInterface &guard() {
    return *c10::impl::getDeviceGuardImpl(kType);
  }
};

}  // namespace

const at::Generator &engine(const at::Generator &generator) {
  if (generator.device().type() != kType) return generator;
  return generator.get<Generator>()->engine();
}

const at::Generator &default_generator(c10::DeviceIndex device) {
  static const std::array<at::Generator, kDevices> generators{new_generator(0), new_generator(1)};
  return generators.at(device >= 0 ? device : current_device());
}

void register_hooks() { at::RegisterPrivateUse1HooksInterface(new Hooks()); }

}  // namespace stand_in
