// attention_prompt: prompts on Hopper cards. A block has 64 or 128 queries of one KV head of one
// row, 64 to a warpgroup, all over the same tiles of 64 keys, which the halves of a warpgroup of
// its own bring in turns (FlashAttention-3, arXiv 2407.08608): the softmax of one warpgroup runs
// beside the products of the other. Scores and outcome are wgmma steps in the order of
// attention_tile.cuh, so that the bits are those of attention_ragged and of decode.
//
// Grid blocks of queries x KV heads, longest first. Shared memory: three tiles of K and V, 64
// queries in two f16 and the outcome of their splits so far for each warpgroup.
// Figures: docs/performance.md.

#include "kernels/cuda/attention_block.cuh"
#include "kernels/cuda/device.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/kernel_module.h"

namespace sluice::kernels::cuda {
namespace {

constexpr int kGroupQueries = 64;
constexpr int kStages = 3;
constexpr int kBringers = 64;      // threads that bring a tile
constexpr int kMatrixBytes = 128;  // of a core matrix: 8 rows of 16 bytes

// Operands of wgmma without swizzle. Queries: [d / 8][8 groups of rows][8 rows][8 d]. Keys: [d / 8]
// [8 groups of keys][8 d][8 keys], values: [8 groups of keys][d / 8][8 keys][8 d], both with what
// is a column of the product side by side.
template <int kHead>
struct PromptShared {
  static constexpr int kBlocks = kHead / 8;
  struct Tile {
    uint4 keys[kTileKeys * kHead / 8];
    uint4 values[kTileKeys * kHead / 8];
  };
  struct Group {
    uint4 high[kGroupQueries * kHead / 8];
    uint4 low[kGroupQueries * kHead / 8];
    WarpTotal<kHead> totals[4];
    QueryFacts facts[4];
  };
};
template <int kHead, int kGroups>
struct BlockShared {
  typename PromptShared<kHead>::Tile tiles[kStages];
  typename PromptShared<kHead>::Group groups[kGroups];
  uint64_t full[kStages];   // arrivals of those that bring it
  uint64_t empty[kStages];  // of every warp that multiplies
};

// Where the queries of a warp of the group go.
template <int kHead>
struct PromptRows {
  typename PromptShared<kHead>::Group& group;
  int warp;

  __device__ QueryFacts& facts() const { return group.facts[warp]; }
  __device__ void store(int row, int d, __half2 high, __half2 low) const {
    const int q = warp * kTileQueries + row;
    const int at = (d / 8 * 8 + q / 8) * kMatrixBytes + q % 8 * 16 + d % 8 * 2;
    *reinterpret_cast<__half2*>(reinterpret_cast<std::byte*>(group.high) + at) = high;
    *reinterpret_cast<__half2*>(reinterpret_cast<std::byte*>(group.low) + at) = low;
  }
};

// By kBringers threads: a tile's keys and values. As load_keys_async and load_values_async, for the
// layout above.
template <int kHead>
struct TileRequest {
  static constexpr int kBlocks = PromptShared<kHead>::kBlocks;
  static constexpr int kPageChunks = 2 * kHead;
  static_assert(kPageChunks % kBringers == 0);
  int first_key;
  int64_t offsets[kTilePages];  // of its pages, 0 where there is none

  __device__ __forceinline__ TileRequest(const PagedHead& head, int tile, int end)
      : first_key(tile * kTileKeys) {
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) {
      offsets[page] = first_key + page * kPageTokens < end
                          ? head.pages[first_key / kPageTokens + page] * head.page_bytes
                          : 0;
    }
  }
  __device__ __forceinline__ void ask(typename PromptShared<kHead>::Tile& tile,
                                      const PagedHead& head, int begin, int end, int thread) const {
    const uint32_t keys = shared_address(tile.keys);
    const uint32_t values = shared_address(tile.values);
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) {
      const bool present = first_key + page * kPageTokens < end;
#pragma unroll
      for (int chunk = thread; chunk < kPageChunks; chunk += kBringers) {
        const int d = chunk / 2;
        const int to = (d / 8 * 8 + page * 2 + chunk % 2) * kMatrixBytes + d % 8 * 16;
        copy_async(keys + to, head.k + offsets[page] + chunk * 16, present && d < head.head_size);
      }
    }
    // Eight lanes have the eight rows of a core matrix, so that they write to different banks.
#pragma unroll
    for (int page = 0; page < kTilePages; ++page) {
#pragma unroll
      for (int chunk = thread; chunk < kPageChunks; chunk += kBringers) {
        const int slot = chunk / kHead * 8 + chunk % 8;
        const int block = chunk / 8 % kBlocks;
        const int key = page * kPageTokens + slot;
        copy_async(values + (key / 8 * kBlocks + block) * kMatrixBytes + key % 8 * 16,
                   head.v + offsets[page] + (slot * head.head_size + block * 8) * 2,
                   first_key + key < end && first_key + key >= begin && block * 8 < head.head_size);
      }
    }
  }
};

template <int kSize>
__device__ __forceinline__ float (&flat(float (&x)[kSize][4]))[kSize * 4] {
  return *reinterpret_cast<float(*)[kSize * 4]>(&x);
}

// Asks for scores = the warpgroup's 64 queries by the tile's keys.
template <int kHead>
__device__ __forceinline__ void ask_for_scores(const typename PromptShared<kHead>::Group& group,
                                               const typename PromptShared<kHead>::Tile& tile,
                                               float (&scores)[8][4]) {
  constexpr int kStepBytes = 2 * 8 * kMatrixBytes;
  const uint32_t high = operand_descriptor_low(group.high, 8 * kMatrixBytes);
  const uint32_t low = operand_descriptor_low(group.low, 8 * kMatrixBytes);
  const uint32_t keys = operand_descriptor_low(tile.keys, 8 * kMatrixBytes);
  keep_in_registers(flat(scores));
  wgmma_fence();
  const auto step = [&]<bool kFirst>(int index) {
    const int at = index * (kStepBytes >> 4);
    const uint64_t b = operand_descriptor(keys + at, kMatrixBytes);
    wgmma_shared<kFirst>(flat(scores), operand_descriptor(high + at, kMatrixBytes), b);
    wgmma_shared<false>(flat(scores), operand_descriptor(low + at, kMatrixBytes), b);
  };
  step.template operator()<true>(0);
#pragma unroll
  for (int index = 1; index < kHead / 16; ++index) step.template operator()<false>(index);
  wgmma_commit();
}

// Asks for part = the warpgroup's weights by the tile's values.
template <int kHead>
__device__ __forceinline__ void ask_for_values(TileWeights& weights,
                                               const typename PromptShared<kHead>::Tile& tile,
                                               float (&part)[kHead / 8][4]) {
  constexpr int kBlockBytes = PromptShared<kHead>::kBlocks * kMatrixBytes;  // of eight keys
  const uint32_t values = operand_descriptor_low(tile.values, kBlockBytes);
#pragma unroll
  for (int n = 0; n < kHead / 8; ++n) clear(part[n]);
  keep_in_registers(flat(part));
#pragma unroll
  for (int step = 0; step < kTilePages; ++step) {
    wgmma_fence(weights.high[step]);
    wgmma_fence(weights.low[step]);
  }
#pragma unroll
  for (int step = 0; step < kTilePages; ++step) {
    const uint64_t b = operand_descriptor(values + step * (2 * kBlockBytes >> 4), kMatrixBytes);
    wgmma_columns(flat(part), weights.high[step], b);
    wgmma_columns(flat(part), weights.low[step], b);
  }
  wgmma_commit();
}

// Two warpgroups ask for products in turns, so that one makes weights while the tensor cores have
// the other's; left alone they come to do the same at the same time. Each has as many turns.
template <int kGroups>
struct Turns {
  int group;

  __device__ static void arrive(int at) {
    asm volatile("bar.arrive %0, 256;" ::"r"(3 + at) : "memory");
  }
  __device__ void begin() const {
    if constexpr (kGroups == 2) {
      if (group == 1) arrive(0);
    }
  }
  __device__ void take() const {
    if constexpr (kGroups == 2) asm volatile("bar.sync %0, 256;" ::"r"(3 + group) : "memory");
  }
  // `last`: of the warpgroup's turns.
  __device__ void give(bool last) const {
    if constexpr (kGroups == 2) {
      if (group == 0 || !last) arrive(1 - group);
    }
  }
};

// A warpgroup's way through the tiles.
struct TileRing {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void move() {
    slot = __shfl_sync(~0u, slot + 1 == kStages ? 0 : slot + 1, 0);
    parity ^= slot == 0 ? 1 : 0;
  }
};

template <int kHead, int kGroups>
__global__ void __launch_bounds__(128 * (kGroups + 1), kHead <= 64 ? 2 : 1)
    attention_prompt(const __grid_constant__ AttentionArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) std::byte memory[];
  auto& shared = *reinterpret_cast<BlockShared<kHead, kGroups>*>(memory);
  let_next_start();
  const int num_kv_heads = static_cast<int>(args.kv.num_kv_heads);
  const AttentionBlock block = args.blocks[blockIdx.x / num_kv_heads];
  const int kv_head = blockIdx.x % num_kv_heads;
  const QuerySpan whole = span_of_block(args, block, kv_head, 0, kGroupQueries * kGroups);
  const int last_position = whole.last_position();
  const int first_seen = QuerySpan::first_seen(whole.position(0), args.op.window);
  const int first_tile = first_seen / kTileKeys;
  const int last_tile = last_position / kTileKeys;
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);  // known to be the same in a warp
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      init_barrier(shared.full + i, kBringers);
      init_barrier(shared.empty + i, 4 * kGroups);
    }
    fence_barriers();
  }
  __syncthreads();
  wait_for_previous();
  if (group == kGroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    // Its two halves bring a tile each in turns, so that one is on its way while the other is
    // waited for.
    const PagedHead head(args.kv, whole.pages, kv_head);
    const int half = threadIdx.x % 128 / kBringers;
    const int end = last_position + 1;
    for (int i = half, tile = first_tile + half; tile <= last_tile; i += 2, tile += 2) {
      const TileRequest<kHead> request(head, tile, end);
      const int slot = i % kStages;
      wait_for_phase(shared.empty + slot, (i / kStages & 1) ^ 1);
      request.ask(shared.tiles[slot], head, first_seen, end, threadIdx.x % kBringers);
      commit_copies();
      wait_for_copies<0>();
      fence_copies();
      arrive_if(true, shared.full + slot);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kHead <= 64 ? 208 : 232));
    auto& own = shared.groups[group];
    const int warp = threadIdx.x / 32 % 4;
    const int begin = group * kGroupQueries;
    const QuerySpan span =
        span_of_block(args, block, kv_head, begin + warp * kTileQueries, kTileQueries);
    const QuerySpan queries = span_of_block(args, block, kv_head, begin, kGroupQueries);
    fill_queries<kHead>(args, span, PromptRows<kHead>{own, warp});
    fence_copies();
    // The warpgroup's queries are there for its tensor cores.
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
    const LaneQueries lane_queries(own.facts[warp], args.op.scale);
    // Tiles that the warpgroup sees; none without queries of its own.
    const int own_first = QuerySpan::first_seen(queries.position(0), args.op.window) / kTileKeys;
    const int own_last = queries.num_queries > 0 ? queries.last_position() / kTileKeys : -1;
    TileRing ring;
    const auto give_back = [&] {
      __syncwarp();
      arrive_if(threadIdx.x % 32 == 0, shared.empty + ring.slot);
      ring.move();
    };
    WarpState<kHead> state;
    float scores[8][4] = {};
    const Turns<kGroups> turns = {group};
    turns.begin();
    int tile = first_tile;
    const auto pass = [&] {
      turns.take();
      turns.give(tile == last_tile);
      wait_for_phase(shared.full + ring.slot, ring.parity);
      give_back();
    };
    for (; tile < own_first && tile <= last_tile; ++tile) pass();
    if (tile <= own_last) {
      wait_for_phase(shared.full + ring.slot, ring.parity);
      ask_for_scores<kHead>(own, shared.tiles[ring.slot], scores);
      wgmma_wait<0>();
    }
    for (; tile <= own_last; ++tile) {
      keep_in_registers(flat(scores));
      const int first_key = tile * kTileKeys;
      TileWeights weights;
      weigh_tile(scores, lane_queries, first_key, args.op, weights);
      const auto factors = state.add_weights(weights);
      const bool seen = __any_sync(~0u, weights.most[0] != kNoKeys || weights.most[1] != kNoKeys);
      // The last has none after it: its own are multiplied once more, for nothing.
      TileRing after = ring;
      if (tile < own_last) after.move();
      wait_for_phase(shared.full + after.slot, after.parity);
      float part[kHead / 8][4];
      turns.take();
      ask_for_values<kHead>(weights, shared.tiles[ring.slot], part);
      ask_for_scores<kHead>(own, shared.tiles[after.slot], scores);
      turns.give(tile == last_tile);
      wgmma_wait<1>();
#pragma unroll
      for (int step = 0; step < kTilePages; ++step) {
        keep_until_here(weights.high[step]);
        keep_until_here(weights.low[step]);
      }
      keep_in_registers(flat(part));
      // A warp that sees nothing of the tile takes nothing of it, whatever values it has.
      if (seen) {
#pragma unroll
        for (int n = 0; n < kHead / 8; ++n) state.add_column(n, part[n], factors);
      }
      wgmma_wait<0>();
      if ((first_key + kTileKeys) % kSplitKeys == 0 || tile == own_last) {
        state.flush(own.totals[warp]);
      }
      give_back();
    }
    for (; tile <= last_tile; ++tile) pass();
    store_outcome(args, span, state, own.totals[warp]);
  }
#endif
}

template <int kHead, int kGroups>
absl::Status LaunchForHead(const AttentionArgs& args, cudaStream_t stream) {
  constexpr size_t kBytes = sizeof(BlockShared<kHead, kGroups>);
  static_assert(kBytes <= (size_t{227} << 10));
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(args.num_blocks * args.kv.num_kv_heads)),
      .block = dim3(128 * (kGroups + 1)),
      .shared_bytes = kBytes};
  return ToStatus(Launch(stream, shape, attention_prompt<kHead, kGroups>, args),
                  "attention_prompt");
}

const KernelModule kModule(attention_prompt<64, 1>);

}  // namespace

bool HasPromptKernel(const AttentionArgs& args) {
  const int64_t head_size = args.kv.head_size;
  return args.has_wgmma &&
         (head_size <= 64 || (head_size > 96 && head_size <= 128 && args.block_queries == 128));
}

absl::Status LaunchPrompt(const AttentionArgs& args, cudaStream_t stream) {
  return args.kv.head_size <= 64 ? LaunchForHead<64, 1>(args, stream)
                                 : LaunchForHead<128, 2>(args, stream);
}

}  // namespace sluice::kernels::cuda
