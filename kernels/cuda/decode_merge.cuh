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

// Of part `i`; parts [first, i) of `each_split` to a split, the first of them at a split's start or
// not, lie at `parts`.
__device__ __forceinline__ PartFactors factors_of(const float* parts, int stride, int i,
                                                  int split_begin) {
  float before = kNoKeys;
  float split = kNoKeys;
  for (int j = 0; j < i; ++j) {
    const float most = parts[j * stride];
    // Not by a reference to either, which would put both in local memory.
    before = j < split_begin ? fmaxf(before, most) : before;
    split = j < split_begin ? split : fmaxf(split, most);
  }
  const float most = parts[i * stride];
  return {merge_factors(split, most), merge_factors(before, fmaxf(split, most))};
}

// One head; `parts` [count][4 + D] are the parts that the position sees, the first of them part
// `first` of all.
__device__ __forceinline__ void merge_head(const DecodeArgs& args, const float* parts, int first,
                                           int count, PartFactors* factors, float* out) {
  const int stride = args.head_size + kPartHeader;
  const int each_log2 = kSplitTilesLog2 - args.part_log2;  // of parts in a split
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < count) {
    const int split_begin = max(0, ((first + thread) >> each_log2 << each_log2) - first);
    factors[thread] = factors_of(parts, stride, thread, split_begin);
  }
  meet_rows();
  if (thread >= args.head_size) return;
  float split = 0.0f, split_sum = 0.0f, whole = 0.0f, whole_sum = 0.0f;
  const int each_split = 1 << each_log2;
  int next_split = each_split - (first & (each_split - 1));
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float* part = parts + i * stride;
    split = merge_value(split, part[kPartHeader + thread], factors[i].within);
    split_sum = merge_value(split_sum, part[1], factors[i].within);
    if (i + 1 < count && i + 1 < next_split) continue;
    next_split += each_split;
    whole = merge_value(whole, split, factors[i].across);
    whole_sum = merge_value(whole_sum, split_sum, factors[i].across);
    split = split_sum = 0.0f;
  }
  hand_over(out + thread, __fdiv_rn(whole, whole_sum));
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
    take_vector(args.handoff + stage.in + (head * args.num_parts + first) * stride, count * stride,
                parts);
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
