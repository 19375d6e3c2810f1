// attention_ragged: prompts. A block has up to 64 or 128 queries of one KV head of one row, a warp
// 16 of them, all over the same tiles of 64 keys, the next of which is copied while one is computed
// (FlashAttention-2, arXiv 2307.08691). Grid blocks of queries x KV heads, longest first; two tiles
// of K and V in shared memory and 16 queries a warp, whose room the outcome of the splits so far
// takes over. Figures: docs/performance.md.

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/query_span.cuh"

namespace sluice::kernels::cuda {
namespace {

// Heads of 256 leave room for one tile, and no registers for the queries.
template <int kHead>
constexpr int kStages = kHead > 128 ? 1 : 2;
template <int kHead>
constexpr bool kHoldQueries = kHead <= 128;

// The outcome of the splits so far, each lane's own values where it finds them again.
template <int kHead>
struct WarpTotal {
  float4 columns[TileShape<kHead>::kColumns][32];
};
template <int kHead, bool kHold = kHoldQueries<kHead>>
struct WarpShared {
  QueryRows<kHead> queries;
  WarpTotal<kHead> total;
};
template <int kHead>
struct WarpShared<kHead, true> {
  union {
    QueryRows<kHead> queries;
    WarpTotal<kHead> total;
  };
};

template <int kHead, int kWarps>
struct RaggedShared {
  uint4 keys[kStages<kHead>][TileShape<kHead>::kKeyBytes / 16];
  uint4 values[kStages<kHead>][TileShape<kHead>::kValueBytes / 16];
  WarpShared<kHead> warps[kWarps];
};

// What a warp has of its 16 queries: the split under way in registers.
template <int kHead>
struct WarpState {
  static constexpr int kColumns = TileShape<kHead>::kColumns;
  float most[2] = {kNoKeys, kNoKeys};
  float sum[2] = {0.0f, 0.0f};
  float out[kColumns][4] = {};
  float total_most[2] = {kNoKeys, kNoKeys};
  float total_sum[2] = {0.0f, 0.0f};
  bool flushed = false;

  // Adds a tile.
  __device__ __forceinline__ void add(const TileWeights& weights, uint32_t values) {
    constexpr int kCount = kColumnsAtOnce<kHead>;
    float2 factors[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factors[r] = merge_factors(most[r], weights.most[r]);
      most[r] = fmaxf(most[r], weights.most[r]);
      sum[r] = merge_value(sum[r], weights.sum[r], factors[r]);
    }
#pragma unroll
    for (int column = 0; column < kColumns; column += kCount) {
      float part[kCount][4];
      weigh_values<kHead>(weights, values, column, part);
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          out[column + n][i] = merge_value(out[column + n][i], part[n][i], factors[i / 2]);
        }
      }
    }
  }

  // Adds the split to the whole and begins the next.
  __device__ __forceinline__ void flush(WarpTotal<kHead>& total) {
    float2 factors[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factors[r] = merge_factors(total_most[r], most[r]);
      total_most[r] = fmaxf(total_most[r], most[r]);
      total_sum[r] = merge_value(total_sum[r], sum[r], factors[r]);
      most[r] = kNoKeys;
      sum[r] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      float4& kept = total.columns[n][threadIdx.x % 32];
      const float4 before = flushed ? kept : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      kept = make_float4(merge_value(before.x, out[n][0], factors[0]),
                         merge_value(before.y, out[n][1], factors[0]),
                         merge_value(before.z, out[n][2], factors[1]),
                         merge_value(before.w, out[n][3], factors[1]));
      clear(out[n]);
    }
    flushed = true;
  }
};

template <int kHead>
__device__ void fill_queries(const AttentionArgs& args, const QuerySpan& span,
                             QueryRows<kHead>& rows) {
  const int head_size = static_cast<int>(args.kv.head_size);
  for (int row = 0; row < kTileQueries; ++row) {
    if (row >= span.num_queries) {
      fill_no_query(rows, row);
      continue;
    }
    const float* q = args.q + span.head_row(row, args.num_heads) * head_size;
    const int position = span.position(row);
    fill_query(rows, row, head_size, QuerySpan::first_seen(position, args.op.window), position,
               [&](int d) { return __ldcg(reinterpret_cast<const float2*>(q + d)); });
  }
  __syncwarp();
}

template <int kHead>
__device__ void store_outcome(const AttentionArgs& args, const QuerySpan& span,
                              const WarpState<kHead>& state, const WarpTotal<kHead>& total) {
  const int head_size = static_cast<int>(args.kv.head_size);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = threadIdx.x % 32 / 4 + 8 * r;
    if (query >= span.num_queries) continue;
    float* to = args.values + span.head_row(query, args.num_heads) * head_size;
#pragma unroll
    for (int n = 0; n < TileShape<kHead>::kColumns; ++n) {
      const int d = 8 * n + threadIdx.x % 4 * 2;
      if (d >= head_size) break;
      const float4 both = total.columns[n][threadIdx.x % 32];
      const float2 value = r == 0 ? make_float2(both.x, both.y) : make_float2(both.z, both.w);
      *reinterpret_cast<float2*>(to + d) = make_float2(__fdiv_rn(value.x, state.total_sum[r]),
                                                       __fdiv_rn(value.y, state.total_sum[r]));
    }
  }
}

template <int kHead, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, kHead <= 64 ? 3 : 1)
    attention_ragged(const __grid_constant__ AttentionArgs args) {
  constexpr int kThreads = 32 * kWarps;
  extern __shared__ __align__(16) std::byte memory[];
  auto& shared = *reinterpret_cast<RaggedShared<kHead, kWarps>*>(memory);
  let_next_start();
  const int num_kv_heads = static_cast<int>(args.kv.num_kv_heads);
  const AttentionBlock block = args.blocks[blockIdx.x / num_kv_heads];
  const int kv_head = blockIdx.x % num_kv_heads;
  const QuerySpan whole = span_of_block(args, block, kv_head, 0, kThreads / 2);
  const int warp = threadIdx.x / 32;
  const QuerySpan span = span_of_block(args, block, kv_head, warp * kTileQueries, kTileQueries);
  const int last_position = whole.last_position();
  const int first_seen = QuerySpan::first_seen(whole.position(0), args.op.window);
  // Of the warp; none of its own leaves no tile to see.
  const int warp_last = span.num_queries > 0 ? span.last_position() : -1;
  const int warp_first = QuerySpan::first_seen(span.position(0), args.op.window);
  const PagedHead head(args.kv, whole.pages, kv_head);
  wait_for_previous();

  const auto load = [&](int tile) {
    const int stage = tile % kStages<kHead>;
    load_keys_async<kHead, kThreads>(shared_address(shared.keys[stage]), head, tile * kTileKeys,
                                     last_position + 1, threadIdx.x);
    load_values_async<kHead, kThreads>(shared_address(shared.values[stage]), head, tile * kTileKeys,
                                       first_seen, last_position + 1, threadIdx.x);
    commit_copies();
  };
  const int last_tile = last_position / kTileKeys;
  int tile = first_seen / kTileKeys;
  if (kStages < kHead >> 1) load(tile);

  WarpShared<kHead>& own = shared.warps[warp];
  fill_queries(args, span, own.queries);
  const LaneQueries lane_queries(own.queries);
  using Queries = std::conditional_t<kHoldQueries<kHead>, HeldQueries<kHead>, SharedQueries<kHead>>;
  const Queries queries(own.queries);
  __syncwarp();  // the total takes their place
  WarpState<kHead> state;
  for (; tile <= last_tile; ++tile) {
    if (kStages<kHead> == 1) {
      __syncthreads();
      load(tile);
    }
    wait_for_copies<0>();
    __syncthreads();  // the tile is there, and nobody reads the one before any more
    if (kStages < kHead >> 1 && tile < last_tile) load(tile + 1);
    const int first_key = tile * kTileKeys;
    if (first_key > warp_last || first_key + kTileKeys <= warp_first) continue;
    const int stage = tile % kStages<kHead>;
    float scores[8][4];
    score_tile<kHead>(queries, shared_address(shared.keys[stage]), scores);
    TileWeights weights;
    weigh_tile(scores, lane_queries, first_key, args.op, weights);
    state.add(weights, shared_address(shared.values[stage]));
    const bool split_ends = (first_key + kTileKeys) % kSplitKeys == 0;
    if (split_ends || first_key + kTileKeys > warp_last) state.flush(own.total);
  }
  store_outcome(args, span, state, own.total);
}

template <int kHead, int kWarps>
absl::Status LaunchForHead(const AttentionArgs& args, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(RaggedShared<kHead, kWarps>);
  static_assert(kBytes <= (size_t{227} << 10));
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(args.num_blocks * args.kv.num_kv_heads)),
      .block = dim3(32 * kWarps),
      .shared_bytes = kBytes};
  return ToStatus(Launch(stream, shape, attention_ragged<kHead, kWarps>, args), "attention_ragged");
}

}  // namespace

absl::Status LaunchRagged(const AttentionArgs& args, cudaStream_t stream) {
  if (args.kv.head_size <= 64) return LaunchForHead<64, 4>(args, stream);
  if (args.kv.head_size <= 80) return LaunchForHead<80, 4>(args, stream);
  if (args.kv.head_size <= 96) return LaunchForHead<96, 4>(args, stream);
  if (args.kv.head_size <= 128) {
    return args.block_queries == 128 ? LaunchForHead<128, 8>(args, stream)
                                     : LaunchForHead<128, 4>(args, stream);
  }
  return LaunchForHead<256, 4>(args, stream);
}

}  // namespace sluice::kernels::cuda
