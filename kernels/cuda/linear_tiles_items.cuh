#pragma once

// What the blocks of linear_tiles and linear_tiles_spread work on, and how weights, operand rows,
// factors and what the outcome is added to come to their shared memory.

#include "kernels/cuda/linear_wgmma.cuh"

namespace sluice::kernels::cuda {
namespace tiles {

// Two warpgroups that multiply, and one whose registers they get, which brings them what they need
// beside weights.
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
  // What is added to.
  __device__ uint64_t* old_full() const { return factors_full(4); }
  __device__ uint64_t* old_empty() const { return factors_full(5); }
  __device__ float* old() const { return reinterpret_cast<float*>(exchange()); }
  // linear_tiles_spread: all but the last operand rows are asked for.
  __device__ uint64_t* near_end() const { return factors_full(6); }
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
      init_barrier(factors_empty(i), 256);
    }
    init_barrier(old_full(), 32);
    init_barrier(old_empty(), 256);
    init_barrier(near_end(), 1);
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
// The task that the rows are of which a warp of the block multiplies, and their tile in it.
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
template <int kTokens>
struct ItemWeights : WeightRing {
  static constexpr bool kElected = kElects<kTokens>;
  // Of the lanes that ask: where the next item's are, or nothing; the slot that is asked for next,
  // and how many are free.
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
      request_next<Unit, kElected>(into);
      into = into + 1 == stages ? 0 : into + 1;
      --free;
    }
  }
  // An item begins, and this one comes after it.
  template <typename Unit>
  __device__ __forceinline__ void announce(const std::byte* units, int lane) {
    next_from = units;
    if (kElected || lane == 0) ask<Unit>();
    __syncwarp();
  }
  template <typename Unit>
  __device__ __forceinline__ void refill(int used, int lane) {
    constexpr StageShape kShape = shape_of<Unit>();
    __syncwarp();
    if (!kElected && lane != 0) return;
    if (free == 0 && asked + kShape.units <= end) {
      request<kElected>(kShape, kShape.units, used);
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
  if (index >= config.end_item) return nullptr;
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

// By one thread, or by a warp where kElects: this block's half of operand rows' stages, to both
// blocks of a pair.
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
      std::byte* to = memory.x() + slot * kTilesStageBytes + rank * kHalf;
      if (!kElects<kTokens> || elect_lane()) {
        arrive_expecting(full, kTilesStageBytes);
#pragma unroll
        for (int step = 0; step < kStageSteps; ++step) {
          copy_bulk_to(to + step * 2 * kHalf, from + step * step_bytes, kHalf, full, ranks);
        }
      }
      from += kStageSteps * step_bytes;
      if (++slot == memory.config.x_stages) {
        slot = 0;
        parity ^= 1;
      }
    }
  }
};

// By one warp: brings what the outcome of an item of 128 tokens is added to, a token's rows a copy.
__device__ inline void bring_old(const LinearArgs& args, const LinearConfig& config,
                                 const TileItem& item, const TilesMemory& memory, int lane) {
  constexpr int kRows = kTilesRows * kTileRows;
  const int task_index = task_of(args, config, item.row_block, 0);
  const LinearTask& task = args.tasks[task_index];
  const int first = tile_of(args, config, item.row_block, 0, task_index) * kTileRows;
  const int rows = max(0, min(kRows, task.weight.rows - first));
  const int first_token = item.token_block * 128;
  const int tokens = min(128, args.num_tokens - first_token);
  const float* from = task.out + static_cast<int64_t>(first_token) * task.out_stride + first;
  float* to = memory.old();
  if (rows % 4 == 0 && task.out_stride % 4 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    arrive_expecting(memory.old_full(), (tokens - lane + 31) / 32 * rows * 4);
    for (int token = lane; token < tokens && rows > 0; token += 32) {
      copy_bulk(to + token * kTilesOldStride, from + static_cast<int64_t>(token) * task.out_stride,
                rows * 4, memory.old_full());
    }
  } else {
    for (int i = lane; i < tokens * kRows; i += 32) {
      const int token = i / kRows;
      const int n = i % kRows;
      if (n >= rows) continue;
      to[token * kTilesOldStride + n] =
          __ldcg(from + static_cast<int64_t>(token) * task.out_stride + n);
    }
    arrive_if(true, memory.old_full());
  }
}

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

}  // namespace tiles
}  // namespace sluice::kernels::cuda
