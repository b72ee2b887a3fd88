// The operations of libtorch on tensors of the devices: those that allocate, view and copy are
// here, and all others are computed by the host. An operation that the host computes first waits
// for the queue, as it reads its arguments, and then submits a copy of the result to it. So on
// return the result is not yet in the device's memory.

#include "operations.h"

#include <array>
#include <optional>
#include <tuple>
#include <utility>

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/is_set_to_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "allocators.h"
#include "copies.h"
#include "hooks.h"
#include "streams.h"

namespace stand_in {

namespace {

constexpr auto kKey = c10::DispatchKey::PrivateUse1;

void check(std::optional<at::Layout> layout, std::optional<bool> pinned) {
  const at::Layout needed = c10::layout_or_default(layout);
  TORCH_CHECK(needed == at::kStrided, "stand_in: the layout is ", needed, "; it must be strided");
  TORCH_CHECK(!c10::pinned_memory_or_default(pinned),
              "stand_in: the memory is to be pinned, which only memory of the host can be");
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> kind,
                 std::optional<at::Layout> layout, std::optional<at::Device> device,
                 std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
  check(layout, pinned);
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_generic(size, device_allocator(), c10::DispatchKeySet(kKey),
                                   c10::dtype_or_default(kind), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef strides,
                         std::optional<at::ScalarType> kind, std::optional<at::Layout> layout,
                         std::optional<at::Device> device, std::optional<bool> pinned) {
  check(layout, pinned);
  const c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_strided_generic(size, strides, device_allocator(),
                                           c10::DispatchKeySet(kKey), c10::dtype_or_default(kind));
}

// Enlarges the tensor's storage if it has no room for that size.
void make_room(const at::Tensor &tensor, size_t size) {
  if (tensor.storage().nbytes() < size) resize(tensor.storage(), size);
}

const at::Tensor &resize_(const at::Tensor &tensor, at::IntArrayRef size,
                          std::optional<at::MemoryFormat> format) {
  if (tensor.sizes() != size) {
    make_room(tensor, at::detail::computeStorageNbytesContiguous(size, tensor.itemsize(),
                                                                 tensor.storage_offset()));
    tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  }
  if (format) tensor.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return tensor;
}

at::Tensor &set_storage(at::Tensor &tensor, at::Storage storage, int64_t offset,
                        at::IntArrayRef size, at::IntArrayRef strides) {
  at::native::checkSetStorage(tensor, std::move(storage), offset, size, strides);
  tensor.unsafeGetTensorImpl()->set_storage_offset(offset);
  if (strides.data() == nullptr) {
    tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  } else {
    tensor.unsafeGetTensorImpl()->set_sizes_and_strides(size, strides);
  }
  make_room(tensor, at::detail::computeStorageNbytes(size, tensor.strides(), tensor.itemsize(),
                                                     tensor.storage_offset()));
  return tensor;
}

at::Tensor &set_to_nothing(at::Tensor &tensor) {
  const c10::DeviceGuard guard(tensor.device());
  const at::Storage storage(at::Storage::use_byte_size_t(), 0, device_allocator(), true);
  return set_storage(tensor, storage, 0, {0}, {});
}

at::Tensor copy_from_and_resize(const at::Tensor &from, const at::Tensor &to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Tensor &zero(at::Tensor &tensor) { return fill(tensor, 0); }

at::Tensor &fill_with_tensor(at::Tensor &tensor, const at::Tensor &value) {
  TORCH_CHECK(value.dim() == 0, "fill_: the value has ", value.dim(), " axes; it must have none");
  tensor.copy_(value);
  return tensor;
}

at::Scalar local_scalar(const at::Tensor &tensor) { return tensor.cpu().item(); }

void record_stream(at::Tensor &tensor, at::Stream stream) {
  record_use(tensor.storage().data_ptr(), stream);
}

// Random operations have a parameter `generator`. If its argument is none, libtorch takes the
// default generator: that of the device here, and not that of the host.
void replace_generators(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
  const auto &parameters = op.schema().arguments();
  auto arguments = torch::jit::last(stack, parameters.size());
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].name() != "generator") continue;
    c10::DeviceIndex device = -1;
    for (const c10::IValue &other : arguments) {
      if (other.isTensor() && other.toTensor().defined()) device = other.toTensor().get_device();
    }
    c10::IValue &place = (*stack)[stack->size() - parameters.size() + i];
    place = engine(place.isNone() ? default_generator(device) : place.toGenerator());
  }
}

void compute_on_host(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
  replace_generators(op, stack);
  const Computation computation;
  at::native::cpu_fallback(op, stack);
}

// libtorch calls the following two functions for a convolution on a device that it does not know.
// They have no implementation for the host, to which compute_on_host() could fall back.
at::Tensor convolution(const at::Tensor &x, const at::Tensor &weight,
                       const std::optional<at::Tensor> &bias, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  const bool has_bias = bias && bias->defined();
  const at::Tensor bias_on_host = has_bias ? bias->cpu() : at::Tensor();
  return at::convolution(x.cpu(), weight.cpu(), bias_on_host, stride, padding, dilation, transposed,
                         output_padding, groups)
      .to(x.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor &gradient, const at::Tensor &x, const at::Tensor &weight,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
    at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> mask) {
  const int64_t channels = gradient.size(1);
  auto [of_x, of_weight, of_bias] =
      at::convolution_backward(gradient.cpu(), x.cpu(), weight.cpu(), channels, stride, padding,
                               dilation, transposed, output_padding, groups, mask);
  const auto place = [&](const at::Tensor &y) { return y.defined() ? y.to(x.device()) : y; };
  return {place(of_x), place(of_weight), place(of_bias)};
}

}  // namespace

void register_operations() {
  static torch::Library aten(torch::Library::IMPL, "aten", kKey, __FILE__, __LINE__);
  aten.impl("empty.memory_format", TORCH_FN(empty));
  aten.impl("empty_strided", TORCH_FN(empty_strided));
  aten.impl("resize_", TORCH_FN(resize_));
  aten.impl("set_", TORCH_FN(set_to_nothing));
  aten.impl("set_.source_Tensor", TORCH_FN(at::native::set_tensor_));
  aten.impl("set_.source_Storage", TORCH_FN(at::native::set_));
  aten.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  aten.impl("is_set_to", TORCH_FN(at::native::is_set_to));
  aten.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  aten.impl("view", TORCH_FN(at::native::view));
  aten.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  aten.impl("unfold", TORCH_FN(at::native::unfold));
  aten.impl("view_as_real", TORCH_FN(at::native::view_as_real));
  aten.impl("view_as_complex", TORCH_FN(at::native::view_as_complex));
  aten.impl("_copy_from", TORCH_FN(copy_from));
  aten.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  aten.impl("fill_.Scalar", TORCH_FN(fill));
  aten.impl("fill_.Tensor", TORCH_FN(fill_with_tensor));
  aten.impl("zero_", TORCH_FN(zero));
  aten.impl("_local_scalar_dense", TORCH_FN(local_scalar));
  aten.impl("record_stream", TORCH_FN(record_stream));
  aten.impl("convolution_overrideable", TORCH_FN(convolution));
  aten.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
  // Tensors that are conjugated or negated lazily: libtorch would resolve them by a copy, and so
  // call this again.
  static torch::Library conjugated(torch::Library::IMPL, "aten", c10::DispatchKey::Conjugate,
                                   __FILE__, __LINE__);
  conjugated.impl("_copy_from", torch::CppFunction::makeFallthrough());
  static torch::Library negated(torch::Library::IMPL, "aten", c10::DispatchKey::Negative, __FILE__,
                                __LINE__);
  negated.impl("_copy_from", torch::CppFunction::makeFallthrough());
  static torch::Library all(torch::Library::IMPL, "_", kKey, __FILE__, __LINE__);
  all.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_host>());
}

}  // namespace stand_in
