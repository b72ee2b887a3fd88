// The memory of the devices, and the pinned memory of the host.

#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/Stream.h>

#include <cstdint>

namespace stand_in {

// Allocates on the current device, for its current stream.
c10::Allocator *device_allocator();

// The memory of a tensor of a device, where its queues read and write it.
char *shadow(const void *address);

// The device that has the memory, or -1.
c10::DeviceIndex device_of(const void *address);

// The stream uses the memory, too, and not only the one that it was allocated for: it is used again
// when what has been submitted to both until it is freed has ended.
void record_use(const c10::DataPtr &data, const c10::Stream &stream);

// Whether the host can read and write the memory of tensors that are made from now on.
void set_reachable(bool reachable);

// So many more blocks can be allocated, of the memory of all devices and of pinned memory together.
void set_blocks_left(uint64_t count);

c10::Allocator *pinned_allocator();
bool is_pinned(const void *address);

// Whether pinned memory may be freed, and so overwritten, while copies that use it are queued.
void set_forgetful(bool forgetful);
bool is_forgetful();

}  // namespace stand_in
