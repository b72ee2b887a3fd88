#include "copies.h"

#include <algorithm>
#include <atomic>

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>

#include "allocators.h"
#include "streams.h"

namespace stand_in {

namespace {

std::atomic<uint64_t> copies{0};
std::atomic<uint64_t> bytes{0};

bool is_on_device(const at::Tensor &tensor) { return tensor.device().type() == kType; }

// A tensor as a task sees it: one of the host, whatever the device.
struct Operand {
  explicit Operand(const at::Tensor &tensor) {
    void *data = tensor.data_ptr();
    if (is_on_device(tensor)) {
      data = shadow(data);
    } else if (!(is_forgetful() && is_pinned(data))) {
      owner = tensor.storage();
    }
    view = at::for_blob(data, tensor.sizes())
               .strides(tensor.strides())
               .options(at::TensorOptions(tensor.scalar_type()))
               .make_tensor();
    view._set_conj(tensor.is_conj());
    view._set_neg(tensor.is_neg());
  }

  at::Tensor view;
  // Memory of the host is kept until the task has ended. Memory of a device need not be, as it is
  // not used for other tensors before.
  c10::Storage owner;
};

Queue &queue_of(const at::Tensor &tensor) { return queue(current_stream(tensor.device().index())); }

}  // namespace

uint64_t copies_made() { return copies; }
uint64_t bytes_copied() { return bytes; }

at::Tensor copy_from(const at::Tensor &from, const at::Tensor &to, bool non_blocking) {
  at::assert_no_internal_overlap(to);
  const at::Tensor source = from.expand_as(to);
  if (to.numel() == 0) return to;
  const bool is_between = is_on_device(from) && is_on_device(to);
  const at::Tensor &on_device = is_on_device(from) ? from : to;
  const at::Tensor &other = is_on_device(from) ? to : from;
  const c10::Stream stream = current_stream(on_device.device().index());
  // Between two devices, the copy is a task of the source's. It waits for the earlier tasks of the
  // destination's device, which may use the memory, and the later ones wait for the copy.
  if (is_between) Event(current_stream(to.device().index())).block(stream);
  if (!is_between && !Computation::is_running()) {
    ++copies;
    bytes += to.nbytes();
  }
  const bool is_argument = Computation::is_running() && !is_on_device(to);
  const bool is_result = Computation::is_running() && !is_on_device(from);
  const Queue::Ticket ticket = queue(stream).submit(
      [source = Operand(source), to = Operand(to)]() mutable {
        const at::AutoDispatchBelowADInplaceOrView guard;
        to.view.copy_(source.view);
      },
      !is_argument);
  if (is_between) {
    Event(stream).block(current_stream(to.device().index()));
  } else if (!is_result && !(non_blocking && is_pinned(other.data_ptr()))) {
    queue(stream).wait(ticket);
  }
  return to;
}

at::Tensor &fill(at::Tensor &tensor, const at::Scalar &value) {
  if (tensor.numel() == 0) return tensor;
  queue_of(tensor).submit([operand = Operand(tensor), value]() mutable {
    const at::AutoDispatchBelowADInplaceOrView guard;
    operand.view.fill_(value);
  });
  return tensor;
}

void resize(const c10::Storage &storage, size_t size) {
  c10::StorageImpl &old = *storage.unsafeGetStorageImpl();
  TORCH_CHECK(old.resizable(), "stand_in: the storage cannot be resized");
  const c10::DeviceGuard guard(storage.device());
  c10::DataPtr memory = device_allocator()->allocate(size);
  const size_t kept = std::min(size, old.nbytes());
  if (kept > 0) device_allocator()->copy_data(memory.get(), old.data_ptr().get(), kept);
  old.set_data_ptr_noswap(std::move(memory));
  old.set_nbytes(size);
}

}  // namespace stand_in
