#pragma once

// Making one operand row of the products from f32 values in shared memory.

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/linear.h"

namespace sluice::kernels::cuda {

inline constexpr int kRowThreads = 256;

// The power of two of a row whose largest absolute value is `most`: most times 2^shift lies in
// [2^11, 2^12); 0 for rows of zeros and rows that are not finite.
__device__ __forceinline__ int shift_of(float most) {
  int exponent = 12;
  if (most > 0.0f && most <= 3.402823466e38f) frexpf(most, &exponent);
  return max(-100, min(100, 12 - exponent));
}
// The same of a row in shared memory; all threads know it.
__device__ inline int operand_shift(const float* values, int units, float* shared) {
  float most = 0.0f;
  for (int k = threadIdx.x; k < units * kUnitCols; k += kRowThreads) {
    most = fmaxf(most, fabsf(values[k]));
  }
  return shift_of(block_max(most, shared));
}
__device__ __forceinline__ float power_of_two(int exponent) {
  return __int_as_float((exponent + 127) << 23);
}

// Sixteen bytes of an operand row: columns 0, 1, 8, 9, 16, 17, 24, 25 of `values` times `scale`.
__device__ __forceinline__ uint4 operand_words(const float* values, float scale) {
  uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const __half2 pair =
        __floats2half2_rn(__fmul_rn(values[8 * w], scale), __fmul_rn(values[8 * w + 1], scale));
    memcpy(&words[w], &pair, 4);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Writes values[0, units * 64) times 2^shift as operand row `row`; values beyond the columns are
// zeros. All 256 threads.
__device__ inline void write_operand_row(const float* values, int shift, int row,
                                         const OperandRows& out) {
  const float scale = power_of_two(shift);
  if (threadIdx.x == 0) out.factors[row] = power_of_two(-shift);
  for (int i = threadIdx.x; i < out.units * 8; i += kRowThreads) {
    const int unit = i / 8;
    const int half = i / 4 % 2;
    const int t = i % 4;
    uint4* to = out.x + ((static_cast<int64_t>(row / 8) * out.units + unit) * 2 + half) * 32;
    to[row % 8 * 4 + t] = operand_words(values + unit * kUnitCols + half * 32 + 2 * t, scale);
  }
}

}  // namespace sluice::kernels::cuda
