#pragma once

// Making one operand row of the products from f32 values in shared memory.

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/linear.h"

namespace sluice::kernels::cuda {

inline constexpr int kRowThreads = 256;

// A barrier of the 256 threads that work on a row, whatever other warps their block has.
__device__ __forceinline__ void meet_rows() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

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

// Eight values times `scale` as f16, in order.
__device__ __forceinline__ uint4 operand_chunk(float4 low, float4 high, float scale) {
  const float pairs[4][2] = {{low.x, low.y}, {low.z, low.w}, {high.x, high.y}, {high.z, high.w}};
  uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const __half2 pair =
        __floats2half2_rn(__fmul_rn(pairs[w][0], scale), __fmul_rn(pairs[w][1], scale));
    memcpy(&words[w], &pair, 4);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Where columns 8 i to 8 i + 7 of an operand row lie.
__device__ __forceinline__ uint4* operand_place(const OperandRows& out, int row, int i) {
  return out.x + static_cast<int64_t>(row / 8) * 16 + row % 8 +
         static_cast<int64_t>(i / 2) * out.groups * 16 + i % 2 * 8;
}

// Writes values[0, units * 64) times 2^shift as operand row `row`; values beyond the columns are
// zeros. All 256 threads.
__device__ inline void write_operand_row(const float* values, int shift, int row,
                                         const OperandRows& out) {
  const float scale = power_of_two(shift);
  if (threadIdx.x == 0) out.factors[row] = power_of_two(-shift);
  for (int i = threadIdx.x; i < out.units * 8; i += kRowThreads) {
    const float4* from = reinterpret_cast<const float4*>(values + 8 * i);
    *operand_place(out, row, i) = operand_chunk(from[0], from[1], scale);
  }
}

}  // namespace sluice::kernels::cuda
