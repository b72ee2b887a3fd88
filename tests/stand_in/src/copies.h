// Tasks of the queues that read and write tensors.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

namespace stand_in {

// Copies from, to or between devices, with any kinds and strides, and waits for the copy unless
// `non_blocking` is true and the host's memory, if there is any, is pinned.
at::Tensor copy_from(const at::Tensor &from, const at::Tensor &to, bool non_blocking);

at::Tensor &fill(at::Tensor &tensor, const at::Scalar &value);

// Gives the storage memory of that size, with the bytes that it had as far as they fit.
void resize(const c10::Storage &storage, size_t size);

// While it lives, what this thread copies to a device is not waited for: the host's tensor is kept
// until it has been copied, and nobody writes to it.
class NoWait {
 public:
  NoWait() : before_(is_set_) { is_set_ = true; }
  ~NoWait() { is_set_ = before_; }
  NoWait(const NoWait &) = delete;
  NoWait &operator=(const NoWait &) = delete;

  static bool is_set() { return is_set_; }

 private:
  bool before_;
  static inline thread_local bool is_set_ = false;
};

}  // namespace stand_in
