#pragma once

// The scans over a row of logits that the sampler is made of, one set for each instruction set.
// Plain values only: included from files compiled for different sets.

#include <cstdint>

namespace sluice::kernels::cpu {

// Logits are scanned in blocks of so many tokens, each with its maximum and its sum of weights.
inline constexpr int kSampleBlock = 64;

struct LogitScan {
  float max = 0.0f;
  bool finite = false;  // no NaN, no infinity; without it max means nothing beside a NaN
};

struct SamplingKernels {
  // logits [n] -> block_max [ceil(n / 64)] and what holds for the whole row.
  LogitScan (*scan)(const float* logits, int64_t n, float* block_max);
  // Weights of logits [n] (kernels/core/sampling_math.h) summed by block, block_sum [ceil(n / 64)];
  // returns the sum of all.
  uint64_t (*sum_blocks)(const float* logits, int64_t n, float max, float inverse_temperature,
                         uint64_t* block_sum);
  // The weights of n <= 64 logits, weights [64].
  void (*block_weights)(const float* logits, int64_t n, float max, float inverse_temperature,
                        uint64_t* weights);
};

extern const SamplingKernels kSamplingAvx2;
extern const SamplingKernels kSamplingAvx512;

}  // namespace sluice::kernels::cpu
