// attend: a block has up to 8 or 32 queries of one KV head; its 8 warps one or four each, all over
// the same tiles of 64 keys in shared memory. Grid (blocks of tokens, KV heads x groups of their
// heads, splits), 256 threads, (2 x 64 x D + queries x (D + 64) + padding) floats of shared memory.
// Reads K and V of its positions once a block. Figures: docs/performance.md.

#include <cuda_bf16.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/row_sources.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTilePages = kTileKeys / kPageTokens;
// Four neighbouring values.
__device__ float4 kv_values(const KvLayer& kv, const std::byte* base, int64_t at) {
  if (kv.type == DType::kF32) return __ldcg(reinterpret_cast<const float4*>(base + at * 4));
  const uint2 bits = __ldcg(reinterpret_cast<const uint2*>(base + at * 2));
  if (kv.type == DType::kBF16) {
    return make_float4(__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u),
                       __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000u));
  }
  __half2 low, high;
  memcpy(&low, &bits.x, 4);
  memcpy(&high, &bits.y, 4);
  const float2 a = __half22float2(low);
  const float2 b = __half22float2(high);
  return make_float4(a.x, a.y, b.x, b.y);
}

// Brings the keys and values of one tile into shared memory as f32: k [page][D][16] with 16 floats
// between pages against bank conflicts, v [64][D]. What lies at or beyond `end` becomes zero: it
// was never written.
__device__ void load_tile(const AttentionArgs& args, const int32_t* pages, int kv_head,
                          int first_key, int end, float* k, float* v) {
  const int head_size = args.kv.head_size;
  const int page_values = head_size * kPageTokens;
  for (int i = threadIdx.x * 4; i < kTilePages * page_values; i += kThreads * 4) {
    const int page = i / page_values;
    const int inside = i % page_values;
    const int page_key = first_key + page * kPageTokens;
    float4 keys = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 values = keys;
    if (page_key < end) {
      const int64_t begin =
          (static_cast<int64_t>(pages[page_key / kPageTokens]) * args.kv.num_kv_heads + kv_head) *
          page_values;
      keys = kv_values(args.kv, args.kv.k, begin + inside);
      const int slot = inside % kPageTokens;  // of the first of four keys
      if (page_key + slot >= end) keys.x = 0.0f;
      if (page_key + slot + 1 >= end) keys.y = 0.0f;
      if (page_key + slot + 2 >= end) keys.z = 0.0f;
      if (page_key + slot + 3 >= end) keys.w = 0.0f;
      // D may be no multiple of four: a quad of V may cross from one key to the next.
      const auto inside_range = [&](int offset) {
        return page_key + (inside + offset) / head_size < end;
      };
      values = kv_values(args.kv, args.kv.v, begin + inside);
      if (!inside_range(0)) values.x = 0.0f;
      if (!inside_range(1)) values.y = 0.0f;
      if (!inside_range(2)) values.z = 0.0f;
      if (!inside_range(3)) values.w = 0.0f;
    }
    float* to = k + page * (page_values + kPageTokens) + inside;
    to[0] = keys.x;
    to[1] = keys.y;
    to[2] = keys.z;
    to[3] = keys.w;
    float* v_to = v + page * page_values + inside;
    v_to[0] = values.x;
    v_to[1] = values.y;
    v_to[2] = values.z;
    v_to[3] = values.w;
  }
}

// The state of a warp's queries. Lane l holds the outcome's columns 2 l + 64 i and + 1.
template <int kQueriesAWarp, int kColumns>
struct WarpState {
  float most[kQueriesAWarp];
  float sum[kQueriesAWarp];
  float2 out[kQueriesAWarp][kColumns];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kQueriesAWarp; ++i) {
      most[i] = kNoKeys;
      sum[i] = 0.0f;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out[i][c] = make_float2(0.0f, 0.0f);
    }
  }
};

// total = total + part.
template <int kQueriesAWarp, int kColumns>
__device__ void merge_part(WarpState<kQueriesAWarp, kColumns>& total,
                           const WarpState<kQueriesAWarp, kColumns>& part) {
#pragma unroll
  for (int i = 0; i < kQueriesAWarp; ++i) {
    if (part.most[i] == kNoKeys) continue;  // sees nothing of this split
    if (total.most[i] == kNoKeys) {
      total.most[i] = part.most[i];
      total.sum[i] = part.sum[i];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) total.out[i][c] = part.out[i][c];
      continue;
    }
    const float2 factors = merge_factors(total.most[i], part.most[i]);
    total.most[i] = fmaxf(total.most[i], part.most[i]);
    total.sum[i] = merge_value(total.sum[i], part.sum[i], factors);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      total.out[i][c].x = merge_value(total.out[i][c].x, part.out[i][c].x, factors);
      total.out[i][c].y = merge_value(total.out[i][c].y, part.out[i][c].y, factors);
    }
  }
}

// One tile for the warp's queries. q [D][queries a block], p the warp's [64][kQueriesAWarp].
template <int kQueriesAWarp, int kColumns>
__device__ void attend_tile(const AttentionArgs& args, const float* q, int q_stride,
                            const int (&positions)[kQueriesAWarp], int first_key, const float* k,
                            const float* v, float* p, WarpState<kQueriesAWarp, kColumns>& tile) {
  tile.clear();
  const int lane = threadIdx.x % 32;
  const int head_size = args.kv.head_size;
  float2 scores[kQueriesAWarp] = {};
  const float* keys = k + lane / 8 * (head_size + 1) * kPageTokens + lane % 8 * 2;
  for (int d = 0; d < head_size; ++d) {
    const float2 key = *reinterpret_cast<const float2*>(keys + d * kPageTokens);
#pragma unroll
    for (int i = 0; i < kQueriesAWarp; ++i) {
      const float value = q[d * q_stride + i];
      scores[i].x = __fmaf_rn(value, key.x, scores[i].x);
      scores[i].y = __fmaf_rn(value, key.y, scores[i].y);
    }
  }
  const int key = first_key + 2 * lane;
#pragma unroll
  for (int i = 0; i < kQueriesAWarp; ++i) {
    const int position = positions[i];
    const int first = args.op.window > 0 ? max(0, position - args.op.window + 1) : 0;
    float2 weights = make_float2(0.0f, 0.0f);
    if (first_key <= position && first_key + kTileKeys > first) {
      float2 s =
          make_float2(__fmul_rn(args.op.scale, scores[i].x), __fmul_rn(args.op.scale, scores[i].y));
      if (args.op.softcap > 0.0f) {
        s = make_float2(soft_cap(s.x, args.op.softcap), soft_cap(s.y, args.op.softcap));
      }
      const bool sees_x = key >= first && key <= position;
      const bool sees_y = key + 1 >= first && key + 1 <= position;
      const float tile_most = warp_max(fmaxf(sees_x ? s.x : kNoKeys, sees_y ? s.y : kNoKeys));
      // Above kNoKeys whatever the scores: a NaN among them must not look like no keys at all.
      const float most = fmaxf(tile_most, kLowestScore);
      if (sees_x) weights.x = exp_f32(__fsub_rn(s.x, most));
      if (sees_y) weights.y = exp_f32(__fsub_rn(s.y, most));
      tile.sum[i] = warp_sum(__fadd_rn(weights.x, weights.y));
      tile.most[i] = most;
    }
    p[2 * lane * kQueriesAWarp + i] = weights.x;
    p[(2 * lane + 1) * kQueriesAWarp + i] = weights.y;
  }
  __syncwarp();
  for (int j = 0; j < kTileKeys; ++j) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int d = 2 * lane + 64 * c;
      if (d >= head_size) break;
      const float2 value =
          make_float2(v[j * head_size + d], d + 1 < head_size ? v[j * head_size + d + 1] : 0.0f);
#pragma unroll
      for (int i = 0; i < kQueriesAWarp; ++i) {
        const float weight = p[j * kQueriesAWarp + i];
        // A key that a query does not see must not touch its bits, nor bring a NaN.
        if (weight == 0.0f) continue;
        tile.out[i][c].x = __fmaf_rn(weight, value.x, tile.out[i][c].x);
        tile.out[i][c].y = __fmaf_rn(weight, value.y, tile.out[i][c].y);
      }
    }
  }
  __syncwarp();
}

template <int kQueriesAWarp, int kColumns>
__global__ void __launch_bounds__(kThreads) attend(const __grid_constant__ AttentionArgs args) {
  constexpr int kQueries = 8 * kQueriesAWarp;
  extern __shared__ float shared[];
  let_next_start();
  wait_for_previous();
  const AttentionBlock block = args.blocks[blockIdx.x];
  if (block.num_tokens == 0) return;
  const int head_size = args.kv.head_size;
  const int ratio = args.num_heads / args.kv.num_kv_heads;
  const int heads = min(ratio, kQueries);
  const int groups = (ratio + heads - 1) / heads;
  const int kv_head = blockIdx.y / groups;
  const int first_head = kv_head * ratio + blockIdx.y % groups * heads;
  const int num_heads = min(heads, ratio - static_cast<int>(blockIdx.y) % groups * heads);
  const int num_queries = block.num_tokens * num_heads;
  const int last_position = args.positions[block.first_token + block.num_tokens - 1];
  const int first_position = args.positions[block.first_token];
  const int first_seen = args.op.window > 0 ? max(0, first_position - args.op.window + 1) : 0;
  const int32_t* pages = args.pages + args.page_begins[block.row];
  int split = first_seen / kSplitKeys;
  int last_split = last_position / kSplitKeys;
  if (args.num_splits > 1) {
    split = max(split, static_cast<int>(blockIdx.z));
    last_split = min(last_split, static_cast<int>(blockIdx.z));
    if (split > last_split) return;
  }
  float* k = shared;
  float* v = k + kTilePages * (head_size + 1) * kPageTokens;
  float* q = v + kTileKeys * head_size;
  float* p = q + head_size * kQueries + threadIdx.x / 32 * kTileKeys * kQueriesAWarp;

  for (int i = threadIdx.x; i < kQueries * head_size; i += kThreads) {
    const int query = i / head_size;
    const int d = i % head_size;
    const int64_t token = block.first_token + query / num_heads;
    const int head = first_head + query % num_heads;
    q[d * kQueries + query] = query < num_queries
                                  ? __ldcg(args.q + (token * args.num_heads + head) * head_size + d)
                                  : 0.0f;
  }
  const int first_query = threadIdx.x / 32 * kQueriesAWarp;
  int positions[kQueriesAWarp];
#pragma unroll
  for (int i = 0; i < kQueriesAWarp; ++i) {
    const int query = first_query + i;
    positions[i] = query < num_queries ? args.positions[block.first_token + query / num_heads] : -1;
  }
  WarpState<kQueriesAWarp, kColumns> total;
  total.clear();
  for (; split <= last_split; ++split) {
    WarpState<kQueriesAWarp, kColumns> state;
    state.clear();
    const int end = min(last_position + 1, (split + 1) * kSplitKeys);
    for (int key = split * kSplitKeys; key < end; key += kTileKeys) {
      if (key + kTileKeys <= first_seen) continue;
      __syncthreads();
      load_tile(args, pages, kv_head, key, last_position + 1, k, v);
      __syncthreads();
      WarpState<kQueriesAWarp, kColumns> tile;
      attend_tile<kQueriesAWarp, kColumns>(args, q + first_query, kQueries, positions, key, k, v, p,
                                           tile);
      merge_part(state, tile);
    }
    merge_part(total, state);
  }
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kQueriesAWarp; ++i) {
    const int query = first_query + i;
    if (query >= num_queries) break;
    const int64_t head_row =
        (block.first_token + query / num_heads) * static_cast<int64_t>(args.num_heads) +
        first_head + query % num_heads;
    const bool whole = args.num_splits == 1;
    float* to = whole ? args.values + head_row * head_size
                      : args.partials + (head_row * args.num_splits + blockIdx.z) * (head_size + 2);
    if (!whole && lane == 0) {
      to[0] = total.most[i];
      to[1] = total.sum[i];
    }
    if (!whole) to += 2;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int d = 2 * lane + 64 * c;
      if (d < head_size) {
        to[d] = whole ? __fdiv_rn(total.out[i][c].x, total.sum[i]) : total.out[i][c].x;
      }
      if (d + 1 < head_size) {
        to[d + 1] = whole ? __fdiv_rn(total.out[i][c].y, total.sum[i]) : total.out[i][c].y;
      }
    }
  }
}

// attend_few: for steps of single tokens. A block has up to 8 queries of one KV head and one split;
// its 8 warps share out kTiles tiles of 64 keys at a time and, of each, kTiles queries. Grid as
// attend's, (kTiles (2 x 64 x D + 64 x 8) + 8 D + merging) floats of shared memory.
template <int kTiles, int kColumns>
__global__ void __launch_bounds__(kThreads) attend_few(const __grid_constant__ AttentionArgs args) {
  constexpr int kQueries = kFewQueries;
  constexpr int kQueriesAWarp = kTiles;
  extern __shared__ float shared[];
  let_next_start();
  wait_for_previous();
  const AttentionBlock block = args.blocks[blockIdx.x];
  if (block.num_tokens == 0) return;
  const int head_size = args.kv.head_size;
  const int ratio = args.num_heads / args.kv.num_kv_heads;
  const int heads = min(ratio, kQueries);
  const int groups = (ratio + heads - 1) / heads;
  const int kv_head = blockIdx.y / groups;
  const int first_head = kv_head * ratio + blockIdx.y % groups * heads;
  const int num_heads = min(heads, ratio - static_cast<int>(blockIdx.y) % groups * heads);
  const int num_queries = block.num_tokens * num_heads;
  const int last_position = args.positions[block.first_token + block.num_tokens - 1];
  const int first_position = args.positions[block.first_token];
  const int first_seen = args.op.window > 0 ? max(0, first_position - args.op.window + 1) : 0;
  const int32_t* pages = args.pages + args.page_begins[block.row];
  int split = first_seen / kSplitKeys;
  int last_split = last_position / kSplitKeys;
  if (args.num_splits > 1) {
    split = max(split, static_cast<int>(blockIdx.z));
    last_split = min(last_split, static_cast<int>(blockIdx.z));
    if (split > last_split) return;
  }
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int tile = warp % kTiles;
  const int first_query = warp / kTiles * kQueriesAWarp;
  const int k_floats = kTilePages * (head_size + 1) * kPageTokens;
  const int v_floats = kTileKeys * head_size;
  float* k = shared;
  float* v = k + kTiles * k_floats;
  float* q = v + kTiles * v_floats;
  float* p = q + head_size * kQueries + warp * kTileKeys * kQueriesAWarp;
  float* parts = q + head_size * kQueries + 8 * kTileKeys * kQueriesAWarp;  // [tile][query][2 + D]

  for (int i = threadIdx.x; i < kQueries * head_size; i += kThreads) {
    const int query = i / head_size;
    const int64_t token = block.first_token + query / num_heads;
    const int head = first_head + query % num_heads;
    q[i % head_size * kQueries + query] =
        query < num_queries
            ? __ldcg(args.q + (token * args.num_heads + head) * head_size + i % head_size)
            : 0.0f;
  }
  int positions[kQueriesAWarp];
#pragma unroll
  for (int i = 0; i < kQueriesAWarp; ++i) {
    const int query = first_query + i;
    positions[i] = query < num_queries ? args.positions[block.first_token + query / num_heads] : -1;
  }
  // A thread folds columns threadIdx.x, + 256, ... of the block's [query][D].
  constexpr int kFolds = 8 * 64 * kColumns / kThreads;
  Merged totals[kFolds];
  for (; split <= last_split; ++split) {
    Merged states[kFolds];
    const int end = min(last_position + 1, (split + 1) * kSplitKeys);
    for (int key = split * kSplitKeys; key < end; key += kTiles * kTileKeys) {
      __syncthreads();
      for (int n = 0; n < kTiles; ++n) {
        const int first_key = key + n * kTileKeys;
        if (first_key >= end || first_key + kTileKeys <= first_seen) continue;
        load_tile(args, pages, kv_head, first_key, last_position + 1, k + n * k_floats,
                  v + n * v_floats);
      }
      __syncthreads();
      WarpState<kQueriesAWarp, kColumns> part;
      const int first_key = key + tile * kTileKeys;
      if (first_key < end && first_key + kTileKeys > first_seen && first_query < num_queries) {
        attend_tile<kQueriesAWarp, kColumns>(args, q + first_query, kQueries, positions, first_key,
                                             k + tile * k_floats, v + tile * v_floats, p, part);
      } else {
        part.clear();
      }
#pragma unroll
      for (int i = 0; i < kQueriesAWarp; ++i) {
        float* to = parts + (tile * kQueries + first_query + i) * (head_size + 2);
        if (lane == 0) {
          to[0] = part.most[i];
          to[1] = part.sum[i];
        }
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          const int d = 2 * lane + 64 * c;
          if (d < head_size) to[2 + d] = part.out[i][c].x;
          if (d + 1 < head_size) to[3 + d] = part.out[i][c].y;
        }
      }
      __syncthreads();
#pragma unroll
      for (int f = 0; f < kFolds; ++f) {
        const int i = threadIdx.x + f * kThreads;
        if (i >= num_queries * head_size) break;
        for (int n = 0; n < kTiles; ++n) {
          const float* from = parts + (n * kQueries + i / head_size) * (head_size + 2);
          states[f].add(from[0], from[1], from[2 + i % head_size]);
        }
      }
    }
#pragma unroll
    for (int f = 0; f < kFolds; ++f) totals[f].add(states[f].most, states[f].sum, states[f].value);
  }
  const bool whole = args.num_splits == 1;
#pragma unroll
  for (int f = 0; f < kFolds; ++f) {
    const int i = threadIdx.x + f * kThreads;
    if (i >= num_queries * head_size) break;
    const int query = i / head_size;
    const int d = i % head_size;
    const int64_t head_row =
        (block.first_token + query / num_heads) * static_cast<int64_t>(args.num_heads) +
        first_head + query % num_heads;
    if (whole) {
      args.values[head_row * head_size + d] = __fdiv_rn(totals[f].value, totals[f].sum);
      continue;
    }
    float* to = args.partials + (head_row * args.num_splits + blockIdx.z) * (head_size + 2);
    if (d == 0) {
      to[0] = totals[f].most;
      to[1] = totals[f].sum;
    }
    to[2 + d] = totals[f].value;
  }
}

// Merges the splits of one token's heads when there are several, and makes its operand row.
__global__ void __launch_bounds__(kRowThreads)
    attention_rows(const __grid_constant__ AttentionArgs args) {
  extern __shared__ float values[];
  __shared__ float shared[16];
  let_next_start();
  wait_for_previous();
  const int t = blockIdx.x;
  load_attention_row(args, t, values, args.values);
  write_operand_row(values, operand_shift(values, args.out.units, shared), t, args.out);
}

absl::Status LaunchBlocks(void (*kernel)(AttentionArgs), const AttentionArgs& args, int queries,
                          size_t shared_floats, cudaStream_t stream) {
  const size_t bytes = shared_floats * sizeof(float);
  if (bytes > (size_t{48} << 10)) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return ToStatus(error, "attention");
  }
  const int ratio = args.num_heads / static_cast<int>(args.kv.num_kv_heads);
  const int heads = HeadsABlock(ratio, queries);
  const int groups = (ratio + heads - 1) / heads;
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(args.num_blocks),
                                          static_cast<unsigned>(args.kv.num_kv_heads * groups),
                                          static_cast<unsigned>(args.num_splits)),
                             .block = dim3(kThreads),
                             .shared_bytes = bytes};
  return ToStatus(Launch(stream, shape, kernel, args), "attention");
}

template <int kQueriesAWarp, int kColumns>
absl::Status LaunchAttend(const AttentionArgs& args, cudaStream_t stream) {
  constexpr int kQueries = 8 * kQueriesAWarp;
  const int head_size = static_cast<int>(args.kv.head_size);
  const size_t floats =
      static_cast<size_t>(kTilePages * (head_size + 1) * kPageTokens + kTileKeys * head_size +
                          kQueries * head_size + kQueries * kTileKeys);
  return LaunchBlocks(attend<kQueriesAWarp, kColumns>, args, kQueries, floats, stream);
}

template <int kTiles, int kColumns>
absl::Status LaunchAttendFew(const AttentionArgs& args, cudaStream_t stream) {
  const int head_size = static_cast<int>(args.kv.head_size);
  const size_t floats =
      static_cast<size_t>(kTiles * (kTilePages * (head_size + 1) * kPageTokens +
                                    kTileKeys * head_size + kFewQueries * (head_size + 2)) +
                          kFewQueries * head_size + 8 * kTileKeys * kTiles);
  return LaunchBlocks(attend_few<kTiles, kColumns>, args, kFewQueries, floats, stream);
}

// Blocks with whole splits in shared memory are quicker one by one, but only one fits a
// multiprocessor: they are for steps that leave some idle.
bool FewBlocks(const AttentionArgs& args) {
  constexpr int64_t kMultiprocessors = 132;
  return int64_t{args.num_blocks} * args.kv.num_kv_heads * args.num_splits <= kMultiprocessors;
}

template <int kTiles, int kColumns>
absl::Status LaunchForHead(const AttentionArgs& args, cudaStream_t stream) {
  if (args.queries != kFewQueries) return LaunchAttend<4, kColumns>(args, stream);
  if (FewBlocks(args)) return LaunchAttendFew<kTiles, kColumns>(args, stream);
  return LaunchAttend<1, kColumns>(args, stream);
}

}  // namespace

absl::Status LaunchAttention(const AttentionArgs& args, cudaStream_t stream) {
  if (args.kv.head_size <= 64) return LaunchForHead<4, 1>(args, stream);
  if (args.kv.head_size <= 128) return LaunchForHead<2, 2>(args, stream);
  return LaunchForHead<1, 4>(args, stream);
}

absl::Status LaunchAttentionRows(const AttentionArgs& args, cudaStream_t stream) {
  const size_t bytes = static_cast<size_t>(args.out.units) * kUnitCols * sizeof(float);
  if (bytes > (size_t{48} << 10)) {
    const cudaError_t error = cudaFuncSetAttribute(
        attention_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return ToStatus(error, "attention_rows");
  }
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(args.num_tokens)),
                             .block = dim3(kRowThreads),
                             .shared_bytes = bytes};
  return ToStatus(Launch(stream, shape, attention_rows, args), "attention_rows");
}

}  // namespace sluice::kernels::cuda
