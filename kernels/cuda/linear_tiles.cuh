#pragma once

// linear_tiles: the product of many tokens on Hopper cards, bound by the tensor cores. A block has
// 128 weight rows, 64 to a warpgroup, and 128 or 256 tokens. Every warp keeps a ring of bulk copies
// of its own 16 rows' weights going and makes f16 of the next step while the tensor cores have the
// present one. The two blocks of a cluster have the same tokens: each brings half of the operand
// rows to both. K slices one after the other, their sum in registers, or with 256 tokens in shared
// memory.
//
// Or, with 256 tokens, side by side: two or four pairs of blocks in a cluster have a slice each and
// leave their sums in shared memory, where each block adds those of its share of the tokens.
//
// Grid (pairs of blocks of rows times blocks of tokens, tokens first), clusters of two blocks, or
// two for every slice, 384 threads. Reads the weights once a block of tokens, from L2 all but the
// first time, and the operand rows once a cluster; writes whole sectors. H200, 2,048 tokens: BF16
// [37888 x 3584] as gate and up 604 TFLOP/s, [3584 x 18944] in four slices 510 (cuBLAS without
// slices 711-742); Q5_0 [9728 x 896] as gate and up 286, Q6_K [896 x 4864] 296.

#include "kernels/cuda/linear_wgmma.cuh"

namespace sluice::kernels::cuda {
namespace tiles {

// Two warpgroups that multiply, and one whose registers they get, of which a thread brings
// operands.
constexpr int kThreads = 384;

struct TilesMemory {
  std::byte* base;
  const LinearConfig& config;
  __device__ uint64_t* weights_full(int warp) const {
    return reinterpret_cast<uint64_t*>(base) + warp * kMaxStages;
  }
  __device__ uint64_t* x_full() const { return weights_full(8); }
  __device__ uint64_t* x_empty() const { return x_full() + kMaxStages; }
  // Of two items each.
  __device__ uint64_t* factors_full(int i) const { return x_empty() + kMaxStages + i; }
  __device__ uint64_t* factors_empty(int i) const { return factors_full(2 + i); }
  __device__ float* factors(int i) const {
    return reinterpret_cast<float*>(base + kTilesBarriers) + i * kMostTilesTokens;
  }
  __device__ std::byte* x() const { return base + kTilesHead; }
  __device__ std::byte* weights(int warp) const {
    return x() + config.x_stages * kTilesStageBytes + warp * config.ring_bytes;
  }
  __device__ void init() const {
    for (int i = 0; i < config.x_stages; ++i) {
      init_barrier(x_full() + i, 1);
      init_barrier(x_empty() + i, 16);  // warps of both blocks
    }
    for (int i = 0; i < 2; ++i) {
      init_barrier(factors_full(i), 32);
      init_barrier(factors_empty(i), 8);
    }
    fence_barriers();
  }
  // Where up and gate meet.
  __device__ std::byte* exchange() const { return weights(8); }
};

// What a pair of blocks works on: two blocks of rows, one of tokens.
struct TileItem {
  int token_block;
  int row_block;  // of this block
};
__device__ __forceinline__ TileItem item_at(const LinearConfig& config, int index, int rank) {
  return {index % config.grid_y, index / config.grid_y * 2 + rank};
}
// The task that a warp's rows are of, and the first of the tiles after it.
__device__ __forceinline__ int task_of(const LinearArgs& args, const LinearConfig& config,
                                       int row_block, int warp) {
  if (args.gated) return warp / 4;
  int index = 0;
  while (index + 1 < args.num_tasks && row_block >= config.tasks[index + 1].first_block) ++index;
  return index;
}
__device__ __forceinline__ int tile_of(const LinearArgs& args, const LinearConfig& config,
                                       int row_block, int warp, int task) {
  const LinearConfig::Task& plan = config.tasks[args.gated ? 0 : task];
  return (row_block - plan.first_block) * plan.tiles_a_block + (args.gated ? warp % 4 : warp);
}

// A warp's weights of one item after the other: those of the next are asked for while the tensor
// cores have the present one's.
struct ItemWeights : WeightRing {
  // Of lane 0: where the next item's are, or nothing; the slot that is asked for next, and how many
  // are free.
  const std::byte* next_from = nullptr;
  int into = 0;
  int free = 0;

  template <typename Unit>
  __device__ __forceinline__ void ask() {
    while (free > 0) {
      if (asked == end) {
        if (next_from == nullptr) return;
        from = next_from;
        next_from = nullptr;
        asked = 0;
      }
      request_next<Unit>(into);
      into = into + 1 == stages ? 0 : into + 1;
      --free;
    }
  }
  // An item begins, and this one comes after it.
  template <typename Unit>
  __device__ __forceinline__ void announce(const std::byte* units, int lane) {
    next_from = units;
    if (lane == 0) ask<Unit>();
    __syncwarp();
  }
  template <typename Unit>
  __device__ __forceinline__ void refill(int used, int lane) {
    __syncwarp();
    if (lane != 0) return;
    if (free == 0 && asked + shape_of<Unit>().units <= end) {
      request(shape_of<Unit>(), shape_of<Unit>().units, used);
    } else {
      if (free == 0) into = used;
      ++free;
      ask<Unit>();
    }
  }
};
// Where the weights begin that a warp multiplies; of rows that do not exist those of the last that
// do, whose products are not written. Nothing beyond the last item.
__device__ __forceinline__ const std::byte* weights_of(const LinearArgs& args,
                                                       const LinearConfig& config, int index,
                                                       int rank, int warp) {
  if (index >= config.grid_x / 2 * config.grid_y) return nullptr;
  const int row_block = item_at(config, index, rank).row_block;
  const int task = task_of(args, config, row_block, warp);
  const PackedView& w = args.tasks[task].weight;
  const StageShape shape = StageOf(w.type);
  const int tile = min(tile_of(args, config, row_block, warp, task), w.tiles - 1);
  return w.unit_data +
         UnitAt(static_cast<int64_t>(tile) * w.units, shape.unit_bytes, shape.super_bytes);
}

// By one warp: the tokens' powers of two, for the end of an item.
template <int kTokens>
__device__ void bring_factors(const LinearArgs& args, float* to, int token_block, int lane) {
  for (int i = lane; i < kTokens; i += 32) {
    const int token = token_block * kTokens + i;
    to[i] = token < args.num_tokens ? __ldcg(args.input.factors + token) : 0.0f;
  }
}

// By one thread: this block's half of operand rows' stages, to both blocks of a pair.
template <int kTokens>
struct OperandSource {
  static constexpr int kStageSteps = TilesStageSteps(kTokens);
  static constexpr int kHalf = kTokens * 16;  // bytes of half a step

  const std::byte* x;
  int64_t step_bytes;
  int rank;        // in the pair
  uint16_t ranks;  // of the pair's blocks in the cluster, a bit each
  int slot = 0;
  uint32_t parity = 1;

  __device__ void bring(const TilesMemory& memory, int token_block, int begin, int end) {
    const std::byte* from = x + begin * 4 * step_bytes + (2 * token_block + rank) * kHalf;
    for (int k = 0; k < (end - begin) * 4 / kStageSteps; ++k) {
      wait_for_phase(memory.x_empty() + slot, parity);
      uint64_t* full = memory.x_full() + slot;
      arrive_expecting(full, kTilesStageBytes);
      std::byte* to = memory.x() + slot * kTilesStageBytes + rank * kHalf;
#pragma unroll
      for (int step = 0; step < kStageSteps; ++step) {
        copy_bulk_to(to + step * 2 * kHalf, from, kHalf, full, ranks);
        from += step_bytes;
      }
      if (++slot == memory.config.x_stages) {
        slot = 0;
        parity ^= 1;
      }
    }
  }
};

// By one warp: asks that what an item's outcome is added to is in L2 when it is there.
template <int kTokens>
__device__ void request_old(const LinearArgs& args, const LinearConfig& config,
                            const TileItem& item, int lane) {
  const int task_index = task_of(args, config, item.row_block, 0);
  const LinearTask& task = args.tasks[task_index];
  const int first = tile_of(args, config, item.row_block, 0, task_index) * kTileRows;
  const int rows = min(kTilesRows * kTileRows, task.weight.rows - first);
  constexpr int kLineFloats = 32;
  constexpr int kLines = kTilesRows * kTileRows / kLineFloats;  // of a token
  for (int i = lane; i < kTokens * kLines; i += 32) {
    const int token = item.token_block * kTokens + i / kLines;
    const int n = i % kLines * kLineFloats;
    if (token >= args.num_tokens || n >= rows) continue;
    request_line(task.out + static_cast<int64_t>(token) * task.out_stride + first + n);
  }
}

template <int kSize>
__device__ __forceinline__ float4 four_of(const float (&acc)[kSize], int i) {
  return make_float4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3]);
}

// Keeps the compiler from loading everything first, which would not fit the registers.
__device__ __forceinline__ void few_at_a_time() { asm volatile("" ::: "memory"); }

// All slices of the warpgroup's rows, one after the other.
template <typename Unit, int kTokens>
__device__ __forceinline__ void multiply_slices(ItemWeights& weights, OperandRing& x,
                                                int slice_units, int lane,
                                                float (&acc)[kTokens / 2]) {
  constexpr int kSize = kTokens / 2;
  const int units = weights.end;
  const auto multiply = [&](int begin, int end) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) acc[i] = 0.0f;
    multiply_units<Unit, kTokens, true, TilesStageSteps(kTokens), true>(weights, x, begin, end,
                                                                        lane, acc);
    x.release_if<true>(true, lane);
  };
  if constexpr (kTokens == kMostTilesTokens) {
    multiply(0, units);  // there is one
  } else {
    float total[kSize];
#pragma unroll 1
    for (int begin = 0; begin < units; begin += slice_units) {
      multiply(begin, min(units, begin + slice_units));
#pragma unroll
      for (int i = 0; i < kSize; ++i) total[i] = begin > 0 ? __fadd_rn(total[i], acc[i]) : acc[i];
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) acc[i] = total[i];
  }
}

// Adds the slices, ascending, that the pairs of the cluster have multiplied, for the block's share
// of the tokens: `acc` is of slice `part` of them. `first`: there was none before.
template <int kSpread, int kSize>
__device__ __forceinline__ void add_slices(const TilesMemory& memory, int part, int rank,
                                           bool first, int count, const float (&acc)[kSize],
                                           float (&sum)[kSize / kSpread]) {
  constexpr int kEach = kSize / 4 / kSpread;
  float4* mine = reinterpret_cast<float4*>(memory.x()) + threadIdx.x;
  // All are through with the operand rows that lay there, and no more are on their way.
  asm volatile("bar.sync 1, 256;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kSize; i += 4) mine[i / 4 * 256] = four_of(acc, i);
  meet_cluster();
  const float4* share = mine + part * kEach * 256;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (i % 4 == 0) few_at_a_time();
    float4 total = make_float4(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]);
#pragma unroll
    for (int slice = 0; slice < kSpread; ++slice) {
      if (slice >= count) break;
      const float4 more = load_from_block(share + i * 256, 2 * slice + rank);
      total = first && slice == 0
                  ? more
                  : make_float4(__fadd_rn(total.x, more.x), __fadd_rn(total.y, more.y),
                                __fadd_rn(total.z, more.z), __fadd_rn(total.w, more.w));
    }
    sum[4 * i] = total.x;
    sum[4 * i + 1] = total.y;
    sum[4 * i + 2] = total.z;
    sum[4 * i + 3] = total.w;
  }
}

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
  constexpr int kAtOnce = kSize > 64 ? 16 : 32;
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
template <int kFirst, int kEnd, int kSize>
__device__ __forceinline__ void write(const LinearArgs& args, const LinearTask& task,
                                      const Place& place, const float (&acc)[kSize]) {
  if (!place.whole) {
    if (args.add_to_out) {
      write_all<false, true, kFirst, kEnd>(args, task, place, acc);
    } else {
      write_all<false, false, kFirst, kEnd>(args, task, place, acc);
    }
  } else if (args.add_to_out) {
    write_all<true, true, kFirst, kEnd>(args, task, place, acc);
  } else {
    write_all<true, false, kFirst, kEnd>(args, task, place, acc);
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
  if (warpgroup == 0) {
#pragma unroll
    for (int i = 0; i < kHalf; i += 4) {
      if (i % 16 == 0) few_at_a_time();
      const float4 gate = shared[i / 4 * 128];
      acc[i] = gated(args.activation, gate.x, acc[i]);
      acc[i + 1] = gated(args.activation, gate.y, acc[i + 1]);
      acc[i + 2] = gated(args.activation, gate.z, acc[i + 2]);
      acc[i + 3] = gated(args.activation, gate.w, acc[i + 3]);
    }
    write<0, kHalf>(args, args.tasks[0], place, acc);
  } else {
#pragma unroll
    for (int i = kHalf; i < kSize; i += 4) {
      if (i % 16 == 0) few_at_a_time();
      const float4 up = shared[i / 4 * 128];
      acc[i] = gated(args.activation, acc[i], up.x);
      acc[i + 1] = gated(args.activation, acc[i + 1], up.y);
      acc[i + 2] = gated(args.activation, acc[i + 2], up.z);
      acc[i + 3] = gated(args.activation, acc[i + 3], up.w);
    }
    write<kHalf, kSize>(args, args.tasks[0], place, acc);
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

// Pairs of blocks that go from item to item.
template <typename Unit, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    linear_tiles(const __grid_constant__ LinearArgs args,
                 const __grid_constant__ LinearConfig config) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) std::byte bytes[];
  const TilesMemory memory = {bytes, config};
  let_next_start();
  const int rank = blockIdx.x % 2;
  const int warp = threadIdx.x / 32;
  const int warpgroup = warp / 4;
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));  // not read from its special register at every turn
  const int items = config.grid_x / 2 * config.grid_y;
  const int stride = config.blocks / 2;
  const int first_item = blockIdx.x / 2;
  if (threadIdx.x == 256) memory.init();
  ItemWeights weights;
  if (warp < 8) {
    weights.memory = memory.weights(warp);
    weights.full = memory.weights_full(warp);
    weights.stages = min(kMaxStages, config.ring_bytes / WeightRing::shape_of<Unit>().bytes());
    weights.init(lane);
    weights.active = true;
    weights.end = weights.asked = args.input.units;
    weights.free = weights.stages;
    weights.announce<Unit>(weights_of(args, config, first_item, rank, warp), lane);
  }
  __syncwarp();
  meet_cluster();
  wait_for_previous();
  if (warpgroup == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp == 9) {
      int turn = 0;
      for (int item = first_item; item < items; item += stride, ++turn) {
        wait_for_phase(memory.factors_empty(turn % 2), (turn / 2 & 1) ^ 1);
        const TileItem next = item_at(config, item, rank);
        bring_factors<kTokens>(args, memory.factors(turn % 2), next.token_block, lane);
        arrive_if(true, memory.factors_full(turn % 2));
        if (args.add_to_out) request_old<kTokens>(args, config, next, lane);
      }
    } else if (threadIdx.x == 256) {
      OperandSource<kTokens> source;
      source.x = reinterpret_cast<const std::byte*>(args.input.x);
      source.step_bytes = static_cast<int64_t>(args.input.groups) * 256;
      source.rank = rank;
      source.ranks = 3;
      for (int item = first_item; item < items; item += stride) {
        source.bring(memory, item_at(config, item, rank).token_block, 0, args.input.units);
      }
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    OperandRing x;
    x.memory = memory.x();
    x.full = memory.x_full();
    x.empty = memory.x_empty();
    x.stages = config.x_stages;
    int turn = 0;
#pragma unroll 1
    for (int index = first_item; index < items; index += stride, ++turn) {
      weights.announce<Unit>(weights_of(args, config, index + stride, rank, warp), lane);
      const TileItem item = item_at(config, index, rank);
      const int task_index = task_of(args, config, item.row_block, warp);
      const LinearTask& task = args.tasks[task_index];
      float acc[kTokens / 2];
      multiply_slices<Unit, kTokens>(
          weights, x,
          config.whole_k ? args.input.units : SliceUnits(task.weight.tiles, args.input.units), lane,
          acc);
      const int tile = tile_of(args, config, item.row_block, warp, task_index);
      const Place place = place_of<kTokens>(args, task, tile, item.token_block, lane, 0);
      wait_for_phase(memory.factors_full(turn % 2), turn / 2 & 1);
      finish(task, place, memory.factors(turn % 2), acc);
      __syncwarp();
      arrive_if(lane == 0, memory.factors_empty(turn % 2));
      if (args.gated) {
        write_gated(args, place, memory.exchange(), warpgroup, acc);
      } else {
        write<0, kTokens / 2>(args, task, place, acc);
      }
    }
    __syncwarp();
  }
  // The other block's copies and arrivals come here until it is done.
  meet_cluster();
#endif
}

// kSpread pairs of blocks in a cluster, each of which has a slice of K at a time, for one item.
template <typename Unit, int kTokens, int kSpread>
__global__ void __launch_bounds__(kThreads, 1)
    linear_tiles_spread(const __grid_constant__ LinearArgs args,
                        const __grid_constant__ LinearConfig config) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) std::byte bytes[];
  const TilesMemory memory = {bytes, config};
  let_next_start();
  const int rank = blockIdx.x % 2;
  const int part = blockIdx.x % (2 * kSpread) / 2;
  const TileItem item = item_at(config, blockIdx.x / (2 * kSpread), rank);
  const int warp = threadIdx.x / 32;
  const int warpgroup = warp / 4;
  const int lane = threadIdx.x % 32;
  const int index = task_of(args, config, item.row_block, min(warp, 7));
  const LinearTask& task = args.tasks[index];
  const int tile = tile_of(args, config, item.row_block, warp, index);
  const int units = args.input.units;
  const int slice_units = SliceUnits(task.weight.tiles, units);
  if (threadIdx.x == 256) memory.init();
  WeightRing weights;
  if (warp < 8) {
    weights.memory = memory.weights(warp);
    weights.full = memory.weights_full(warp);
    weights.stages = min(kMaxStages, config.ring_bytes / WeightRing::shape_of<Unit>().bytes());
    weights.tile = tile;
    weights.active = tile < task.weight.tiles;
    weights.init(lane);
    weights.start(task.weight, min(units, part * slice_units), min(units, (part + 1) * slice_units),
                  lane);
  }
  __syncwarp();
  meet_cluster();
  wait_for_previous();
  if (warpgroup == 2) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp == 9) {
      bring_factors<kTokens>(args, memory.factors(0), item.token_block, lane);
      arrive_if(true, memory.factors_full(0));
    }
    if (warp == 10 && args.add_to_out && part == 0) {
      request_old<kTokens>(args, config, item, lane);
      __syncwarp();
    }
    OperandSource<kTokens> source;
    source.x = reinterpret_cast<const std::byte*>(args.input.x);
    source.step_bytes = static_cast<int64_t>(args.input.groups) * 256;
    source.rank = rank;
    source.ranks = static_cast<uint16_t>(3 << 2 * part);
    for (int first = 0; first < units; first += kSpread * slice_units) {
      const int begin = min(units, first + part * slice_units);
      if (threadIdx.x == 256) {
        source.bring(memory, item.token_block, begin, min(units, begin + slice_units));
      }
      __syncwarp();
      // As those that multiply.
      meet_cluster();
      if (first + kSpread * slice_units < units) meet_cluster();
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    float acc[kTokens / 2];
    OperandRing x;
    x.memory = memory.x();
    x.full = memory.x_full();
    x.empty = memory.x_empty();
    x.stages = config.x_stages;
    x.first_rank = 2 * part;
    float sum[kTokens / 2 / kSpread];
    for (int first = 0; first < units; first += kSpread * slice_units) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) acc[i] = 0.0f;
      multiply_units<Unit, kTokens, true, TilesStageSteps(kTokens), true>(weights, x, weights.begin,
                                                                          weights.end, lane, acc);
      x.release_if<true>(weights.begin < weights.end, lane);
      const int next = first + kSpread * slice_units;
      if (next < units) {
        const int begin = min(units, next + part * slice_units);
        weights.start(task.weight, begin, min(units, begin + slice_units), lane);
      }
      const int count = (min(units, next) - first + slice_units - 1) / slice_units;
      add_slices<kSpread>(memory, part, rank, first == 0, count, acc, sum);
      if (next < units) {
        // Copies come to where the sums were.
        asm volatile("fence.proxy.async;" ::: "memory");
        meet_cluster();
      }
    }
    const Place place =
        place_of<kTokens>(args, task, tile, item.token_block, lane, part * (kTokens / kSpread));
    wait_for_phase(memory.factors_full(0), 0);
    finish(task, place, memory.factors(0), sum);
    if (args.gated) {
      // Where weights were: what there is of `exchange` beyond them is too little.
      write_gated(args, place, memory.weights(0), warpgroup, sum);
    } else {
      write<0, kTokens / 2 / kSpread>(args, task, place, sum);
    }
    __syncwarp();
  }
  // The other blocks' copies, arrivals and loads come here until they are done.
  meet_cluster();
#endif
}

template <typename Kernel>
cudaError_t RunKernel(const Kernel& kernel, const LinearArgs& args, const LinearConfig& config,
                      cudaStream_t stream) {
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(config.blocks)),
                             .block = dim3(kThreads),
                             .shared_bytes = static_cast<size_t>(config.shared_bytes),
                             .cluster = static_cast<unsigned>(config.cluster)};
  return Launch(stream, shape, kernel, args, config);
}

template <typename Unit>
cudaError_t Run(const LinearArgs& args, const LinearConfig& config, cudaStream_t stream) {
  if (config.tokens == 128) return RunKernel(linear_tiles<Unit, 128>, args, config, stream);
  switch (config.cluster) {
    case 8:
      return RunKernel(linear_tiles_spread<Unit, 256, 4>, args, config, stream);
    case 4:
      return RunKernel(linear_tiles_spread<Unit, 256, 2>, args, config, stream);
    default:
      return RunKernel(linear_tiles<Unit, 256>, args, config, stream);
  }
}

}  // namespace tiles
}  // namespace sluice::kernels::cuda
