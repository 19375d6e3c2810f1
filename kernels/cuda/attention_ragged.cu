// attention_ragged: prompts. A block has up to 64 or 128 queries of one KV head of one row, a warp
// 16 of them, all over the same tiles of 64 keys, the next of which is copied while one is computed
// (FlashAttention-2, arXiv 2307.08691). Grid blocks of queries x KV heads, longest first; two tiles
// of K and V in shared memory and 16 queries a warp, whose room the outcome of the splits so far
// takes over. Figures: docs/performance.md.

#include "kernels/cuda/attention_block.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernel_module.h"

namespace sluice::kernels::cuda {
namespace {

// Heads of 256 leave room for one tile, and no registers for the queries.
template <int kHead>
constexpr int kStages = kHead > 128 ? 1 : 2;
template <int kHead>
constexpr bool kHoldQueries = kHead <= 128;

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

// Adds a tile.
template <int kHead>
__device__ __forceinline__ void add_tile(WarpState<kHead>& state, const TileWeights& weights,
                                         uint32_t values) {
  constexpr int kCount = kColumnsAtOnce<kHead>;
  const auto factors = state.add_weights(weights);
#pragma unroll
  for (int column = 0; column < TileShape<kHead>::kColumns; column += kCount) {
    float part[kCount][4];
    weigh_values<kHead>(weights, values, column, part);
#pragma unroll
    for (int n = 0; n < kCount; ++n) state.add_column(column + n, part[n], factors);
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
  fill_queries<kHead>(args, span, own.queries);
  const LaneQueries lane_queries(own.queries, args.op.scale);
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
    add_tile(state, weights, shared_address(shared.values[stage]));
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

const KernelModule kModule(attention_ragged<64, 4>);

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
