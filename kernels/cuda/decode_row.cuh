#pragma once

// The operand row of a stage of the persistent decode kernel: what the stage before handed over,
// normed or as it is, rounded to f16 at the row's own power of two. Every block that multiplies by
// it makes it for itself. The 256 threads that compute.

#include "kernels/cuda/decode_shared.cuh"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/handoff.cuh"
#include "kernels/cuda/row_sources.cuh"

namespace sluice::kernels::cuda {

constexpr int kRowStep = 4 * kRowThreads;

// Columns 4 t, 4 t + 1024, ... of thread t of a vector handed over, or of one in shared memory, to
// `to`. The same thread may read them at once.
__device__ __noinline__ inline void take_vector(const float* from, int cols, float* to) {
  constexpr int kAtOnce = 5;
  const long long begin = clock64();
  for (int first = 4 * threadIdx.x; first < cols; first += kAtOnce * kRowStep) {
    uint4 bits[kAtOnce];
    for (;;) {
      uint32_t most = 0;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i * kRowStep >= cols) break;
        bits[i] = look_quad(from + first + i * kRowStep);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i * kRowStep >= cols) break;
        most = max(max(max(bits[i].x, bits[i].y), max(bits[i].z, bits[i].w)), most);
      }
      if (most != kAbsent) break;
      give_up_after(begin);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kRowStep >= cols) break;
      *reinterpret_cast<uint4*>(to + first + i * kRowStep) = bits[i];
    }
  }
}

// Word `w` of the lone operand row (linear_row.cu) that holds columns k and k + 1.
__device__ __forceinline__ void write_words(uint4* row, int k, const float4& values, float scale) {
  uint32_t* words = reinterpret_cast<uint32_t*>(row + k / 32 * 4 + k % 8 / 2) + k % 32 / 8;
  words[0] = as_bits(__floats2half2_rn(__fmul_rn(values.x, scale), __fmul_rn(values.y, scale)));
  words[4] = as_bits(__floats2half2_rn(__fmul_rn(values.z, scale), __fmul_rn(values.w, scale)));
}

__device__ __forceinline__ float4 times(const float4& a, const float4& b) {
  return make_float4(__fmul_rn(a.x, b.x), __fmul_rn(a.y, b.y), __fmul_rn(a.z, b.z),
                     __fmul_rn(a.w, b.w));
}

// The sum of x and the maximum of y, none below zero, in the order of block_sum_max, with one
// barrier: the exchange takes turns between two arrays.
__device__ __forceinline__ float2 meet(float x, float y, DecodeShared& s) {
  x = warp_sum(x);
  const uint32_t y_bits = __reduce_max_sync(~0u, __float_as_uint(y));  // as such numbers compare
  float* exchange = s.reduce() + 16 * s.turn;
  s.turn ^= 1;
  if (threadIdx.x % 32 == 0) {
    exchange[threadIdx.x / 32] = x;
    exchange[8 + threadIdx.x / 32] = __uint_as_float(y_bits);
  }
  meet_rows();
  return sum_max_of_warps(exchange);
}

// Asks for the norm's weights, each thread for those of its columns.
__device__ __forceinline__ void request_norm(const DecodeStage& stage, const DecodeShared& s) {
  if (stage.norm_weight == nullptr) return;
  for (int k = 4 * threadIdx.x; k < stage.cols; k += kRowStep) {
    copy_async(shared_address(s.norm() + k), stage.norm_weight + k, true);
  }
  commit_copies();
}

// Zeros up to a whole unit of columns.
__device__ __forceinline__ void clear_tail(int cols, uint4* row) {
  const int padded = (cols + kUnitCols - 1) / kUnitCols * kUnitCols;
  const int k = cols + 4 * static_cast<int>(threadIdx.x);
  if (k < padded) write_words(row, k, make_float4(0.0f, 0.0f, 0.0f, 0.0f), 1.0f);
}

// Returns the row's shift: it holds values times 2^shift, once the threads have met.
__device__ __forceinline__ int make_row(const DecodeArgs& args, const DecodeStage& stage,
                                        DecodeShared& s) {
  const int cols = stage.cols;
  const float* from = args.handoff + stage.in;
  const bool normed = stage.norm_weight != nullptr;
  const float4 ones = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
  const auto weights = [&](int k) {
    return normed ? *reinterpret_cast<const float4*>(s.norm() + k) : ones;
  };
  float squares = 0.0f;
  float most = 0.0f;
  wait_for_copies<0>();
  for (int at = 0; at < cols; at += args.kept_cols) {
    const int piece = min(args.kept_cols, cols - at);
    take_vector(from + at, piece, s.values());
#pragma unroll 1
    for (int k = 4 * threadIdx.x; k < piece; k += kRowStep) {
      const float4 value = *reinterpret_cast<const float4*>(s.values() + k);
      squares = __fmaf_rn(value.x, value.x, squares);
      squares = __fmaf_rn(value.y, value.y, squares);
      squares = __fmaf_rn(value.z, value.z, squares);
      squares = __fmaf_rn(value.w, value.w, squares);
      const float4 product = times(value, weights(at + k));
      most = fmaxf(fmaxf(fmaxf(fmaxf(most, fabsf(product.x)), fabsf(product.y)), fabsf(product.z)),
                   fabsf(product.w));
    }
  }
  const float2 both = meet(squares, most, s);
  float inverse = 1.0f;
  if (normed) {
    inverse = inverse_rms(both.x, cols, stage.epsilon);
  }
  const int shift = shift_of(__fmul_rn(both.y, inverse));
  const float scale = power_of_two(shift);
  const float4 inverses = make_float4(inverse, inverse, inverse, inverse);
  for (int at = 0; at < cols; at += args.kept_cols) {
    const int piece = min(args.kept_cols, cols - at);
    if (cols > args.kept_cols) take_vector(from + at, piece, s.values());
#pragma unroll 1
    for (int k = 4 * threadIdx.x; k < piece; k += kRowStep) {
      const float4 value = *reinterpret_cast<const float4*>(s.values() + k);
      write_words(s.row(), at + k, times(times(value, inverses), weights(at + k)), scale);
    }
  }
  clear_tail(cols, s.row());
  return shift;
}

}  // namespace sluice::kernels::cuda
