#pragma once

// The sampler's state of one sequence on a host backend.

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/ops.h"

namespace sluice::kernels {

// How often the penalty window holds a token.
struct TokenCount {
  int32_t token = 0;
  int32_t seen = 0;    // in prompt and output
  int32_t output = 0;  // in the output alone
};

// Parameters and penalty counts of one sequence: a pure function of (params, prompt, output), so
// that Reset after a preemption gives what Advance had built. Engine thread only; workers read it
// while Sample runs.
class SamplerSlot {
 public:
  void Reset(const SamplerParams& params, std::span<const int32_t> prompt,
             std::span<const int32_t> output, int64_t vocab_size);
  void Advance(int32_t token);

  const SamplerParams& params() const { return params_; }
  bool greedy() const;
  // The output is still shorter than min_tokens.
  bool below_min_tokens() const { return num_output_ < params_.min_tokens; }
  // The tokens that penalties touch, each once, in no particular order; empty when penalties are
  // neutral.
  std::span<const TokenCount> counts() const { return counts_; }

 private:
  struct Entry {
    int32_t token;
    bool output;
  };

  void Push(int32_t token, bool output);
  void Count(const Entry& entry, int32_t change);

  SamplerParams params_;
  int64_t vocab_size_ = 0;
  int32_t num_output_ = 0;
  bool penalized_ = false;
  std::deque<Entry> window_;  // the last penalty_last_n tokens; empty when all count
  std::vector<TokenCount> counts_;
  std::unordered_map<int32_t, size_t> count_index_;  // token -> index in counts_
};

namespace cuda {
class DeviceSampler;
}

struct SamplerSlots::Table {
  int64_t vocab_size = 0;
  std::vector<SamplerSlot> slots;               // host backends
  std::shared_ptr<cuda::DeviceSampler> device;  // backend cuda
  int num_samples = 0;                          // counted for PlantedBug::kDeviceFault alone
};

}  // namespace sluice::kernels
