// attention_split_kv: steps of few tokens a row. A persistent grid shares out the parts of the
// items; a block takes one split of 256 positions at a time, its warps a tile of 64 keys each,
// whose keys and values they copy for themselves while the split before is being computed; then it
// merges the tiles. Grid as many blocks as fit the card, 4 warps (2 for heads of 256), shared
// memory for a tile of K and V a warp, 16 queries and 4 parts. Reads K and V of each (group of
// tokens, KV head) once. Figures: docs/performance.md.

#include <algorithm>

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernel_module.h"
#include "kernels/cuda/query_span.cuh"

namespace sluice::kernels::cuda {
namespace {

constexpr int kSplitTiles = kSplitKeys / kTileKeys;

template <int kHead>
constexpr int kWarpsFor = kHead > 128 ? 2 : 4;

template <int kHead>
struct SplitShared {
  static constexpr int kPartStride = kHead + 8;  // a half-warp stores to all banks

  QueryRows<kHead> queries;
  float parts[kSplitTiles][kTileQueries][kPartStride];
  float2 factors[kSplitTiles][kTileQueries];
  uint4 keys[kWarpsFor<kHead>][TileShape<kHead>::kKeyBytes / 16];
  uint4 values[kWarpsFor<kHead>][TileShape<kHead>::kValueBytes / 16];
};

// One split of one part of an item, and of it the tiles of one round of the warps.
struct Unit {
  int index = 0;  // of the part, over all items
  AttentionItem item;
  QuerySpan span;
  int first_seen = 0;
  int last_position = 0;
  int split = 0;
  int last_split = 0;
  int round = 0;

  __device__ bool valid(int num_units) const { return index < num_units; }
  __device__ bool has_tile(int first_key) const {
    return first_key <= last_position && first_key + kTileKeys > first_seen;
  }
};

// The first unit at or after part `index`; parts whose splits lie before the window have none.
__device__ Unit find_unit(const AttentionArgs& args, int index, int num_units, int parts) {
  Unit unit;
  for (unit.index = index; unit.index < num_units; unit.index += gridDim.x) {
    unit.item = args.items[unit.index / parts];
    unit.span = span_of_item(args, unit.item, unit.index % parts);
    unit.first_seen = QuerySpan::first_seen(unit.item.first_position, args.op.window);
    unit.last_position = unit.span.last_position();
    unit.split = max(unit.item.first_split, unit.first_seen / kSplitKeys);
    unit.last_split =
        min(unit.item.first_split + unit.item.num_splits - 1, unit.last_position / kSplitKeys);
    if (unit.split <= unit.last_split) break;
  }
  return unit;
}

__device__ Unit next_unit(const AttentionArgs& args, const Unit& unit, int num_units, int parts,
                          int rounds) {
  Unit next = unit;
  if (++next.round < rounds) return next;
  next.round = 0;
  if (++next.split <= next.last_split) return next;
  return find_unit(args, unit.index + gridDim.x, num_units, parts);
}

template <int kHead>
__device__ void fill_queries(const AttentionArgs& args, const QuerySpan& span,
                             QueryRows<kHead>& rows) {
  const int head_size = static_cast<int>(args.kv.head_size);
  for (int row = threadIdx.x / 32; row < kTileQueries; row += blockDim.x / 32) {
    if (row >= span.num_queries) {
      fill_no_query<kHead>(rows, row);
      continue;
    }
    const float* q = args.q + span.head_row(row, args.num_heads) * head_size;
    const int position = span.position(row);
    fill_query<kHead>(rows, row, head_size, QuerySpan::first_seen(position, args.op.window),
                      position,
                      [&](int d) { return __ldcg(reinterpret_cast<const float2*>(q + d)); });
  }
}

// Merges the split's tiles into its partial outcomes. All threads, after a barrier.
template <int kHead>
__device__ void merge_split(const AttentionArgs& args, const Unit& unit,
                            SplitShared<kHead>& shared) {
  const int head_size = static_cast<int>(args.kv.head_size);
  const int split_key = unit.split * kSplitKeys;
  const int first_tile = max(0, (unit.first_seen - split_key) / kTileKeys);
  const int last_tile = min(kSplitTiles - 1, (unit.last_position - split_key) / kTileKeys);
  const auto partial = [&](int query) {
    const int64_t slot =
        unit.item.first_slot + unit.span.token_index(query) * unit.item.slots + unit.split;
    const int head = unit.span.first_head + query % unit.span.num_heads;
    return args.partials + (slot * args.num_heads + head) * (head_size + 2);
  };
  const int num_queries = unit.span.num_queries;
  if (threadIdx.x < num_queries) {
    float most = kNoKeys;
    float sum = 0.0f;
    for (int tile = first_tile; tile <= last_tile; ++tile) {
      const float* part = shared.parts[tile][threadIdx.x];
      const float2 factors = merge_factors(most, part[0]);
      most = fmaxf(most, part[0]);
      sum = merge_value(sum, part[1], factors);
      shared.factors[tile][threadIdx.x] = factors;
    }
    *reinterpret_cast<float2*>(partial(threadIdx.x)) = make_float2(most, sum);
  }
  __syncthreads();
  const int pairs = head_size / 2;
  for (int i = threadIdx.x; i < num_queries * pairs; i += blockDim.x) {
    const int query = i / pairs;
    const int d = i % pairs * 2;
    float2 value = make_float2(0.0f, 0.0f);
    for (int tile = first_tile; tile <= last_tile; ++tile) {
      const float2 part = *reinterpret_cast<const float2*>(&shared.parts[tile][query][2 + d]);
      const float2 factors = shared.factors[tile][query];
      value.x = merge_value(value.x, part.x, factors);
      value.y = merge_value(value.y, part.y, factors);
    }
    *reinterpret_cast<float2*>(partial(query) + 2 + d) = value;
  }
}

// Asks for a warp's first tile to be brought to L2.
template <int kHead>
__device__ void request_tile(const AttentionArgs& args, const Unit& unit, int first_key) {
  const PagedHead head(args.kv, unit.span.pages, unit.span.kv_head);
  const int lines = head.head_size / 4;  // of 128 bytes in a page of K or V of one head
  for (int page = 0; page < kTilePages; ++page) {
    if (first_key + page * kPageTokens > unit.last_position) break;
    const int64_t offset = head.pages[first_key / kPageTokens + page] * head.page_bytes;
    for (int i = threadIdx.x % 32; i < lines; i += 32) {
      request_line(head.k + offset + i * 128);
      request_line(head.v + offset + i * 128);
    }
  }
}

template <int kHead>
__global__ void __launch_bounds__(32 * kWarpsFor<kHead>)
    attention_split_kv(const __grid_constant__ AttentionArgs args) {
  constexpr int kWarps = kWarpsFor<kHead>;
  constexpr int kRounds = kSplitTiles / kWarps;
  extern __shared__ __align__(16) std::byte memory[];
  auto& shared = *reinterpret_cast<SplitShared<kHead>*>(memory);
  let_next_start();
  const int warp = threadIdx.x / 32;
  const int ratio = args.num_heads / static_cast<int>(args.kv.num_kv_heads);
  const int parts =
      static_cast<int>(args.kv.num_kv_heads) * ((ratio + kItemQueries - 1) / kItemQueries);
  const int num_units = *args.num_items * parts;
  const int head_size = static_cast<int>(args.kv.head_size);
  const uint32_t keys = shared_address(shared.keys[warp]);
  const uint32_t values = shared_address(shared.values[warp]);
  // Nothing of this is written by the chain of kernels that is waited for.
  Unit unit = find_unit(args, blockIdx.x, num_units, parts);
  const auto tile_of = [&](const Unit& u) { return u.round * kWarps + warp; };
  const auto key_of = [&](const Unit& u) { return u.split * kSplitKeys + tile_of(u) * kTileKeys; };
  if (unit.valid(num_units) && unit.has_tile(key_of(unit))) {
    request_tile<kHead>(args, unit, key_of(unit));
  }
  wait_for_previous();

  // Both close a group, also an empty one.
  const auto load_keys = [&](const Unit& u) {
    if (u.valid(num_units) && u.has_tile(key_of(u))) {
      load_keys_async<kHead, 32>(keys, PagedHead(args.kv, u.span.pages, u.span.kv_head), key_of(u),
                                 u.last_position + 1, threadIdx.x % 32);
    }
    commit_copies();
  };
  const auto load_values = [&](const Unit& u) {
    if (u.valid(num_units) && u.has_tile(key_of(u))) {
      load_values_async<kHead, 32>(values, PagedHead(args.kv, u.span.pages, u.span.kv_head),
                                   key_of(u), u.first_seen, u.last_position + 1, threadIdx.x % 32);
    }
    commit_copies();
  };
  load_keys(unit);
  load_values(unit);
  int filled = -1;  // part whose queries are in shared memory
  while (unit.valid(num_units)) {
    if (unit.index != filled) {
      __syncthreads();
      fill_queries(args, unit.span, shared.queries);
      filled = unit.index;
      __syncthreads();
    }
    const Unit next = next_unit(args, unit, num_units, parts, kRounds);
    const int first_key = key_of(unit);
    const bool has_tile = unit.has_tile(first_key);
    TileWeights weights;
    wait_for_copies<1>();
    __syncwarp();
    if (has_tile) {
      float scores[8][4];
      score_tile<kHead>(SharedQueries<kHead>(shared.queries), keys, scores);
      weigh_tile(scores, LaneQueries(shared.queries, args.op.scale), first_key, args.op, weights);
    }
    __syncwarp();
    load_keys(next);
    wait_for_copies<1>();
    __syncwarp();
    if (has_tile) {
      store_part<kHead>(weights, values, head_size, &shared.parts[tile_of(unit)][0][0],
                        SplitShared<kHead>::kPartStride, unit.span.num_queries);
    }
    __syncwarp();
    load_values(next);
    if (unit.round == kRounds - 1) {
      __syncthreads();
      merge_split<kHead>(args, unit, shared);
      __syncthreads();
    }
    unit = next;
  }
}

template <int kHead>
absl::Status LaunchForHead(const AttentionArgs& args, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(SplitShared<kHead>);
  static_assert(kBytes <= (size_t{227} << 10));
  // As many as are resident at once, each with a KB of the system's own.
  constexpr int kBlocksAMultiprocessor = static_cast<int>((size_t{228} << 10) / (kBytes + 1024));
  const int blocks = std::min(args.max_parts, kBlocksAMultiprocessor * args.num_multiprocessors);
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(blocks)),
                             .block = dim3(32 * kWarpsFor<kHead>),
                             .shared_bytes = kBytes};
  return ToStatus(Launch(stream, shape, attention_split_kv<kHead>, args), "attention_split_kv");
}

const KernelModule kModule(attention_split_kv<64>);

}  // namespace

absl::Status LaunchSplitKv(const AttentionArgs& args, cudaStream_t stream) {
  if (args.kv.head_size <= 64) return LaunchForHead<64>(args, stream);
  if (args.kv.head_size <= 80) return LaunchForHead<80>(args, stream);
  if (args.kv.head_size <= 96) return LaunchForHead<96>(args, stream);
  if (args.kv.head_size <= 128) return LaunchForHead<128>(args, stream);
  return LaunchForHead<256>(args, stream);
}

}  // namespace sluice::kernels::cuda
