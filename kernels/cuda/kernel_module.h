#pragma once

// Kernels are loaded when they are first launched, which takes memory and may wait for the device,
// or all at once before.

#include "absl/status/statusor.h"

namespace sluice::kernels::cuda {

// Every source with kernels has one of these, made of any of them: what is compiled together is
// loaded as one module. Static storage alone.
class KernelModule {
 public:
  template <typename... Args>
  explicit KernelModule(void (*kernel)(Args...))
      : KernelModule(reinterpret_cast<const void*>(kernel)) {}
  KernelModule(const KernelModule&) = delete;
  KernelModule& operator=(const KernelModule&) = delete;

 private:
  explicit KernelModule(const void* kernel);
};

// kernels/ops.h; modules that have no code for the device are left out. From any thread.
absl::StatusOr<int> LoadKernels();

}  // namespace sluice::kernels::cuda
