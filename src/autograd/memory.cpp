// Memory of large tensors: what one tensor has freed is kept for the next.
//
// Fresh memory is slow, since the kernel clears every page of it. malloc returns large blocks to
// the kernel when they are freed, so that a result of 2 MiB may take longer to allocate than to
// compute.

#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>

#include <c10/util/Exception.h>

// Makes AddressSanitizer report whoever uses memory that is kept.
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, size) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(data, size) static_cast<void>(0)
#endif

namespace {

// As many bytes at most are kept.
constexpr size_t MOST_BYTES = 256 << 20;

// As many blocks at most are kept, as all are looked at for each tensor.
constexpr size_t MOST_BLOCKS = 64;

struct Block {
  void *data;
  size_t size;
};

class Memory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (size == 0) {
      return {nullptr, nullptr, &c10::detail::deleteNothing, cpu};
    }
    auto *block = new Block(take(size));
    return {block->data, block, &release, cpu};
  }

  void copy_data(void *to, const void *from, size_t size) const override {
    default_copy_data(to, from, size);
  }

  size_t kept_bytes() {
    const std::lock_guard<std::mutex> lock(mutex);
    return kept_size;
  }

 private:
  static void release(void *block);

  Block take(size_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      // The smallest that is large enough, and not much larger than needed.
      auto best = kept.end();
      for (auto block = kept.begin(); block != kept.end(); ++block) {
        if (block->size >= size && block->size <= size + size / 4 &&
            (best == kept.end() || block->size < best->size)) {
          best = block;
        }
      }
      if (best != kept.end()) {
        const Block block = *best;
        kept.erase(best);
        kept_size -= block.size;
        use(block.size);
        ASAN_UNPOISON_MEMORY_REGION(block.data, size);
        return block;
      }
    }
    void *data = fresh(size);
    if (data == nullptr) {
      free_oldest(kept.size());
      data = fresh(size);
    }
    TORCH_CHECK(data != nullptr, "no memory for a tensor of ", size, " bytes");
    const std::lock_guard<std::mutex> lock(mutex);
    use(size);
    return {data, size};
  }

  static void *fresh(size_t size) {
    void *data = nullptr;
    return posix_memalign(&data, 64, size) == 0 ? data : nullptr;
  }

  void use(size_t size) {
    used_size += size;
    most_used = std::max(most_used, used_size);
  }

  void give_back(const Block &block) {
    if (block.size < mpi4tch::LARGE) {
      const std::lock_guard<std::mutex> lock(mutex);
      used_size -= block.size;
      std::free(block.data);
      return;
    }
    size_t surplus = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      used_size -= block.size;
      ASAN_POISON_MEMORY_REGION(block.data, block.size);
      kept.push_back(block);
      kept_size += block.size;
      // What is used and kept is never more than what was once used, so that keeping memory does
      // not add to a program's peak.
      size_t size = kept_size;
      while (surplus < kept.size() && (size + used_size > most_used || size > MOST_BYTES ||
                                       kept.size() - surplus > MOST_BLOCKS)) {
        size -= kept[surplus].size;
        ++surplus;
      }
    }
    free_oldest(surplus);
  }

  void free_oldest(size_t count) {
    std::vector<Block> oldest;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      const auto end = kept.begin() + static_cast<std::ptrdiff_t>(std::min(count, kept.size()));
      oldest.assign(kept.begin(), end);
      kept.erase(kept.begin(), end);
      for (const Block &block : oldest) {
        kept_size -= block.size;
      }
    }
    for (const Block &block : oldest) {
      ASAN_UNPOISON_MEMORY_REGION(block.data, block.size);
      std::free(block.data);
    }
  }

  std::mutex mutex;
  // The oldest first.
  std::vector<Block> kept;
  size_t kept_size = 0;
  size_t used_size = 0;
  size_t most_used = 0;
};

// Never destroyed, as tensors may be freed after the end of `main`.
Memory &memory() {
  static auto *const memory = new Memory;
  return *memory;
}

void Memory::release(void *pointer) {
  auto *block = static_cast<Block *>(pointer);
  memory().give_back(*block);
  delete block;
}

}  // namespace

c10::Allocator *mpi4tch::allocator() { return &memory(); }

size_t mpi4tch_kept_bytes() { return memory().kept_bytes(); }
