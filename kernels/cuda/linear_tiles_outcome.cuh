#pragma once

// The end of a product of many tokens: from the sums that threads hold to what is written.

#include "kernels/cuda/linear_tiles_items.cuh"

namespace sluice::kernels::cuda {
namespace tiles {

template <int kSize>
__device__ __forceinline__ float4 four_of(const float (&acc)[kSize], int i) {
  return make_float4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3]);
}

// Keeps the compiler from loading everything first, which would not fit the registers.
__device__ __forceinline__ void few_at_a_time() { asm volatile("" ::: "memory"); }

// What a thread holds: of rows n and n + 8 the tokens 8 i + 2 t and + 1.
struct Place {
  int n;       // in the matrix
  int token;   // first, in the step
  int inside;  // the same in the block
  bool whole;  // all rows and tokens of the block exist
};

// acc becomes the products with powers of two and bias.
template <int kSize>
__device__ __forceinline__ void finish(const LinearTask& task, const Place& place,
                                       const float* factors, float (&acc)[kSize]) {
  const int rows[2] = {min(place.n, task.weight.rows - 1), min(place.n + 8, task.weight.rows - 1)};
  float row_factors[2] = {1.0f, 1.0f};
  float biases[2] = {};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (task.weight.row_factors != nullptr)
      row_factors[r] = __ldg(task.weight.row_factors + rows[r]);
    if (task.bias != nullptr) biases[r] = __ldg(task.bias + rows[r]);
  }
#pragma unroll
  for (int i = 0; i < kSize; i += 4) {
    const float2 factor = *reinterpret_cast<const float2*>(factors + place.inside + i * 2);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      acc[i + q] =
          __fmul_rn(__fmul_rn(acc[i + q], q % 2 == 0 ? factor.x : factor.y), row_factors[q / 2]);
    }
  }
  if (task.bias == nullptr) return;
#pragma unroll
  for (int i = 0; i < kSize; ++i) acc[i] = __fadd_rn(acc[i], biases[i / 2 % 2]);
}

// Writes acc[kFirst, kEnd). Eight lanes have the eight rows of a token's sector.
template <bool kWhole, bool kAdd, int kFirst, int kEnd, int kSize>
__device__ __forceinline__ void write_all(const LinearArgs& args, const LinearTask& task,
                                          const Place& place, const float (&acc)[kSize]) {
  constexpr int kAtOnce = kSize > 64 || kEnd - kFirst < 32 ? 16 : 32;
  static_assert((kEnd - kFirst) % kAtOnce == 0 && kEnd <= kSize);
  const int64_t stride = task.out_stride;
  float* to = task.out + static_cast<int64_t>(place.token + kFirst * 2) * stride + place.n;
  const bool inside[2] = {place.n < task.weight.rows, place.n + 8 < task.weight.rows};
#pragma unroll
  for (int first = kFirst; first < kEnd; first += kAtOnce) {
    few_at_a_time();
    float old[kAtOnce];
#pragma unroll
    for (int turn = 0; turn < (kAdd ? 2 : 1); ++turn) {
      const bool loads = kAdd && turn == 0;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        float* at = to + i / 4 * 8 * stride + i % 2 * stride + i / 2 % 2 * 8;
        const int token = place.token + (first + i / 4 * 4) * 2 + i % 2;
        if (!kWhole && (!inside[i / 2 % 2] || token >= args.num_tokens)) continue;
        if (loads) {
          old[i] = __ldcg(at);
        } else {
          const float sum = acc[first + i];
          *at = kAdd ? __fadd_rn(old[i], __fmul_rn(args.scale, sum)) : sum;
        }
      }
    }
    to += 2 * kAtOnce * stride;
  }
}
template <int kFirst, int kEnd, bool kMayAdd, int kSize>
__device__ __forceinline__ void write(const LinearArgs& args, const LinearTask& task,
                                      const Place& place, const float (&acc)[kSize]) {
  const bool adds = kMayAdd && args.add_to_out;
  if (!place.whole) {
    if (adds) {
      write_all<false, true, kFirst, kEnd>(args, task, place, acc);
    } else {
      write_all<false, false, kFirst, kEnd>(args, task, place, acc);
    }
  } else if (adds) {
    write_all<true, true, kFirst, kEnd>(args, task, place, acc);
  } else {
    write_all<true, false, kFirst, kEnd>(args, task, place, acc);
  }
}

// Where the thread's first value is of what bring_old brought.
__device__ __forceinline__ const float* old_of(const float* old, int warp, int lane) {
  return old + lane % 4 * 2 * kTilesOldStride + warp * kTileRows + lane / 4;
}
// Writes acc over `old`, as old_of has it.
template <bool kWhole, int kSize>
__device__ __forceinline__ void add_old_all(const LinearArgs& args, const LinearTask& task,
                                            const Place& place, const float* old,
                                            const float (&acc)[kSize]) {
  float* to = task.out + static_cast<int64_t>(place.token) * task.out_stride + place.n;
  const bool inside[2] = {place.n < task.weight.rows, place.n + 8 < task.weight.rows};
#pragma unroll
  for (int first = 0; first < kSize; first += 4) {
    few_at_a_time();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = i % 2;
      const int row = i / 2 * 8;
      if (!kWhole && (!inside[i / 2] || place.token + first * 2 + token >= args.num_tokens)) {
        continue;
      }
      to[token * task.out_stride + row] =
          __fadd_rn(old[token * kTilesOldStride + row], __fmul_rn(args.scale, acc[first + i]));
    }
    to += 8 * static_cast<int64_t>(task.out_stride);
    old += 8 * kTilesOldStride;
  }
}
template <int kSize>
__device__ __forceinline__ void add_old(const LinearArgs& args, const LinearTask& task,
                                        const Place& place, const float* old,
                                        const float (&acc)[kSize]) {
  if (place.whole) {
    add_old_all<true>(args, task, place, old, acc);
  } else {
    add_old_all<false>(args, task, place, old, acc);
  }
}

// acc, ups or gates, becomes the gated values of half of the tokens, with the other warpgroup's.
template <GateActivation kActivation, int kSize>
__device__ __forceinline__ void gate_with_others(const float4* shared, bool ups,
                                                 float (&acc)[kSize]) {
  constexpr int kHalf = kSize / 2;
  const auto gate = [](float gate, float up) { return gated<kActivation>(gate, up); };
  if (ups) {
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) {
      if (i % 16 == 0) few_at_a_time();
      const float4 gates = shared[i / 4 * 128];
      acc[i] = gate(gates.x, acc[i]);
      acc[i + 1] = gate(gates.y, acc[i + 1]);
      acc[i + 2] = gate(gates.z, acc[i + 2]);
      acc[i + 3] = gate(gates.w, acc[i + 3]);
    }
  } else {
#pragma unroll
    for (int i = kHalf; i < kSize; i += 4) {
      if (i % 16 == 0) few_at_a_time();
      const float4 more = shared[i / 4 * 128];
      acc[i] = gate(acc[i], more.x);
      acc[i + 1] = gate(acc[i + 1], more.y);
      acc[i + 2] = gate(acc[i + 2], more.z);
      acc[i + 3] = gate(acc[i + 3], more.w);
    }
  }
}
// The first warpgroup has ups and the second gates of the same rows: each gets the other's for half
// of the tokens, and writes those.
template <int kSize>
__device__ __forceinline__ void write_gated(const LinearArgs& args, const Place& place,
                                            std::byte* memory, int warpgroup, float (&acc)[kSize]) {
  constexpr int kHalf = kSize / 2;
  float4* shared = reinterpret_cast<float4*>(memory) + threadIdx.x % 128;
  // Both are through with what lay there, and no more is on its way.
  asm volatile("bar.sync 1, 256;" ::: "memory");
  if (warpgroup == 1) {
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) shared[i / 4 * 128] = four_of(acc, i);
  } else {
#pragma unroll
    for (int i = kHalf; i < kSize; i += 4) shared[i / 4 * 128] = four_of(acc, i);
  }
  asm volatile("bar.sync 1, 256;" ::: "memory");
  // One choice for all values: with one for each, gates took a tenth of the kernel's time.
  if (args.activation == GateActivation::kSilu) {
    gate_with_others<GateActivation::kSilu>(shared, warpgroup == 0, acc);
  } else {
    gate_with_others<GateActivation::kGeluTanh>(shared, warpgroup == 0, acc);
  }
  if (warpgroup == 0) {
    write<0, kHalf, false>(args, args.tasks[0], place, acc);
  } else {
    write<kHalf, kSize, false>(args, args.tasks[0], place, acc);
  }
}

template <int kTokens>
__device__ __forceinline__ Place place_of(const LinearArgs& args, const LinearTask& task, int tile,
                                          int token_block, int lane, int first_token) {
  Place place;
  place.n = tile * kTileRows + lane / 4;
  place.inside = first_token + lane % 4 * 2;
  place.token = token_block * kTokens + place.inside;
  place.whole =
      (tile + 1) * kTileRows <= task.weight.rows && (token_block + 1) * kTokens <= args.num_tokens;
  return place;
}

}  // namespace tiles
}  // namespace sluice::kernels::cuda
