#pragma once

// Arithmetic that kernels share: every rounding is written out, so that no kernel's bits depend on
// how the compiler fuses.

#include <cuda_fp16.h>

#include <cstdint>

namespace sluice::kernels::cuda {

// exp(x) by the unit's own 2^x (relative error 2^-22, and |x| 2^-24 of its argument); results below
// the normal numbers are 0. The same instruction everywhere: the same bits.
__device__ __forceinline__ float exp_f32(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(__fmul_rn(x, 1.44269504088896341f)));
  return y;
}

__device__ __forceinline__ float tanh_f32(float x) {
  const float e = exp_f32(__fmul_rn(-2.0f, fabsf(x)));
  const float t = __fdividef(__fsub_rn(1.0f, e), __fadd_rn(1.0f, e));
  return copysignf(t, x);
}

// softcap * tanh(x / softcap). What is not finite becomes NaN: capped, it would pass for a number.
__device__ __forceinline__ float soft_cap(float x, float softcap) {
  if (!(fabsf(x) <= 3.402823466e38f)) return __int_as_float(0x7fffffff);
  return __fmul_rn(softcap, tanh_f32(__fdiv_rn(x, softcap)));
}

__device__ __forceinline__ float silu_f32(float x) {
  return __fdividef(x, __fadd_rn(1.0f, exp_f32(-x)));
}
__device__ __forceinline__ float gelu_tanh_f32(float x) {
  const float cube = __fmul_rn(__fmul_rn(x, x), x);
  const float inner = __fmul_rn(0.79788456080286535588f, __fmaf_rn(0.044715f, cube, x));
  return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, tanh_f32(inner)));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = __fadd_rn(x, __shfl_xor_sync(~0u, x, offset));
  }
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

// The sum or the maximum over a block of 256 threads, in one fixed order. `shared` holds 8 floats.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float total = shared[0];
#pragma unroll
  for (int i = 1; i < 8; ++i) total = __fadd_rn(total, shared[i]);
  return total;
}
// The sum of sums [8] and the maximum of maxima [8] behind them, which eight warps left.
__device__ __forceinline__ float2 sum_max_of_warps(const float* left) {
  float total = left[0];
  float most = left[8];
#pragma unroll
  for (int i = 1; i < 8; ++i) {
    total = __fadd_rn(total, left[i]);
    most = fmaxf(most, left[8 + i]);
  }
  return make_float2(total, most);
}
// Both at once: the sum of `x` and the maximum of `y`. `shared` holds 16 floats.
__device__ __forceinline__ float2 block_sum_max(float x, float y, float* shared) {
  x = warp_sum(x);
  y = warp_max(y);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    shared[threadIdx.x / 32] = x;
    shared[8 + threadIdx.x / 32] = y;
  }
  __syncthreads();
  return sum_max_of_warps(shared);
}
__device__ __forceinline__ float block_max(float x, float* shared) {
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float most = shared[0];
#pragma unroll
  for (int i = 1; i < 8; ++i) most = fmaxf(most, shared[i]);
  return most;
}

}  // namespace sluice::kernels::cuda
