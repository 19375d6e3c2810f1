#pragma once

// What becomes of one head of Q or K between its projection and its use. One warp, the head's [D]
// in shared memory.

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/rows.h"

namespace sluice::kernels::cuda {

// The RMS norm of the head.
__device__ inline void norm_head(float* head, int head_size, const DeviceNorm& norm, int lane) {
  float squares = 0.0f;
  for (int i = lane; i < head_size; i += 32) squares = __fmaf_rn(head[i], head[i], squares);
  squares = warp_sum(squares);
  const float variance = __fadd_rn(__fdiv_rn(squares, static_cast<float>(head_size)), norm.epsilon);
  const float inverse = rsqrtf(variance);
  for (int i = lane; i < head_size; i += 32) {
    head[i] = __fmul_rn(__fmul_rn(head[i], inverse), norm.weight[i]);
  }
  __syncwarp();
}

// (cos, sin) of a pair's angle at `position`.
__device__ __forceinline__ float2 rotation_of(float position, float inverse_frequency,
                                              float magnitude) {
  const double angle = __fmul_rn(position, inverse_frequency);
  double sine, cosine;
  sincos(angle, &sine, &cosine);
  return make_float2(static_cast<float>(cosine * magnitude), static_cast<float>(sine * magnitude));
}

// The rotary embedding of its first 2 * half values; rotation_at(i) is the pair's (cos, sin).
template <typename Rotation>
__device__ __forceinline__ void rotate_head(float* head, RopeStyle style, int half, int lane,
                                            const Rotation& rotation_at) {
  for (int i = lane; i < half; i += 32) {
    const float2 rotation = rotation_at(i);
    const bool interleaved = style == RopeStyle::kInterleaved;
    float& first = head[interleaved ? 2 * i : i];
    float& second = head[interleaved ? 2 * i + 1 : i + half];
    const float a = first;
    const float b = second;
    first = __fmaf_rn(a, rotation.x, -__fmul_rn(b, rotation.y));
    second = __fmaf_rn(b, rotation.x, __fmul_rn(a, rotation.y));
  }
}

}  // namespace sluice::kernels::cuda
