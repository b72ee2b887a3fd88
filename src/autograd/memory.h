// The allocator of large tensors that this crate makes.

#pragma once

#include <cstddef>

#include <c10/core/Allocator.h>

namespace mpi4tch {

// Tensors of at least so many bytes are made by `allocator`.
constexpr size_t LARGE = 128 << 10;

// An allocator that keeps memory that was freed for the next tensor.
c10::Allocator *allocator();

}  // namespace mpi4tch

// How many bytes it keeps, for tests.
extern "C" size_t mpi4tch_kept_bytes();
