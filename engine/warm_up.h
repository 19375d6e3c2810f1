#pragma once

#include "absl/status/status.h"

#include "engine/device_runner.h"

namespace sluice::engine {

// Before the first request: runs steps of every kind that serving has, so that the device has made
// by then whatever it makes once. Kernels are loaded when they are first launched, ways to run
// products are chosen by time, each number of rows has its graph and single tokens their one
// kernel: all of that allocates or waits, and no step that serves does. Writes to pages 1 and
// following, and slot 0. Nothing on the CPU. Errors are the device's.
absl::Status WarmUp(DeviceRunner& runner);

}  // namespace sluice::engine
