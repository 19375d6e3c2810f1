#pragma once

// The operand row of a stage of the persistent decode kernel: what the stage before handed over,
// normed or as it is, rounded to f16 at the row's own power of two. Every block that multiplies by
// it makes it for itself. The 256 threads that compute. What lies between a vector's arrival and
// the hand-over of the next is what a step of a small model takes: none of it goes by way of shared
// memory that fits in registers, and what does not depend on the vector is asked for before.

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

// The sum of x, where it is wanted, and the maximum of y, none below zero, in the order of
// block_sum_max, with one barrier: the exchange takes turns between two arrays.
template <bool kSum>
__device__ __forceinline__ float2 meet(float x, float y, DecodeShared& s) {
  if constexpr (kSum) x = warp_sum(x);
  const uint32_t y_bits = __reduce_max_sync(~0u, __float_as_uint(y));  // as such numbers compare
  float* exchange = s.reduce() + 16 * s.turn;
  s.turn ^= 1;
  if (threadIdx.x % 32 == 0) {
    if constexpr (kSum) exchange[threadIdx.x / 32] = x;
    exchange[8 + threadIdx.x / 32] = __uint_as_float(y_bits);
  }
  meet_rows();
  float left[16] = {};
#pragma unroll
  for (int i = kSum ? 0 : 8; i < 16; i += 4) {
    const float4 quad = *reinterpret_cast<const float4*>(exchange + i);
    left[i] = quad.x;
    left[i + 1] = quad.y;
    left[i + 2] = quad.z;
    left[i + 3] = quad.w;
  }
  return sum_max_of_warps(left);
}

// Zeros up to a whole unit of columns.
__device__ __forceinline__ void clear_tail(int cols, uint4* row) {
  const int padded = (cols + kUnitCols - 1) / kUnitCols * kUnitCols;
  const int k = cols + 4 * static_cast<int>(threadIdx.x);
  if (k < padded) write_words(row, k, make_float4(0.0f, 0.0f, 0.0f, 0.0f), 1.0f);
}

__device__ __forceinline__ float most_of(float most, const float4& v) {
  return fmaxf(fmaxf(fmaxf(most, fabsf(v.x)), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}
// Squares added to a sum one after another.
__device__ __forceinline__ float add_squares(float sum, const float4& v) {
  return __fmaf_rn(v.w, v.w, __fmaf_rn(v.z, v.z, __fmaf_rn(v.y, v.y, __fmaf_rn(v.x, v.x, sum))));
}

// Waits for the thread's quads of a vector of up to kQuads * kRowStep values; zeros behind it.
template <int kQuads>
__device__ __forceinline__ void take_quads(const float* from, int cols, uint4 (&bits)[kQuads]) {
  const int first = 4 * static_cast<int>(threadIdx.x);
  const auto any_absent = [&] {
    bool any = false;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) any = any || absent(bits[i]);
    return any;
  };
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    bits[i] = make_uint4(0, 0, 0, 0);
    if (first + i * kRowStep < cols) bits[i] = look_quad(from + first + i * kRowStep);
  }
  if (!any_absent()) return;
  const long long begin = clock64();
  do {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (kQuads == 1 || absent(bits[i])) bits[i] = look_quad(from + first + i * kRowStep);
    }
    give_up_after(begin);  // while they are on their way
  } while (any_absent());
}

// A row of which a thread has at most kQuads quads of columns, which it keeps in registers: shared
// memory in between would be two more latencies of every stage.
template <int kQuads, bool kNormed>
__device__ __forceinline__ int make_short_row(const DecodeArgs& args, const DecodeStage& stage,
                                              DecodeShared& s) {
  const int cols = stage.cols;
  const float epsilon = stage.epsilon;
  const int first = 4 * static_cast<int>(threadIdx.x);
  float4 weights[kQuads];
#pragma unroll
  for (int i = 0; i < kQuads && kNormed; ++i) {
    weights[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (first + i * kRowStep >= cols) continue;
    weights[i] = __ldg(reinterpret_cast<const float4*>(stage.norm_weight + first + i * kRowStep));
  }
  uint4 bits[kQuads];
  take_quads(args.handoff + stage.in, cols, bits);
  float squares = 0.0f;
  float most = 0.0f;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const float4 value = as_floats(bits[i]);
    if constexpr (kNormed) squares = add_squares(squares, value);
    most = most_of(most, kNormed ? times(value, weights[i]) : value);
  }
  const float2 both = meet<kNormed>(squares, most, s);
  const float inverse = kNormed ? inverse_rms(both.x, cols, epsilon) : 1.0f;
  const int shift = shift_of(kNormed ? __fmul_rn(both.y, inverse) : both.y);
  const float scale = power_of_two(shift);
  const float4 inverses = make_float4(inverse, inverse, inverse, inverse);
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    if (first + i * kRowStep >= cols) continue;
    const float4 value = as_floats(bits[i]);
    write_words(s.row(), first + i * kRowStep,
                kNormed ? times(times(value, inverses), weights[i]) : value, scale);
  }
  clear_tail(cols, s.row());
  return shift;
}

// Asks for the norm's weights, each thread for those of its columns.
__device__ __forceinline__ void request_norm(const DecodeStage& stage, const DecodeShared& s) {
  if (stage.norm_weight == nullptr) return;
  for (int k = 4 * threadIdx.x; k < stage.cols; k += kRowStep) {
    copy_async(shared_address(s.norm() + k), stage.norm_weight + k, true);
  }
  commit_copies();
}

// A row of any length, by way of shared memory.
__device__ __forceinline__ int make_long_row(const DecodeArgs& args, const DecodeStage& stage,
                                             DecodeShared& s) {
  const int cols = stage.cols;
  const float* from = args.handoff + stage.in;
  const bool normed = stage.norm_weight != nullptr;
  const float4 ones = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
  const auto weights = [&](int k) {
    return normed ? *reinterpret_cast<const float4*>(s.norm() + k) : ones;
  };
  request_norm(stage, s);
  float squares = 0.0f;
  float most = 0.0f;
  wait_for_copies<0>();
  for (int at = 0; at < cols; at += args.kept_cols) {
    const int piece = min(args.kept_cols, cols - at);
    take_vector(from + at, piece, s.values());
#pragma unroll 1
    for (int k = 4 * threadIdx.x; k < piece; k += kRowStep) {
      const float4 value = *reinterpret_cast<const float4*>(s.values() + k);
      squares = add_squares(squares, value);
      most = most_of(most, times(value, weights(at + k)));
    }
  }
  const float2 both = meet<true>(squares, most, s);
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

// Returns the row's shift: it holds values times 2^shift, once the threads have met.
template <DecodeForm kForm>
__device__ __forceinline__ int make_row(const DecodeArgs& args, const DecodeStage& stage,
                                        DecodeShared& s) {
  const int cols = stage.cols;
  if (stage.norm_weight != nullptr) {
    if (kForm.prepares && cols <= kRowStep) return make_short_row<1, true>(args, stage, s);
    if (cols <= 2 * kRowStep) return make_short_row<2, true>(args, stage, s);
  } else if constexpr (kForm.prepares) {
    if (cols <= kRowStep) return make_short_row<1, false>(args, stage, s);
    if (cols <= 2 * kRowStep) return make_short_row<2, false>(args, stage, s);
    if (cols <= 5 * kRowStep) return make_short_row<5, false>(args, stage, s);
  }
  return make_long_row(args, stage, s);
}

}  // namespace sluice::kernels::cuda
