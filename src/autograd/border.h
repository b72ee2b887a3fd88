// How tensors and errors pass between C++ and Rust.

#pragma once

#include <cstring>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "../../wrapper.h"

namespace mpi4tch {

inline const at::Tensor &tensor(const void *pointer) {
  return *static_cast<const at::Tensor *>(pointer);
}

inline std::vector<at::Tensor> tensors(const mpi4tch_tensor *pointers, size_t count) {
  std::vector<at::Tensor> list;
  list.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    list.push_back(pointers[i] == nullptr ? at::Tensor() : tensor(pointers[i]));
  }
  return list;
}

// Passes a tensor to Rust, which owns it from then on; NULL for an undefined one.
inline mpi4tch_tensor give(at::Tensor t) {
  return t.defined() ? new at::Tensor(std::move(t)) : nullptr;
}

// Takes ownership of a tensor that Rust passed; NULL is an undefined one.
inline at::Tensor take(mpi4tch_tensor pointer) {
  if (pointer == nullptr) return {};
  std::unique_ptr<at::Tensor> owned(static_cast<at::Tensor *>(pointer));
  return std::move(*owned);
}

// Runs `body` and turns what it throws into the error text that the C functions return.
template <typename Body>
char *guarded(Body &&body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const c10::Error &error) {
    const char *text = error.what_without_backtrace();
    return mpi4tch_text(text, std::strlen(text));
  } catch (const std::exception &error) {
    return mpi4tch_text(error.what(), std::strlen(error.what()));
  } catch (...) {
    static constexpr char text[] = "unknown C++ exception";
    return mpi4tch_text(text, sizeof text - 1);
  }
}

}  // namespace mpi4tch
