#pragma once

// Attention inside the persistent decode kernel: a block takes one part of one KV head's keys at a
// time, for all of that head's queries. The block with the last part also rotates and stores the
// token's own K and V.

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/decode_shared.cuh"
#include "kernels/cuda/handoff.cuh"
#include "kernels/cuda/head_rows.cuh"

namespace sluice::kernels::cuda {

// Lies where rows are made, from DecodeShared::row on.
template <int kHead>
struct DecodeAttention {
  QueryRows<kHead> rows;
  alignas(16) std::byte keys[TileShape<kHead>::kKeyBytes];
  alignas(16) std::byte values[TileShape<kHead>::kValueBytes];
  BlockTile tile;
  alignas(16) float own[2 * kHead];  // K and V of the token
  // Behind it, each DecodeHeadFloats: the queries of the KV head's heads, of which nothing is
  // needed once there is a part [heads][2 + D]; what parts are merged to.
  __device__ float* queries() { return reinterpret_cast<float*>(this + 1); }
  __device__ float* part() { return queries(); }
  __device__ float* merged(const DecodeArgs& args) {
    return queries() + DecodeHeadFloats(args.head_size, args.heads_each);
  }
};

static_assert(sizeof(DecodeAttention<64>) == DecodeAttentionBytes(64) &&
              sizeof(DecodeAttention<128>) == DecodeAttentionBytes(128) &&
              sizeof(DecodeAttention<256>) == DecodeAttentionBytes(256));

// One part of one KV head.
struct DecodePart {
  int kv_head;
  int index;
  int first_key;
  int end;         // of keys in the cache: the token's own is not there yet
  bool holds_own;  // the token's own key belongs to it
};

__device__ __forceinline__ int first_seen_by(const DecodeStage& stage, const DecodeShared& s) {
  return stage.window > 0 ? max(0, s.position - stage.window + 1) : 0;
}
// Keys of a part from the first tile on that the position sees something of.
struct PartKeys {
  int begin;
  int end;
};
__device__ __forceinline__ PartKeys keys_of(const DecodeArgs& args, const DecodePart& part,
                                            int first_seen, int position) {
  return {max(part.first_key, first_seen / kTileKeys * kTileKeys),
          min(part.first_key + (kTileKeys << args.part_log2), position + 1)};
}
// How often the threads that attend to it meet.
__device__ __forceinline__ int meetings_of(const DecodeArgs& args, const DecodePart& part,
                                           const PartKeys& keys) {
  const int tiles = (keys.end - keys.begin + kTileKeys - 1) / kTileKeys;
  return 2 + tiles * (args.part_log2 > 0 ? 5 : 4) + (part.holds_own ? 1 : 0);
}

// Brings the token's queries, and its own K and V, to shared memory.
template <int kHead>
__device__ __forceinline__ void take_heads(const DecodeArgs& args, const DecodeStage& stage,
                                           const DecodePart& part,
                                           DecodeAttention<kHead>& scratch) {
  const int head_size = args.head_size;
  const int ratio = args.heads_each;
  const float* queries = args.handoff + stage.in + part.kv_head * ratio * head_size;
  const float* own = args.handoff + stage.in + (args.num_heads + part.kv_head) * head_size;
  const int query_values = ratio * head_size;
  const int values = query_values + (part.holds_own ? 2 * head_size : 0);
  for (int i = 4 * threadIdx.x; i < values; i += 4 * kRowThreads) {
    const int beyond = i - query_values;
    const float* from = beyond < 0 ? queries + i
                        : beyond < head_size
                            ? own + beyond
                            : own + args.num_kv_heads * head_size + beyond - head_size;
    float* to = beyond < 0 ? scratch.queries() + i : scratch.own + beyond;
    *reinterpret_cast<float4*>(to) = take_quad(from);
  }
}

__device__ __forceinline__ void finish_head(const DecodeArgs& args, const DecodeStage& stage,
                                            const DecodeShared& s, const DeviceNorm& norm,
                                            float* head) {
  const int lane = threadIdx.x % 32;
  if (norm.weight != nullptr) norm_head(head, args.head_size, norm, lane);
  rotate_head(head, args.style, stage.cols, lane, [&](int i) { return s.rotations()[i]; });
  __syncwarp();
}

// The token's own K and V, to its page and into the tile. All threads, after the tile's copies.
template <int kHead>
__device__ __forceinline__ void store_own(const DecodeArgs& args, const DecodeStage& stage,
                                          const DecodeShared& s, int kv_head,
                                          DecodeAttention<kHead>& scratch) {
  const int head_size = args.head_size;
  const int slot = s.position % kPageTokens;
  const int key = s.position % kTileKeys;
  const int64_t begin =
      (static_cast<int64_t>(s.pages[s.position / kPageTokens]) * args.num_kv_heads + kv_head) *
      head_size * kPageTokens;
  const DecodeCache& cache = s.caches(args.tables)[stage.first_task];
  auto* keys = reinterpret_cast<__half*>(const_cast<std::byte*>(cache.keys)) + begin;
  auto* values = reinterpret_cast<__half*>(const_cast<std::byte*>(cache.values)) + begin;
  for (int d = threadIdx.x; d < head_size; d += kRowThreads) {
    const __half k = __float2half_rn(scratch.own[d]);
    const __half v = __float2half_rn(scratch.own[head_size + d]);
    keys[d * kPageTokens + slot] = k;
    values[slot * head_size + d] = v;
    *reinterpret_cast<__half*>(scratch.keys + tile_key_offset<kHead>(key, d)) = k;
    *reinterpret_cast<__half*>(scratch.values + tile_value_offset<kHead>(key, d)) = v;
  }
}

// merged [H / G][2 + D] = part, or merged + part: tiles of a split ascending. A warp a row.
__device__ inline void merge_tile(float* merged, const float* part, int head_size, int num_queries,
                                  bool first) {
  const int stride = head_size + 2;
  const int lane = threadIdx.x % 32;
  for (int query = threadIdx.x / 32; query < num_queries; query += kRowThreads / 32) {
    float* to = merged + query * stride;
    const float* from = part + query * stride;
    const float most = to[0];
    const float sum = to[1];
    __syncwarp();  // before these are written
#pragma unroll 1
    for (int i = lane; i < stride; i += 32) {
      if (first) {
        to[i] = from[i];
        continue;
      }
      Merged state = {most, sum, i < 2 ? 0.0f : to[i]};
      state.add(from[0], from[1], i < 2 ? 0.0f : from[i]);
      to[i] = i == 0 ? state.most : i == 1 ? state.sum : state.value;
    }
  }
  meet_rows();
}

template <int kHead>
__device__ __forceinline__ void request_tile(const DecodeArgs& args, const PagedHead& head,
                                             int first_key, int first_seen, int end,
                                             DecodeAttention<kHead>& scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  load_keys_async<kHead, kRowThreads>(shared_address(scratch.keys), head, first_key, end, thread);
  load_values_async<kHead, kRowThreads>(shared_address(scratch.values), head, first_key, first_seen,
                                        end, thread);
  commit_copies();
}

template <int kHead>
__device__ __forceinline__ void attend_part(const DecodeArgs& args, const DecodeStage& stage,
                                            DecodeShared& s, const DecodePart& part) {
  auto& scratch = *reinterpret_cast<DecodeAttention<kHead>*>(s.row());
  const int head_size = args.head_size;
  const int ratio = args.heads_each;
  KvLayer kv;
  kv.num_kv_heads = args.num_kv_heads;
  kv.head_size = head_size;
  const DecodeCache& cache = s.caches(args.tables)[stage.first_task];
  kv.k = const_cast<std::byte*>(cache.keys);
  kv.v = const_cast<std::byte*>(cache.values);
  const PagedHead head(kv, s.pages, part.kv_head);
  float* parts = args.handoff + stage.out +
                 (part.kv_head * ratio * args.num_parts + part.index) * (head_size + kPartHeader);
  const int first_seen = first_seen_by(stage, s);
  const auto [begin, end] = keys_of(args, part, first_seen, s.position);
  request_tile<kHead>(args, head, begin, first_seen, part.end, scratch);
  const int warp = threadIdx.x / 32;
  for (int row = ratio + warp; row < kTileQueries; row += 8)
    fill_no_query<kHead>(scratch.rows, row);
  take_heads<kHead>(args, stage, part, scratch);
  meet_rows();
  for (int row = warp; row < ratio; row += 8) {
    float* query = scratch.queries() + row * head_size;
    finish_head(args, stage, s, {cache.q_norm, nullptr, cache.q_epsilon, NormKind::kRms}, query);
    fill_query<kHead>(scratch.rows, row, head_size, first_seen, s.position,
                      [&](int d) { return *reinterpret_cast<const float2*>(query + d); });
  }
  if (part.holds_own && warp == 7) {
    finish_head(args, stage, s, {cache.k_norm, nullptr, cache.k_epsilon, NormKind::kRms},
                scratch.own);
  }
  const PagedAttentionArgs op = {args.attention_scale, args.softcap, stage.window};
  const int stride = head_size + 2;
#pragma unroll 1
  for (int first_key = begin; first_key < end; first_key += kTileKeys) {
    if (first_key > begin)
      request_tile<kHead>(args, head, first_key, first_seen, part.end, scratch);
    wait_for_copies<0>();
    meet_rows();
    if (part.holds_own && s.position / kTileKeys == first_key / kTileKeys) {
      store_own<kHead>(args, stage, s, part.kv_head, scratch);
      meet_rows();
    }
    attend_tile_by_block<kHead>(scratch.rows, shared_address(scratch.keys),
                                shared_address(scratch.values), first_key, op, head_size,
                                scratch.tile, scratch.part(), stride, ratio);
    meet_rows();
    if (args.part_log2 > 0) {
      merge_tile(scratch.merged(args), scratch.part(), head_size, ratio, first_key == begin);
    }
  }
  const float* outcome = args.part_log2 > 0 ? scratch.merged(args) : scratch.part();
  // Two values and two zeros, then the weighted values, by quads.
#pragma unroll 1
  for (int row = warp; row < ratio; row += 8) {
    const float* from = outcome + row * stride;
    float* to = parts + row * args.num_parts * (head_size + kPartHeader);
#pragma unroll 1
    for (int k = 4 * (static_cast<int>(threadIdx.x) % 32); k < head_size + kPartHeader;
         k += 4 * 32) {
      const float2 zeros = make_float2(0.0f, 0.0f);
      const float2 a = *reinterpret_cast<const float2*>(from + max(0, k - 2));
      const float2 b = k == 0 ? zeros : *reinterpret_cast<const float2*>(from + k);
      hand_over_quad(to + k, make_float4(a.x, a.y, b.x, b.y));
    }
  }
  meet_rows();
}

// Calls `with` for each part that falls to the block.
template <typename With>
__device__ __forceinline__ void for_each_part(const DecodeArgs& args, const DecodeStage& stage,
                                              const DecodeShared& s, const With& with) {
  const int first_part = first_seen_by(stage, s) / kTileKeys >> args.part_log2;
  const int num_parts = args.num_parts - first_part;
  // A head's parts follow each other. With few heads counting them takes less time than dividing.
  int index = first_item(stage);
  for (int head = 0;; index += static_cast<int>(gridDim.x)) {
    for (; index >= num_parts && head < args.num_kv_heads; ++head) index -= num_parts;
    if (head >= args.num_kv_heads) break;
    DecodePart part;
    part.kv_head = head;
    part.index = first_part + index;
    part.first_key = part.index * kTileKeys << args.part_log2;
    part.end = s.position;
    part.holds_own = part.index == args.num_parts - 1;
    with(part);
  }
}

template <int kHead>
__device__ __forceinline__ void attend_stage(const DecodeArgs& args, const DecodeStage& stage,
                                             DecodeShared& s) {
  for_each_part(args, stage, s,
                [&](const DecodePart& part) { attend_part<kHead>(args, stage, s, part); });
}
// How often its threads meet.
__device__ __forceinline__ int meetings_of_attention(const DecodeArgs& args,
                                                     const DecodeStage& stage,
                                                     const DecodeShared& s) {
  int meetings = 0;
  for_each_part(args, stage, s, [&](const DecodePart& part) {
    const PartKeys keys = keys_of(args, part, first_seen_by(stage, s), s.position);
    meetings += meetings_of(args, part, keys);
  });
  return meetings;
}

}  // namespace sluice::kernels::cuda
