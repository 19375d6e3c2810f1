#pragma once

// Kernels are loaded when they are first launched, which takes memory and may wait for the device,
// or all at once before.

#include "absl/status/status.h"

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

// Loads all kernels of all modules on the calling thread's device. Ones that have no code for it
// are left out; ones that have PTX alone are compiled, which can take minutes. From any thread.
absl::Status LoadKernels();

}  // namespace sluice::kernels::cuda
