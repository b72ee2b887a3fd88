#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <c10/util/Exception.h>

namespace stand_in {

namespace {

// The kernel provides pages only once they are written.
constexpr size_t kSize = size_t{8} << 30;

// The alignment of memory, and so its least size.
constexpr size_t kAlignment = 512;

size_t rounded(size_t size) {
  size_t power = kAlignment;
  while (power < size) power *= 2;
  return power;
}

char *map(int file, int protection) {
  void *address = mmap(nullptr, kSize, protection, MAP_SHARED | MAP_NORESERVE, file, 0);
  TORCH_CHECK(address != MAP_FAILED, "stand_in: cannot map memory (mmap)");
  return static_cast<char *>(address);
}

}  // namespace

Arena::Arena(int protection) {
  const int file = memfd_create("stand_in", MFD_CLOEXEC);
  TORCH_CHECK(file >= 0, "stand_in: cannot create memory (memfd_create)");
  TORCH_CHECK(ftruncate(file, kSize) == 0, "stand_in: cannot create memory (ftruncate)");
  addresses_ = map(file, protection);
  shadows_ = map(file, PROT_READ | PROT_WRITE);
  close(file);
}

Arena::Memory Arena::take(size_t size, int lane) {
  size = rounded(size);
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<char *> &list = free_[{lane, size}];
  if (!list.empty()) {
    char *address = list.back();
    list.pop_back();
    return {address, false};
  }
  TORCH_CHECK(size <= kSize - used_, "stand_in: out of memory: ", size, " bytes are needed, and ",
              kSize - used_, " of ", kSize, " are left");
  char *address = addresses_ + used_;
  used_ += size;
  return {address, true};
}

void Arena::give_back(char *address, size_t size, int lane) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_[{lane, rounded(size)}].push_back(address);
}

bool Arena::contains(const void *address) const {
  const char *place = static_cast<const char *>(address);
  return addresses_ <= place && place < addresses_ + kSize;
}

char *Arena::shadow(const void *address) const {
  return shadows_ + (static_cast<const char *>(address) - addresses_);
}

}  // namespace stand_in
