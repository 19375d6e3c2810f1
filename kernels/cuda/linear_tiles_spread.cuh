#pragma once

// linear_tiles_spread: the product of many tokens on Hopper cards where K is cut into slices and
// tiles are few. Two or four pairs of blocks in a cluster have a slice each of 256 rows by 256
// tokens, as often as there are more, and leave their sums in shared memory, where each block adds
// those of its share of the tokens, ascending, over the sum of the slices before.
//
// Grid (pairs of blocks of rows times blocks of tokens, tokens first) in clusters of four or eight
// blocks, 384 threads. Memory traffic as linear_tiles, and 128 KiB a block through the cluster's
// shared memory for each slice. Figures: docs/performance.md.

#include "kernels/cuda/linear_tiles_outcome.cuh"

namespace sluice::kernels::cuda {
namespace tiles {

// Adds the slices, ascending, that the pairs of the cluster have multiplied, for the block's share
// of the tokens, to what `sum` has of the slices before; `first`: there were none. `acc` is of the
// block's own slice; the first `count` pairs have one.
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

// What the outcome is added to is asked for so many units before the end, about 10 us: sooner, what
// is read meanwhile could take its place in L2.
constexpr int kNearEnd = 12;

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
  const TileItem item = item_at(config, config.first_item + blockIdx.x / (2 * kSpread), rank);
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
    OperandSource<kTokens> source;
    source.x = reinterpret_cast<const std::byte*>(args.input.x);
    source.step_bytes = static_cast<int64_t>(args.input.groups) * 256;
    source.rank = rank;
    source.ranks = static_cast<uint16_t>(3 << 2 * part);
    for (int first = 0; first < units; first += kSpread * slice_units) {
      const int begin = min(units, first + part * slice_units);
      const int end = min(units, begin + slice_units);
      const bool last = first + kSpread * slice_units >= units;
      if (threadIdx.x == 256) {
        const int near = last ? max(begin, end - kNearEnd) : end;
        source.bring(memory, item.token_block, begin, near);
        if (last) arrive_if(true, memory.near_end());
        source.bring(memory, item.token_block, near, end);
      }
      if (warp == 10 && args.add_to_out && part == 0 && last) {
        wait_for_phase(memory.near_end(), 0);
        request_old<kTokens>(args, config, item, lane);
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
      write<0, kTokens / 2 / kSpread, true>(args, task, place, sum);
    }
    __syncwarp();
  }
  // The other blocks' copies, arrivals and loads come here until they are done.
  meet_cluster();
#endif
}

}  // namespace tiles
}  // namespace sluice::kernels::cuda
