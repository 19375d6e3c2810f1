#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

#include "engine/engine.h"
#include "kernels/ops.h"

namespace sluice::engine {

// The device of an engine, as EngineOptions::device names it: opened, with what it offers. Value.
struct DeviceChoice {
  kernels::Backend backend = kernels::Backend::kCpu;
  int index = 0;             // of a CUDA device
  std::string name;          // "cuda:0 NVIDIA H200"; empty for the CPU
  int major = 0, minor = 0;  // compute capability
  bool own_kernels = false;  // DeviceFacts::own_kernels
  uint64_t free_bytes = 0;   // of the device; 0 for the CPU
  uint64_t total_bytes = 0;

  bool is_cuda() const { return backend == kernels::Backend::kCuda; }
  // "cuda:0 NVIDIA H200, compute capability 9.0, its own kernels": also which kernels run there,
  // those made for the capability or those for all.
  std::string Describe() const;
  // The type of the KV cache when none is asked for: f32 on the CPU, f16 on CUDA.
  kernels::DType KvType(const EngineOptions& options) const;

  // INVALID_ARGUMENT for another word than "cpu" or "cuda:N"; FAILED_PRECONDITION, one line, when
  // there is no such device, no driver, or one too old; UNIMPLEMENTED in a build without CUDA. The
  // device becomes the calling thread's.
  static absl::StatusOr<DeviceChoice> Open(const std::string& device);
};

}  // namespace sluice::engine
