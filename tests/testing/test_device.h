#pragma once

#include <string>

#include "kernels/ops.h"

// The device that a test binary is about: tests that hold on every backend are built once for the
// CPU and, with CUDA, once more for a GPU.
#ifndef SLUICE_TEST_DEVICE
#define SLUICE_TEST_DEVICE "cpu"
#endif

namespace sluice::testing {

inline const std::string kDevice = SLUICE_TEST_DEVICE;
inline bool OnCuda() { return kDevice != "cpu"; }
inline kernels::Backend TestBackend() {
  return OnCuda() ? kernels::Backend::kCuda : kernels::Backend::kCpu;
}
// Why the device cannot be used, for GTEST_SKIP; empty when it can.
inline std::string WhyNoDevice() {
  if (!OnCuda()) return "";
  const auto device = kernels::OpenDevice(0);
  return device.ok() ? "" : std::string(device.status().message());
}

}  // namespace sluice::testing
