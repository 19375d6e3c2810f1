// attend_items, attend_blocks: attention over caches that tensor cores do not read, by f32 FMA
// chains. A block has up to 32 queries of one KV head, its 8 warps four each, all over the same
// tiles of 64 keys in shared memory. 256 threads, (2 x 64 x D + 32 x (D + 64) + padding) floats of
// shared memory. Correct, not fast.

#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/query_span.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kQueriesAWarp = 4;
constexpr int kQueries = 8 * kQueriesAWarp;
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
__device__ void load_tile(const KvLayer& kv, const QuerySpan& span, int first_key, int end,
                          float* k, float* v) {
  const int head_size = kv.head_size;
  const int page_values = head_size * kPageTokens;
  for (int i = threadIdx.x * 4; i < kTilePages * page_values; i += kThreads * 4) {
    const int page = i / page_values;
    const int inside = i % page_values;
    const int page_key = first_key + page * kPageTokens;
    float4 keys = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 values = keys;
    if (page_key < end) {
      const int64_t begin =
          (static_cast<int64_t>(span.pages[page_key / kPageTokens]) * kv.num_kv_heads +
           span.kv_head) *
          page_values;
      keys = kv_values(kv, kv.k, begin + inside);
      const int slot = inside % kPageTokens;  // of the first of four keys
      if (page_key + slot >= end) keys.x = 0.0f;
      if (page_key + slot + 1 >= end) keys.y = 0.0f;
      if (page_key + slot + 2 >= end) keys.z = 0.0f;
      if (page_key + slot + 3 >= end) keys.w = 0.0f;
      // D may be no multiple of four: a quad of V may cross from one key to the next.
      const auto inside_range = [&](int offset) {
        return page_key + (inside + offset) / head_size < end;
      };
      values = kv_values(kv, kv.v, begin + inside);
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
template <int kColumns>
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
template <int kColumns>
__device__ void merge_part(WarpState<kColumns>& total, const WarpState<kColumns>& part) {
#pragma unroll
  for (int i = 0; i < kQueriesAWarp; ++i) {
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

// One tile for the warp's queries. q [D][kQueries], p the warp's [64][kQueriesAWarp].
template <int kColumns>
__device__ void attend_tile(const AttentionArgs& args, const float* q,
                            const int (&positions)[kQueriesAWarp], int first_key, const float* k,
                            const float* v, float* p, WarpState<kColumns>& tile) {
  tile.clear();
  const int lane = threadIdx.x % 32;
  const int head_size = args.kv.head_size;
  float2 scores[kQueriesAWarp] = {};
  const float* keys = k + lane / 8 * (head_size + 1) * kPageTokens + lane % 8 * 2;
  for (int d = 0; d < head_size; ++d) {
    const float2 key = *reinterpret_cast<const float2*>(keys + d * kPageTokens);
#pragma unroll
    for (int i = 0; i < kQueriesAWarp; ++i) {
      const float value = q[d * kQueries + i];
      scores[i].x = __fmaf_rn(value, key.x, scores[i].x);
      scores[i].y = __fmaf_rn(value, key.y, scores[i].y);
    }
  }
  const int key = first_key + 2 * lane;
#pragma unroll
  for (int i = 0; i < kQueriesAWarp; ++i) {
    const int position = positions[i];
    const int first = QuerySpan::first_seen(position, args.op.window);
    float2 weights = make_float2(0.0f, 0.0f);
    if (first_key <= position && first_key + kTileKeys > first) {
      float2 s =
          make_float2(__fmul_rn(args.op.scale, scores[i].x), __fmul_rn(args.op.scale, scores[i].y));
      if (args.op.softcap > 0.0f) {
        s = make_float2(soft_cap(s.x, args.op.softcap), soft_cap(s.y, args.op.softcap));
      }
      // Infinities become NaN: the weight of -infinity would pass for a number.
      s = make_float2(__fmaf_rn(s.x, 0.0f, s.x), __fmaf_rn(s.y, 0.0f, s.y));
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

// A block's queries and where its tiles lie in shared memory.
template <int kColumns>
struct Chains {
  const AttentionArgs& args;
  QuerySpan span;
  float* k;
  float* v;
  float* q;
  float* p;  // the warp's
  int first_query;
  int positions[kQueriesAWarp];

  // All threads; the queries are there after the next barrier.
  __device__ Chains(const AttentionArgs& of, const QuerySpan& queries, float* shared)
      : args(of), span(queries) {
    const int head_size = static_cast<int>(args.kv.head_size);
    k = shared;
    v = k + kTilePages * (head_size + 1) * kPageTokens;
    q = v + kTileKeys * head_size;
    p = q + head_size * kQueries + threadIdx.x / 32 * kTileKeys * kQueriesAWarp;
    for (int i = threadIdx.x; i < kQueries * head_size; i += kThreads) {
      const int query = i / head_size;
      const int d = i % head_size;
      q[d * kQueries + query] =
          query < span.num_queries
              ? __ldcg(args.q + span.head_row(query, args.num_heads) * head_size + d)
              : 0.0f;
    }
    first_query = static_cast<int>(threadIdx.x) / 32 * kQueriesAWarp;
#pragma unroll
    for (int i = 0; i < kQueriesAWarp; ++i) {
      positions[i] = first_query + i < span.num_queries ? span.position(first_query + i) : -1;
    }
  }

  __device__ int first_seen() const {
    return QuerySpan::first_seen(span.position(0), args.op.window);
  }

  // Adds the tiles of one split.
  __device__ void attend_split(int split, WarpState<kColumns>& state) {
    state.clear();
    const int end = span.last_position() + 1;
    for (int key = split * kSplitKeys; key < min(end, (split + 1) * kSplitKeys); key += kTileKeys) {
      if (key + kTileKeys <= first_seen()) continue;
      __syncthreads();
      load_tile(args.kv, span, key, end, k, v);
      __syncthreads();
      WarpState<kColumns> tile;
      attend_tile<kColumns>(args, q + first_query, positions, key, k, v, p, tile);
      merge_part(state, tile);
    }
  }

  // Calls store(query, d, value) for the warp's outcomes.
  template <typename Store>
  __device__ void for_outcomes(const WarpState<kColumns>& state, const Store& store) const {
    const int head_size = static_cast<int>(args.kv.head_size);
#pragma unroll
    for (int i = 0; i < kQueriesAWarp; ++i) {
      if (first_query + i >= span.num_queries) break;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int d = 2 * (static_cast<int>(threadIdx.x) % 32) + 64 * c;
        if (d < head_size) store(i, d, state.out[i][c].x);
        if (d + 1 < head_size) store(i, d + 1, state.out[i][c].y);
      }
    }
  }
};

template <int kColumns>
__global__ void __launch_bounds__(kThreads)
    attend_items(const __grid_constant__ AttentionArgs args) {
  extern __shared__ float shared[];
  let_next_start();
  wait_for_previous();
  const int head_size = static_cast<int>(args.kv.head_size);
  const int ratio = args.num_heads / static_cast<int>(args.kv.num_kv_heads);
  const int parts =
      static_cast<int>(args.kv.num_kv_heads) * ((ratio + kItemQueries - 1) / kItemQueries);
  const int num_parts = *args.num_items * parts;
  for (int index = blockIdx.x; index < num_parts; index += gridDim.x) {
    const AttentionItem item = args.items[index / parts];
    __syncthreads();
    Chains<kColumns> chains(args, span_of_item(args, item, index % parts), shared);
    const QuerySpan& span = chains.span;
    const int end = min(item.first_split + item.num_splits, span.last_position() / kSplitKeys + 1);
    for (int split = max(item.first_split, chains.first_seen() / kSplitKeys); split < end;
         ++split) {
      WarpState<kColumns> state;
      chains.attend_split(split, state);
      const auto partial = [&](int i) {
        const int query = chains.first_query + i;
        const int64_t slot = item.first_slot + span.token_index(query) * item.slots + split;
        const int head = span.first_head + query % span.num_heads;
        return args.partials + (slot * args.num_heads + head) * (head_size + 2);
      };
      chains.for_outcomes(state, [&](int i, int d, float value) {
        if (d == 0) {
          partial(i)[0] = state.most[i];
          partial(i)[1] = state.sum[i];
        }
        partial(i)[2 + d] = value;
      });
    }
  }
}

template <int kColumns>
__global__ void __launch_bounds__(kThreads)
    attend_blocks(const __grid_constant__ AttentionArgs args) {
  extern __shared__ float shared[];
  let_next_start();
  wait_for_previous();
  const int head_size = static_cast<int>(args.kv.head_size);
  const int begin = static_cast<int>(blockIdx.z) * kQueries;
  const AttentionBlock block = args.blocks[blockIdx.x];
  if (begin >= block.num_queries) return;
  Chains<kColumns> chains(
      args, span_of_block(args, block, static_cast<int>(blockIdx.y), begin, kQueries), shared);
  WarpState<kColumns> total;
  total.clear();
  const int last_split = chains.span.last_position() / kSplitKeys;
  for (int split = chains.first_seen() / kSplitKeys; split <= last_split; ++split) {
    WarpState<kColumns> state;
    chains.attend_split(split, state);
    merge_part(total, state);
  }
  chains.for_outcomes(total, [&](int i, int d, float value) {
    const int64_t row = chains.span.head_row(chains.first_query + i, args.num_heads);
    args.values[row * head_size + d] = __fdiv_rn(value, total.sum[i]);
  });
}

absl::Status LaunchChains(void (*kernel)(AttentionArgs), const AttentionArgs& args, dim3 grid,
                          cudaStream_t stream) {
  const int head_size = static_cast<int>(args.kv.head_size);
  const size_t bytes =
      sizeof(float) *
      static_cast<size_t>(kTilePages * (head_size + 1) * kPageTokens + kTileKeys * head_size +
                          kQueries * head_size + kQueries * kTileKeys);
  const LaunchShape shape = {.grid = grid, .block = dim3(kThreads), .shared_bytes = bytes};
  return ToStatus(Launch(stream, shape, kernel, args), "attention");
}

const KernelModule kModule(attend_items<1>);

}  // namespace

absl::Status LaunchChainItems(const AttentionArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(std::min(args.max_parts, 2 * args.num_multiprocessors)));
  if (args.kv.head_size <= 64) return LaunchChains(attend_items<1>, args, grid, stream);
  if (args.kv.head_size <= 128) return LaunchChains(attend_items<2>, args, grid, stream);
  return LaunchChains(attend_items<4>, args, grid, stream);
}

absl::Status LaunchChainBlocks(const AttentionArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.num_blocks),
                  static_cast<unsigned>(args.kv.num_kv_heads),
                  static_cast<unsigned>((args.block_queries + kQueries - 1) / kQueries));
  if (args.kv.head_size <= 64) return LaunchChains(attend_blocks<1>, args, grid, stream);
  if (args.kv.head_size <= 128) return LaunchChains(attend_blocks<2>, args, grid, stream);
  return LaunchChains(attend_blocks<4>, args, grid, stream);
}

}  // namespace sluice::kernels::cuda
