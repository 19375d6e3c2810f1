#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/ids.h"
#include "engine/device_runner.h"

namespace sluice::testing {

// Opens a GGUF file for tests of the forward pass: no scheduler, one sequence at a time. Aborts
// with the status on failure.
struct ProbeOptions {
  kernels::Backend backend = kernels::Backend::kCpu;
  kernels::DType kv_type = kernels::DType::kF32;
  int num_threads = 2;
  bool force_avx2 = false;
  int max_tokens = 64;
  int max_positions = 256;
};
std::unique_ptr<engine::DeviceRunner> OpenProbe(const std::string& path,
                                                const ProbeOptions& options);

// Logits of every position of `tokens`, run as one sequence in chunks of at most `chunk` tokens:
// [n, V].
std::vector<float> AllLogits(engine::DeviceRunner& runner, std::span<const engine::TokenId> tokens,
                             int chunk);

size_t ArgMax(std::span<const float> row);

}  // namespace sluice::testing
