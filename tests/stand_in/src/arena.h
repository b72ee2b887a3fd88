// A range of addresses from which memory is allocated.

#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace stand_in {

// Freed memory is overwritten with this byte. No number of a test consists of it.
constexpr int kPoison = 0xA5;

// Memory that is mapped twice. At its address, an access may trap; at a second address, its shadow,
// it can always be read and written. The memory that was given back last is taken first, and none
// is ever unmapped.
class Arena {
 public:
  // `protection` is that of the addresses, as of mprotect.
  explicit Arena(int protection);
  Arena(const Arena &) = delete;
  Arena &operator=(const Arena &) = delete;

  struct Memory {
    char *address;
    // Whether it has never been taken before.
    bool is_new;
  };

  // Memory of another lane is not taken: each stream has a lane.
  Memory take(size_t size, int lane);
  void give_back(char *address, size_t size, int lane);

  bool contains(const void *address) const;
  char *shadow(const void *address) const;

 private:
  char *addresses_;
  char *shadows_;
  std::mutex mutex_;
  // How much has been taken, ever.
  size_t used_ = 0;
  // What was given back, by lane and rounded size.
  std::map<std::pair<int, size_t>, std::vector<char *>> free_;
};

}  // namespace stand_in
