#pragma once

// Arithmetic that kernels share: every rounding is written out, so that no kernel's bits depend on
// how the compiler fuses.

#include <cuda_fp16.h>

#include <cstdint>

namespace sluice::kernels::cuda {

// exp(x) within 2 ulp, by the polynomial of Cephes' expf; 0 below -87, infinite above 88.7; NaN
// stays NaN.
__device__ __forceinline__ float exp_f32(float x) {
  const float clamped = fminf(fmaxf(x, -104.0f), 89.0f);
  const float n = rintf(__fmul_rn(clamped, 1.44269504088896341f));
  float r = __fmaf_rn(n, -0.693359375f, clamped);
  r = __fmaf_rn(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = __fmaf_rn(p, r, 1.3981999507e-3f);
  p = __fmaf_rn(p, r, 8.3334519073e-3f);
  p = __fmaf_rn(p, r, 4.1665795894e-2f);
  p = __fmaf_rn(p, r, 1.6666665459e-1f);
  p = __fmaf_rn(p, r, 5.0000001201e-1f);
  p = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
  // Two steps: 2^n alone may leave the range of normal numbers.
  const int whole = static_cast<int>(n);
  const int part = whole / 2;
  const float scaled = __fmul_rn(__fmul_rn(p, __int_as_float((part + 127) << 23)),
                                 __int_as_float((whole - part + 127) << 23));
  return x != x ? x : scaled;
}

__device__ __forceinline__ float tanh_f32(float x) {
  const float e = exp_f32(__fmul_rn(-2.0f, fabsf(x)));
  const float t = __fdiv_rn(__fsub_rn(1.0f, e), __fadd_rn(1.0f, e));
  return copysignf(t, x);
}

// softcap * tanh(x / softcap). What is not finite becomes NaN: capped, it would pass for a number.
__device__ __forceinline__ float soft_cap(float x, float softcap) {
  if (!(fabsf(x) <= 3.402823466e38f)) return __int_as_float(0x7fffffff);
  return __fmul_rn(softcap, tanh_f32(__fdiv_rn(x, softcap)));
}

__device__ __forceinline__ float silu_f32(float x) {
  return __fdiv_rn(x, __fadd_rn(1.0f, exp_f32(-x)));
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
