#pragma once

// The outcome of attention in the persistent decode kernel, merged from its parts in the order of
// attention_merge.cuh: a block takes one head at a time. The factors of all parts are found at
// once; only additions are left one after another.

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/decode_attention.cuh"
#include "kernels/cuda/decode_row.cuh"

namespace sluice::kernels::cuda {

// What a part is multiplied by when it is added to its split, and its split, at the split's last
// part, when it is added to the whole: (total, part) each.
struct PartFactors {
  float2 within;
  float2 across;
};

// Of the part that the lane stands for, whose maximum is `most`; its split begins at the part of
// lane `split_begin`. All lanes of a warp; kNoKeys where a lane has none.
__device__ __forceinline__ PartFactors factors_of_lane(float most, int split_begin) {
  static_assert(kMaxDecodeParts == 32 && kSplitTilesLog2 == 2);
  const int lane = static_cast<int>(threadIdx.x % 32);
  float split = kNoKeys;
#pragma unroll
  for (int back = 1; back < 1 << kSplitTilesLog2; ++back) {
    const float other = __shfl_up_sync(~0u, most, back);
    if (lane - back >= split_begin) split = fmaxf(split, other);
  }
  float before = fmaxf(kNoKeys, most);
#pragma unroll
  for (int back = 1; back < 32; back *= 2) {
    const float other = __shfl_up_sync(~0u, before, back);
    if (lane >= back) before = fmaxf(before, other);
  }
  before = __shfl_sync(~0u, before, max(0, split_begin - 1));
  if (split_begin == 0) before = kNoKeys;
  return {merge_factors(split, most), merge_factors(before, fmaxf(split, most))};
}

// The thread's column of one head. `parts` [count][4 + D], of kEach to a split; `before` parts of
// the first split are not there. `factors` are those of all parts from that split's first on: by
// the ones of a part that is not there merge_value gives the total to the bit.
template <int kEach>
__device__ __forceinline__ float merged_value(const float* parts, int stride, int before, int count,
                                              const PartFactors* factors) {
  constexpr int kAtOnce = 4;
  const int column = kPartHeader + static_cast<int>(threadIdx.x);
  float whole = 0.0f, whole_sum = 0.0f;
#pragma unroll 1
  for (int first = 0; first < before + count; first += kAtOnce) {
    float values[kAtOnce], sums[kAtOnce];
    PartFactors by[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int part = first + i - before;
      const bool there = 0 <= part && part < count;
      const float* at = parts + part * stride;
      values[i] = there ? at[column] : 0.0f;
      sums[i] = there ? at[1] : 0.0f;
      by[i] = factors[first + i];
    }
    float split = 0.0f, split_sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i % kEach == 0) split = split_sum = 0.0f;
      split = merge_value(split, values[i], by[i].within);
      split_sum = merge_value(split_sum, sums[i], by[i].within);
      if (i % kEach != kEach - 1) continue;
      whole = merge_value(whole, split, by[i].across);
      whole_sum = merge_value(whole_sum, split_sum, by[i].across);
    }
  }
  return __fdiv_rn(whole, whole_sum);
}

// One head; `parts` [count][4 + D] are the parts that the position sees, the first of them part
// `first` of all.
__device__ __forceinline__ void merge_head(const DecodeArgs& args, const float* parts, int first,
                                           int count, PartFactors* factors, float* out) {
  const int stride = args.head_size + kPartHeader;
  const bool whole_splits = args.part_log2 != 0;  // a part each
  const int before = whole_splits ? 0 : first % (1 << kSplitTilesLog2);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 32) {
    const int part = thread - before;
    const bool there = 0 <= part && part < count;
    const float most = there ? parts[part * stride] : kNoKeys;
    const int split_begin = whole_splits ? thread : thread & ~((1 << kSplitTilesLog2) - 1);
    factors[thread] = factors_of_lane(most, split_begin);
  }
  meet_rows();
  if (thread >= args.head_size) return;
  hand_over(out + thread, whole_splits ? merged_value<1>(parts, stride, before, count, factors)
                                       : merged_value<1 << kSplitTilesLog2>(parts, stride, before,
                                                                            count, factors));
}

__device__ __forceinline__ void merge_stage(const DecodeArgs& args, const DecodeStage& stage,
                                            DecodeShared& s) {
  const int stride = args.head_size + kPartHeader;
  const int first = first_seen_by(stage, s) / kTileKeys >> args.part_log2;
  const int count = args.num_parts - first;
  float* parts = reinterpret_cast<float*>(s.row());
  auto* factors = reinterpret_cast<PartFactors*>(s.parts());
  static_assert(kMaxDecodeParts * sizeof(PartFactors) <=
                2 * kMaxGroupItems * kTileRows * sizeof(float));
  for (int head = first_item(stage); head < args.num_heads; head += static_cast<int>(gridDim.x)) {
    const float* from = args.handoff + stage.in + (head * args.num_parts + first) * stride;
    if (count * stride <= kRowStep) {
      uint4 bits[1];
      take_quads(from, count * stride, bits);
      if (4 * static_cast<int>(threadIdx.x) < count * stride) {
        reinterpret_cast<uint4*>(parts)[threadIdx.x] = bits[0];
      }
    } else {
      take_vector(from, count * stride, parts);
    }
    meet_rows();
    merge_head(args, parts, first, count, factors,
               args.handoff + stage.out + head * args.head_size);
    meet_rows();
  }
}
// How often its threads meet.
__device__ __forceinline__ int meetings_of_merging(const DecodeArgs& args,
                                                   const DecodeStage& stage) {
  int meetings = 0;
  for (int head = first_item(stage); head < args.num_heads; head += static_cast<int>(gridDim.x)) {
    meetings += 3;
  }
  return meetings;
}

}  // namespace sluice::kernels::cuda
