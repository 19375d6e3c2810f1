#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/ids.h"
#include "engine/device_runner.h"
#include "engine/engine.h"

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
  kernels::PersistentDecode persistent_decode = kernels::PersistentDecode::kAuto;  // CUDA
  // Of what the file says, before its weights are loaded; may be empty.
  std::function<void(engine::ModelConfig&)> change_config = {};
};
std::unique_ptr<engine::DeviceRunner> OpenProbe(const std::string& path,
                                                const ProbeOptions& options);

// Logits of every position of `tokens`, run as one sequence in chunks of at most `chunk` tokens:
// [n, V].
std::vector<float> AllLogits(engine::DeviceRunner& runner, std::span<const engine::TokenId> tokens,
                             int chunk);

// One engine of one thread with `limits` (its depth among them), without a vocabulary and without
// the self-check that LoadModel runs. Aborts with the status on failure.
std::unique_ptr<engine::Dispatcher> OpenEngine(const std::string& path,
                                               const engine::SchedulerLimits& limits,
                                               kernels::Backend backend = kernels::Backend::kCpu);

size_t ArgMax(std::span<const float> row);

}  // namespace sluice::testing
