#include "allocators.h"

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "arena.h"
#include "streams.h"

namespace stand_in {

namespace {

std::atomic<bool> reachable{false};
std::atomic<bool> forgetful{false};
std::atomic<uint64_t> blocks_left{UINT64_MAX};

// A device's memory: what the host cannot reach, and what it can. Never destroyed, as the memory
// may be in use until the process ends.
struct DeviceMemory {
  Arena hidden{PROT_NONE};
  Arena open{PROT_READ | PROT_WRITE};
};

std::array<DeviceMemory, kDevices> &devices() {
  static auto &devices = *new std::array<DeviceMemory, kDevices>();
  return devices;
}

Arena *arena_of(const void *address) {
  for (DeviceMemory &device : devices()) {
    for (Arena *arena : {&device.hidden, &device.open}) {
      if (arena->contains(address)) return arena;
    }
  }
  return nullptr;
}

void take_block() {
  uint64_t left = blocks_left;
  do {
    TORCH_CHECK_WITH(OutOfMemoryError, left > 0, "stand_in: out of memory");
  } while (!blocks_left.compare_exchange_weak(left, left == UINT64_MAX ? left : left - 1));
}

// Memory that is freed is taken by the next tensor at once, even if tasks that use it are still
// queued: as these run before those of the next tensor, the order of the stream protects it, and
// nothing else does. The poison is a task, too.
class DeviceAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    const c10::Device device(kType, current_device());
    if (size == 0) return {nullptr, device};
    take_block();
    DeviceMemory &memory = devices().at(device.index());
    auto block = std::make_unique<Block>(Block{reachable ? memory.open : memory.hidden,
                                               nullptr,
                                               size,
                                               current_stream(device.index()),
                                               {}});
    const Arena::Memory taken = block->arena.take(size, lane(*block));
    block->address = taken.address;
    // It then is as memory that was freed just now, which most memory is.
    if (taken.is_new) poison(*block);
    return {taken.address, block.release(), &free, device};
  }

  void copy_data(void *to, const void *from, size_t size) const override {
    queue(current_stream(device_of(to))).submit([to = shadow(to), from = shadow(from), size] {
      std::memcpy(to, from, size);
    });
  }

  static void record(const c10::DataPtr &data, const c10::Stream &stream) {
    if (data.get_deleter() != &free) return;
    Block &block = *static_cast<Block *>(data.get_context());
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stream != block.stream) block.users.push_back(stream);
  }

 private:
  struct Block {
    Arena &arena;
    char *address;
    size_t size;
    c10::Stream stream;
    // The other streams that use it.
    std::vector<c10::Stream> users;
  };

  static int lane(const Block &block) { return static_cast<int>(block.stream.id()); }

  static void poison(const Block &block) {
    queue(block.stream).submit([shadow = block.arena.shadow(block.address), size = block.size] {
      std::memset(shadow, kPoison, size);
    });
  }

  static void free(void *context) {
    const std::unique_ptr<Block> block(static_cast<Block *>(context));
    for (const c10::Stream &user : block->users) Event(user).block(block->stream);
    poison(*block);
    block->arena.give_back(block->address, block->size, lane(*block));
  }

  static inline std::mutex mutex_;
};

Arena &pinned() {
  static auto &pinned = *new Arena(PROT_READ | PROT_WRITE);
  return pinned;
}

class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    const c10::Device host(c10::DeviceType::CPU);
    if (size == 0) return {nullptr, host};
    take_block();
    const Arena::Memory taken = pinned().take(size, 0);
    if (taken.is_new) std::memset(taken.address, kPoison, size);
    return {taken.address, new Block{taken.address, size}, &free, host};
  }

  void copy_data(void *to, const void *from, size_t size) const override {
    default_copy_data(to, from, size);
  }

 private:
  struct Block {
    char *address;
    size_t size;
  };

  static void free(void *context) {
    const std::unique_ptr<Block> block(static_cast<Block *>(context));
    std::memset(block->address, kPoison, block->size);
    pinned().give_back(block->address, block->size, 0);
  }
};

}  // namespace

c10::Allocator *device_allocator() {
  static auto &allocator = *new DeviceAllocator();
  return &allocator;
}

char *shadow(const void *address) {
  const Arena *arena = arena_of(address);
  TORCH_CHECK(arena != nullptr, "stand_in: ", address, " is not the memory of a device");
  return arena->shadow(address);
}

c10::DeviceIndex device_of(const void *address) {
  for (c10::DeviceIndex index = 0; index < kDevices; ++index) {
    const DeviceMemory &device = devices().at(index);
    if (device.hidden.contains(address) || device.open.contains(address)) return index;
  }
  return -1;
}

void record_use(const c10::DataPtr &data, const c10::Stream &stream) {
  DeviceAllocator::record(data, stream);
}

void set_reachable(bool value) { reachable = value; }

void set_blocks_left(uint64_t count) { blocks_left = count; }

c10::Allocator *pinned_allocator() {
  static auto &allocator = *new PinnedAllocator();
  return &allocator;
}

bool is_pinned(const void *address) { return pinned().contains(address); }

void set_forgetful(bool value) { forgetful = value; }

bool is_forgetful() { return forgetful; }

}  // namespace stand_in
