// Tasks of the queues that read and write tensors.

#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

namespace stand_in {

// Copies from, to or between devices, with any kinds and strides, and waits for the copy unless
// `non_blocking` is true and the host's memory, if there is any, is pinned.
at::Tensor copy_from(const at::Tensor &from, const at::Tensor &to, bool non_blocking);

// The number of copies between the host and a device, and of their bytes. The copies of
// computations do not count.
uint64_t copies_made();
uint64_t bytes_copied();

at::Tensor &fill(at::Tensor &tensor, const at::Scalar &value);

// Gives the storage memory of that size, with the bytes that it had as far as they fit.
void resize(const c10::Storage &storage, size_t size);

// While it lives, this thread copies arguments from and results to a device for an operation that
// the host computes. An argument is copied without a delay, as it is waited for. A result is not
// waited for: the copy keeps the host's tensor, and nobody writes to it.
class Computation {
 public:
  Computation() : before_(is_running_) { is_running_ = true; }
  ~Computation() { is_running_ = before_; }
  Computation(const Computation &) = delete;
  Computation &operator=(const Computation &) = delete;

  static bool is_running() { return is_running_; }

 private:
  bool before_;
  static inline thread_local bool is_running_ = false;
};

}  // namespace stand_in
