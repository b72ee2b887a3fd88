// The operations of libtorch on tensors of the devices.

#pragma once

namespace stand_in {

void register_operations();

}  // namespace stand_in
