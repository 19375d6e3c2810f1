#pragma once

#include "absl/status/status.h"

#include "engine/device_runner.h"

namespace sluice::engine {

// Before the first request: runs steps of single tokens until the device has a graph for each
// number of rows and, where it may, one kernel for a lone row. To make them takes memory and waits
// for the device, which no step that serves is to do. Writes to the first positions of page 1.
// Nothing on the CPU. Errors are the device's.
absl::Status WarmUp(DeviceRunner& runner);

}  // namespace sluice::engine
