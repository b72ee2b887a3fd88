// What libtorch's generic code asks a device for.

#pragma once

#include <ATen/core/Generator.h>

namespace stand_in {

// The generator of the CPU that draws the numbers of one of a device.
const at::Generator &engine(const at::Generator &generator);

const at::Generator &default_generator(c10::DeviceIndex device);

void register_hooks();

}  // namespace stand_in
