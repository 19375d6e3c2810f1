#pragma once

// Merging parts of one query's attention in ascending order: tiles into splits, splits into the
// whole. A part is (maximum of its scores, sum of its weights, weighted sum of values); its sum and
// values merge alike.

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device_math.cuh"

namespace sluice::kernels::cuda {

inline constexpr float kNoKeys = -3.402823466e38f;  // maximum of a part without keys
inline constexpr float kLowestScore = -3.3e38f;     // at most that of any part with keys

// What (the total, the part) is multiplied by when the part is added to it. A part without keys is
// (kNoKeys, +0, +0): a factor of -0 makes merge_value give the other of the two to the bit.
__device__ __forceinline__ float2 merge_factors(float total_most, float part_most) {
  const float most = fmaxf(total_most, part_most);
  float2 factors =
      make_float2(exp_f32(__fsub_rn(total_most, most)), exp_f32(__fsub_rn(part_most, most)));
  if (total_most == kNoKeys) factors = make_float2(-0.0f, 1.0f);
  if (part_most == kNoKeys) factors = make_float2(1.0f, -0.0f);
  return factors;
}
__device__ __forceinline__ float merge_value(float total, float part, float2 factors) {
  return __fmaf_rn(part, factors.y, __fmul_rn(total, factors.x));
}

// One column of a query.
struct Merged {
  float most = kNoKeys;
  float sum = 0.0f;
  float value = 0.0f;

  __device__ void add(float part_most, float part_sum, float part_value) {
    const float2 factors = merge_factors(most, part_most);
    most = fmaxf(most, part_most);
    sum = merge_value(sum, part_sum, factors);
    value = merge_value(value, part_value, factors);
  }
};

}  // namespace sluice::kernels::cuda
